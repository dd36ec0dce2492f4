"""How good predictions are: accuracy, macro-F1, AUROC; R², Spearman. Larger is better in all of them.

Knows nothing of folds or of what predicted. Written for many predictions at once, because a sweep scores each
fold of each candidate for several strengths of regularisation; held against scikit-learn by the tests.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

#: What a sweep measures, by task; the first is what it chooses by unless `--metric` says else.
METRICS = {"classification": ("accuracy", "macro_f1", "auroc"), "regression": ("r2", "spearman")}

Metric = Callable[[NDArray[np.float32], NDArray[np.float64]], NDArray[np.float64]]


def accuracy(scores: NDArray[np.float32], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of rows whose class has the largest score.

    Args:
        scores: float32 [P, N, K], a score for each class, of P predictions.
        targets: float64 [N, K], 1 at the row's class, else 0.

    Returns:
        float64 [P].
    """
    return np.asarray((scores.argmax(axis=2) == targets.argmax(axis=1)).mean(axis=1))


def macro_f1(scores: NDArray[np.float32], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """F1 of each class that is there or predicted, averaged: 2 hits / (rows of it + predictions of it).

    Shapes as in `accuracy`.
    """
    predicted = np.eye(targets.shape[1])[scores.argmax(axis=2)]
    hits = (predicted * targets).sum(axis=1)
    both = predicted.sum(axis=1) + targets.sum(axis=0)
    f1 = np.divide(2 * hits, both, out=np.full_like(hits, np.nan), where=both > 0)
    return np.asarray(np.nanmean(f1, axis=1))


def auroc(scores: NDArray[np.float32], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area under the ROC curve of each class against the others, averaged; by ranks, ties shared.

    The chance that a row of the class has a larger score than one of another (Hanley & McNeil 1982):
    (sum of its ranks - n(n+1)/2) / (n * others). Classes that no row has, or all have, are left out.
    Shapes as in `accuracy`.
    """
    from scipy.stats import rankdata

    here = targets.sum(axis=0)
    judged = (here > 0) & (here < len(targets))
    if not judged.any():
        return np.full(len(scores), np.nan)
    ranks = rankdata(scores[:, :, judged], axis=1)
    n = here[judged]
    area = ((ranks * targets[:, judged]).sum(axis=1) - n * (n + 1) / 2) / (n * (len(targets) - n))
    return np.asarray(area.mean(axis=1))


def r2(scores: NDArray[np.float32], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the targets' variance that is explained: 1 - residual / total; below 0 is worse than their mean.

    Args:
        scores: float32 [P, N, 1], predicted values, of P predictions.
        targets: float64 [N, 1].

    Returns:
        float64 [P].
    """
    total = ((targets - targets.mean()) ** 2).sum()
    residual = ((scores - targets) ** 2).sum(axis=(1, 2))
    return np.asarray(1 - residual / total if total else np.full(len(scores), np.nan))


def spearman(scores: NDArray[np.float32], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation of the ranks, ties shared; 0 where all predictions are equal. Shapes as in `r2`."""
    from scipy.stats import rankdata

    ours = rankdata(scores[:, :, 0], axis=1)
    theirs = rankdata(targets[:, 0])
    ours -= ours.mean(axis=1, keepdims=True)
    theirs -= theirs.mean()
    scale = np.sqrt((ours**2).sum(axis=1) * (theirs**2).sum())
    return np.asarray(np.divide(ours @ theirs, scale, out=np.zeros(len(ours)), where=scale > 0))


_BY_NAME: dict[str, Metric] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "auroc": auroc,
    "r2": r2,
    "spearman": spearman,
}


def metric(name: str) -> Metric:
    """The function behind a name of METRICS."""
    return _BY_NAME[name]
