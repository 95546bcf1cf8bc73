"""How a vocabulary of words cuts the texts of benchmarks into pieces (host)."""

import re
from collections.abc import Iterable

# A word with the space before it; hyphens and apostrophes inside it and digits at its end belong to it ("the-hub1").
_WORD = re.compile(r" ?[A-Za-z]+(?:[-'][A-Za-z]+)*[0-9]*")


def cut(texts: Iterable[str]) -> list[str]:
    """The words of texts as they stand there, with the space before them if there is one; each once, in their order.

    Numbers and marks are not among them: a vocabulary has these for all benchmarks (benchmarks/vocabulary.py).
    """
    return list(dict.fromkeys(word for text in texts for word in _WORD.findall(text)))
