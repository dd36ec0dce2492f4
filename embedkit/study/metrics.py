"""Scores of predictions, for one or many weightings of the rows; larger is better.

All functions take predictions, float32 [N, K], the truth of the N rows, and weights, float64 [B, N]; they return
float64 [B], NaN where a score is undefined. The weights are ones, or how often each row is in a bootstrap sample.

| task | predictions | truth |
| --- | --- | --- |
| classification | a score for each class | int64 [N], numbers of classes |
| multilabel | a score for each class, above 0 if it is predicted | bool [N, K] |
| ordinal | [N, 1], a rank from 0 to the number of classes less 1 | int64 [N], ranks |
| regression | [N, 1] | float64 [N], in units of the labels' standard deviation |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Metric = Callable[[NDArray[Any], NDArray[Any], Vector], Vector]

#: R² is undefined for rows whose labels have at most this share of the variance of all labels: the division by so
#: little could give any number.
_CONSTANT = 1e-10


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Weighted numbers of rows of each class, float64 [K, B]."""

    hits: Vector  # predicted rightly
    predicted: Vector
    actual: Vector

    @property
    def precision(self) -> Vector:
        """Share of the predictions that are right; NaN for a class that is never predicted."""
        return _ratio(self.hits, self.predicted)

    @property
    def recall(self) -> Vector:
        """Share of the class's rows that are found; NaN for a class without rows."""
        return _ratio(self.hits, self.actual)

    @property
    def f1(self) -> Vector:
        """2 hits / (rows + predictions); NaN for a class that neither occurs nor is predicted."""
        return _ratio(2 * self.hits, self.predicted + self.actual)


def count_classes(scores: NDArray[Any], truth: NDArray[Any], weights: Vector) -> ClassCounts:
    """Returns the counts of classification (the class with the largest score) or multilabel (scores above 0)."""
    if truth.ndim == 2:
        return count_memberships(scores > 0, truth, weights)
    return count_numbers(scores.argmax(axis=1), truth, scores.shape[1], weights)


def count_numbers(predicted: NDArray[Any], truth: NDArray[Any], n_classes: int, weights: Vector) -> ClassCounts:
    """Returns the counts for predicted and true class numbers, [N] each."""
    from scipy.sparse import csr_array

    def of_class(numbers: NDArray[Any], kept: NDArray[Any]) -> Vector:
        one_hot = csr_array(
            (kept.astype(np.float64), numbers, np.arange(len(numbers) + 1)), (len(numbers), n_classes)
        )
        return np.asarray(one_hot.T @ weights.T)

    every = np.ones(len(truth))
    return ClassCounts(of_class(truth, predicted == truth), of_class(predicted, every), of_class(truth, every))


def count_memberships(predicted: NDArray[np.bool_], truth: NDArray[np.bool_], weights: Vector) -> ClassCounts:
    """Returns the counts for predicted and true memberships, bool [N, K] each."""
    from scipy.sparse import csr_array

    parts = (predicted & truth, predicted, truth)
    return ClassCounts(*(np.asarray(csr_array(part).T.astype(np.float64) @ weights.T) for part in parts))


def _ranking(scores: NDArray[Any], positive: NDArray[np.bool_], columns: Vector) -> tuple[Vector, Vector]:
    """Returns the area under the ROC curve and the average precision of one class, float64 [B] each.

    The area is the probability that a row of the class has a larger score than one of another class, ties counting
    half (Hanley & McNeil 1982). The average precision is the sum over distinct scores of the precision times the
    recall gained there, without interpolation. Both are NaN without rows of the class or of others.

    Args:
        scores: [N]
        positive: [N]
        columns: the weights, [N, B]
    """
    from scipy.sparse import csr_array

    order = np.argsort(-scores)
    ordered, is_positive = scores[order], positive[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    ends = np.append(starts[1:], len(ordered))
    # Only scores that a row of the class has add to either sum.
    holds = np.logical_or.reduceat(is_positive, starts)
    bounds = np.stack([starts[holds], ends[holds]], axis=1).ravel()
    positives = np.append(0, np.cumsum(is_positive))

    def cumulated(rows: NDArray[np.int64], bounds: NDArray[np.int64]) -> Vector:
        """Returns the sums of the weights of the first rows, up to each bound and of all, [B, bounds + 1]."""
        # Many times faster than sums of all rows one by one: a class of few rows has few bounds.
        parts = csr_array(
            (np.ones(len(rows)), rows, np.concatenate([[0], bounds, [len(rows)]])),
            (len(bounds) + 1, len(columns)),
        )
        return np.ascontiguousarray((parts @ columns).T).cumsum(axis=1)

    above = cumulated(order, bounds)
    hits_above = cumulated(order[is_positive], positives[bounds])
    at, to, hits_at, hits_to = above[:, :-1:2], above[:, 1::2], hits_above[:, :-1:2], hits_above[:, 1::2]
    gained, hits = hits_to - hits_at, hits_above[:, -1]
    others = above[:, -1] - hits
    # Rows of other classes: those with smaller scores, and half of those with the same.
    outranked = others[:, None] - ((to - hits_to) + (at - hits_at)) / 2
    defined = (hits > 0) & (others > 0)
    area = _ratio((gained * outranked).sum(axis=1), np.where(defined, hits * others, 0))
    precision = np.divide(hits_to, to, out=np.zeros_like(to), where=to > 0)
    return area, _ratio((gained * precision).sum(axis=1), np.where(defined, hits, 0))


def rankings(scores: NDArray[Any], truth: NDArray[Any], weights: Vector) -> tuple[Vector, Vector]:
    """Returns `_ranking` of each class against all others, float64 [K, B] each."""
    found = np.full((2, scores.shape[1], len(weights)), np.nan)
    columns = np.ascontiguousarray(weights.T)
    for number in range(scores.shape[1]):
        positive = truth[:, number] if truth.ndim == 2 else truth == number
        if positive.any() and not positive.all():
            found[:, number] = _ranking(scores[:, number], positive, columns)
    return found[0], found[1]


def accuracy(scores: NDArray[Any], truth: NDArray[Any], weights: Vector) -> Vector:
    """Returns the share of rows whose class has the largest score."""
    return _mean(scores.argmax(axis=1) == truth, weights)


def macro_f1(scores: NDArray[Any], truth: NDArray[Any], weights: Vector) -> Vector:
    """Returns the mean F1 of the classes that occur or are predicted; undefined if no row has a class."""
    counts = count_classes(scores, truth, weights)
    return np.where(counts.actual.sum(axis=0) > 0, mean_of_defined(counts.f1), np.nan)


def micro_f1(scores: NDArray[Any], truth: NDArray[Any], weights: Vector) -> Vector:
    """Returns the F1 of all pairs of a row and a class together; undefined if no row has a class."""
    counts = count_classes(scores, truth, weights)
    actual = counts.actual.sum(axis=0)
    both = np.where(actual > 0, actual + counts.predicted.sum(axis=0), 0)
    return _ratio(2 * counts.hits.sum(axis=0), both)


def auroc(scores: NDArray[Any], truth: NDArray[Any], weights: Vector) -> Vector:
    """Returns the mean area under the ROC curve of each class; classes of no row or of all rows are left out."""
    return mean_of_defined(rankings(scores, truth, weights)[0])


def average_precision(scores: NDArray[Any], truth: NDArray[Any], weights: Vector) -> Vector:
    """Returns the mean average precision of each class; classes of no row or of all rows are left out."""
    return mean_of_defined(rankings(scores, truth, weights)[1])


def qwk(scores: NDArray[Any], truth: NDArray[Any], weights: Vector) -> Vector:
    """Returns Cohen's kappa with quadratic weights, of predictions rounded to ranks.

    1 - E[(p - t)²] / E[(p' - t)²], with p' the prediction for an independently drawn row (Cohen 1968). Undefined
    if all true ranks are equal.
    """
    predicted = nearest_rank(scores)
    # From the mean, so that the variances below are not differences of large numbers.
    center = truth.mean()
    p, t = predicted - center, truth - center
    chance = _mean(p**2, weights) + _mean(t**2, weights) - 2 * _mean(p, weights) * _mean(t, weights)
    varies = _mean(t**2, weights) - _mean(t, weights) ** 2 > _CONSTANT
    return 1 - _ratio(_mean((p - t) ** 2, weights), np.where(varies, chance, 0))


def rank_accuracy(scores: NDArray[Any], truth: NDArray[Any], weights: Vector) -> Vector:
    """Returns the share of rows whose rounded prediction is their rank."""
    return _mean(nearest_rank(scores) == truth, weights)


def r2(scores: NDArray[Any], truth: NDArray[Any], weights: Vector) -> Vector:
    """Returns the explained share of the labels' variance: 1 - residual / total; predicting the mean gives 0.

    Undefined where the variance is at most 1e-10 of that of all labels.
    """
    centered = truth - truth.mean()
    total = _mean(centered**2, weights) - _mean(centered, weights) ** 2
    residual = _mean((scores[:, 0] - truth) ** 2, weights)
    return 1 - _ratio(residual, np.where(total > _CONSTANT, total, 0))


def spearman(scores: NDArray[Any], truth: NDArray[Any], weights: Vector) -> Vector:
    """Returns the correlation of the ranks, ties averaged.

    0 if all predictions are equal; undefined if all labels are.
    """
    ours, theirs = _ranks(scores[:, 0], weights), _ranks(truth, weights)
    total = weights.sum(axis=1, keepdims=True)
    ours -= (ours * weights).sum(axis=1, keepdims=True) / total
    theirs -= (theirs * weights).sum(axis=1, keepdims=True) / total
    ours_squared, theirs_squared = ((of**2 * weights).sum(axis=1) for of in (ours, theirs))
    scale = np.sqrt(ours_squared * theirs_squared)
    found = np.divide((ours * theirs * weights).sum(axis=1), scale, out=np.zeros(len(scale)), where=scale > 0)
    return np.where(theirs_squared > 0, found, np.nan)


#: The metrics of each task by name; the first decides unless `--metric` is given.
FUNCTIONS: dict[str, dict[str, Metric]] = {
    "classification": {of.__name__: of for of in (accuracy, macro_f1, auroc, average_precision)},
    "multilabel": {of.__name__: of for of in (macro_f1, micro_f1, auroc, average_precision)},
    "ordinal": {"qwk": qwk, "spearman": spearman, "accuracy": rank_accuracy},
    "regression": {of.__name__: of for of in (r2, spearman)},
}
METRICS = {task: tuple(functions) for task, functions in FUNCTIONS.items()}
#: The least values of metrics that can be below 0.
_LEAST = {"qwk": -1.0, "spearman": -1.0, "r2": -math.inf}


def bounds(metric: str) -> tuple[float, float]:
    """Returns the least and the largest value of a metric, or of a measure of a class."""
    return _LEAST.get(metric, 0.0), 1.0


def score(task: str, metric: str, scores: NDArray[Any], truth: NDArray[Any]) -> float:
    """Returns a score of predictions [N, K] for rows that count once each; NaN if it is undefined."""
    return float(FUNCTIONS[task][metric](scores, truth, np.ones((1, len(truth))))[0]) if len(truth) else math.nan


def nearest_rank(scores: NDArray[Any]) -> NDArray[np.int64]:
    """Returns the rank nearest to each of the values [N, 1], int64 [N]; halves are rounded up."""
    return np.floor(scores[:, 0].astype(np.float64) + 0.5).astype(np.int64)


def mean_of_defined(values: Vector, axis: int = 0) -> Vector:
    """Returns the mean along an axis without NaN; NaN where nothing is defined."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(axis=axis), defined.sum(axis=axis))


def _mean(of_rows: NDArray[Any], weights: Vector) -> Vector:
    return np.asarray(weights @ of_rows / weights.sum(axis=1))


def _ratio(upper: NDArray[Any], lower: NDArray[Any]) -> Vector:
    """Returns upper / lower, NaN where lower is 0."""
    return np.asarray(np.divide(upper, lower, out=np.full(np.shape(upper), np.nan), where=lower > 0))


def _cumulated(weights: Vector) -> Vector:
    """Returns the sums of the first 0, 1, …, N columns of weights [B, N], float64 [B, N + 1]."""
    found = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=found[:, 1:])
    return found


def _ranks(values: NDArray[Any], weights: Vector) -> Vector:
    """Returns the rank of each row among rows that occur `weights` times, up to a constant, float64 [B, N]."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(values[order]) != 0))
    ends = np.append(starts[1:], len(order))
    below = _cumulated(weights[:, order])
    of_group = (below[:, starts] + below[:, ends]) / 2
    found = np.empty_like(weights)
    found[:, order] = np.repeat(of_group, ends - starts, axis=1)
    return found
