"""The deterministic embedder of the recorders and of the twins: a bag of words, numpy alone.

A text's vector is the sum of one fixed vector a word, so texts that share words are alike, and two texts tie only where
their bags of words are the same.
"""

import functools
import hashlib
import re

import numpy as np

DIM = 64


def words(text: str) -> list[str]:
    """Runs of letters, digits and apostrophes, in lower case."""
    return re.findall(r"[a-z0-9']+", text.lower())


@functools.cache
def word_vector(word: str) -> np.ndarray:
    """`[DIM]` float64, half-integers from -127.5 to 127.5: the same on every machine."""
    return np.frombuffer(hashlib.shake_128(word.encode()).digest(DIM), np.int8) + 0.5


def embed(text: str) -> np.ndarray:
    """`[DIM]` float32 of unit length; a text without words has the vector of the empty word."""
    total = sum(word_vector(word) for word in words(text) or [""])
    return (total / np.linalg.norm(total)).astype(np.float32)
