"""What a paper reports of one candidate's predictions: measures with intervals, confusions and calibration."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.study.bootstrap import SAMPLES, percentiles, sample_weights
from embedkit.study.final_probe import Predictions
from embedkit.study.labels import Labels
from embedkit.study.metrics import (
    FUNCTIONS,
    METRICS,
    Vector,
    bounds,
    count_classes,
    count_numbers,
    mean_of_defined,
    nearest_rank,
    rankings,
)
from embedkit.study.probe import standardised
from embedkit.study.splits import Folds

#: Bins of the reliability curve, of equal width.
_BINS = 10
#: Most classes of a confusion matrix: of 200, it has 40,000 numbers.
_MOST_CONFUSED = 200
#: Rows x classes x bootstrap samples that are computed at most, but never fewer samples than `_FEWEST`.
_WORK, _FEWEST = 1_000_000_000, 200
#: Measures of a class whose mean over the classes is the metric of the same name.
_AREAS = ("auroc", "average_precision")


def evaluate(labels: Labels, predictions: Predictions) -> dict[str, Any]:
    """Returns the content of evaluation.json; undefined measures are None.

    Test rows alone are judged where there are any; else all rows that were predicted out of fold, together. So the
    value of a metric is not the mean of the folds' values.

    Intervals are 95 %: the percentiles of 1,000 bootstrap samples of the rows, or of the groups where there are
    groups (Efron & Tibshirani, "An introduction to the bootstrap", 1993, chapter 13), without their bias; of 200
    samples for millions of scores. They say how far another sample of rows would change the measure of these
    predictions, and not how far other training rows would change the predictions.

    Calibration is of the probability of the predicted class; in multilabel, of each row and class. `brier` is the
    mean squared difference of probabilities and outcomes: summed over classes (Brier 1950), of two classes that of
    one of them, in multilabel averaged over classes. `expected_error` is the mean difference of confidence and
    accuracy over bins of equal width, weighted by their rows (Guo et al. 2017). Bins without rows are left out.
    """
    judged, n_classes = predictions.judged, len(labels.classes)
    scores, truth = predictions.scores[judged], labels.targets[judged]
    overall, of_classes = _sampled(labels, predictions, METRICS[labels.task], per_class=n_classes > 0)
    measures = {measure: _intervals(values, measure) for measure, values in of_classes.items()}
    counts = labels.take(judged).counts.tolist()
    return {
        "task": labels.task,
        "estimate": _estimate(predictions),
        "rows": len(judged),
        "metrics": {name: _intervals(values[None], name)[0] for name, values in overall.items()},
        "classes": [
            {
                "name": name,
                "rows": counts[number],
                **{measure: intervals[number] for measure, intervals in measures.items()},
            }
            for number, name in enumerate(labels.classes)
        ],
        "confusion": _confusion(labels.task, scores, truth, n_classes),
        "calibration": _calibration(scores, truth) if labels.has_probabilities else None,
    }


def sampled_metrics(labels: Labels, predictions: Predictions, metrics: Sequence[str]) -> dict[str, Vector]:
    """Returns for each metric float64 [1 + B]: its value on the judged rows, then in B bootstrap samples of them.

    The samples are the same for all predictions of the same rows, so that differences are paired.
    """
    return _sampled(labels, predictions, metrics, per_class=False)[0]


def _sampled(
    labels: Labels, predictions: Predictions, metrics: Sequence[str], *, per_class: bool
) -> tuple[dict[str, Vector], dict[str, Vector]]:
    """Returns metric → float64 [1 + B] as `sampled_metrics`, and measure of each class → float64 [K, 1 + B]."""
    judged, n_classes = predictions.judged, len(labels.classes)
    # The unit of R² is the deviation of all labels but the test rows'.
    labels, center, spread = standardised(labels, Folds(predictions.fold, 1))
    scores, truth = predictions.scores[judged], labels.targets[judged]
    match labels.task:
        case "regression":
            scores = (scores.astype(np.float64) - center) / spread
        case "ordinal":
            scores = np.clip(scores, 0, n_classes - 1)
        case "multilabel":
            scores = scores - np.float32(0.5)  # metrics take classes with scores above 0 for predicted
    groups = None if labels.groups is None else labels.groups[judged]
    samples = int(np.clip(_WORK // max(1, scores.size), _FEWEST, SAMPLES))
    overall: dict[str, list[Vector]] = defaultdict(list)
    of_classes: dict[str, list[Vector]] = defaultdict(list)
    for weights in chain([np.ones((1, len(judged)))], sample_weights(len(judged), groups, samples)):
        measures = _of_classes(labels.task, scores, truth, n_classes, weights) if per_class else {}
        for name, values in measures.items():
            of_classes[name].append(values)
        for name in metrics:
            if name in _AREAS and name in measures:
                overall[name].append(mean_of_defined(measures[name]))
            else:
                overall[name].append(FUNCTIONS[labels.task][name](scores, truth, weights))
    return (
        {name: np.concatenate(values) for name, values in overall.items()},
        {name: np.concatenate(values, axis=1) for name, values in of_classes.items()},
    )


def _of_classes(
    task: str, scores: NDArray[Any], truth: NDArray[Any], n_classes: int, weights: Vector
) -> dict[str, Vector]:
    """Returns the measures of each class, float64 [K, B]; a rank has no score for each class to order rows by."""
    if task == "ordinal":
        counts = count_numbers(nearest_rank(scores), truth, n_classes, weights)
        areas = precisions = np.full((n_classes, len(weights)), np.nan)
    else:
        counts = count_classes(scores, truth, weights)
        areas, precisions = rankings(scores, truth, weights)
    measures = {"precision": counts.precision, "recall": counts.recall, "f1": counts.f1}
    return {**measures, "auroc": areas, "average_precision": precisions}


def _intervals(values: Vector, measure: str) -> list[dict[str, float | None]]:
    """Returns the first of each row of float64 [n, 1 + B] with its interval."""
    found = np.stack([values[:, 0], *percentiles(values, bounds=bounds(measure))], axis=1)
    names = ("value", "low", "high")
    return [
        {name: value if math.isfinite(value) else None for name, value in zip(names, row, strict=True)}
        for row in found.tolist()
    ]


def _estimate(predictions: Predictions) -> str:
    if (predictions.fold < 0).any():
        return "test"
    return "out-of-fold" if len(predictions.judged) == len(predictions.fold) else "validation"


def _confusion(task: str, scores: NDArray[Any], truth: NDArray[Any], n_classes: int) -> list[list[int]] | None:
    """Returns numbers of rows, true class x predicted class; None for more than 200 classes and other tasks."""
    if task not in {"classification", "ordinal"} or n_classes > _MOST_CONFUSED:
        return None
    predicted = scores.argmax(axis=1)
    if task == "ordinal":
        predicted = nearest_rank(np.clip(scores, 0, n_classes - 1))
    found = np.bincount(truth * n_classes + predicted, minlength=n_classes**2)
    return [[int(rows) for rows in of_class] for of_class in found.reshape(n_classes, n_classes)]


def _calibration(probabilities: NDArray[Any], truth: NDArray[Any]) -> dict[str, Any]:
    """Returns Brier score, expected calibration error and reliability curve of probabilities [N, K]."""
    rows, n_classes = probabilities.shape
    if truth.ndim == 2:
        brier = float(np.square(probabilities - truth, dtype=np.float64).mean())
        confidence, correct = probabilities.ravel(), truth.ravel()
    else:
        # |p - y|² over classes: |p|² - 2 p[y] + 1.
        own = probabilities[np.arange(rows), truth].astype(np.float64)
        squares = np.einsum("nk,nk->n", probabilities, probabilities, dtype=np.float64)
        brier = float((squares - 2 * own + 1).mean()) / (2 if n_classes == 2 else 1)
        predicted = probabilities.argmax(axis=1)
        confidence, correct = probabilities[np.arange(rows), predicted], predicted == truth
    place = np.searchsorted(np.linspace(0, 1, _BINS + 1)[1:-1], confidence)
    counts = np.bincount(place, minlength=_BINS)
    summed = np.bincount(place, confidence, minlength=_BINS)
    right = np.bincount(place, correct, minlength=_BINS)
    return {
        "brier": brier,
        "expected_error": float(np.abs(summed - right).sum() / len(confidence)),
        "bins": [
            {
                "low": number / _BINS,
                "high": (number + 1) / _BINS,
                "mean_probability": float(summed[number] / counts[number]),
                "share_correct": float(right[number] / counts[number]),
                "rows": int(counts[number]),
            }
            for number in np.flatnonzero(counts).tolist()
        ],
    }
