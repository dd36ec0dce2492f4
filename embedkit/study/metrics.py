"""Accuracy, macro-F1, AUROC, R² and Spearman's correlation, for many predictions at once; larger is better.

A sweep scores each fold of each candidate for several penalties; scikit-learn takes one prediction a call. The
tests compare both.

All functions take P predictions, float32 [P, N, K], and targets, float64 [N, K], and return float64 [P]. For
classes, predictions are K scores, and targets are 1 at the row's class, else 0; for values, K = 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

#: The metrics of each task; the first decides unless `--metric` is given.
METRICS = {"classification": ("accuracy", "macro_f1", "auroc"), "regression": ("r2", "spearman")}

Metric = Callable[[NDArray[np.float32], NDArray[np.float64]], NDArray[np.float64]]


def accuracy(scores: NDArray[np.float32], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the share of rows whose class has the largest score."""
    return np.asarray((scores.argmax(axis=2) == targets.argmax(axis=1)).mean(axis=1))


def macro_f1(scores: NDArray[np.float32], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean F1 of the classes that occur or are predicted: 2 hits / (rows + predictions)."""
    predicted = np.eye(targets.shape[1])[scores.argmax(axis=2)]
    hits = (predicted * targets).sum(axis=1)
    both = predicted.sum(axis=1) + targets.sum(axis=0)
    f1 = np.divide(2 * hits, both, out=np.full_like(hits, np.nan), where=both > 0)
    return np.asarray(np.nanmean(f1, axis=1))


def auroc(scores: NDArray[np.float32], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean area under the ROC curve of each class against the others, by ranks with ties averaged.

    The probability that a row of the class has a larger score than one of another class (Hanley & McNeil 1982):
    (sum of its ranks - n(n+1)/2) / (n * others). Classes of no row or of all rows are left out.
    """
    from scipy.stats import rankdata

    counts = targets.sum(axis=0)
    defined = (counts > 0) & (counts < len(targets))
    if not defined.any():
        return np.full(len(scores), np.nan)
    ranks = rankdata(scores[:, :, defined], axis=1)
    n = counts[defined]
    area = ((ranks * targets[:, defined]).sum(axis=1) - n * (n + 1) / 2) / (n * (len(targets) - n))
    return np.asarray(area.mean(axis=1))


def r2(scores: NDArray[np.float32], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the explained share of the targets' variance: 1 - residual / total; predicting the mean gives 0."""
    total = ((targets - targets.mean()) ** 2).sum()
    residual = ((scores - targets) ** 2).sum(axis=(1, 2))
    return np.asarray(1 - residual / total if total else np.full(len(scores), np.nan))


def spearman(scores: NDArray[np.float32], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the correlation of the ranks, ties averaged; 0 if all predictions are equal."""
    from scipy.stats import rankdata

    ours = rankdata(scores[:, :, 0], axis=1)
    theirs = rankdata(targets[:, 0])
    ours -= ours.mean(axis=1, keepdims=True)
    theirs -= theirs.mean()
    scale = np.sqrt((ours**2).sum(axis=1) * (theirs**2).sum())
    return np.asarray(np.divide(ours @ theirs, scale, out=np.zeros(len(ours)), where=scale > 0))


#: Metric functions by their names in METRICS.
BY_NAME: dict[str, Metric] = {of.__name__: of for of in (accuracy, macro_f1, auroc, r2, spearman)}
