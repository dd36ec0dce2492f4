"""What the scores of a sweep say: the winner, what it beats, and what cannot be told from it.

Knows nothing of how scores came about, nor of files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from embedkit.study.candidates import Candidate
from embedkit.study.intervals import Interval, corrected_interval
from embedkit.study.probe import Judged

#: How a metric is written: what it is multiplied by, digits behind the point, and what a difference is called.
_SHOWN = {
    "accuracy": (100, 1, "points of accuracy"),
    "macro_f1": (100, 1, "points of macro-F1"),
    "auroc": (100, 1, "points of AUROC"),
    "r2": (1, 3, "of R²"),
    "spearman": (1, 3, "of Spearman's correlation"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate and what came out for it.

    Attributes:
        candidate: what it is.
        dims: dimensions of its vectors.
        folds: for each metric a score a fold.
        intervals: for each metric the mean with its interval.
        versus: by the baseline's name, the difference to it; of the metric that chooses.
        baseline: the name of the baseline that it is; empty if it is none.
        is_winner: whether it has the best mean.
        distinguishable: whether the difference to the winner is more than chance, by its interval.
    """

    candidate: Candidate
    dims: int
    folds: dict[str, tuple[float, ...]]
    intervals: dict[str, Interval]
    versus: dict[str, Interval]
    baseline: str
    is_winner: bool
    distinguishable: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a sweep found.

    Attributes:
        metric: the one that chose.
        rows: all candidates, in their order.
        nested: for each metric the score of choosing as such: in each fold, of the candidate that others chose.
        nested_versus: by the baseline's name, how far that is ahead of it; of the metric that chooses.
    """

    metric: str
    rows: tuple[Row, ...]
    nested: dict[str, Interval]
    nested_versus: dict[str, Interval]

    @property
    def winner(self) -> Row:
        """The best mean; of equals the one with fewest dimensions."""
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
        """In plain words: what is best, what it beats by how much, and which layers are as good."""
        winner = self.winner
        others = [(row.baseline, winner.versus[row.baseline]) for row in self.baselines if row is not winner]
        unit = f" {_SHOWN[self.metric][2]}"
        beaten = [f"{name} by {self.value(ahead)}" for name, ahead in others if not ahead.holds_zero]
        even = [f"{name} ({self.value(ahead)}{unit})" for name, ahead in others if ahead.holds_zero]
        beaten[-1:] = [f"{last}{unit}" for last in beaten[-1:]]
        parts = [f"beats {' and '.join(beaten)}"] if beaten else []
        parts += [f"is not distinguishable from {' and '.join(even)}"] if even else []
        name = f"{winner.candidate.name}, a baseline," if winner.baseline else winner.candidate.name
        return f"{name} {' and '.join(parts) or 'has the best mean'}; {self._as_good()}"

    def _as_good(self) -> str:
        winner = self.winner
        others = [row for row in self.rows if not row.distinguishable and row is not winner]
        if not others:
            return "every other candidate is worse"
        layers = [
            row.candidate.layers[0]
            for row in others
            if len(row.candidate.layers) == 1 and row.candidate.poolings == winner.candidate.poolings
        ]
        of_layers = ""
        if layers:
            verb = "is" if len(layers) == 1 else "are"
            noun = "layer" if len(layers) == 1 else "layers"
            pool = "+".join(winner.candidate.poolings)
            of_layers = f"{noun} {spans(layers)} with {pool} {verb} not distinguishable from it; "
        least = min(others, key=lambda row: (row.dims, -row.intervals[self.metric].mean))
        count = f"{len(others)} of {len(self.rows) - 1} others are" if len(others) > 1 else "one other is"
        smallest = f"with fewest dimensions {least.candidate.name} ({least.dims})"
        return f"{of_layers}{count} as good within chance, {smallest}"

    def value(self, interval: Interval, metric: str | None = None) -> str:
        """`83.7 ± 1.0`: per cent for classes."""
        name = metric or self.metric
        return f"{shown(interval.mean, name)} ± {shown(interval.half, name)}"


def decide(
    candidates: Sequence[Candidate],
    judged: Sequence[Judged],
    dims: Sequence[int],
    baselines: Sequence[Candidate],
    *,
    metric: str,
    test_share: float,
) -> Verdict:
    """Hold all candidates against the best one and against the baselines, fold by fold.

    Args:
        candidates: C of them.
        judged: [C] their scores.
        dims: [C] their dimensions.
        baselines: some of the candidates; named by their pooling.
        metric: the one that chooses.
        test_share: n_test / n_train of a fold.
    """
    main = [of.scores[metric] for of in judged]
    means = [math.fsum(scores) / len(scores) for scores in main]
    order = sorted(range(len(main)), key=lambda place: (-_number(means[place]), dims[place]))
    best = order[0]
    named = {of: f"last-layer {'CLS' if of.pool == 'cls' else of.pool}" for of in baselines}

    def versus(place: int, other: int) -> Interval:
        pairs = zip(main[place], main[other], strict=True)
        return corrected_interval([ours - theirs for ours, theirs in pairs], test_share=test_share)

    rows = []
    for place, candidate in enumerate(candidates):
        scores = judged[place].scores
        rows.append(
            Row(
                candidate=candidate,
                dims=dims[place],
                folds=scores,
                intervals={name: corrected_interval(of, test_share=test_share) for name, of in scores.items()},
                versus={name: versus(place, candidates.index(of)) for of, name in named.items()},
                baseline=named.get(candidate, ""),
                is_winner=place == best,
                distinguishable=place != best and not versus(best, place).holds_zero,
            )
        )
    # In each fold the candidate that did best without it; of equals the one with fewest dimensions.
    chosen = [
        min(range(len(judged)), key=lambda place: (-_number(judged[place].inner[fold]), dims[place]))
        for fold in range(len(main[0]))
    ]
    nested = {
        name: [judged[place].scores[name][fold] for fold, place in enumerate(chosen)] for name in judged[0].scores
    }
    ahead = {
        name: [ours - theirs for ours, theirs in zip(nested[metric], main[candidates.index(of)], strict=True)]
        for of, name in named.items()
    }
    return Verdict(metric, tuple(rows), *(_intervals(scores, test_share) for scores in (nested, ahead)))


def _intervals(scores: dict[str, list[float]], test_share: float) -> dict[str, Interval]:
    return {name: corrected_interval(of, test_share=test_share) for name, of in scores.items()}


def shown(value: float, metric: str) -> str:
    """A score as it is written: `83.7` (per cent), or `0.512`."""
    scale, digits, _ = _SHOWN[metric]
    return f"{value * scale:.{digits}f}"


def spans(numbers: Sequence[int]) -> str:
    """`2,4-6` for 2, 4, 5, 6."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _number(score: float) -> float:
    """A score that could not be computed (a fold of one class has no AUROC) is never the best."""
    return -math.inf if math.isnan(score) else score
