"""Exact and near duplicates among examples, found without holding an example in memory."""

from functools import cache
from itertools import pairwise

import numpy as np
from datasketch import MinHash, MinHashLSH
from jaxtyping import Bool, Int, UInt32, UInt64

from rmr1_jax.data.example import Example
from rmr1_jax.data.ngrams import hash_runs, hash_text, words

PERMUTATIONS = 128
RUN = 5  # words
# Missing a near duplicate matters more than comparing a pair in vain.
_WEIGHTS = (0.1, 0.9)
_CHUNK = 4096


def content_hash(example: Example) -> int:
    """Equal for equal pairs, whichever response stands first and whatever the label is."""
    preference = example.preference
    if preference is None:
        return hash_text(repr((example.prompt, example.trace)))
    context_b = preference.context if preference.context_b is None else preference.context_b
    sides = [(preference.context, preference.response_a), (context_b, preference.response_b)]
    return hash_text(repr(sorted(map(repr, sides))))


def signature(example: Example) -> UInt32[np.ndarray, "P"]:
    """The MinHash (datasketch) of every five words in a row of the conversations and responses."""
    runs = [
        hash_runs(found, min(RUN, len(found)))
        for text in _texts(example)
        if (found := words(text, signs=True))
    ]
    sketch = _empty().copy()
    # A polynomial's upper half depends on all its words.
    sketch.update_batch((np.unique(np.concatenate(runs)) >> np.uint64(32)) if runs else [])
    return np.asarray(sketch.hashvalues, np.uint32)


def near_duplicates(
    signatures: UInt32[np.ndarray, "N P"], examples: Int[np.ndarray, " n"], threshold: float
) -> Bool[np.ndarray, " n"]:
    """Which of `examples` (ascending indices) resemble an earlier one that is not dropped itself.

    Locality-sensitive hashing with the bands that datasketch's MinHashLSH takes for the threshold,
    but sorted instead of held in tables: apart from `signatures`, which may be a memory map, this
    takes some 200 bytes an example where a tenth of them are near duplicates.
    """
    # Above 0.99 datasketch finds no bands; what they bring together is compared in any case.
    near = min(threshold, 0.99)
    bands = MinHashLSH(threshold=near, num_perm=PERMUTATIONS, weights=_WEIGHTS)
    drop = np.zeros(len(examples), bool)
    if not len(examples):
        return drop
    members: list[Int[np.ndarray, " m"]] = []
    groups: list[Int[np.ndarray, " m"]] = []
    first_free = 0
    for band in range(bands.b):
        hashes = _band_hashes(signatures, examples, slice(band * bands.r, (band + 1) * bands.r))
        order = np.argsort(hashes, kind="stable")
        new = np.append(True, hashes[order][1:] != hashes[order][:-1])
        group = np.cumsum(new) - 1
        shared = np.bincount(group)[group] > 1
        members.append(order[shared])
        groups.append(group[shared] + first_free)
        first_free += len(hashes)
    member, group = np.concatenate(members), np.concatenate(groups)
    order = np.lexsort((group, member))
    member, group = member[order], group[order]
    kept: dict[int, list[int]] = {}
    ends = np.flatnonzero(np.append(member[1:] != member[:-1], True)[: len(member)]) + 1
    for start, end in pairwise([0, *map(int, ends)]):
        index, of = int(member[start]), [int(number) for number in group[start:end]]
        earlier = sorted({other for number in of for other in kept.get(number, ())})
        if earlier and _resembles(signatures, examples, index, earlier, threshold):
            drop[index] = True
            continue
        for number in of:
            kept.setdefault(number, []).append(index)
    return drop


def _resembles(
    signatures: UInt32[np.ndarray, "N P"],
    examples: Int[np.ndarray, " n"],
    index: int,
    earlier: list[int],
    threshold: float,
) -> bool:
    own = signatures[examples[index]]
    for start in range(0, len(earlier), _CHUNK):
        others = signatures[examples[earlier[start : start + _CHUNK]]]
        if np.any(np.mean(others == own, axis=1) >= threshold):
            return True
    return False


def _band_hashes(
    signatures: UInt32[np.ndarray, "N P"], examples: Int[np.ndarray, " n"], columns: slice
) -> UInt64[np.ndarray, " n"]:
    hashes = np.empty(len(examples), np.uint64)
    for start in range(0, len(examples), _CHUNK):
        rows = signatures[examples[start : start + _CHUNK], columns].astype(np.uint64)
        mixed = np.zeros(len(rows), np.uint64)
        for column in rows.T:
            mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        hashes[start : start + _CHUNK] = mixed
    return hashes


def _texts(example: Example) -> list[str]:
    preference = example.preference
    if preference is None:
        # The system message is the same in every example of a set.
        said = [message.content for message in example.prompt if message.role != "system"]
        return [*said, *([example.trace] if example.trace else [])]
    contexts = (*preference.context, *(preference.context_b or ()))
    said = [message.content for message in contexts]
    return [*said, preference.response_a, preference.response_b]


@cache
def _empty() -> MinHash:
    return MinHash(PERMUTATIONS, seed=1, hashfunc=int, scheme="affine32")
