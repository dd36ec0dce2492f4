"""Windows of texts → batches → hidden states → vectors of units, in the order of the units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from embedkit.inference.batching import make_batches
from embedkit.inference.memory import TokenBudget
from embedkit.inference.scheduler import BatchScheduler
from embedkit.inference.transfer import Transfer
from embedkit.models.base import LayerEncoder
from embedkit.pooling.batch_pooler import PoolingPlan
from embedkit.pooling.classifier_head import Head
from embedkit.pooling.postprocess import Int8Range
from embedkit.pooling.token_layout import Layout
from embedkit.pooling.unit_pooler import UnitPooler
from embedkit.pooling.units import Units
from embedkit.pooling.windows import combine
from embedkit.tokenizer import TextTokenizer
from embedkit.types import Batch, RawVectors, TokenizedTexts, Variant

#: Called after each batch with its texts, its tokens, and the cells computed for them (padding included).
OnBatch = Callable[[int, int, int], None]
W = TypeVar("W", bound="EmbeddingTask")


@dataclass(frozen=True, slots=True)
class Embedder:
    """Everything that turns texts into vectors, settled for one recipe.

    Attributes:
        tokenizer: texts → tokens.
        encoder: tokens → hidden states of the layers wanted.
        pooling: hidden states → vectors of windows, or of tokens.
        exclude_special: leave the special tokens that the tokenizer added out of the pooling.
        normalize, truncate_dim, precision: what is done to a finished vector.
        on_long: truncate, chunk or error.
        budget: tokens of a batch; shrinks where memory runs out.
        transfer: how a batch gets to the device, and its vectors back.
        by_segments: whether packed batches are pooled in one go; see Layout.
        batch_size: most texts in a batch; None = as many as the tokens allow.
        level: what a vector is of: text, chunk, word, token or span.
        chunk_pool: how the vectors of a text's windows are combined; see `combine`.
        unit_poolings: how the tokens of a word or a span become one vector; see UnitPooler.
        head: what adds its scores of the vectors as columns; None = nothing does.
        int8_ranges: by variant; None unless the precision is int8.
    """

    tokenizer: TextTokenizer
    encoder: LayerEncoder
    pooling: PoolingPlan
    exclude_special: bool
    normalize: bool
    truncate_dim: int | None
    precision: str
    on_long: str
    budget: TokenBudget
    transfer: Transfer
    by_segments: bool
    batch_size: int | None
    level: str = "text"
    chunk_pool: str = "mean"
    unit_poolings: tuple[str, ...] = ()
    head: Head | None = None
    int8_ranges: Mapping[str, Int8Range] | None = None

    @property
    def raw_variants(self) -> tuple[Variant, ...]:
        """Vectors of a unit as they are computed."""
        variants = self.pooling.variants(self.encoder.hidden_size)
        return tuple(replace(of, dims=of.dims * max(1, len(self.unit_poolings))) for of in variants)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Columns of the output, after `truncate_dim`."""
        kept = self.truncate_dim
        return tuple(replace(of, dims=min(kept or of.dims, of.dims)) for of in self.raw_variants)


class Finisher(Protocol):
    """What comes before the model and behind it: of an Embedder, or of a run without a model. See Embedder."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """Texts → tokens."""

    @property
    def on_long(self) -> str:
        """truncate, chunk or error."""

    @property
    def level(self) -> str:
        """What a vector is of."""

    @property
    def normalize(self) -> bool:
        """Whether vectors are scaled to length 1."""

    @property
    def truncate_dim(self) -> int | None:
        """Dimensions kept."""

    @property
    def precision(self) -> str:
        """How vectors are stored."""

    @property
    def head(self) -> Head | None:
        """What adds its scores of the vectors as columns."""

    @property
    def int8_ranges(self) -> Mapping[str, Int8Range] | None:
        """By variant."""


def embed(
    tokenized: TokenizedTexts, embedder: Embedder, on_batch: OnBatch, units: Units | None = None
) -> RawVectors:
    """Vectors of the texts, or of their units where these are given."""
    work = EmbeddingTask(tokenized, embedder, on_batch, units)
    return next(embed_all((work,), embedder, lambda: True)).vectors()


def embed_all(works: Iterable[W], embedder: Embedder, is_ready: Callable[[], bool]) -> Iterator[W]:
    """Do one Embedding after another, without a pause of the device between them; see Flow.finished.

    Args:
        works: what there is to do; all with this embedder.
        embedder: what computes.
        is_ready: whether the next work would come at once.
    """
    transfer = embedder.transfer
    flow: BatchScheduler[W] = BatchScheduler(
        embedder.budget, ahead=transfer.ahead, late=transfer.late, make_room=transfer.free_memory
    )
    return flow.finished(works, is_ready)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A batch before its turn.

    Attributes:
        staged: its numbers, on their way to the device.
        for_model: of these, the names of those that the encoder asked for.
        layout: how its tokens lie.
        units: of it, by pooling; see UnitPooler.prepare.
    """

    staged: Any
    for_model: tuple[str, ...]
    layout: Layout
    units: Mapping[str, NDArray[np.int64]]


class EmbeddingTask:
    """The vectors of some texts in the making: each distinct window goes through the model once. A Work of Flow.

    Args:
        tokenized: all windows.
        embedder: what computes.
        on_batch: told of each batch, and of its texts: of a text in several windows with its first one.
        units: what vectors are asked of; None = the texts.
        of: what the caller knows it by.
    """

    def __init__(
        self,
        tokenized: TokenizedTexts,
        embedder: Embedder,
        on_batch: OnBatch,
        units: Units | None = None,
        of: Any = None,
    ) -> None:
        self.of = of
        self.tokenized = tokenized
        self.embedder = embedder
        self.on_batch = on_batch
        self.units = units
        tokens = tokenized.tokens
        # Notes are copied forward: what has the same tokens has the same vector, and is computed once.
        self.alike = tokens.duplicate_of()
        self._opens_text = np.diff(tokenized.texts, prepend=-1) > 0
        self._lost: list[int] = []
        members = None if units is None else units.members
        self._unit_pooler = None
        if units is not None and members is not None:
            n_units = len(units.texts)
            self._unit_pooler = UnitPooler(embedder.unit_poolings, members, n_units, tokens, self.alike)
        self._out: dict[str, Any] = {}
        if self._unit_pooler is None:
            n_windows = len(tokens.lengths)
            for variant in embedder.raw_variants:
                n_rows = n_windows if embedder.pooling.poolings else 1
                nothing = np.full((n_rows, variant.dims), np.nan, np.float32)
                self._out[variant.name] = nothing if embedder.pooling.poolings else [nothing] * n_windows

    @property
    def tokens(self) -> int:
        """How many go through the model: those of windows that are alike count once."""
        return int(self.tokenized.tokens.lengths[np.unique(self.alike)].sum())

    def batches(self) -> list[Batch]:
        """See Work."""
        encoder, distinct = self.embedder.encoder, np.unique(self.alike)
        found = make_batches(
            self.tokenized.tokens.lengths[distinct],
            max_tokens=self.embedder.budget.tokens,
            max_rows=self.embedder.batch_size,
            padded=not encoder.packed,
            equal_lengths=encoder.equal_lengths,
        )
        return [Batch(distinct[batch.texts], batch.lengths) for batch in found]

    def cost(self, batch: Batch) -> int:
        """See Work."""
        return batch.tokens if self.embedder.encoder.packed else batch.padded_tokens

    def prepare(self, batch: Batch) -> _Prepared:
        """See Work; numpy alone."""
        embedder, tokens = self.embedder, self.tokenized.tokens
        # Units choose their tokens themselves.
        leave_out = embedder.exclude_special and not embedder.unit_poolings
        before, behind = (tokens.prefix, tokens.suffix) if leave_out else (0, 0)
        layout = Layout(
            batch,
            packed=embedder.encoder.packed,
            before=max(before, embedder.pooling.skipped),
            behind=behind,
            by_segments=embedder.by_segments,
        )
        ids = None
        if embedder.pooling.poolers:
            ids = tokens.input_ids[tokens.indices_of(batch.texts)[0]].astype(np.int64)
        of_model = embedder.encoder.prepare(tokens, batch)
        arrays = {**of_model, **layout.arrays(embedder.pooling, ids)}
        units: Mapping[str, NDArray[np.int64]] = {}
        if self._unit_pooler is not None:
            of_units, units = self._unit_pooler.prepare(batch.texts)
            arrays |= of_units
        return _Prepared(embedder.transfer.stage(arrays), tuple(of_model), layout, units)

    @torch.inference_mode()
    def start(self, batch: Batch, prepared: _Prepared) -> tuple[_Prepared, Any]:
        """See Work."""
        embedder, plan = self.embedder, self.embedder.pooling
        given = embedder.transfer.receive(prepared.staged)
        of_model = {name: given.pop(name) for name in prepared.for_model}
        pooler = prepared.layout.pooler(plan, given, embedder.encoder.device)
        pooled_by_model = embedder.encoder.forward(of_model, batch, pooler.take)
        if "pooler" in plan.poolings and pooled_by_model is not None:
            pooler.take_pooler_output(pooled_by_model)
        vectors: Mapping[Any, torch.Tensor] = pooler.vectors() if plan.poolings else pooler.token_vectors()
        if self._unit_pooler is not None:
            vectors = self._unit_pooler.reduce(given, vectors)
        return prepared, embedder.transfer.give_back(prepared.staged, vectors)

    def collect(self, batch: Batch, started: tuple[_Prepared, Any]) -> None:
        """See Work."""
        prepared, returning = started

        def keep(found: Mapping[Any, NDArray[np.float32]]) -> None:
            if self._unit_pooler is not None:
                self._unit_pooler.add(prepared.units, found)
                return
            for name, vectors in found.items():
                if self.embedder.pooling.poolings:
                    self._out[name][batch.texts] = vectors
                    continue
                stops = np.cumsum(prepared.layout.kept)
                for window, stop, count in zip(
                    batch.texts.tolist(), stops.tolist(), prepared.layout.kept.tolist(), strict=True
                ):
                    self._out[name][window] = vectors[stop - count : stop].copy()

        self.embedder.transfer.collect(returning, keep)
        self.on_batch(int(self._opens_text[batch.texts].sum()), batch.tokens, self.cost(batch))

    def lose(self, text: int) -> None:
        """See Work."""
        self._lost.append(text)

    def discard(self, prepared: _Prepared) -> None:
        """See Work."""
        self.embedder.transfer.discard(prepared.staged)

    def drop(self, started: tuple[_Prepared, Any]) -> None:
        """See Work."""
        self.embedder.transfer.drop(started[1])

    def vectors(self) -> RawVectors:
        """What was made; once all batches are collected."""
        tokenized, out, units = self.tokenized, self._out, self.units
        again = np.flatnonzero(self.alike != np.arange(len(self.alike)))
        self.on_batch(int(self._opens_text[again].sum()), 0, 0)
        lost = np.isin(self.alike, self._lost)
        unfit = frozenset(tokenized.texts[lost].tolist())
        if units is not None and self._unit_pooler is not None:
            nothing = {
                of.name: np.full((len(units.texts), of.dims), np.nan, np.float32)
                for of in self.embedder.raw_variants
            }
            return RawVectors(units.texts, {**nothing, **self._unit_pooler.vectors(self._lost)}, unfit)
        for window in again.tolist():
            for of_variant in out.values():
                of_variant[window] = of_variant[self.alike[window]]
        if units is not None or not self.embedder.pooling.poolings:
            return RawVectors(tokenized.texts, out, unfit)
        how = self.embedder.chunk_pool
        combined = {name: combine(of, tokenized.texts, tokenized.added, how) for name, of in out.items()}
        return RawVectors(np.unique(tokenized.texts), combined, unfit)


@torch.inference_mode()
def first_broken_layer(tokenized: TokenizedTexts, text: int, embedder: Embedder) -> int | None:
    """The first layer at which the states of one of a text's windows are not finite; None where it is no layer."""
    windows = np.flatnonzero(tokenized.texts == text).tolist()
    found = (embedder.encoder.first_non_finite_layer(tokenized.tokens, window) for window in windows)
    return min((layer for layer in found if layer is not None), default=None)
