"""Texts as runs of words, hashed: what near duplicates and benchmark overlap are measured by."""

import re
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from jaxtyping import UInt64

# Chinese and Japanese do not put spaces between words: each character counts as one.
_IDEOGRAPH = r"\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_IDEOGRAPH}]|[^\W{_IDEOGRAPH}]+")
_WORD_OR_SIGN = re.compile(rf"[{_IDEOGRAPH}]|[^\W{_IDEOGRAPH}]+|[^\w\s]")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def words(text: str, *, signs: bool = False) -> list[str]:
    """The words of a text, lower-case. `signs` counts each punctuation mark as a word too, which
    tells 3 + 4 from 3 - 4."""
    return (_WORD_OR_SIGN if signs else _WORD).findall(text.casefold())


def hash_text(text: str, *, key: str = "") -> int:
    """64 bits that are the same in every run."""
    data = text.encode("utf-8", "replace")
    return int.from_bytes(blake2b(data, digest_size=8, key=key.encode("utf-8")).digest(), "little")


_word_hash = lru_cache(maxsize=1 << 16)(hash_text)


def hash_runs(words: Sequence[str], n: int) -> UInt64[np.ndarray, " runs"]:
    """A hash of every n words in a row; none where there are fewer than n."""
    count = len(words) - n + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    single = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    runs = np.zeros(count, np.uint64)
    for start in range(n):
        runs = runs * _MULTIPLIER + single[start : start + count]
    return runs
