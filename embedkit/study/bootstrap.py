"""The bootstrap: scores of samples of rows drawn with replacement, and percentile intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

SAMPLES = 1000
#: Two-sided level of the intervals of a study.
LEVEL = 0.95
#: Weights of rows that are held at a time.
_BLOCK = 4_000_000


def sample_weights(
    rows: int, groups: NDArray[np.int64] | None, samples: int = SAMPLES, seed: int = 0
) -> Iterator[Vector]:
    """Yields, in blocks, how often each of N rows is in each of B samples, float64 [b, N].

    Rows are drawn with replacement; with `groups` [N], whole groups are. The same seed gives the same samples.
    """
    random = np.random.default_rng(seed)
    members = np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(members.max()) + 1
    step = max(1, _BLOCK // max(rows, units))
    for first in range(0, samples, step):
        size = min(step, samples - first)
        drawn = random.integers(units, size=(size, units)) + np.arange(size)[:, None] * units
        counts = np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units)
        yield counts[:, members].astype(np.float64)


def resampled(
    functions: Sequence[Callable[[NDArray[Any], NDArray[Any], Vector], Vector]],
    scores: NDArray[Any],
    truth: NDArray[Any],
    groups: NDArray[np.int64] | None,
    samples: int = SAMPLES,
) -> list[Vector]:
    """Returns for each metric function its values in B bootstrap samples of the rows, float64 [B]."""
    blocks = [
        [function(scores, truth, weights) for function in functions]
        for weights in sample_weights(len(truth), groups, samples)
    ]
    return [np.concatenate(of_metric) for of_metric in zip(*blocks, strict=True)]


def percentiles(
    values: Vector, level: float = LEVEL, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[Vector, Vector]:
    """Returns the ends [...] of the interval of values [..., 1 + B]: a measure, then that of B bootstrap samples.

    They are the percentiles of the samples, shifted so that the mean of these is the measure: rows that a sample
    has twice raise the average precision of a class of few rows. The shift may lead beyond what the measure can
    be, so the ends are limited to `bounds`. NaN where fewer than half are defined.
    """
    measured, samples = values[..., 0], values[..., 1:]
    enough = np.isfinite(samples).mean(axis=-1) >= 0.5
    filled = np.where(enough[..., None], samples, 0)
    shift = np.where(enough, measured - np.nanmean(filled, axis=-1), np.nan)
    low, high = np.nanquantile(filled, ((1 - level) / 2, (1 + level) / 2), axis=-1)
    return np.clip(low + shift, *bounds), np.clip(high + shift, *bounds)
