"""Linear probes on frozen vectors, scored by nested cross-validation.

A probe is trained on all folds but one, and on all folds but two. The latter choose the penalty, and for the
nested estimate the candidate, so that nothing chosen for a fold has seen it. Each training standardises by its own
rows. Rows that the user set aside as a test are in no fold: no function here but `FinalProbe.predict` takes them.
"""

from __future__ import annotations

import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import InputError
from embedkit.study.bootstrap import resampled
from embedkit.study.labels import Labels
from embedkit.study.metrics import FUNCTIONS, mean_of_defined, score
from embedkit.study.splits import HELD_OUT, Folds

Vector = NDArray[np.float64]
#: Returns vectors, float32 [N, D], that were made without the rows of the held-out folds.
FoldVectors = Callable[[Sequence[int]], NDArray[np.float32]]
#: Returns for each penalty the predictions of the held-out folds' rows, in that order, float32 [n, K].
Predict = Callable[[Sequence[int]], Iterable[NDArray[np.float32]]]
PROBES = ("ridge", "logistic")
#: A dimension is constant in a training if its standard deviation is at most this share of its largest absolute
#: value: less is rounding in float32, of 6e-8 an operation.
_ROUNDING = 1e-6
#: Or at most this: its reciprocal must stay a float32.
_TINY = 1e-30
#: Most columns of weights that are multiplied with the vectors at a time: with few classes all penalties share a
#: multiplication, and with thousands the predictions of one penalty are large enough.
_COLUMNS = 512


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
) -> Generator[ProbeScores, None, None]:
    """Yields the scores of many candidates in order, several computed at a time, each in one thread.

    Threads of the linear algebra library spend more time waiting than working: on 2 shared cores a candidate took
    15 s with them, and 0.2 s in one thread.

    `vectors` are functions that return a candidate's vectors, called when their turn comes; the rest is as in
    `cross_validate`.
    """
    with one_thread(), ThreadPoolExecutor(_workers()) as pool:
        pending = [
            pool.submit(lambda make: cross_validate(make(), labels, folds, metrics, probe), make)
            for make in vectors
        ]
        try:
            for future in pending:
                yield future.result()
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


def standardised(labels: Labels, folds: Folds) -> tuple[Labels, float, float]:
    """Returns labels with values of mean 0 and variance 1, and the mean and the standard deviation taken out.

    Both are those of the rows that are not test rows. Labels of other tasks are returned unchanged, with 0 and 1.
    """
    if labels.task != "regression":
        return labels, 0.0, 1.0
    values = labels.targets[folds.trained()]
    # Sums of squares of labels near 1e300 are no floats.
    largest = float(np.abs(values).max()) or 1.0
    center, spread = float((values / largest).mean()), float((values / largest).std())
    spread = spread if spread > 0 else 1.0
    scaled = (labels.targets / largest - center) / spread
    return replace(labels, targets=scaled), center * largest, spread * largest


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


def target_columns(labels: Labels, rows: NDArray[np.int64]) -> Vector:
    """Returns what a linear probe is fitted to, float64 [n, K]: 0 or 1 a class, or [n, 1] values or ranks."""
    targets = labels.targets[rows]
    if labels.task == "classification":
        return np.asarray(targets[:, None] == np.arange(len(labels.classes)), np.float64)
    return targets.astype(np.float64).reshape(len(rows), -1)


class _Part:
    """The rows of one fold, centred by their own mean.

    Means and sums of squares of any set of folds follow from those of the parts, without the cancellation of
    differences of large sums (Chan, Golub & LeVeque, "Algorithms for computing the sample variance", 1983).

    Attributes:
        n: number of rows.
        rows: int64 [n], their places among all rows.
        mean: float64 [D]
        centered: float32 [n, D], vectors - mean.
        squares: float64 [D], sums of the squares of `centered`.
        largest: float64 [D], the largest absolute values.
    """

    def __init__(self, vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        self.rows, self.n = rows, len(rows)
        own = vectors[rows]
        self.mean = own.mean(axis=0, dtype=np.float64) if self.n else np.zeros(vectors.shape[1])
        self.largest = np.maximum(own.max(axis=0), -own.min(axis=0)) if self.n else np.zeros(vectors.shape[1])
        self.centered = np.subtract(own, self.mean, dtype=np.float64).astype(np.float32)
        self.squares = np.einsum("nd,nd->d", self.centered, self.centered, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _Training:
    """The rows that a probe is trained on, as parts.

    Attributes:
        parts: of the rows.
        n: number of rows.
        mean: float64 [D]
        offsets: float64 [parts, D], the mean of each part less that of all.
        scale: float64 [D], the reciprocal of the standard deviation; 0 for a dimension that is constant.
    """

    parts: list[_Part]
    n: int
    mean: Vector
    offsets: Vector
    scale: Vector

    def standardised(self) -> NDArray[np.float32]:
        """Returns float32 [n, D], with mean 0 and variance 1."""
        return np.concatenate(
            [
                (part.centered + offset.astype(np.float32)) * self.scale.astype(np.float32)
                for part, offset in zip(self.parts, self.offsets, strict=True)
            ]
        )


class LinearProbe(ABC):
    """A linear probe, trained on any folds of some vectors."""

    penalties: tuple[float, ...]

    def __init__(self, vectors: NDArray[np.float32], labels: Labels, folds: Folds) -> None:
        self.labels = labels
        numbers = range(int(folds.of_row.max()) + 1)
        self.parts = [_Part(vectors, folds.tested((number,))) for number in numbers]

    @abstractmethod
    def coefficients(self, held: Sequence[int]) -> Iterator[tuple[Vector, Vector]]:
        """Yields weights [D, K] and biases [K] for each penalty, trained without the held-out folds.

        The predictions for vectors [n, D] are vectors @ weights + biases.
        """

    def predictions(self, held: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Yields the predictions of the held-out folds' rows in that order, float32 [n, K], for each penalty."""
        found = self.coefficients(held)
        while several := list(islice(found, max(1, _COLUMNS // self.labels.n_outputs))):
            weights = np.concatenate([of_penalty for of_penalty, _ in several], axis=1)
            biases = np.concatenate([of_penalty for _, of_penalty in several])
            columns = np.concatenate([self._predicted(self.parts[fold], weights, biases) for fold in held])
            if self.labels.task == "ordinal":
                np.clip(columns, 0, len(self.labels.classes) - 1, out=columns)
            yield from np.split(columns, len(several), axis=1)

    @staticmethod
    def _predicted(part: _Part, weights: Vector, biases: Vector) -> NDArray[np.float32]:
        """Returns float32 [n, columns]; the means, which may be much larger than what varies, in float64."""
        columns: NDArray[np.float32] = part.centered @ weights.astype(np.float32)
        columns += (part.mean @ weights + biases).astype(np.float32)
        return columns

    def training(self, held: Sequence[int]) -> _Training:
        """Returns all rows but those of the held-out folds."""
        parts = [part for fold, part in enumerate(self.parts) if fold not in held]
        counts = np.array([part.n for part in parts], np.float64)
        n = int(counts.sum())
        means = np.stack([part.mean for part in parts])
        mean = counts @ means / n
        offsets = means - mean
        deviation = np.sqrt((sum(part.squares for part in parts) + counts @ offsets**2) / n)
        largest = np.max([part.largest for part in parts], axis=0)
        varies = deviation > np.maximum(_ROUNDING * largest, _TINY)
        scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=varies)
        return _Training(parts, n, mean, offsets, scale)


class RidgeProbe(LinearProbe):
    """Least squares with an L2 penalty on standardised vectors [N, D]; classes are fitted as one 0/1 column each.

    The Gram matrices of the parts add up to that of any training, so that a fit costs a Cholesky decomposition for
    each penalty and the rows are read once. With fewer rows than dimensions the same weights come from the
    smaller matrix of the rows' inner products. On 5,000 rows of 384 dimensions it takes 0.15 s; logistic
    regression takes 2 to 6.
    """

    #: Penalties as multiples of the number of training rows, which standardised dimensions have on the diagonal of
    #: their Gram matrix.
    penalties = (1e-3, 1e-2, 1e-1, 1.0, 10.0)

    def __init__(self, vectors: NDArray[np.float32], labels: Labels, folds: Folds) -> None:
        super().__init__(vectors, labels, folds)
        self.by_rows = len(vectors) < vectors.shape[1]
        #: Multilabel scores are above 0 if a class is predicted: if the fit to 0 and 1 is above one half.
        self.threshold = 0.5 if labels.task == "multilabel" else 0.0
        self.target_means, self.grams, self.cross = [], [], []
        for part in self.parts:
            targets = target_columns(labels, part.rows)
            self.target_means.append(targets.mean(axis=0) if part.n else np.zeros(targets.shape[1]))
            if not self.by_rows:
                transposed = part.centered.T.astype(np.float64)
                self.grams.append(transposed @ part.centered)
                self.cross.append(transposed @ (targets - self.target_means[-1]))

    def coefficients(self, held: Sequence[int]) -> Iterator[tuple[Vector, Vector]]:
        """Yields weights and biases as `LinearProbe.coefficients`, with the penalties in their order."""
        training = self.training(held)
        kept = [fold for fold in range(len(self.parts)) if fold not in held]
        counts = np.array([part.n for part in training.parts], np.float64)[:, None]
        means = np.stack([self.target_means[fold] for fold in kept])
        target_mean = (counts * means).sum(axis=0) / training.n
        if self.by_rows:
            of_penalties = self._by_rows(training, target_mean)
        else:
            of_penalties = self._by_dimensions(training, kept, counts, means - target_mean)
        for found in of_penalties:
            weights = found * training.scale[:, None]
            yield weights, target_mean - training.mean @ weights - self.threshold

    def _by_dimensions(
        self, training: _Training, kept: list[int], counts: Vector, target_offsets: Vector
    ) -> Iterator[Vector]:
        """Yields weights [D, K] of standardised dimensions for each penalty: (G + n λ) W = Zᵀ T."""
        weighted = (counts * training.offsets).T
        gram, cross = weighted @ training.offsets, weighted @ target_offsets
        for fold in kept:
            gram += self.grams[fold]
            cross += self.cross[fold]
        gram *= training.scale
        gram *= training.scale[:, None]
        cross *= training.scale[:, None]
        return _solved(gram, cross, [training.n * penalty for penalty in self.penalties])

    def _by_rows(self, training: _Training, target_mean: Vector) -> Iterator[Vector]:
        """Yields the same weights by W = Zᵀ A, (Z Zᵀ + n λ) A = T."""
        rows = training.standardised()
        targets = np.concatenate([target_columns(self.labels, part.rows) for part in training.parts]) - target_mean
        products = (rows @ rows.T).astype(np.float64)
        for of_rows in _solved(products, targets, [training.n * penalty for penalty in self.penalties]):
            yield rows.T @ of_rows


class LogisticProbe(LinearProbe):
    """Logistic regression with an L2 penalty on standardised vectors, by scikit-learn.

    Multinomial for classification; one regression a class for multilabel.
    """

    #: scikit-learn's C, from strong to weak penalties: each fit starts from the previous one.
    penalties = (1e-3, 1e-2, 1e-1)
    #: Bias of a class without a training row: it is never predicted.
    _never = -1e3

    def coefficients(self, held: Sequence[int]) -> Iterator[tuple[Vector, Vector]]:
        """Yields weights and biases as `LinearProbe.coefficients`, from strong to weak penalties."""
        from sklearn.linear_model import LogisticRegression

        training = self.training(held)
        rows = training.standardised()
        targets = np.concatenate([self.labels.targets[part.rows] for part in training.parts])
        multilabel = self.labels.task == "multilabel"
        of_models = list(targets.T) if multilabel else [targets]
        models = [LogisticRegression(tol=1e-3, max_iter=200, warm_start=True) for _ in of_models]
        for c in self.penalties:
            weights = np.zeros((rows.shape[1], self.labels.n_outputs))
            biases = np.full(self.labels.n_outputs, self._never)
            for place, (model, classes) in enumerate(zip(models, of_models, strict=True)):
                found = np.unique(classes)
                if len(found) == 1:
                    biases[place if multilabel else found] = 0 if found[0] or not multilabel else self._never
                    continue
                model.set_params(C=c).fit(rows, classes)
                if multilabel:
                    weights[:, place], biases[place] = model.coef_[0], model.intercept_[0]
                elif len(found) == 2:
                    # Of two classes scikit-learn has the difference of the logits.
                    weights[:, found] = model.coef_.T / 2 * (-1, 1)
                    biases[found] = model.intercept_ / 2 * (-1, 1)
                else:
                    weights[:, found], biases[found] = model.coef_.T, model.intercept_
            weights *= training.scale[:, None]
            yield weights, biases - training.mean @ weights


def constant_scores(labels: Labels, folds: Folds, metrics: Sequence[str]) -> ProbeScores:
    """Returns the scores of `constant_predictions`, in the form of `cross_validate`."""
    labels = standardised(labels, folds)[0]
    return nested_scores(constant_predictions(labels, folds), labels, folds, metrics)


def constant_predictions(labels: Labels, folds: Folds) -> Predict:
    """Returns predictions that are the same for all rows, as `nested_scores` takes them.

    They are the shares of the classes in the training rows, of which the largest is predicted; the mean value; the
    most frequent rank.
    """

    def predictions(held: Sequence[int]) -> list[NDArray[np.float32]]:
        trained = folds.trained(held)
        if labels.task == "ordinal":
            found = np.array([np.bincount(labels.targets[trained]).argmax()])
        else:
            found = target_columns(labels, trained).mean(axis=0) - (0.5 if labels.task == "multilabel" else 0)
        return [np.broadcast_to(found.astype(np.float32), (len(folds.tested(held)), len(found)))]

    return predictions


def linear_probe(vectors: NDArray[np.float32], labels: Labels, folds: Folds, probe: str) -> LinearProbe:
    """Returns one of PROBES for vectors [N, D]; labels are those that `standardised` returns."""
    return (RidgeProbe if probe == "ridge" else LogisticProbe)(vectors, labels, folds)


def probe_predictions(
    vectors: NDArray[np.float32] | FoldVectors, labels: Labels, folds: Folds, probe: str
) -> Predict:
    """Returns the predictions of a linear probe, as `nested_scores` takes them."""
    if callable(vectors):
        return lambda held: linear_probe(vectors(held), labels, folds, probe).predictions(held)
    return linear_probe(vectors, labels, folds, probe).predictions


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes in one thread a fit, and without scikit-learn's warnings."""
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(1):
        # A logistic regression that has not converged after 200 steps is as good a probe.
        warnings.filterwarnings("ignore", message="lbfgs failed to converge")
        yield


def _workers() -> int:
    """Returns the number of this process's cores, at most 8: each worker holds a candidate's vectors."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def _solved(matrix: Vector, right: Vector, penalties: Sequence[float]) -> Iterator[Vector]:
    """Yields the solution of (matrix + penalty) X = right for each penalty, of a positive semidefinite matrix."""
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    for penalty in penalties:
        penalised = matrix.copy()
        np.fill_diagonal(penalised, matrix.diagonal() + penalty)
        try:
            factor = cho_factor(penalised, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError:
            # Rounding in a float32 product has made it indefinite.
            values, vectors = np.linalg.eigh(matrix)
            yield vectors @ ((vectors.T @ right) / (np.maximum(values, 0) + penalty)[:, None])
        else:
            yield cho_solve(factor, right, check_finite=False)
