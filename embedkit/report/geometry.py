"""Principal components, near pairs and nearest neighbours of vectors, in NumPy."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedkit.comparison.similarity import unit

#: Lowest cosines of the pairs that are counted.
THRESHOLDS = (0.95, 0.99, 0.999)
#: Most multiplications of a search for pairs: 20,000 vectors of 1,024 dimensions.
_MULTIPLICATIONS = 20_000**2 * 1024
_PAIRS = 10


@dataclass(frozen=True, slots=True)
class Map:
    """Vectors in two dimensions."""

    points: NDArray[np.float32]  # [S, 2]
    shares: tuple[float, float]  # of each dimension in the whole variance, 0 to 1


def principal_map(vectors: NDArray[np.float32]) -> Map:
    """Projects vectors [S, D] onto their first two principal components.

    By subspace iteration with twelve vectors from a fixed start (Halko, Martinsson and Tropp 2011, "Finding
    structure with randomness", algorithm 4.4); a full decomposition takes half a minute at D = 3,072. The largest
    entry of each component is positive.
    """
    points = np.zeros((len(vectors), 2), np.float32)
    centred = vectors - vectors.mean(axis=0) if len(vectors) else vectors
    variance = float(np.einsum("nd,nd->", centred, centred, dtype=np.float64))
    if not variance:
        return Map(points, (0.0, 0.0))
    width = min(12, *vectors.shape)
    basis = np.random.default_rng(0).standard_normal((vectors.shape[1], width), np.float32)
    for _ in range(24):
        basis = np.linalg.qr(centred.T @ (centred @ np.linalg.qr(basis)[0]))[0]
    inside = centred @ basis
    values, rotations = np.linalg.eigh((inside.T @ inside).astype(np.float64))
    largest = rotations[:, ::-1][:, :2].astype(np.float32)
    directions = basis @ largest
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), range(directions.shape[1])])
    found = inside @ largest * signs
    points[:, : found.shape[1]] = found
    shares = [*(np.clip(values[::-1][:2], 0, None) / variance).tolist(), 0.0]
    return Map(points, (shares[0], shares[1]))


@dataclass(frozen=True, slots=True)
class NearPairs:
    """Pairs of different vectors with nearly the same direction."""

    among: int  # different vectors compared
    pairs: tuple[int, ...]  # for each of THRESHOLDS, pairs with at least this cosine
    rows: tuple[int, ...]  # for each of THRESHOLDS, vectors in these pairs
    closest: tuple[tuple[float, int, int], ...]  # (cosine, position, position), closest first


def near_pairs(vectors: NDArray[np.float32], seed: int) -> NearPairs:
    """Compares all different vectors of [S, D] in pairs, or a random sample if there are too many."""
    _, places = np.unique(vectors, axis=0, return_index=True)
    most = int((_MULTIPLICATIONS / max(1, vectors.shape[1])) ** 0.5)
    if len(places) > most:
        places = np.random.default_rng(seed).choice(places, most, replace=False)
    places = np.sort(places)
    units = unit(vectors[places])
    pairs = np.zeros(len(THRESHOLDS), np.int64)
    paired = np.zeros((len(THRESHOLDS), len(units)), np.bool_)
    closest: list[tuple[float, int, int]] = []
    step = 512
    for start in range(0, len(units), step):
        # Each pair once: the block against itself (upper triangle) and all later rows.
        cosines = units[start : start + step] @ units[start:].T
        cosines[np.tril_indices(len(cosines))] = -2
        for number, threshold in enumerate(THRESHOLDS):
            near = cosines >= threshold
            if not near.any():
                break
            pairs[number] += np.count_nonzero(near)
            paired[number, start : start + len(near)] |= near.any(axis=1)
            paired[number, start:] |= near.any(axis=0)
        floor = closest[-1][0] if len(closest) == _PAIRS else THRESHOLDS[0]
        good = np.flatnonzero(cosines >= floor)
        if len(good) > _PAIRS:
            good = good[np.argpartition(cosines.flat[good], -_PAIRS)[-_PAIRS:]]
        for one, other in zip(*np.unravel_index(good, cosines.shape), strict=True):
            pair = (int(places[start + one]), int(places[start + other]))
            closest.append((float(cosines[one, other]), *pair))
        closest = heapq.nsmallest(_PAIRS, closest, key=lambda pair: (-pair[0], *pair[1:]))
    rows = paired.sum(axis=1)
    return NearPairs(len(units), tuple(pairs.tolist()), tuple(rows.tolist()), tuple(closest))


class Nearest:
    """The nearest vectors to queries by cosine, updated block by block.

    Args:
        queries: float32 [Q, D] of length 1.
        rows: [Q] the queries' own rows, which are not their neighbours.
        most: neighbours of each query.
    """

    def __init__(self, queries: NDArray[np.float32], rows: Sequence[int], most: int) -> None:
        self._queries, self._rows, self._most = queries, rows, most
        #: For each query, (cosine, row), nearest first.
        self.found: list[list[tuple[float, int]]] = [[] for _ in rows]

    def add(self, vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Adds the vectors [V, D] of rows [V]."""
        cosines = self._queries @ unit(vectors).T
        for query, own in enumerate(self._rows):
            best = np.argsort(-cosines[query], kind="stable")[: self._most + 1]
            new = [(float(cosines[query, place]), int(rows[place])) for place in best if rows[place] != own]
            self.found[query] = heapq.nsmallest(
                self._most, self.found[query] + new, key=lambda found: (-found[0], found[1])
            )
