"""Normalises, truncates and quantises finished vectors, in this order, as numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Int8Range:
    """Smallest and largest value of each dimension in the calibration sample: float32 [D] each.

    A value v is stored as q = round((v - minimum) / (maximum - minimum) * 255) - 128, clipped to
    -128..127, and read back as minimum + (q + 128) / 255 * (maximum - minimum).
    """

    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]

    @classmethod
    def of(cls, sample: NDArray[np.float32]) -> Int8Range:
        """Returns the range of a sample [N, D]."""
        return cls(sample.min(axis=0), sample.max(axis=0))

    @classmethod
    def from_json(cls, content: Mapping[str, Sequence[float]]) -> Int8Range:
        """Reads a plan's {"min": [D], "max": [D]}."""
        return cls(np.asarray(content["min"], np.float32), np.asarray(content["max"], np.float32))

    def to_json(self) -> dict[str, list[float]]:
        """Returns the plan's {"min": [D], "max": [D]}."""
        return {"min": self.minimum.tolist(), "max": self.maximum.tolist()}

    def store(self, vectors: NDArray[np.float32]) -> NDArray[np.int8]:
        """Quantises float32 [N, D] to int8 [N, D]."""
        span = np.where(self.maximum > self.minimum, self.maximum - self.minimum, np.float32(1))
        steps = np.rint((vectors - self.minimum) / span * 255) - 128
        return np.asarray(np.clip(steps, -128, 127), dtype=np.int8)

    def restore(self, stored: NDArray[np.int8]) -> NDArray[np.float32]:
        """Converts int8 [..., D] back to float32 [..., D]."""
        share = (stored.astype(np.float32) + 128) / np.float32(255)
        return self.minimum + share * (self.maximum - self.minimum)


def finish(vectors: NDArray[np.float32], *, normalize: bool, truncate_dim: int | None) -> NDArray[np.float32]:
    """Scales each vector to length 1 if asked (zero stays zero), then keeps its first dimensions.

    Args:
        vectors: float32 [N, D].
        normalize: divide by the Euclidean norm.
        truncate_dim: dimensions to keep; None for all. A truncated vector is not scaled again.

    Returns:
        float32 [N, D'], C order.
    """
    if normalize:
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return np.ascontiguousarray(vectors[:, :truncate_dim])


def store(vectors: NDArray[np.float32], precision: str, ranges: Int8Range | None) -> NDArray[Any]:
    """Converts float32 [N, D] to the output's precision; binary is 1 where positive, 8 dimensions a byte."""
    match precision:
        case "float32":
            return vectors
        case "float16":
            # Values that do not fit become infinite, which the caller refuses.
            with np.errstate(over="ignore"):
                return vectors.astype(np.float16)
        case "binary":
            return np.packbits(vectors > 0, axis=1)
        case _:
            if ranges is None:
                raise ValueError("int8 needs the ranges of a calibration sample")
            return ranges.store(vectors)
