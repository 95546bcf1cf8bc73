"""Text games for the bridge to the host: one in plain Python, and worker programs that fail in every way."""

from pathlib import Path

from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.envs.host import Reply

WORKER = Path(__file__).parent / "text_worker.py"


def byte_tokenizer() -> Tokenizer:
    """One token a byte; token 0 has no text."""
    pieces = (None, *(bytes([i]) for i in range(256)))
    encode = lambda text: [1 + byte for byte in text.encode()]  # noqa: E731
    return Tokenizer(encode, encode, None, pieces, {}, 0, "", None, None, True, "")


class Corridor:
    """Rooms 0 to 4 in a row; the goal is room `index` modulo 5, and falling off the end loses."""

    def __init__(self, fresh: bool = False):
        self.is_closed = False

    def start(self, index: int) -> str:
        self.goal, self.at, self.begun = index % 5, 2, index
        return f"Go to room {self.goal}. You are in room 2."

    def step(self, action: str) -> Reply:
        if action == "crash":
            raise RuntimeError("the game crashed")
        if action == "exit":
            raise SystemExit(3)
        move = {"left": -1, "right": 1}.get(action)
        if move is None:
            return Reply(f"You cannot {action}.", 0.0, False, False, False, False)
        self.at += move
        if not 0 <= self.at < 5:
            return Reply("You fall.", float("nan"), False, True, False, True)
        won = self.at == self.goal
        near = 1 - abs(self.at - self.goal) / 5
        return Reply(f"You are in room {self.at}.", near, won, won, False, True)

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True
