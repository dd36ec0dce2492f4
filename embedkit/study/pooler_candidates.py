"""Poolers as candidates of a sweep: fitted without each fold in turn, and judged on it as the static poolings are.

Kinds with a head (`attention`, `lstm`, ...) are trained together with it, with early stopping on a part of their
training rows; the head's predictions are scored. Kinds without labels (`idf`, `pca`, `whiten`) are fitted to the
training rows, and a linear probe is trained on their vectors, as on those of a pooler that a package declares.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embedkit.config import LabelConfig, RunConfig
from embedkit.config.fit_config import (
    KINDS,
    OF_VECTORS,
    OVER_LAYERS,
    WITH_LAYER_POOL,
    WITHOUT_LABELS,
    FitConfig,
    check_kind,
)
from embedkit.config.poolings import installed, resolve_layers
from embedkit.engines.base import Callbacks
from embedkit.errors import UsageError
from embedkit.inference.model_spec import find_model
from embedkit.inference.tokenizer_setup import TokenizerSetup
from embedkit.pooling.select import choose
from embedkit.storage.disk_errors import as_read_error
from embedkit.study.candidates import Candidate
from embedkit.study.cross_validation import ProbeScores, nested_scores
from embedkit.study.encode_states import encoded_states, read_token_ids, token_states_config
from embedkit.study.labelled_rows import LabelledRows
from embedkit.study.labels import Labels
from embedkit.study.probe import FoldVectors, standardised
from embedkit.study.run_fit import INPUT, rotated, trained
from embedkit.study.splits import Folds, split_rows
from embedkit.study.unsupervised import fit_rotation

if TYPE_CHECKING:
    import torch

    from embedkit.pooling.poolers import Pooler
    from embedkit.study.hidden_states import States

#: Texts that are pooled at a time.
_TEXTS = 256


@dataclass(frozen=True, slots=True)
class PoolerCandidate(Candidate):
    """A pooler of `sweep --pooler`; `poolings` holds its name, as `fit --pooler` or `encode --pool` takes it."""

    layer_pool: str = ""  # pooling of each layer, for kinds that take vectors of layers and not of tokens

    @property
    def pooler(self) -> str:
        """The value of `--pooler`."""
        return self.poolings[0]

    @property
    def kind(self) -> str:
        """The pooler's kind without its number: `pca` of `pca:64`."""
        return self.pooler.partition(":")[0]

    @property
    def needs_tokens(self) -> bool:
        """True if it needs the states of tokens."""
        return not self.layer_pool

    @property
    def is_trained(self) -> bool:
        """True if it is trained on the labels, together with a head."""
        return self.kind in KINDS and self.kind not in WITHOUT_LABELS

    @property
    def layer_vectors(self) -> Candidate:
        """The static candidate with the vectors of layers that it takes."""
        return Candidate(self.layers, "concat", (self.layer_pool,))

    @property
    def fit_options(self) -> dict[str, str]:
        """The options of `embedkit fit` that make it; none for a package's pooler."""
        if self.kind not in KINDS:
            return {}
        layer_pool = {"layer_pool": self.layer_pool} if self.kind in WITH_LAYER_POOL else {}
        return {"pooler": self.pooler, "layers": ",".join(map(str, self.layers)), **layer_pool}

    @property
    def name(self) -> str:
        """Model (of several), layers and pooler in words."""
        # `layer 6 mean` is the static candidate, which has another probe.
        return super(PoolerCandidate, self).name + " trained" * (self.kind in {"mean", "cls"})

    @property
    def layers_text(self) -> str:
        """The layers in words: `layer 6`, `layers 1-6`."""
        return super(PoolerCandidate, self).layers_text.removesuffix(" joined")

    @property
    def kept_dims(self) -> int | None:
        """N of `pca:N` or `whiten:N`; None if not stated."""
        return int(self.pooler.partition(":")[2] or 0) or None

    def dims(self, hidden_size: int) -> int:
        """Returns the dimensions of its vectors."""
        if self.kind not in KINDS:
            return int(_declared(self.pooler).dims(len(self.layers), hidden_size))
        return self.kept_dims or hidden_size * (1 if self.kind in OVER_LAYERS else len(self.layers))


@dataclass(frozen=True, slots=True)
class PoolerScores:
    """The scores of a pooler, and its predictions of each row by a pooler and a probe that never saw it."""

    scores: ProbeScores
    predictions: NDArray[np.float64]  # [N, K] probabilities, or [N, 1] values in the labels' unit; NaN in no fold


def pooler_candidates(
    names: Sequence[str], layers: Sequence[int], poolings: Sequence[str], n_layers: int
) -> list[PoolerCandidate]:
    """Returns the candidates of `--pooler`.

    `weighted-layers` and `lstm` take all layers but the embeddings, as in `fit`; a package's pooler takes the
    layers that it needs; all others take the last layer.

    Args:
        names: of the poolers, checked by `check_poolers`.
        layers: that the sweep compares.
        poolings: that the sweep compares; mean or cls must be among them for kinds that take vectors of layers.
        n_layers: encoder layers of the model.

    Raises:
        UsageError: a pooler needs vectors that the sweep does not compute.
    """
    found = []
    for name in names:
        kind = name.partition(":")[0]
        chosen = tuple(sorted(layers)[-1:])
        layer_pool = ""
        if kind in OF_VECTORS:
            wanted = (kind,) if kind in {"mean", "cls"} else ("mean", "cls")
            layer_pool = next((pooling for pooling in wanted if pooling in poolings), "")
            if not layer_pool:
                raise UsageError(
                    f"--pooler {name} takes the {' or '.join(wanted)} of each layer, which --pool leaves out",
                    hint=f"add {wanted[0]} to --pool",
                )
            if kind in OVER_LAYERS:
                chosen = tuple(layer for layer in sorted(layers) if layer) or chosen
        elif kind not in KINDS and (needed := _declared(name).layers) is not None:
            chosen = resolve_layers(needed, n_layers)
        found.append(PoolerCandidate(chosen, "concat", (name,), layer_pool=layer_pool))
    return found


def check_poolers(names: Sequence[str]) -> None:
    """Checks the names of `sweep --pooler`.

    Raises:
        UsageError: a name is neither a kind of `embedkit fit` nor a pooler of an installed package.
    """
    for name in names:
        if name.endswith(".safetensors"):
            raise UsageError(
                f"--pooler {name}: a fitted pooler may have been trained on these labels, and would look too good",
                hint="name its kind, such as attention: it is fitted again without the rows that judge it",
            )
        if not installed(name):
            check_kind(name)


@contextmanager
def token_states(
    config: RunConfig,
    candidates: Sequence[PoolerCandidate],
    folder: Path,
    callbacks: Callbacks,
    stop: threading.Event,
) -> Iterator[TokenStates]:
    """Encodes the token states that the candidates need, once, and yields them; removes them afterwards.

    They are kept if a signal or the disk ended the sweep, so that the same command continues from them.

    Args:
        config: of the sweep.
        candidates: those with `needs_tokens`.
        folder: for the states, hidden and next to the results.
        callbacks: receive the progress.
        stop: ends the encoding when it is set.

    Raises:
        EmbedkitError: as `encoded_states`.
    """
    layers = tuple(sorted({layer for candidate in candidates for layer in candidate.layers}))
    encoding = token_states_config(config, folder, layers)
    spec = find_model(encoding)
    # Only these look at the tokens themselves.
    by_tokens = any(candidate.kind == "idf" or candidate.kind not in KINDS for candidate in candidates)
    ids = read_token_ids(encoding, spec) if by_tokens else None
    with encoded_states(encoding, spec, callbacks, stop) as (path, _):
        from embedkit.study.hidden_states import open_states

        with as_read_error(path):
            states, _ = open_states(path, n_layers=len(layers), token_ids=ids)
        yield TokenStates(layers, states)


@dataclass(frozen=True, slots=True)
class TokenStates:
    """The token states of all rows with a text."""

    layers: tuple[int, ...]
    states: States

    def of(self, candidate: PoolerCandidate, rows: NDArray[np.int64]) -> States:
        """Returns the states that a candidate takes, of rows [N] among those with a text."""
        return self.states.select_layers([self.layers.index(layer) for layer in candidate.layers]).take(rows)


def vector_states(vectors: NDArray[np.float32], n_layers: int) -> States:
    """Returns the states for kinds that take vectors of layers, float32 [N, L * hidden_size]."""
    from embedkit.study.hidden_states import States

    return States(list(vectors), n_layers=n_layers, of_tokens=False)


def pooler_scores(
    candidate: PoolerCandidate,
    states: States,
    labels: Labels,
    folds: Folds,
    metrics: Sequence[str],
    *,
    groups: NDArray[np.int64] | None,
    seed: int,
    device: torch.device,
    stop: threading.Event,
) -> PoolerScores:
    """Judges a trained pooler with its head on folds that they have not seen.

    For each fold they are trained on the others. For the nested estimate they are trained on all but two
    neighbouring folds and judged on both: 2 x folds trainings in all.

    Args:
        candidate: a pooler that is trained.
        states: of the N labelled rows, in order.
        labels: of these rows.
        folds: of these rows.
        metrics: names of the task's metrics; the first one decides.
        groups: int64 [N], rows that stay together when some are held out for early stopping; None without groups.
        seed: of the first weights, the order of rows, and the rows for early stopping.
        device: to train on.
        stop: ends the training when it is set.

    Raises:
        Stopped: `stop` was set.
        EmbedkitError: as `fit_pooler`.
    """
    from embedkit.study.train_pooler import fit_pooler, pooler_shape

    labels, center, spread = standardised(labels, folds)
    config = FitConfig(candidate.pooler, "pooler.safetensors", LabelConfig("label", seed=seed))
    shape = pooler_shape(config, states, candidate.layer_pool)
    out_of_fold = np.full((len(states), labels.n_outputs), np.nan)

    def predictions(held: Sequence[int]) -> list[NDArray[np.float32]]:
        """Trains without the held-out folds and predicts their rows in order, [n, K]."""
        rows = folds.trained(held)
        trained_on = replace(labels.take(rows), rows=rows, split=None)
        split = split_rows(
            trained_on, None if groups is None else groups[rows], validation=config.validation, test=0, seed=seed
        )
        fitted = fit_pooler(shape, states, trained_on, split, config, device, lambda _: None, stop)
        tested = folds.tested(held)
        predicted = fitted.predictions(states, tested, labels.n_outputs, device)
        if len(held) == 1:
            out_of_fold[tested] = predicted
        # The metrics take a score above 0 for a label.
        return [(predicted - 0.5 if labels.task == "multilabel" else predicted).astype(np.float32)]

    neighbours = [(fold, (fold + 1) % folds.count) for fold in range(folds.count)] if folds.count > 2 else []
    scores = nested_scores(predictions, labels, folds, metrics, neighbours)
    return PoolerScores(scores, out_of_fold * spread + center)


@dataclass(frozen=True, slots=True)
class FinalPooler:
    """A pooler as `embedkit fit` would write it, fitted to all rows but the user's test rows."""

    recipe: dict[str, Any]  # a trained one has its head in it
    tensors: Mapping[str, NDArray[Any]]
    test_predictions: (
        NDArray[np.float64] | None
    )  # as `PoolerScores.predictions`, of the test rows; None: not trained


def final_pooler(
    candidate: PoolerCandidate,
    states: States,
    found: LabelledRows,
    folds: Folds,
    run_recipe: Mapping[str, Any],
    *,
    config: LabelConfig,
    setup: TokenizerSetup,
    device: torch.device,
    stop: threading.Event,
) -> FinalPooler:
    """Fits a pooler as `embedkit fit` with `candidate.fit_options` does, without a share of test rows.

    A trained one is that of the same command, up to rounding in the states. Others are fitted to the labelled rows
    here, and to all rows by the command.

    Args:
        candidate: a kind of `embedkit fit`.
        states: of the N labelled rows, in order.
        found: the labelled rows.
        folds: of these rows.
        run_recipe: of the run that encoded the states.
        config: of the labels.
        setup: the tokenizer of the model.
        device: to train on.
        stop: ends the training when it is set.

    Raises:
        EmbedkitError: as `fit_pooler`.
    """
    from embedkit.pooling.poolers import vocabulary_hash

    tensors: Mapping[str, NDArray[Any]]
    predictions = None
    if candidate.is_trained:
        fit_config = FitConfig(candidate.pooler, "pooler.safetensors", config, test=0)
        here = replace(found, labels=replace(found.labels, rows=np.arange(len(states))))
        made = trained(fit_config, states, here, candidate.layer_pool, device, lambda _: None, stop)
        recipe, tensors = made.recipe, made.tensors
        tested = np.flatnonzero(folds.is_test)
        n_outputs = found.labels.n_outputs
        predictions = np.full((len(states), n_outputs), np.nan)
        predictions[tested] = made.fitted.predictions(states, tested, n_outputs, device)
    elif candidate.kind == "idf":
        vocabulary = setup.raw_tokenizer.get_vocab()
        rows = folds.trained()
        counts = _document_frequencies(states, rows, max(vocabulary.values()) + 1)
        recipe = {
            "kind": "idf",
            "vocabulary": vocabulary_hash(vocabulary, lowercase=setup.lowercase),
            "n_documents": len(rows),
            "rows": len(rows),
        }
        tensors = {"document_frequencies": counts}
    else:
        fit_config = FitConfig(candidate.pooler, "pooler.safetensors")
        recipe, tensors = rotated(fit_config, states.take(folds.trained()), candidate.layer_pool)
    pooler_input = {name: run_recipe[name] for name in INPUT}
    pooler_input |= {"layers": list(candidate.layers), "layer_agg": candidate.layer_agg}
    recipe |= {"model": run_recipe["model"], "text": run_recipe["text"], "input": pooler_input}
    return FinalPooler(recipe, tensors, predictions)


def fold_vectors(candidate: PoolerCandidate, states: States, folds: Folds) -> FoldVectors:
    """Returns a function of the held-out folds that returns all rows' vectors, float32 [N, D'].

    The pooler is fitted to the rows that are neither in these folds nor the user's test rows; a package's pooler
    has nothing to fit.

    Args:
        candidate: a pooler that is not trained.
        states: of the N labelled rows, in order.
        folds: of these rows.
    """
    if candidate.kind not in KINDS:
        declared = _pooled(states, _declared(candidate.pooler))
        return lambda _: declared

    def vectors(held: Sequence[int]) -> NDArray[np.float32]:
        rows = folds.trained(held)
        if candidate.kind == "idf":
            return _pooled(states, _idf_pooler(states, rows))
        found = fit_rotation(states.take(rows).blocks, candidate.kept_dims, whiten=candidate.kind == "whiten")
        parts = [(block - found.center) @ found.rotation for block in states.blocks()]
        return np.concatenate(parts).astype(np.float32)

    return vectors


def _declared(name: str) -> Pooler:
    """Makes the pooler that a package declares."""
    pooler: Pooler = choose((name,))[1][name].made
    return pooler


def _idf_pooler(states: States, rows: NDArray[np.int64]) -> Pooler:
    """Returns the pooler of the document frequencies of tokens in these rows."""
    import torch

    from embedkit.pooling.poolers import IdfPooler, inverse_document_frequencies

    entries = 1 + max(int(ids.max()) for ids in states.token_ids or ())
    frequencies = _document_frequencies(states, rows, entries)
    return IdfPooler(torch.from_numpy(inverse_document_frequencies(frequencies, len(rows))))


def _document_frequencies(states: States, rows: NDArray[np.int64], entries: int) -> NDArray[np.int64]:
    """Returns int64 [entries], the number of these rows that have each token of the vocabulary."""
    frequencies = np.zeros(entries, np.int64)
    for ids in states.take(rows).token_ids or ():
        frequencies[np.unique(ids)] += 1
    return frequencies


def _pooled(states: States, pooler: Pooler) -> NDArray[np.float32]:
    """Returns the vectors of all rows, float32 [N, D']."""
    import torch

    cpu = torch.device("cpu")
    with torch.inference_mode():
        parts = np.array_split(np.arange(len(states)), -(-len(states) // _TEXTS))
        return np.concatenate([states.pooled(pooler, rows, cpu).numpy() for rows in parts])
