"""Lengths of vectors, counted as they come; memory does not grow with their number.

Knows nothing of where the vectors are from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Norms are counted by the upper 19 bits of their float32 below the sign, which keeps the median within 0.03 %.
_DROPPED_BITS = 12


@dataclass(frozen=True, slots=True)
class VectorNorms:
    """Lengths of the vectors of one variant.

    Attributes:
        minimum, maximum: exact.
        median: within 0.03 %; memory does not grow with the rows.
    """

    minimum: float
    median: float
    maximum: float


class NormTally:
    """Norms counted in bins: float32 that are not negative sort as their bits do."""

    def __init__(self) -> None:
        self.count = 0
        self._bins = np.zeros(1 << (31 - _DROPPED_BITS), np.int64)
        self._minimum, self._maximum = np.inf, 0.0

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Count the vectors [V, D]."""
        if not len(vectors):
            return
        norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float32))
        bins = norms.view(np.uint32) >> _DROPPED_BITS
        self._bins += np.bincount(bins, minlength=len(self._bins))
        self._minimum = min(self._minimum, float(norms.min()))
        self._maximum = max(self._maximum, float(norms.max()))
        self.count += len(norms)

    def norms(self) -> VectorNorms:
        """The middle of the median's bin, never outside the exact ends."""
        bin_ = int(np.searchsorted(np.cumsum(self._bins), (self.count + 1) // 2))
        middle = float(_middles(np.array([bin_]))[0])
        return VectorNorms(self._minimum, min(max(middle, self._minimum), self._maximum), self._maximum)

    def histogram(self, bins: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """How many norms lie in each of `bins` equal parts between the smallest and the largest.

        Returns:
            counts [bins], and the edges [bins + 1] between them; a norm may be counted 0.03 % beside its place.
        """
        filled = np.flatnonzero(self._bins)
        middles = np.clip(_middles(filled), self._minimum, self._maximum)
        counts, edges = np.histogram(middles, bins, (self._minimum, self._maximum), weights=self._bins[filled])
        return counts, edges


def _middles(bins: NDArray[np.int64]) -> NDArray[np.float32]:
    """The norm in the middle of each bin."""
    bits = (bins.astype(np.uint32) << np.uint32(_DROPPED_BITS)) + np.uint32(1 << (_DROPPED_BITS - 1))
    return bits.view(np.float32)
