"""The verdict of a sweep: the winner, its differences to the baselines, and their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedkit.study.candidates import Candidate
from embedkit.study.probe import ProbeScores

#: Two-sided level of every interval.
_LEVEL = 0.95
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
    def contains_zero(self) -> bool:
        """True if the interval allows for no difference."""
        return self.low <= 0 <= self.high


def corrected_interval(scores: Sequence[float], *, test_share: float) -> Interval:
    """Returns the interval for the mean of scores, or of paired differences, over the folds of a cross-validation.

    The corrected resampled t of Nadeau & Bengio, "Inference for the generalization error" (Machine Learning
    52, 2003, section 3): mean ± t(J-1) * sqrt((1/J + n_test/n_train) * s²), with s² the variance over the J
    folds. With 1/J alone the intervals are too narrow: any two folds share most of their training rows.

    Args:
        scores: J >= 2, one a fold.
        test_share: n_test / n_train of a fold; 1/(J-1) for J equal folds.
    """
    from scipy.stats import t

    folds = len(scores)
    mean = math.fsum(scores) / folds
    variance = math.fsum((score - mean) ** 2 for score in scores) / (folds - 1)
    quantile = float(t.ppf((1 + _LEVEL) / 2, folds - 1))
    return Interval(mean, quantile * math.sqrt((1 / folds + test_share) * variance))


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate with its scores."""

    candidate: Candidate
    dims: int
    folds: dict[str, tuple[float, ...]]  # metric → score of each fold
    intervals: dict[str, Interval]  # metric → mean with its interval
    versus: dict[str, Interval]  # name of a baseline → difference to it in the deciding metric
    baseline: str  # its name if it is a baseline, else empty
    is_winner: bool
    distinguishable: bool  # the interval of its difference to the winner excludes zero


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a sweep.

    Attributes:
        metric: the deciding metric.
        rows: all candidates, in their order.
        nested: metric → score of the selection itself: in each fold, of the candidate that the other folds select.
        nested_versus: name of a baseline → difference of `nested` to it in the deciding metric.
    """

    metric: str
    rows: tuple[Row, ...]
    nested: dict[str, Interval]
    nested_versus: dict[str, Interval]

    @property
    def winner(self) -> Row:
        """The candidate with the best mean; among ties, the one with the fewest dimensions."""
        return next(row for row in self.rows if row.is_winner)

    @property
    def baselines(self) -> tuple[Row, ...]:
        """The rows of the baselines."""
        return tuple(row for row in self.rows if row.baseline)

    @property
    def ranked(self) -> tuple[Row, ...]:
        """All rows, the best first."""
        return tuple(sorted(self.rows, key=lambda row: -row.intervals[self.metric].mean))

    @property
    def sentence(self) -> str:
        """Names the winner, its differences to the baselines, and the layers that are as good."""
        winner = self.winner
        versus = [(row.baseline, winner.versus[row.baseline]) for row in self.baselines if row is not winner]
        unit = f" {_PRINTED[self.metric][2]}"
        beaten = [f"{name} by {self.value(ahead)}" for name, ahead in versus if not ahead.contains_zero]
        even = [f"{name} ({self.value(ahead)}{unit})" for name, ahead in versus if ahead.contains_zero]
        beaten[-1:] = [f"{last}{unit}" for last in beaten[-1:]]
        parts = [f"beats {' and '.join(beaten)}"] if beaten else []
        parts += [f"is not distinguishable from {' and '.join(even)}"] if even else []
        name = f"{winner.candidate.name}, a baseline," if winner.baseline else winner.candidate.name
        return f"{name} {' and '.join(parts) or 'has the best mean'}; {self._ties()}"

    def _ties(self) -> str:
        winner = self.winner
        others = [row for row in self.rows if not row.distinguishable and row is not winner]
        if not others:
            return "every other candidate is worse"
        layers = [
            row.candidate.layers[0]
            for row in others
            if len(row.candidate.layers) == 1
            and row.candidate.model == winner.candidate.model
            and row.candidate.poolings == winner.candidate.poolings
        ]
        of_layers = ""
        if layers:
            noun, verb = ("layer", "is") if len(layers) == 1 else ("layers", "are")
            pool = "+".join(winner.candidate.poolings)
            of_layers = f"{noun} {spans(layers)} with {pool} {verb} not distinguishable from it; "
        least = min(others, key=lambda row: (row.dims, -row.intervals[self.metric].mean))
        count = f"{len(others)} of {len(self.rows) - 1} others are" if len(others) > 1 else "one other is"
        smallest = f"with fewest dimensions {least.candidate.name} ({least.dims})"
        return f"{of_layers}{count} as good within chance, {smallest}"

    def value(self, interval: Interval, metric: str | None = None) -> str:
        """Returns the interval as printed: `83.7 ± 1.0`, in per cent for classes."""
        name = metric or self.metric
        return f"{printed(interval.mean, name)} ± {printed(interval.half, name)}"


def decide(
    candidates: Sequence[Candidate],
    scores: Sequence[ProbeScores],
    dims: Sequence[int],
    baselines: Sequence[Candidate],
    *,
    metric: str,
    test_share: float,
) -> Verdict:
    """Compares all candidates with the best one and with the baselines, fold by fold.

    Args:
        candidates: C of them.
        scores: [C]
        dims: [C] of their vectors.
        baselines: some of the candidates.
        metric: the deciding metric.
        test_share: n_test / n_train of a fold.
    """
    main = [of.by_metric[metric] for of in scores]
    means = [math.fsum(of_folds) / len(of_folds) for of_folds in main]
    best = min(range(len(main)), key=lambda place: (-_number(means[place]), dims[place]))
    named = {of: of.baseline_name for of in baselines}

    def versus(place: int, other: int) -> Interval:
        pairs = zip(main[place], main[other], strict=True)
        return corrected_interval([ours - theirs for ours, theirs in pairs], test_share=test_share)

    rows = tuple(
        Row(
            candidate=candidate,
            dims=dims[place],
            folds=scores[place].by_metric,
            intervals=_intervals(scores[place].by_metric, test_share),
            versus={name: versus(place, candidates.index(of)) for of, name in named.items()},
            baseline=named.get(candidate, ""),
            is_winner=place == best,
            distinguishable=place != best and not versus(best, place).contains_zero,
        )
        for place, candidate in enumerate(candidates)
    )
    # For each fold the best candidate without it; among ties, the one with the fewest dimensions.
    chosen = [
        min(range(len(scores)), key=lambda place: (-_number(scores[place].inner[fold]), dims[place]))
        for fold in range(len(main[0]))
    ]
    nested = {
        name: [scores[place].by_metric[name][fold] for fold, place in enumerate(chosen)]
        for name in scores[0].by_metric
    }
    ahead = {
        name: [ours - theirs for ours, theirs in zip(nested[metric], main[candidates.index(of)], strict=True)]
        for of, name in named.items()
    }
    return Verdict(metric, rows, _intervals(nested, test_share), _intervals(ahead, test_share))


def _intervals(scores: Mapping[str, Sequence[float]], test_share: float) -> dict[str, Interval]:
    return {name: corrected_interval(of, test_share=test_share) for name, of in scores.items()}


def printed(value: float, metric: str) -> str:
    """Returns a score as printed: `83.7` (per cent) or `0.512`."""
    scale, digits, _ = _PRINTED[metric]
    return f"{value * scale:.{digits}f}"


def spans(numbers: Sequence[int]) -> str:
    """Returns `2,4-6` for 2, 4, 5, 6."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _number(score: float) -> float:
    """Returns -inf for NaN: an undefined score (the AUROC of a fold with one class) is never the best."""
    return -math.inf if math.isnan(score) else score
