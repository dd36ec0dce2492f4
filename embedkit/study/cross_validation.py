"""Nested cross-validation: how a candidate is scored on each fold, and how several are at a time.

What is judged is trained on all folds but one, and on all folds but two. The latter choose the penalty, and for
the nested estimate the candidate, so that nothing chosen for a fold has seen it. Rows that the user set aside as a
test are in no fold, and not used here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import InputError
from embedkit.study.bootstrap import resampled
from embedkit.study.labels import Labels
from embedkit.study.metrics import FUNCTIONS, Vector, mean_of_defined, score
from embedkit.study.probe import (
    FoldVectors,
    Predict,
    constant_predictions,
    one_thread,
    probe_predictions,
    standardised,
)
from embedkit.study.splits import HELD_OUT, Folds


@dataclass(frozen=True, slots=True)
class ProbeScores:
    """The scores of one candidate.

    Attributes:
        by_metric: metric → score of each fold, of the probe trained on the other folds; NaN where it is undefined.
            Of a fixed split one score, of the validation rows.
        inner: for each fold the mean score of the other folds in the deciding metric, each predicted by a probe
            that was trained on neither it nor this fold. Of a fixed split the validation score itself.
        resampled: of a fixed split, metric → float64 [B], the validation score of B bootstrap samples, which are
            the same for all candidates; else None.
    """

    by_metric: dict[str, tuple[float, ...]]
    inner: tuple[float, ...]
    resampled: dict[str, Vector] | None = None


def cross_validate_all(
    vectors: Sequence[Callable[[], NDArray[np.float32] | FoldVectors]],
    labels: Labels,
    folds: Folds,
    metrics: Sequence[str],
    probe: str,
) -> Generator[ProbeScores | InputError, None, None]:
    """Yields the scores of many candidates in order, several computed at a time, each in one thread.

    Threads of the linear algebra library spend more time waiting than working: on 2 shared cores a candidate took
    15 s with them, and 0.2 s in one thread.

    `vectors` are functions that return a candidate's vectors, called when their turn comes; the rest is as in
    `cross_validate`. An error of the rows, from which a candidate cannot be fitted, is yielded in its place.
    """
    with one_thread(), ThreadPoolExecutor(_workers()) as pool:
        pending = [
            pool.submit(lambda make: cross_validate(make(), labels, folds, metrics, probe), make)
            for make in vectors
        ]
        try:
            for future in pending:
                fault = future.exception()
                yield fault if isinstance(fault, InputError) else future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def cross_validate(
    vectors: NDArray[np.float32] | FoldVectors, labels: Labels, folds: Folds, metrics: Sequence[str], probe: str
) -> ProbeScores:
    """Scores vectors by nested cross-validation on one set of folds.

    For fold f the penalty is the one whose probes, trained without f and g, do best on the folds g; the probe
    trained without f is then scored on f. A pair of folds shares its probe, which saves half of the fits.

    Args:
        vectors: float32 [N, D]; or a function that returns them for the folds that are held out, where the pooling
            itself is fitted to the other rows.
        labels: of the N rows.
        folds: of the N rows.
        metrics: names of METRICS[labels.task]; the first one decides.
        probe: one of PROBES; for values and ranks `ridge`.
    """
    labels = standardised(labels, folds)[0]
    return nested_scores(probe_predictions(vectors, labels, folds, probe), labels, folds, metrics)


def nested_scores(
    predictions: Predict,
    labels: Labels,
    folds: Folds,
    metrics: Sequence[str],
    pairs: Iterable[tuple[int, int]] | None = None,
) -> ProbeScores:
    """Scores by nested cross-validation anything that is trained without some folds and predicts those.

    Args:
        predictions: called with the held-out folds; returns for each penalty (or other setting) the predictions of
            their rows, in that order, float32 [n, K], as `embedkit.study.metrics` describes them.
        labels: of the N rows; values as `standardised` returns them.
        folds: of the N rows.
        metrics: names of METRICS[labels.task]; the first one decides.
        pairs: of folds that are held out together; each fold must be in one or more. None for all pairs.
    """
    of_fold = [folds.tested((fold,)) for fold in range(folds.count)]
    truth = [labels.targets[rows] for rows in of_fold]

    def deciding(predicted: NDArray[np.float32], fold: int) -> float:
        return score(labels.task, metrics[0], predicted, truth[fold])

    if folds.count == 1:
        return _validated(predictions((0,)), labels, of_fold[0], metrics)
    inner: dict[int, list[list[float]]] = {fold: [] for fold in range(folds.count)}
    for one, other in combinations(range(folds.count), 2) if pairs is None else pairs:
        n = len(of_fold[one])
        found = [(deciding(both[:n], one), deciding(both[n:], other)) for both in predictions((one, other))]
        inner[other].append([first for first, _ in found])
        inner[one].append([second for _, second in found])
    scores: dict[str, list[float]] = {name: [] for name in metrics}
    best: list[float] = []
    for fold in range(folds.count):
        chosen, its_score = best_setting(np.array(inner[fold]))
        best.append(its_score)
        predicted = next(islice(predictions((fold,)), chosen, None))
        for name in metrics:
            scores[name].append(score(labels.task, name, predicted, truth[fold]))
    return ProbeScores({name: tuple(of_metric) for name, of_metric in scores.items()}, tuple(best))


def _validated(
    predictions: Iterable[NDArray[np.float32]], labels: Labels, rows: NDArray[np.int64], metrics: Sequence[str]
) -> ProbeScores:
    """Returns the scores of the validation rows of a fixed split, of the penalty that is best on them."""
    truth = labels.targets[rows]
    best, of_best = -np.inf, None
    for predicted in predictions:
        found = score(labels.task, metrics[0], predicted, truth)
        if of_best is None or found > best:
            best, of_best = found, predicted
    if of_best is None:
        raise ValueError("no predictions")
    groups = None if labels.groups is None else labels.groups[rows]
    samples = resampled([FUNCTIONS[labels.task][name] for name in metrics], of_best, truth, groups)
    return ProbeScores(
        {name: (score(labels.task, name, of_best, truth),) for name in metrics},
        (best,),
        dict(zip(metrics, samples, strict=True)),
    )


def best_setting(of_settings: Vector) -> tuple[int, float]:
    """Returns the setting with the best mean over folds of scores [folds, settings], and that mean."""
    means = mean_of_defined(of_settings)
    place = int(np.nan_to_num(means, nan=-np.inf).argmax())
    return place, float(means[place])


def constant_scores(labels: Labels, folds: Folds, metrics: Sequence[str]) -> ProbeScores:
    """Returns the scores of `constant_predictions`, in the form of `cross_validate`."""
    labels = standardised(labels, folds)[0]
    return nested_scores(constant_predictions(labels, folds), labels, folds, metrics)


def check_defined(labels: Labels, folds: Folds, metrics: Sequence[str]) -> list[str]:
    """Returns a sentence for each metric that is undefined in some folds, by the labels alone.

    Such folds are left out of the metric's mean and interval.

    Raises:
        InputError: the deciding metric, the first one, is undefined in every fold or on the test rows.
    """
    labels = standardised(labels, folds)[0]

    def is_undefined(metric: str, fold: int) -> bool:
        rows = folds.tested((fold,))
        scores = np.broadcast_to(np.float32(0), (len(rows), labels.n_outputs))
        return math.isnan(score(labels.task, metric, scores, labels.targets[rows]))

    sentences = []
    for metric in metrics:
        undefined = [fold for fold in range(folds.count) if is_undefined(metric, fold)]
        in_test = folds.is_test.any() and is_undefined(metric, HELD_OUT)
        if metric == metrics[0] and (len(undefined) == folds.count or in_test):
            where = "in every fold" if folds.count > 1 else "on the validation rows"
            raise InputError(
                f"{metric} is undefined {'on the test rows' if in_test else where}: too few rows, or equal labels",
                hint="label more rows, choose another --metric, or use fewer --folds",
            )
        if undefined:
            sentences.append(
                f"{metric} is undefined in {len(undefined)} of {folds.count} folds, where too few labels differ; "
                "its mean and interval leave them out"
            )
    return sentences


def _workers() -> int:
    """Returns the number of this process's cores, at most 8: each worker holds a candidate's vectors."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)
