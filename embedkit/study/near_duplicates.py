"""Texts that are nearly the same, such as notes copied forward: found by what they share, never stored.

MinHash (Broder, "On the resemblance and containment of documents", 1997): a text is the set of its runs of
three words, and two texts resemble each other by the share of their runs that both have. The chance that the
smallest hash of two sets is the same is that share, so that 64 smallest hashes stand for a text.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

#: Texts that share this much of their runs of words are near-duplicates.
NEAR = 0.8
_WORDS_A_RUN = 3
_HASHES = 64
#: Texts are compared where four hashes in a row agree, in any of 16 places: at 0.8 that misses 2 pairs in 10,000.
_ROWS_A_BAND = 4
_MULTIPLIERS, _SHIFTS = (
    np.random.default_rng(seed).integers(0, 2**63, _HASHES, np.uint64) * np.uint64(2) + np.uint64(1)
    for seed in (1, 2)
)
_WORD = re.compile(r"\w+")


def signatures(texts: Iterable[str]) -> NDArray[np.uint32]:
    """uint32 [N, 64] the smallest hashes of each text's runs of words, whatever their case and punctuation."""
    made = [_signature(text) for text in texts]
    return np.stack(made) if made else np.zeros((0, _HASHES), np.uint32)


def clusters(signed: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Which texts are nearly the same, directly or by way of others.

    Args:
        signed: uint32 [N, 64] from `signatures`.

    Returns:
        int64 [N], a number for each cluster; most texts are alone in theirs.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = len(signed)
    starts: list[NDArray[np.int64]] = []
    ends: list[NDArray[np.int64]] = []
    for band in range(0, _HASHES, _ROWS_A_BAND):
        _, first, bucket = np.unique(
            signed[:, band : band + _ROWS_A_BAND], axis=0, return_index=True, return_inverse=True
        )
        # Each text beside the first of its bucket: a bucket of thousands costs no more than its size.
        one, other = np.arange(rows), first[bucket.reshape(-1)]
        share = (signed[one] == signed[other]).mean(axis=1)
        near = (one != other) & (share >= NEAR)
        starts.append(one[near])
        ends.append(other[near])
    pairs = np.concatenate(starts), np.concatenate(ends)
    edges = coo_array((np.ones(len(pairs[0]), np.bool_), pairs), shape=(rows, rows))
    _, cluster = connected_components(edges, directed=False)
    return np.asarray(cluster, np.int64)


def pairs_across(cluster: NDArray[np.int64], folds: NDArray[np.int64]) -> int:
    """How many pairs of texts are in one cluster and in two folds: the test has seen the like in training."""
    size = np.bincount(cluster)
    _, together = np.unique(np.stack([cluster, folds]), axis=1, return_counts=True)
    return int(((size**2).sum() - (together**2).sum()) // 2)


def _signature(text: str) -> NDArray[np.uint32]:
    words = np.array([zlib.crc32(word.encode()) for word in _WORD.findall(text.lower())] or [0], np.uint64)
    runs = np.zeros(max(1, len(words) - _WORDS_A_RUN + 1), np.uint64)
    for place in range(min(_WORDS_A_RUN, len(words))):
        # Multiplied before the next word is added, so that the order of words counts; modulo 2^64.
        runs = (runs * np.uint64(0x9E3779B97F4A7C15)) ^ words[place : place + len(runs)]
    hashed = np.unique(runs)[:, None] * _MULTIPLIERS + _SHIFTS
    return np.asarray((hashed >> np.uint64(32)).min(axis=0), np.uint32)
