"""The probe of one candidate: its predictions for rows that it has not seen, and the one trained on all rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.pooling.heads import PredictionHead
from embedkit.study.cross_validation import best_setting
from embedkit.study.labels import Labels
from embedkit.study.metrics import Vector, score
from embedkit.study.probe import (
    FoldVectors,
    Predict,
    constant_predictions,
    linear_probe,
    one_thread,
    probe_predictions,
    standardised,
)
from embedkit.study.splits import HELD_OUT, Folds

#: Range of the scale that makes probabilities of scores: from equal classes to certainty.
_SCALES = (1e-2, 1e4)
#: Scores whose loss is computed at a time.
_BLOCK = 2_000_000


@dataclass(frozen=True, slots=True, eq=False)
class FinalProbe:
    """A probe trained on all rows but the user's test rows.

    Attributes:
        head: standardisation and calibration are folded into its weights.
        penalty: the one that the folds choose, as the probe counts it.
        scale: factor of the logits that makes them those of calibrated probabilities; 1 for values and ranks.
    """

    head: PredictionHead
    penalty: float
    scale: float

    def predict(self, vectors: NDArray[np.float32]) -> NDArray[Any]:
        """Returns probabilities or values, [N, K], for vectors [N, D]."""
        return self.head.scores(vectors)


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Predictions for the labelled rows, each by a probe that was not trained on the row.

    Attributes:
        scores: [N, K] probabilities, in multilabel of each label for itself; [N, 1] values, or ranks for ordinal
            classes. float64 for values beyond the range of float32. NaN for the training rows of a fixed split.
        fold: int64 [N], that tests the row; -1 for the user's test rows, which the final probe predicts.
    """

    scores: NDArray[Any]
    fold: NDArray[np.int64]

    @property
    def judged(self) -> NDArray[np.int64]:
        """The rows to judge the predictions on: test rows if there are any, else all that are predicted."""
        tested = np.flatnonzero(self.fold < 0)
        return tested if len(tested) else np.flatnonzero(~np.isnan(self.scores[:, 0]))


def fit_final(
    vectors: NDArray[np.float32] | FoldVectors, labels: Labels, folds: Folds, metrics: Sequence[str], probe: str
) -> FinalProbe:
    """Trains a probe on all rows that are not test rows.

    The penalty is the one whose probes, trained without a fold, do best on the folds. Class scores s of these
    probes become probabilities softmax(a s), multilabel ones sigmoid(a s). One scale a > 0 is fitted to their log
    loss, so that no decision changes: temperature scaling (Guo et al., "On calibration of modern neural networks",
    2017).

    Args:
        vectors: float32 [N, D], or a function of the held-out folds, as in `cross_validate`.
        labels: of the N rows.
        folds: of the N rows.
        metrics: the first one chooses.
        probe: one of PROBES.
    """
    scaled, center, spread = standardised(labels, folds)
    with one_thread():
        predict = probe_predictions(vectors, scaled, folds, probe)
        held = [(fold,) for fold in range(folds.count)]
        chosen, scale = _chosen(predict, scaled, folds, metrics[0], held)
        trained = linear_probe(_without(vectors, ()), scaled, folds, probe)
        weight, bias = next(islice(trained.coefficients(()), chosen, None))
    weight, bias = (scale * spread * weight).T, scale * spread * bias + center
    classes = labels.classes
    if labels.task == "classification":
        # A class whose rows are all test rows is never predicted.
        seen = _seen(labels, folds)
        weight, bias, classes = weight[seen], bias[seen], tuple(classes[number] for number in seen)
    kind = _narrowest(np.append(weight, bias))
    head = PredictionHead(weight.astype(kind), bias.astype(kind), classes, labels.task)
    return FinalProbe(head, trained.penalties[chosen], scale)


def out_of_fold(
    vectors: NDArray[np.float32] | FoldVectors, labels: Labels, folds: Folds, metrics: Sequence[str], probe: str
) -> Predictions:
    """Predicts each row by a probe that was trained without its fold; test rows by the probe of `fit_final`.

    Penalty and scale are chosen for each fold on the others alone, by probes that have seen neither. Of a fixed
    split the validation rows are predicted by a probe trained on the training rows; they choose its penalty and
    scale. The arguments are those of `fit_final`.
    """
    scaled, center, spread = standardised(labels, folds)
    found = _no_predictions(labels)
    with one_thread():
        predict = probe_predictions(vectors, scaled, folds, probe)
        for fold in range(folds.count):
            others = [(fold, other) for other in range(folds.count) if other != fold]
            chosen, scale = _chosen(predict, scaled, folds, metrics[0], others or [(fold,)])
            predicted = scale * _predicted(predict, (fold,), chosen).astype(np.float64)
            found[folds.tested((fold,))] = _as_probabilities(predicted, labels.task)
    if labels.task == "regression":
        found = found * spread + center
    if (tested := folds.is_test).any():
        final = fit_final(vectors, labels, folds, metrics, probe)
        columns = np.zeros((int(tested.sum()), found.shape[1]), found.dtype)
        places = _seen(labels, folds) if labels.task == "classification" else slice(None)
        columns[:, places] = final.predict(_without(vectors, ())[tested])
        found[tested] = columns
    return Predictions(found.astype(_narrowest(found), copy=False), folds.of_row)


def constant_out_of_fold(labels: Labels, folds: Folds) -> Predictions:
    """Returns the predictions of `constant_predictions` for all rows, in the form of `out_of_fold`."""
    scaled, center, spread = standardised(labels, folds)
    predict = constant_predictions(scaled, folds)
    found = _no_predictions(labels)
    for fold in range(HELD_OUT, folds.count):
        found[folds.tested((fold,))] = _predicted(predict, (fold,), 0)
    match labels.task:
        case "regression":
            found = found * spread + center
        case "multilabel":
            found += 0.5
    return Predictions(found.astype(_narrowest(found), copy=False), folds.of_row)


def _no_predictions(labels: Labels) -> NDArray[Any]:
    """Returns NaN, [N, K]; as float64 only for values, of which there is one a row."""
    kind = np.float64 if labels.task == "regression" else np.float32
    return np.full((len(labels.targets), labels.n_outputs), np.nan, kind)


def _without(vectors: NDArray[np.float32] | FoldVectors, held: Sequence[int]) -> NDArray[np.float32]:
    return vectors(held) if callable(vectors) else vectors


def _seen(labels: Labels, folds: Folds) -> NDArray[np.int64]:
    """Returns the numbers of the classes that have a row which is not a test row."""
    return np.asarray(np.unique(labels.targets[folds.trained()]), np.int64)


def _chosen(
    predict: Predict, labels: Labels, folds: Folds, metric: str, held: Sequence[tuple[int, ...]]
) -> tuple[int, float]:
    """Returns the place of the best penalty and the scale of its scores.

    Each of `held` are the folds to train without; the last of them is judged.
    """
    truth = [labels.targets[folds.tested(of[-1:])] for of in held]
    scores = [
        [score(labels.task, metric, predicted[-len(of) :], of) for predicted in predict(folds_held)]
        for folds_held, of in zip(held, truth, strict=True)
    ]
    chosen = best_setting(np.array(scores))[0]
    if not labels.has_probabilities:
        return chosen, 1.0
    # Fitted again: the scores of all penalties would take several times the memory.
    predictions = [_predicted(predict, of, chosen)[-len(judged) :] for of, judged in zip(held, truth, strict=True)]
    return chosen, _fitted_scale(np.concatenate(predictions), np.concatenate(truth))


def _predicted(predict: Predict, held: tuple[int, ...], penalty: int) -> NDArray[np.float32]:
    return next(islice(predict(held), penalty, None))


def _fitted_scale(scores: NDArray[np.float32], truth: NDArray[Any]) -> float:
    """Returns the scale of scores [N, K] with the least log loss.

    A share 1 / (N + 2) of each row counts as equally divided among the classes, as in Platt scaling: the scale of
    scores without errors would be infinite.
    """
    from scipy.optimize import minimize_scalar

    share = 1 / (len(scores) + 2)

    def loss(log_scale: float) -> float:
        return sum(_log_loss(np.exp(log_scale) * block, of, share) for block, of in _blocks(scores, truth))

    low, high = np.log(_SCALES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


def _blocks(scores: NDArray[np.float32], truth: NDArray[Any]) -> Iterator[tuple[Vector, NDArray[Any]]]:
    step = max(1, _BLOCK // scores.shape[1])
    for start in range(0, len(scores), step):
        yield scores[start : start + step].astype(np.float64), truth[start : start + step]


def _log_loss(logits: Vector, truth: NDArray[Any], share: float) -> float:
    """Returns the summed log loss of logits [n, K], with a share of each row divided equally among the classes."""
    from scipy.special import logsumexp

    if truth.ndim == 2:
        # -log sigmoid(x) = log(1 + exp(-x)); with the target t it is log(1 + exp(x)) - t x.
        smoothed = (1 - share) * truth + share / 2
        return float((np.logaddexp(0, logits) - smoothed * logits).sum())
    expected = (1 - share) * logits[np.arange(len(logits)), truth] + share * logits.mean(axis=1)
    return float((logsumexp(logits, axis=1) - expected).sum())


def _as_probabilities(scores: Vector, task: str) -> Vector:
    from scipy.special import expit, softmax

    match task:
        case "classification":
            return np.asarray(softmax(scores, axis=1))
        case "multilabel":
            return np.asarray(expit(scores))
    return scores


def _narrowest(values: Vector) -> type[np.floating[Any]]:
    """Returns float32, or float64 if there are values beyond its range."""
    if values.dtype == np.float32:
        return np.float32
    largest = np.nanmax(np.abs(values), initial=0)
    return np.float32 if largest <= np.finfo(np.float32).max else np.float64
