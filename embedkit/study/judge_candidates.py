"""Judges the candidates of a sweep on one set of folds: poolings by a probe, and poolers that are fitted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
from numpy.typing import NDArray

from embedkit.config import LabelConfig
from embedkit.engines.base import Callbacks
from embedkit.errors import InputError, ModelError, Stopped
from embedkit.study.candidates import Candidate
from embedkit.study.cross_validation import ProbeScores, cross_validate_all
from embedkit.study.encode_states import states_folder
from embedkit.study.final_probe import Predictions, out_of_fold
from embedkit.study.labelled_rows import LabelledRows
from embedkit.study.labels import Labels
from embedkit.study.pooler_candidates import (
    FinalPooler,
    PoolerCandidate,
    PoolerScores,
    TokenStates,
    final_pooler,
    fold_vectors,
    pooler_candidates,
    pooler_scores,
    token_states,
    vector_states,
)
from embedkit.study.probe import FoldVectors
from embedkit.study.splits import Folds
from embedkit.study.sweep_models import EncodedModel
from embedkit.study.verdict import Verdict, decide, judge_on_test_rows

if TYPE_CHECKING:
    import torch

    from embedkit.study.hidden_states import States


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The candidates of a sweep, each with its model.

    Attributes:
        encoded: the models.
        rows: int64 [N], the labelled rows, by their places in the input.
        models: candidate → its model.
        tokens: name of a model → the states of its tokens, where poolers take them.
    """

    encoded: Sequence[EncodedModel]
    rows: NDArray[np.int64]
    models: Mapping[Candidate, EncodedModel]
    tokens: Mapping[str, TokenStates]

    @property
    def baselines(self) -> list[Candidate]:
        """The baselines, which are those of the first model."""
        first = self.encoded[0]
        return [_named(of, first, self.encoded) for of in first.baselines]

    def dims(self, candidate: Candidate) -> int:
        """Returns the dimensions of a candidate's vectors."""
        return candidate.dims(self.models[candidate].vectors.hidden_size)

    def vectors(self, candidate: Candidate, folds: Folds) -> NDArray[np.float32] | FoldVectors:
        """Returns a candidate's vectors of the labelled rows, as `cross_validate` takes them."""
        if isinstance(candidate, PoolerCandidate):
            return fold_vectors(candidate, self.states(candidate), folds)
        model = self.models[candidate]
        return model.vectors.of(candidate, model.rows(self.rows))

    def states(self, candidate: PoolerCandidate) -> States:
        """Returns the states of the labelled rows that a pooler takes."""
        model = self.models[candidate]
        rows = model.rows(self.rows)
        if candidate.needs_tokens:
            return self.tokens[model.name].of(candidate, rows)
        return vector_states(model.vectors.of(candidate.layer_vectors, rows), len(candidate.layers))

    def device(self, candidate: Candidate) -> torch.device:
        """Returns the device on which a pooler is trained."""
        from embedkit.models.device import pick_device

        return pick_device(self.models[candidate].config.model.devices[0])


@contextmanager
def open_candidates(
    encoded: Sequence[EncodedModel],
    rows: NDArray[np.int64],
    poolers: Sequence[str],
    callbacks: Callbacks,
    stop: threading.Event,
) -> Iterator[Candidates]:
    """Yields all candidates of all models; encodes token states that poolers take, and removes them afterwards.

    Args:
        encoded: the models.
        rows: int64 [N], the labelled rows, by their places in the input.
        poolers: names of the poolers to compare.
        callbacks: receive the progress.
        stop: ends the encoding when it is set.

    Raises:
        EmbedkitError: as `token_states`.
    """
    models: dict[Candidate, EncodedModel] = {}
    tokens: dict[str, TokenStates] = {}
    with ExitStack() as stack:
        for model in encoded:
            fitted = pooler_candidates(poolers, model.vectors.layers, model.vectors.poolings, model.n_layers)
            models |= {_named(of, model, encoded): model for of in (*model.candidates, *fitted)}
            of_tokens = [candidate for candidate in fitted if candidate.needs_tokens]
            if of_tokens:
                callbacks.notice(f"encoding the token states of {model.name} for --pooler")
                states = token_states(model.config, of_tokens, states_folder(model.place), callbacks, stop)
                tokens[model.name] = stack.enter_context(states)
        yield Candidates(encoded, rows, models, tokens)


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """How candidates are judged."""

    found: LabelledRows
    folds: Folds  # of the labelled rows
    metrics: Sequence[str]  # of the task; the first one decides
    probe: str  # one of PROBES
    config: LabelConfig

    @property
    def labels(self) -> Labels:
        """The labels of the rows."""
        return self.found.labels


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The comparison of all candidates."""

    verdict: Verdict
    predictions: Predictions  # of the winner, for rows that it has not seen
    final: FinalPooler | None  # the winner's pooler, fitted to all rows that are not test rows; None without one
    left_out: tuple[str, ...]  # sentences about poolers that cannot be fitted to these rows


def judge(
    candidates: Candidates,
    method: Method,
    on_candidate: Callable[[int, int], None],
    stop: threading.Event,
) -> Judged:
    """Scores all candidates and compares them, without poolers that cannot be fitted to these rows.

    Args:
        candidates: to judge.
        method: of the comparison.
        on_candidate: called after each candidate with the number done and the number of all.
        stop: ends it between two candidates when it is set.

    Raises:
        Stopped: `stop` was set.
        InputError: the vectors of a built-in pooling cannot be judged on these rows.
    """
    labels, folds, metrics, probe = method.labels, method.folds, method.metrics, method.probe
    scores: dict[Candidate, ProbeScores] = {}
    trained: dict[Candidate, Predictions] = {}

    left_out: list[str] = []

    def done(candidate: Candidate, found: ProbeScores | PoolerScores | InputError | ModelError) -> None:
        match found:
            case ProbeScores():
                scores[candidate] = found
            case PoolerScores():
                scores[candidate] = found.scores
                trained[candidate] = Predictions(found.predictions, folds.of_row)
            case fault if isinstance(candidate, PoolerCandidate):
                left_out.append(f"{candidate.name} is left out: {fault.message}")
            case fault:
                raise fault
        on_candidate(len(scores) + len(left_out), len(candidates.models))
        if stop.is_set():
            raise Stopped(
                "stopped by a signal while the candidates were judged; all vectors are committed",
                hint="run the same sweep again: it continues from the vectors",
            )

    by_probe = [candidate for candidate in candidates.models if not is_trained(candidate)]
    makers = [partial(candidates.vectors, candidate, folds) for candidate in by_probe]
    with closing(cross_validate_all(makers, labels, folds, metrics, probe)) as results:
        for candidate, of_probe in zip(by_probe, results, strict=True):
            done(candidate, of_probe)
    for candidate in filter(is_trained, candidates.models):
        done(candidate, _trained_scores(candidates, candidate, method, stop))
    every = list(scores)
    dims = [candidates.dims(candidate) for candidate in every]
    verdict = decide(every, [scores[of] for of in every], dims, candidates.baselines, labels, folds)
    best = verdict.winner.candidate
    final = _final(candidates, best, method, stop)
    winner = trained[best] if best in trained else _predictions(candidates, best, method)
    tested = folds.is_test
    if final is not None and final.test_predictions is not None:
        winner.scores[tested] = final.test_predictions[tested]
    if tested.any():
        named = {of.baseline_name: _predictions(candidates, of, method) for of in candidates.baselines}
        verdict = judge_on_test_rows(verdict, labels, folds, winner, named)
    return Judged(verdict, winner, final, tuple(left_out))


def _predictions(candidates: Candidates, candidate: Candidate, method: Method) -> Predictions:
    """Returns the predictions of a candidate's probe, of each row by one that has not seen it."""
    vectors = candidates.vectors(candidate, method.folds)
    return out_of_fold(vectors, method.labels, method.folds, method.metrics, method.probe)


def _trained_scores(
    candidates: Candidates, candidate: PoolerCandidate, method: Method, stop: threading.Event
) -> PoolerScores | InputError | ModelError:
    """Returns the scores of a pooler that is trained, or the error for rows that it cannot be trained on."""
    try:
        return pooler_scores(
            candidate,
            candidates.states(candidate),
            method.labels,
            method.folds,
            method.metrics,
            groups=method.found.groups,
            seed=method.config.seed,
            device=candidates.device(candidate),
            stop=stop,
        )
    except (InputError, ModelError) as fault:
        return fault


def _final(
    candidates: Candidates, candidate: Candidate, method: Method, stop: threading.Event
) -> FinalPooler | None:
    """Returns a pooler fitted to all rows that are not test rows; None if there is nothing to fit."""
    if not isinstance(candidate, PoolerCandidate) or not candidate.fit_options:
        return None
    model = candidates.models[candidate]
    return final_pooler(
        candidate,
        candidates.states(candidate),
        method.found,
        method.folds,
        model.vectors.recipe,
        config=method.config,
        setup=model.setup,
        device=candidates.device(candidate),
        stop=stop,
    )


def _named(candidate: Candidate, model: EncodedModel, encoded: Sequence[EncodedModel]) -> Candidate:
    """Returns a candidate with the name of its model, if several are compared."""
    return replace(candidate, model=model.name) if len(encoded) > 1 else candidate


def is_trained(candidate: Candidate) -> TypeGuard[PoolerCandidate]:
    """Checks whether a candidate is trained on the labels, together with a head."""
    return isinstance(candidate, PoolerCandidate) and candidate.is_trained
