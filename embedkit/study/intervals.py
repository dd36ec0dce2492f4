"""Confidence intervals for scores of cross-validation, whose folds share most of their training rows.

Knows nothing of models, labels or candidates: numbers a fold in, an interval out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Two-sided level of every interval.
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over folds with its 95 % confidence interval: mean - half to mean + half."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half

    @property
    def holds_zero(self) -> bool:
        """Whether no difference is among what it allows."""
        return self.low <= 0 <= self.high


def corrected_interval(scores: Sequence[float], *, test_share: float) -> Interval:
    """Interval for the mean of scores (or of paired differences) over the folds of a cross-validation.

    The corrected resampled t of Nadeau & Bengio, "Inference for the generalization error" (Machine Learning
    52, 2003, section 3): mean ± t(J-1) * sqrt((1/J + n_test/n_train) * s²), with s² the variance over the J
    folds. The plain 1/J would take folds for independent, although each two of them train on mostly the same
    rows, and give intervals that are too narrow.

    Args:
        scores: J >= 2 of them, one a fold.
        test_share: n_test / n_train of a fold; 1/(J-1) for J folds of one size.
    """
    from scipy.stats import t

    folds = len(scores)
    mean = math.fsum(scores) / folds
    variance = math.fsum((score - mean) ** 2 for score in scores) / (folds - 1)
    quantile = float(t.ppf((1 + LEVEL) / 2, folds - 1))
    return Interval(mean, quantile * math.sqrt((1 / folds + test_share) * variance))
