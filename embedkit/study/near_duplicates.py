"""Near-duplicate texts, such as notes copied forward, found by MinHash signatures; no text is stored.

MinHash (Broder, "On the resemblance and containment of documents", 1997): a text is the set of its runs of three
words, and two texts resemble each other by the share of runs that they have in common. The chance that the
smallest hash of two sets is equal is that share, so 64 smallest hashes estimate it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

#: Texts that share this much of their runs of words are near-duplicates.
_SIMILAR = 0.8
_WORDS_PER_RUN = 3
_HASHES = 64
#: Texts are compared if four consecutive hashes agree, in any of 16 bands: at 0.8 that misses 2 pairs in 10,000.
_BAND = 4
_MULTIPLIERS, _SHIFTS = (
    np.random.default_rng(seed).integers(0, 2**63, _HASHES, np.uint64) * np.uint64(2) + np.uint64(1)
    for seed in (1, 2)
)
_WORD = re.compile(r"\w+")


def signatures(texts: Iterable[str]) -> NDArray[np.uint32]:
    """Returns uint32 [N, 64], the smallest hashes of each text's runs of words, without case and punctuation."""
    rows = [_signature(text) for text in texts]
    return np.stack(rows) if rows else np.zeros((0, _HASHES), np.uint32)


def clusters(signed: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Groups texts that are near-duplicates, directly or through other texts.

    Args:
        signed: uint32 [N, 64] from `signatures`.

    Returns:
        int64 [N], cluster numbers; most clusters have one text.
    """
    rows = np.arange(len(signed))
    pairs: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for band in range(0, _HASHES, _BAND):
        _, first, bucket = np.unique(
            signed[:, band : band + _BAND], axis=0, return_index=True, return_inverse=True
        )
        # Each text against the first of its bucket: the cost grows with the bucket's size and not its square.
        other = first[bucket.reshape(-1)]
        near = (rows != other) & ((signed == signed[other]).mean(axis=1) >= _SIMILAR)
        pairs.append((rows[near], other[near]))
    starts, ends = (np.concatenate(of_bands) for of_bands in zip(*pairs, strict=True))
    return connected_components(starts, ends, len(signed))


def connected_components(starts: NDArray[np.int64], ends: NDArray[np.int64], n_nodes: int) -> NDArray[np.int64]:
    """Returns int64 [n_nodes], the number of each node's component in a graph of undirected edges."""
    from scipy.sparse import coo_array, csgraph

    edges = coo_array((np.ones(len(starts), np.bool_), (starts, ends)), shape=(n_nodes, n_nodes))
    return np.asarray(csgraph.connected_components(edges, directed=False)[1], np.int64)


def pairs_across(cluster: NDArray[np.int64], folds: NDArray[np.int64]) -> int:
    """Counts pairs of texts in one cluster and different folds: near-copies of training texts in a test."""
    size = np.bincount(cluster)
    _, together = np.unique(np.stack([cluster, folds]), axis=1, return_counts=True)
    return int(((size**2).sum() - (together**2).sum()) // 2)


def _signature(text: str) -> NDArray[np.uint32]:
    words = np.array([zlib.crc32(word.encode()) for word in _WORD.findall(text.lower())] or [0], np.uint64)
    runs = np.zeros(max(1, len(words) - _WORDS_PER_RUN + 1), np.uint64)
    for position in range(min(_WORDS_PER_RUN, len(words))):
        # Multiplied (modulo 2^64) before the next word is added, so that the order of words counts.
        runs = (runs * np.uint64(0x9E3779B97F4A7C15)) ^ words[position : position + len(runs)]
    hashed = np.unique(runs)[:, None] * _MULTIPLIERS + _SHIFTS
    return np.asarray((hashed >> np.uint64(32)).min(axis=0), np.uint32)
