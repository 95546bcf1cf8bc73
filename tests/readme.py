"""The programs that stand in the README, as they stand there."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def program(mark: str) -> str:
    """The one Python program that has these words."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (found,) = (block for block in blocks if mark in block)
    return found
