"""Judges the candidates of a sweep on one set of folds: poolings by a probe, and poolers that are fitted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import Stopped
from embedkit.study.candidates import Candidate
from embedkit.study.final_probe import out_of_fold
from embedkit.study.labels import Labels
from embedkit.study.probe import FoldVectors, ProbeScores, cross_validate_all
from embedkit.study.splits import Folds
from embedkit.study.sweep_models import EncodedModel
from embedkit.study.verdict import Verdict, decide, judge_on_test_rows


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates of a sweep, each with its model.

    Attributes:
        encoded: the models.
        rows: int64 [N], the labelled rows, by their places in the input.
        models: candidate → its model.
    """

    encoded: Sequence[EncodedModel]
    rows: NDArray[np.int64]
    models: Mapping[Candidate, EncodedModel] = field(default_factory=dict)

    @classmethod
    def of(cls, encoded: Sequence[EncodedModel], rows: NDArray[np.int64]) -> Candidates:
        """Returns all candidates of all models, for these rows."""
        found = cls(encoded, rows)
        models = {found.named(of, model): model for model in encoded for of in model.candidates}
        return replace(found, models=models)

    def named(self, candidate: Candidate, model: EncodedModel) -> Candidate:
        """Returns a candidate with the name of its model, if several are compared."""
        return replace(candidate, model=model.name) if len(self.encoded) > 1 else candidate

    @property
    def baselines(self) -> list[Candidate]:
        """The baselines, which are those of the first model."""
        first = self.encoded[0]
        return [self.named(of, first) for of in first.baselines]

    def dims(self, candidate: Candidate) -> int:
        """Returns the dimensions of a candidate's vectors."""
        return candidate.dims(self.models[candidate].vectors.hidden_size)

    def vectors(self, candidate: Candidate) -> NDArray[np.float32] | FoldVectors:
        """Returns a candidate's vectors of the labelled rows, as `cross_validate` takes them."""
        model = self.models[candidate]
        return model.vectors.of(candidate, model.rows(self.rows))


def judge(
    candidates: Candidates,
    labels: Labels,
    folds: Folds,
    metrics: Sequence[str],
    probe: str,
    *,
    on_candidate: Callable[[int, int], None],
    stop: threading.Event,
) -> Verdict:
    """Scores all candidates and compares them.

    Args:
        candidates: to judge.
        labels: of their N rows.
        folds: of these rows.
        metrics: names of the task's metrics; the first one decides.
        probe: one of PROBES.
        on_candidate: called after each candidate with the number done and the number of all.
        stop: ends it between two candidates when it is set.

    Raises:
        Stopped: `stop` was set.
    """
    scores: list[ProbeScores] = []
    makers = [partial(candidates.vectors, candidate) for candidate in candidates.models]
    with closing(cross_validate_all(makers, labels, folds, metrics, probe)) as results:
        for of_candidate in results:
            scores.append(of_candidate)
            on_candidate(len(scores), len(makers))
            if stop.is_set():
                raise Stopped(
                    "stopped by a signal while the probes were fitted; all vectors are committed",
                    hint="run the same command with --on-exists resume: it continues from the vectors",
                )
    dims = [candidates.dims(candidate) for candidate in candidates.models]
    verdict = decide(list(candidates.models), scores, dims, candidates.baselines, labels, folds)
    if not (folds.of_row < 0).any():
        return verdict
    winner, *baselines = (
        out_of_fold(candidates.vectors(candidate), labels, folds, metrics, probe)
        for candidate in (verdict.winner.candidate, *candidates.baselines)
    )
    named = {of.baseline_name: found for of, found in zip(candidates.baselines, baselines, strict=True)}
    return judge_on_test_rows(verdict, labels, folds, winner, named)
