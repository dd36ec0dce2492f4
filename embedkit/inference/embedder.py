"""Windows of texts → batches → hidden states → vectors of units, in the order of the units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from embedkit.inference.batching import TokenBudget, make_batches
from embedkit.inference.pipeline import ShardSettings, TokenizedShard, cut_variants, non_finite_texts
from embedkit.inference.scheduler import BatchScheduler
from embedkit.inference.transfer import Transfer
from embedkit.models.base import LayerEncoder
from embedkit.pooling.pooling_spec import PoolingSpec
from embedkit.pooling.token_layout import PartPoolers, TokenLayout
from embedkit.pooling.unit_pooler import UnitPooler, combine_windows
from embedkit.pooling.units import Units
from embedkit.types import Batch, RawVectors, TokenizedTexts, Variant

#: Called after each batch with its texts, its tokens, and the tokens computed for them (padding included).
OnBatch = Callable[[int, int, int], None]
T = TypeVar("T", bound="EmbeddingTask")


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedder(ShardSettings):
    """Everything that turns texts into vectors, resolved for one recipe."""

    encoder: LayerEncoder  # tokens → hidden states of the requested layers
    pooling: PoolingSpec  # hidden states → vectors of windows, or of tokens
    exclude_special: bool  # leave the tokenizer's special tokens out of the pooling
    budget: TokenBudget  # tokens of a batch
    transfer: Transfer  # copies batches to the device and vectors back
    by_segments: bool  # pool packed batches in one operation; see TokenLayout
    batch_size: int | None  # most texts in a batch; None: as many as the tokens allow
    chunk_pool: str = "mean"  # see `combine_windows`
    unit_poolings: tuple[str, ...] = ()  # see UnitPooler

    @property
    def raw_variants(self) -> tuple[Variant, ...]:
        """Vectors of a unit before `truncate_dim`."""
        n_poolings = max(1, len(self.unit_poolings))
        variants = self.pooling.variants(self.encoder.hidden_size)
        return tuple(replace(variant, dims=variant.dims * n_poolings) for variant in variants)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Columns of the output."""
        return cut_variants(self.raw_variants, self.truncate_dim)


def embed(
    tokenized: TokenizedTexts, embedder: Embedder, on_batch: OnBatch, units: Units | None = None
) -> RawVectors:
    """Returns the vectors of texts, or of their units if these are given."""
    task = EmbeddingTask(tokenized, embedder, on_batch, units)
    return next(embed_all((task,), embedder, lambda: True)).vectors()


def embed_all(tasks: Iterable[T], embedder: Embedder, is_ready: Callable[[], bool]) -> Iterator[T]:
    """Runs tasks of one embedder without a pause of the device between them; see BatchScheduler.finished."""
    transfer = embedder.transfer
    scheduler: BatchScheduler[T] = BatchScheduler(
        embedder.budget,
        prefetch=transfer.prefetch,
        in_flight=transfer.in_flight,
        free_memory=transfer.free_memory,
    )
    return scheduler.finished(tasks, is_ready)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A batch before its turn."""

    staged: Any  # its arrays, on their way to the device
    for_model: tuple[str, ...]  # names of the arrays that the encoder takes
    layout: TokenLayout  # positions of its tokens
    units: Mapping[str, NDArray[np.int64]]  # by pooling; see UnitPooler.prepare


class EmbeddingTask:
    """Computes the vectors of some texts; each distinct window goes through the model once. See scheduler.Task.

    Args:
        tokenized: all windows.
        embedder: computes the vectors.
        on_batch: called after each batch; a text in several windows counts with its first.
        units: to compute vectors of; None: the texts.
        source: kept for the caller.
    """

    def __init__(
        self,
        tokenized: TokenizedTexts,
        embedder: Embedder,
        on_batch: OnBatch,
        units: Units | None = None,
        source: Any = None,
    ) -> None:
        self.source = source
        self.tokenized = tokenized
        self.embedder = embedder
        self.on_batch = on_batch
        self.units = units
        tokens = tokenized.tokens
        self.duplicate_of = tokens.duplicate_of()
        self._opens_text = np.diff(tokenized.texts, prepend=-1) > 0
        self._oom: list[int] = []
        members = None if units is None else units.members
        self._unit_pooler = None
        if units is not None and members is not None:
            n_units = len(units.texts)
            self._unit_pooler = UnitPooler(embedder.unit_poolings, members, n_units, tokens, self.duplicate_of)
        self._out: dict[str, Any] = {}
        if self._unit_pooler is None:
            n_windows = len(tokens.lengths)
            for variant in embedder.raw_variants:
                n_rows = n_windows if embedder.pooling.poolings else 1
                empty = np.full((n_rows, variant.dims), np.nan, np.float32)
                self._out[variant.name] = empty if embedder.pooling.poolings else [empty] * n_windows

    @property
    def tokens(self) -> int:
        """Tokens that go through the model: those of duplicate windows count once."""
        return int(self.tokenized.tokens.lengths[np.unique(self.duplicate_of)].sum())

    def batches(self) -> list[Batch]:
        """See Task."""
        encoder, distinct = self.embedder.encoder, np.unique(self.duplicate_of)
        batches = make_batches(
            self.tokenized.tokens.lengths[distinct],
            max_tokens=self.embedder.budget.tokens,
            max_rows=self.embedder.batch_size,
            padded=not encoder.packed,
            equal_lengths=encoder.equal_lengths,
        )
        return [Batch(distinct[batch.texts], batch.lengths) for batch in batches]

    def cost(self, batch: Batch) -> int:
        """See Task."""
        return batch.tokens if self.embedder.encoder.packed else batch.padded_tokens

    def prepare(self, batch: Batch) -> _Prepared:
        """See Task; uses numpy alone."""
        embedder, tokens = self.embedder, self.tokenized.tokens
        # Units choose their tokens themselves.
        leave_out = embedder.exclude_special and not embedder.unit_poolings
        before, after = (tokens.prefix, tokens.suffix) if leave_out else (0, 0)
        layout = TokenLayout(
            batch,
            packed=embedder.encoder.packed,
            skipped_start=max(before, embedder.pooling.skipped),
            skipped_end=after,
            by_segments=embedder.by_segments,
        )
        ids = None
        if embedder.pooling.poolers:
            ids = tokens.input_ids[tokens.indices_of(batch.texts)[0]].astype(np.int64)
        for_model = embedder.encoder.prepare(tokens, batch)
        arrays = {**for_model, **layout.arrays(embedder.pooling, ids)}
        units: Mapping[str, NDArray[np.int64]] = {}
        if self._unit_pooler is not None:
            for_units, units = self._unit_pooler.prepare(batch.texts)
            arrays |= for_units
        return _Prepared(embedder.transfer.stage(arrays), tuple(for_model), layout, units)

    @torch.inference_mode()
    def start(self, batch: Batch, prepared: _Prepared) -> tuple[_Prepared, Any]:
        """See Task."""
        embedder, spec = self.embedder, self.embedder.pooling
        arrays = embedder.transfer.receive(prepared.staged)
        for_model = {name: arrays.pop(name) for name in prepared.for_model}
        vectors: Mapping[Any, torch.Tensor]
        if PartPoolers.can_pool(spec, prepared.layout):
            parts = PartPoolers(spec, prepared.layout, embedder.encoder.device)
            embedder.encoder.forward_parts(for_model, batch, parts.take_part)
            vectors = parts.vectors()
        else:
            pooler = prepared.layout.pooler(spec, arrays, embedder.encoder.device)
            pooler_output = embedder.encoder.forward(for_model, batch, pooler.take)
            if "pooler" in spec.poolings and pooler_output is not None:
                pooler.take_pooler_output(pooler_output)
            vectors = pooler.vectors() if spec.poolings else pooler.token_vectors()
        if self._unit_pooler is not None:
            vectors = self._unit_pooler.reduce(arrays, vectors)
        return prepared, embedder.transfer.give_back(prepared.staged, vectors)

    def collect(self, batch: Batch, started: tuple[_Prepared, Any]) -> None:
        """See Task."""
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

    def mark_oom(self, text: int) -> None:
        """See Task."""
        self._oom.append(text)

    def discard(self, prepared: _Prepared) -> None:
        """See Task."""
        self.embedder.transfer.discard(prepared.staged)

    def drop(self, started: tuple[_Prepared, Any]) -> None:
        """See Task."""
        self.embedder.transfer.drop(started[1])

    def vectors(self) -> RawVectors:
        """Returns the vectors once all batches are collected."""
        tokenized, out, units = self.tokenized, self._out, self.units
        duplicates = np.flatnonzero(self.duplicate_of != np.arange(len(self.duplicate_of)))
        self.on_batch(int(self._opens_text[duplicates].sum()), 0, 0)
        oom = frozenset(tokenized.texts[np.isin(self.duplicate_of, self._oom)].tolist())
        if units is not None and self._unit_pooler is not None:
            empty = {
                variant.name: np.full((len(units.texts), variant.dims), np.nan, np.float32)
                for variant in self.embedder.raw_variants
            }
            return RawVectors(units.texts, {**empty, **self._unit_pooler.vectors(self._oom)}, oom)
        for window in duplicates.tolist():
            for vectors in out.values():
                vectors[window] = vectors[self.duplicate_of[window]]
        if units is not None or not self.embedder.pooling.poolings:
            return RawVectors(tokenized.texts, out, oom)
        combined = {
            name: combine_windows(vectors, tokenized.texts, tokenized.added, self.embedder.chunk_pool)
            for name, vectors in out.items()
        }
        return RawVectors(np.unique(tokenized.texts), combined, oom)


@torch.inference_mode()
def non_finite_layers(shard: TokenizedShard, raw: RawVectors, embedder: Embedder) -> dict[int, int | None]:
    """Returns for each text with a non-finite vector the first layer with non-finite states; runs the model."""
    layers: dict[int, int | None] = {}
    for text in non_finite_texts(raw, shard):
        if text not in raw.oom:
            windows = np.flatnonzero(shard.texts.texts == text).tolist()
            found = (embedder.encoder.first_non_finite_layer(shard.texts.tokens, window) for window in windows)
            layers[text] = min((layer for layer in found if layer is not None), default=None)
    return layers
