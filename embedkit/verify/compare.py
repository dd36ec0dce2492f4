"""Compares stored vectors and scores with reference ones: tolerances and deviations. Pure NumPy.

Reference vectors are first brought to the output's precision, so that the comparison is of how both were computed;
one step of that precision is allowed, since rounding may go either way. Scores of a head may differ by what the
tolerance of the vectors can make of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.comparison.similarity import cosines
from embedkit.percent import percent
from embedkit.pooling.heads import PREDICTED, PredictionHead
from embedkit.pooling.postprocess import Int8Range, store

#: Largest |Δ| for fp32, as a share of the vector's largest value (of 1, if that is smaller).
FP32 = 1e-5
#: Least cosine for smaller dtypes.
COSINES = {"bf16": 0.999, "fp16": 0.999, "int8": 0.99}
#: Least share of equal bits for those, over all rows. Vectors at an angle a differ in the sign of a / pi of their
#: dimensions (Goemans and Williamson 1995): 1.4 % at cosine 0.999, 4.5 % at 0.99; twice that is allowed.
BITS = {"bf16": 0.97, "fp16": 0.97, "int8": 0.91}
#: Step of a float32 score next to its value, at least to 1.
_SCORE_STEP = 1e-6


@dataclass(frozen=True, slots=True)
class Deviation:
    """A row with a vector or score that is out of tolerance."""

    row: int  # its number in the input
    column: str  # of the vector or score
    what: str  # the difference, in numbers

    def __str__(self) -> str:
        return f"row {self.row}, {self.column}: {self.what}"


@dataclass(slots=True)
class Comparison:
    """Stored vectors against reference vectors."""

    dtype: str  # of the computation
    precision: str  # of the stored values
    rows: int = 0  # compared
    #: Rows out of tolerance; none for binary with a dtype below fp32, see `passed`.
    deviations: list[Deviation] = field(default_factory=list)
    max_difference: float = 0.0  # largest |Δ| of any value, in the output's precision
    cosines: list[float] = field(default_factory=list)  # of every vector
    bits: int = 0  # of binary, as are `equal_bits`
    equal_bits: int = 0
    scores: int = 0  # scores of a head that were compared
    max_score_difference: float = 0.0  # largest |Δ| of them

    @property
    def passed(self) -> bool:
        """True if all vectors and scores are within the tolerance."""
        enough = self.dtype == "fp32" or self.equal_bits >= BITS[self.dtype] * self.bits
        return not self.deviations and enough

    @property
    def tolerance(self) -> str:
        """The tolerance in words."""
        if self.precision == "binary":
            if self.dtype == "fp32":
                return f"equal bits, but where a value is within {FP32:g} of the vector's largest from 0"
            return f"{percent(BITS[self.dtype], 0)} of the bits equal ({self.dtype})"
        if self.dtype != "fp32":
            return f"cosine {COSINES[self.dtype]} ({self.dtype})"
        step = {"float32": "", "float16": " and one step of float16", "int8": " and one of 255 steps"}
        return f"|Δ| {FP32:g} of the vector's largest value{step[self.precision]} (fp32)"

    def as_json(self) -> dict[str, Any]:
        """Returns the comparison as JSON values; the cosines as their minimum and mean."""
        cosines = self.cosines
        return {
            **{name: value for name, value in asdict(self).items() if name != "cosines"},
            "min_cosine": min(cosines) if cosines else None,
            "mean_cosine": sum(cosines) / len(cosines) if cosines else None,
            "passed": self.passed,
            "tolerance": self.tolerance,
        }

    def add(
        self,
        row: int,
        column: str,
        stored: NDArray[np.float32],
        reference: NDArray[np.float32],
        ranges: Int8Range | None,
    ) -> None:
        """Compares the vectors of one row.

        Args:
            row: its number.
            column: of the output.
            stored: [n, D] as `embedkit.read` gives it; n = 1 unless these are token vectors.
            reference: float32 [n, D], not yet brought to the output's precision.
            ranges: of int8.
        """
        if stored.shape != reference.shape:
            what = f"shape {stored.shape}, and {reference.shape} now"
        elif self.precision == "binary":
            what = self._compare_bits(stored > 0, reference)
        else:
            what = self._compare_floats(stored, reference, ranges)
        if what:
            self.deviations.append(Deviation(row, column, what))

    def add_scores(
        self, row: int, head: PredictionHead, vectors: NDArray[np.float32], stored: Mapping[str, Any]
    ) -> None:
        """Compares the scores of one row, and what is predicted by the stored ones.

        Args:
            row: its number.
            head: of the output.
            vectors: float32 [1, D], as the head takes them, computed again.
            stored: value of each column that the head adds.
        """
        names = [name for name in head.columns if name != PREDICTED]
        scores = np.array([[stored[name] for name in names]], head.weight.dtype)
        expected = head.scores(vectors)
        differences = np.abs(scores.astype(np.float64) - expected)[0]
        allowed = self._allowed_scores(head, vectors) + _SCORE_STEP * np.maximum(np.abs(expected[0]), 1)
        self.scores += len(names)
        self.max_score_difference = max(self.max_score_difference, float(differences.max()))
        for name, difference, limit in zip(names, differences, allowed, strict=True):
            if not difference <= limit:
                self.deviations.append(Deviation(row, name, f"|Δ| {difference:.2e}"))
        if PREDICTED in stored and stored[PREDICTED] != head.labels(scores)[0]:
            self.deviations.append(Deviation(row, PREDICTED, "another one than the stored scores give"))

    def _allowed_scores(self, head: PredictionHead, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Returns float64 [C], how far scores move with a vector that moves by the tolerance of vectors."""
        weight = head.weight.astype(np.float64)
        if self.dtype == "fp32":
            logits = np.abs(weight).sum(axis=1) * FP32 * float(_scale(vectors)[0, 0])
        else:  # the chord of the largest angle
            chord = np.sqrt(2 - 2 * COSINES[self.dtype]) * float(np.linalg.norm(vectors))
            logits = np.linalg.norm(weight, axis=1) * chord
        # The slope of a softmax over all its logits is 1/2 at most, that of a sigmoid 1/4.
        if head.task == "classification":
            return np.full(len(logits), logits.max() / 2)
        return np.asarray(logits / 4 if head.task == "multilabel" else logits)

    def _compare_bits(self, stored: NDArray[np.bool_], reference: NDArray[np.float32]) -> str:
        """Returns the difference in words, as does `_compare_floats`; "" within the tolerance."""
        differs = stored != (reference > 0)
        self.bits += differs.size
        self.equal_bits += differs.size - int(differs.sum())
        wrong = int((differs & (np.abs(reference) > FP32 * _scale(reference))).sum())
        return f"{wrong} of {differs.size} bits differ" if self.dtype == "fp32" and wrong else ""

    def _compare_floats(
        self, stored: NDArray[np.float32], reference: NDArray[np.float32], ranges: Int8Range | None
    ) -> str:
        expected, step = _in_precision(reference, self.precision, ranges)
        difference = np.abs(stored - expected)
        of_rows = cosines(stored, expected)
        self.max_difference = max(self.max_difference, float(difference.max(initial=0.0)))
        self.cosines += of_rows.tolist()
        if self.dtype != "fp32":
            return f"cosine {of_rows.min():.6f}" if of_rows.min(initial=1.0) < COSINES[self.dtype] else ""
        differs = (difference > FP32 * _scale(reference) + step).any()
        return f"|Δ| {difference.max():.2e}, cosine {of_rows.min():.6f}" if differs else ""


def _scale(vectors: NDArray[np.float32]) -> NDArray[Any]:
    """Returns [n, 1] the largest magnitude in each vector, at least 1."""
    return np.asarray(np.maximum(np.abs(vectors).max(axis=1, keepdims=True, initial=0.0), 1))


def _in_precision(
    vectors: NDArray[np.float32], precision: str, ranges: Int8Range | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns [n, D] as read back from the output, and [n, D] or [D] one step of its precision."""
    kept = store(vectors, precision, ranges)
    if precision == "float16":
        return kept.astype(np.float32), np.spacing(np.abs(kept)).astype(np.float32)
    if ranges is not None:
        span = ranges.maximum - ranges.minimum
        # 0.05 % more: the ends of a step are rounded as well.
        return ranges.restore(kept), np.asarray(span / 255 * 1.0005, np.float32)
    return kept, np.zeros(1, np.float32)
