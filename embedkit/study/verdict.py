"""The verdict of a sweep: the winner, its differences to the baselines, and their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from embedkit.study.bootstrap import LEVEL, percentiles
from embedkit.study.candidates import Candidate
from embedkit.study.cross_validation import ProbeScores, constant_scores
from embedkit.study.evaluation import sampled_metrics
from embedkit.study.final_probe import Predictions, constant_out_of_fold
from embedkit.study.labels import Labels
from embedkit.study.metrics import bounds
from embedkit.study.splits import Folds

#: How a metric is printed: factor, decimal places, and the unit of a difference.
_PRINTED = {
    "accuracy": (100, 1, "points of accuracy"),
    "macro_f1": (100, 1, "points of macro-F1"),
    "micro_f1": (100, 1, "points of micro-F1"),
    "auroc": (100, 1, "points of AUROC"),
    "average_precision": (100, 1, "points of average precision"),
    "qwk": (1, 3, "of weighted kappa"),
    "r2": (1, 3, "of R²"),
    "spearman": (1, 3, "of Spearman's correlation"),
}
#: Names of the constant prediction of each task.
_CONSTANTS = {
    "classification": "majority class",
    "multilabel": "class frequencies",
    "ordinal": "most frequent class",
    "regression": "mean of the labels",
}


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, or of test rows a value, with its 95 % confidence interval; NaN where it is undefined."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the width."""
        return (self.high - self.low) / 2

    @property
    def contains_zero(self) -> bool:
        """True if no difference is possible: if zero lies within the interval, or if there is no interval."""
        return not (self.low > 0 or self.high < 0)


def corrected_interval(scores: Sequence[float], *, test_share: float, level: float = LEVEL) -> Interval:
    """Returns the interval for the mean of scores, or of paired differences, over the folds of a cross-validation.

    The corrected resampled t of Nadeau & Bengio, "Inference for the generalization error" (Machine Learning
    52, 2003, section 3): mean ± t(J-1) * sqrt((1/J + n_test/n_train) * s²), with s² the variance over the J
    folds. With 1/J alone the intervals are too narrow: any two folds share most of their training rows.

    Args:
        scores: one a fold; those that are NaN are left out. Without two others there is no interval.
        test_share: n_test / n_train of a fold; 1/(J-1) for J equal folds.
        level: two-sided.
    """
    from scipy.stats import t

    scores = [score for score in scores if not math.isnan(score)]
    folds = len(scores)
    mean = math.fsum(scores) / folds if folds else math.nan
    if folds < 2:
        return Interval(mean, math.nan, math.nan)
    variance = math.fsum((score - mean) ** 2 for score in scores) / (folds - 1)
    half = float(t.ppf((1 + level) / 2, folds - 1)) * math.sqrt((1 / folds + test_share) * variance)
    return Interval(mean, mean - half, mean + half)


def bootstrap_interval(
    values: NDArray[np.float64], level: float = LEVEL, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Interval:
    """Returns the interval within `bounds` of float64 [1 + B]: a value, and those of B bootstrap samples."""
    low, high = percentiles(values, level, bounds)
    return Interval(float(values[0]), float(low), float(high))


@dataclass(frozen=True, slots=True)
class ConstantCandidate(Candidate):
    """The prediction that needs no vector: the most frequent class, or the mean of the labels."""

    task: str = "classification"

    @property
    def name(self) -> str:
        """Name in tables and sentences."""
        return _CONSTANTS[self.task]

    @property
    def baseline_name(self) -> str:
        """The same."""
        return self.name


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate with its scores."""

    candidate: Candidate
    dims: int  # 0 for the constant prediction
    folds: dict[str, tuple[float, ...]]  # metric → score of each fold; NaN where it is undefined
    intervals: dict[str, Interval]  # metric → mean with its interval
    versus: dict[str, Interval]  # name of a baseline → difference to it in the deciding metric
    versus_winner: Interval  # difference to the winner in the deciding metric, fold by fold
    baseline: str  # its name if it is a baseline, else empty
    is_winner: bool

    @property
    def distinguishable(self) -> bool:
        """True if the interval of its difference to the winner excludes zero."""
        return not self.is_winner and not self.versus_winner.contains_zero


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a sweep.

    Attributes:
        metric: the deciding metric.
        rows: all candidates, in their order, and last the constant prediction.
        nested: metric → score of the selection itself: in each fold, of the candidate that the other folds select.
            Empty for a fixed split.
        nested_versus: name of a baseline → difference of `nested` to it in the deciding metric, with an interval
            of `level_for` the baselines.
        test: metric → score of the winner on the user's test rows; None without any.
        test_versus: the same on the test rows.
    """

    metric: str
    rows: tuple[Row, ...]
    nested: dict[str, Interval]
    nested_versus: dict[str, Interval]
    test: dict[str, Interval] | None = None
    test_versus: dict[str, Interval] = field(default_factory=dict)

    @property
    def winner(self) -> Row:
        """The candidate with the best mean; among ties a baseline, then the one with the fewest dimensions."""
        return next(row for row in self.rows if row.is_winner)

    @property
    def n_candidates(self) -> int:
        """The number of candidates, without the constant prediction."""
        return len(self.rows) - 1

    @property
    def baselines(self) -> tuple[Row, ...]:
        """The rows of the baselines."""
        return tuple(row for row in self.rows if row.baseline)

    @property
    def ranked(self) -> tuple[Row, ...]:
        """All rows, the best first."""
        return tuple(sorted(self.rows, key=lambda row: -_number(row.intervals[self.metric].mean)))

    @property
    def undefined(self) -> dict[str, int]:
        """Metric → the number of folds in which it is undefined for the winner, if it is in any."""
        counts = {name: sum(map(math.isnan, scores)) for name, scores in self.winner.folds.items()}
        return {name: count for name, count in counts.items() if count}

    @property
    def sentence(self) -> str:
        """Names the winner, its differences to the baselines, and how many candidates are as good.

        The differences are those on the test rows if there are any, else those of the nested estimate: of the best
        of many candidates the own score is too high.
        """
        winner = self.winner
        name = f"{winner.candidate.name}, a baseline," if winner.baseline else winner.candidate.name
        return f"{name} {self._comparison()}; {self._ties()}"

    def _comparison(self) -> str:
        if self.test is None and not self.nested:
            return "has the best score on the validation rows, which have chosen it"
        found = self.nested_versus if self.test is None else self.test_versus
        versus = [(row.baseline, found[row.baseline]) for row in self.baselines if not row.is_winner]
        unit = f" {_PRINTED[self.metric][2]}"
        groups = {
            "beats": [(name, ahead) for name, ahead in versus if ahead.low > 0],
            "is worse than": [(name, ahead) for name, ahead in versus if ahead.high < 0],
        }
        parts = [
            f"{verb} {_joined(f'{name} by {self._size(ahead)}' for name, ahead in of_verb)}{unit}"
            for verb, of_verb in groups.items()
            if of_verb
        ]
        unit = "" if parts else unit
        even = [f"{name} ({self.value(ahead)}{unit})" for name, ahead in versus if ahead.contains_zero]
        parts += [f"is not distinguishable from {_joined(even)}"] if even else []
        return f"{', and '.join(parts)} {'in the nested estimate' if self.test is None else 'on the test rows'}"

    def _size(self, ahead: Interval) -> str:
        return self.value(Interval(abs(ahead.mean), *sorted((abs(ahead.low), abs(ahead.high)))))

    def _ties(self) -> str:
        compared = [row for row in self.rows if row.candidate.layers and not row.is_winner]
        if not compared:
            return "it is the only candidate"
        even = [row for row in compared if not row.distinguishable]
        if not even:
            return "every other candidate is worse"
        least = min(even, key=lambda row: (row.dims, -_number(row.intervals[self.metric].mean)))
        who = "the other candidate" if len(compared) == 1 else f"{len(even)} of {len(compared)} others"
        are, which = ("are", ", the smallest") if len(even) > 1 else ("is", ":")
        return f"{who} {are} as good within chance{which} {least.candidate.name} ({least.dims} dimensions)"

    def value(self, interval: Interval, metric: str | None = None) -> str:
        """Returns the interval as printed: `83.7 ± 1.0`, in per cent for classes; or `undefined`."""
        name = metric or self.metric
        if math.isnan(interval.mean):
            return "undefined"
        half = "" if math.isnan(interval.half) else f" ± {printed(interval.half, name)}"
        return f"{printed(interval.mean, name)}{half}"


def decide(
    candidates: Sequence[Candidate],
    scores: Sequence[ProbeScores],
    dims: Sequence[int],
    baselines: Sequence[Candidate],
    labels: Labels,
    folds: Folds,
) -> Verdict:
    """Compares all candidates with the best one, the baselines and the constant prediction, fold by fold.

    Of a fixed split the intervals are those of bootstrap samples of the validation rows, the same for all.

    Args:
        candidates: C of them.
        scores: [C]; the first of their metrics decides.
        dims: [C] of their vectors.
        baselines: some of the candidates.
        labels: of the rows.
        folds: of the rows.
    """
    metrics = list(scores[0].by_metric)
    metric = metrics[0]
    constant = ConstantCandidate((), "", (), task=labels.task)
    everyone, named = [*candidates, constant], {of: of.baseline_name for of in (*baselines, constant)}
    found = [*scores, constant_scores(labels, folds, metrics)]

    def preference(place: int, score: float) -> tuple[float, bool, int]:
        # Ties go to a baseline, then to the one with the fewest dimensions.
        return -_number(score), candidates[place] not in named, dims[place]

    def interval(of: ProbeScores, name: str, less: ProbeScores | None = None, level: float = LEVEL) -> Interval:
        return _interval(of, name, less, folds, level)

    places = range(len(candidates))
    best = min(places, key=lambda place: preference(place, interval(scores[place], metric).mean))
    rows = tuple(
        Row(
            candidate=candidate,
            dims=dims[place] if place < len(dims) else 0,
            folds=found[place].by_metric,
            intervals={name: interval(found[place], name) for name in metrics},
            versus={name: interval(found[place], metric, found[everyone.index(of)]) for of, name in named.items()},
            versus_winner=interval(found[place], metric, found[best]),
            baseline=named.get(candidate, ""),
            is_winner=place == best,
        )
        for place, candidate in enumerate(everyone)
    )
    if folds.count == 1:
        return Verdict(metric, rows, {}, {})
    # For each fold the best candidate without it.
    chosen = [
        min(places, key=lambda place: preference(place, scores[place].inner[fold])) for fold in range(folds.count)
    ]
    nested = ProbeScores(
        {name: tuple(scores[of].by_metric[name][fold] for fold, of in enumerate(chosen)) for name in metrics}, ()
    )
    level = level_for(len(named))
    ahead = {name: interval(nested, metric, found[everyone.index(of)], level) for of, name in named.items()}
    return Verdict(metric, rows, {name: interval(nested, name) for name in metrics}, ahead)


def level_for(baselines: int) -> float:
    """Returns the two-sided level of the differences to several baselines.

    At 95 % each, pure noise would seem to beat one or more of three baselines in up to 7.5 % of sweeps; at this
    level in 5 % at most, however alike they are (Bonferroni).
    """
    return max(LEVEL, 1 - 2 * (1 - LEVEL) / baselines)


def _interval(of: ProbeScores, metric: str, less: ProbeScores | None, folds: Folds, level: float) -> Interval:
    """Returns the interval of scores, or of their differences to those of another candidate."""
    ours = np.array(of.by_metric[metric])
    theirs = np.array(less.by_metric[metric]) if less else np.zeros_like(ours)
    if of.resampled is None:
        return corrected_interval((ours - theirs).tolist(), test_share=folds.test_share, level=level)
    sampled = less.resampled[metric] if less and less.resampled else 0.0
    values = np.append(ours - theirs, of.resampled[metric] - sampled)
    return bootstrap_interval(values, level) if less else bootstrap_interval(values, level, bounds(metric))


def judge_on_test_rows(
    verdict: Verdict, labels: Labels, folds: Folds, winner: Predictions, baselines: Mapping[str, Predictions]
) -> Verdict:
    """Returns the verdict with the winner's score on the test rows, and its differences to the baselines there.

    Args:
        verdict: of the other rows.
        labels: of all rows.
        folds: of all rows.
        winner: its predictions.
        baselines: name → predictions of a baseline; the constant prediction needs none.
    """
    metrics = list(verdict.winner.intervals)
    ours = sampled_metrics(labels, winner, metrics)
    others = {**baselines, _CONSTANTS[labels.task]: constant_out_of_fold(labels, folds)}
    differences = {
        name: ours[verdict.metric] - sampled_metrics(labels, of, metrics[:1])[verdict.metric]
        for name, of in others.items()
    }
    versus = {name: bootstrap_interval(of, level_for(len(others))) for name, of in differences.items()}
    tested = {name: bootstrap_interval(values, bounds=bounds(name)) for name, values in ours.items()}
    return replace(verdict, test=tested, test_versus=versus)


def _joined(parts: Iterable[str]) -> str:
    """Returns `a`, `a and b` or `a, b and c`."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def printed(value: float, metric: str) -> str:
    """Returns a score as printed: `83.7` (per cent) or `0.512`."""
    scale, digits, _ = _PRINTED[metric]
    return f"{value * scale:.{digits}f}"


def _number(score: float) -> float:
    """Returns -inf for NaN: an undefined score (the AUROC of a fold with one class) is never the best."""
    return -math.inf if math.isnan(score) else score
