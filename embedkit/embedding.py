"""Windows of texts → batches → hidden states → vectors of units, in the order of the units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from embedkit.batching import make_batches
from embedkit.memory import TokenBudget, compute_halving
from embedkit.models.engine import AnyEncoder
from embedkit.pooling.finish import Int8Range
from embedkit.pooling.head import Head
from embedkit.pooling.plan import BatchPooler, PoolingPlan, TokenGroup
from embedkit.records import Batch, RawVectors, TokenizedTexts, Tokens, Variant
from embedkit.tokenizer import TextTokenizer
from embedkit.units.pooling import UnitPooler
from embedkit.units.units import Units
from embedkit.units.windows import combine

#: Called after each batch with its texts, its tokens, and the cells computed for them (padding included).
OnBatch = Callable[[int, int, int], None]


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
        batch_size: most texts in a batch; None = as many as the tokens allow.
        level: what a vector is of: text, chunk, word, token or span.
        chunk_pool: how the vectors of a text's windows are combined; see `combine`.
        unit_poolings: how the tokens of a word or a span become one vector; see UnitPooler.
        head: what adds its scores of the vectors as columns; None = nothing does.
        int8_ranges: by variant; None unless the precision is int8.
    """

    tokenizer: TextTokenizer
    encoder: AnyEncoder
    pooling: PoolingPlan
    exclude_special: bool
    normalize: bool
    truncate_dim: int | None
    precision: str
    on_long: str
    budget: TokenBudget
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


@torch.inference_mode()
def embed(
    tokenized: TokenizedTexts, embedder: Embedder, on_batch: OnBatch, units: Units | None = None
) -> RawVectors:
    """Vectors of the texts, or of their units where these are given."""
    tokens = tokenized.tokens
    # Notes are copied forward: what has the same tokens has the same vector, and is computed once.
    alike = tokens.first_alike()
    members = None if units is None else units.members
    if units is not None and members is not None:
        unit_pooler = UnitPooler(embedder.unit_poolings, members, len(units.texts), tokens, alike)
        lost = _run(tokenized, alike, embedder, on_batch, unit_pooler.take)
        nothing = {
            of.name: np.full((len(units.texts), of.dims), np.nan, np.float32) for of in embedder.raw_variants
        }
        vectors: Mapping[str, Any] = {**nothing, **unit_pooler.vectors(lost)}
        return RawVectors(units.texts, vectors, _texts_of(lost, alike, tokenized))
    n_windows = len(tokens.lengths)
    out: dict[str, Any] = {
        variant.name: np.full((n_windows, variant.dims), np.nan, np.float32)
        if embedder.pooling.poolings
        else [np.full((1, variant.dims), np.nan, np.float32)] * n_windows
        for variant in embedder.raw_variants
    }

    def keep(windows: NDArray[np.int64], found: Mapping[str, Any]) -> None:
        for name, vectors in found.items():
            if embedder.pooling.poolings:
                out[name][windows] = vectors.cpu().numpy()
            else:
                for window, states in zip(windows.tolist(), vectors, strict=True):
                    out[name][window] = states.cpu().numpy()

    lost = _run(tokenized, alike, embedder, on_batch, keep)
    for window in np.flatnonzero(alike != np.arange(n_windows)).tolist():
        for of_variant in out.values():
            of_variant[window] = of_variant[alike[window]]
    unfit = _texts_of(lost, alike, tokenized)
    if units is not None or not embedder.pooling.poolings:
        return RawVectors(tokenized.texts, out, unfit)
    how = embedder.chunk_pool
    combined = {name: combine(of, tokenized.texts, tokenized.added, how) for name, of in out.items()}
    return RawVectors(np.unique(tokenized.texts), combined, unfit)


@torch.inference_mode()
def first_broken_layer(tokenized: TokenizedTexts, text: int, embedder: Embedder) -> int | None:
    """The first layer at which the states of one of a text's windows are not finite; None where it is no layer."""
    windows = np.flatnonzero(tokenized.texts == text).tolist()
    found = (embedder.encoder.first_non_finite_layer(tokenized.tokens, window) for window in windows)
    return min((layer for layer in found if layer is not None), default=None)


def _run(
    tokenized: TokenizedTexts,
    alike: NDArray[np.int64],
    embedder: Embedder,
    on_batch: OnBatch,
    take: Callable[[NDArray[np.int64], Mapping[str, Any]], None],
) -> list[int]:
    """Put each distinct window through the model once.

    Args:
        tokenized: all windows.
        alike: int64 [W], for each window the first with the same tokens.
        embedder: what computes.
        on_batch: told of each batch, and of its texts: of a text in several windows with its first one.
        take: given the windows of a batch, and what was computed for them by variant: [n, D] if the windows are
            pooled; the states of all tokens laid end to end [T, D] for units; else a list of n [tokens, D].

    Returns:
        The windows that did not fit into memory even alone.
    """
    encoder, plan, tokens = embedder.encoder, embedder.pooling, tokenized.tokens
    opens_text = np.diff(tokenized.texts, prepend=-1) > 0
    distinct = np.unique(alike)
    batches = [
        Batch(distinct[batch.texts], batch.lengths)
        for batch in make_batches(
            tokens.lengths[distinct],
            max_tokens=embedder.budget.tokens,
            max_rows=embedder.batch_size,
            padded=not encoder.packed,
            equal_lengths=encoder.equal_lengths,
        )
    ]

    def compute(batch: Batch) -> None:
        pooler = BatchPooler(plan, _groups(tokens, batch, embedder))
        pooled_by_model = encoder.run(tokens, batch, pooler.take)
        if "pooler" in plan.poolings and pooled_by_model is not None:
            pooler.take_pooler_output(pooled_by_model)
        if plan.poolings:
            take(batch.texts, pooler.vectors())
        elif embedder.unit_poolings:
            take(batch.texts, {name: torch.cat(states) for name, states in pooler.token_vectors().items()})
        else:
            take(batch.texts, pooler.token_vectors())
        on_batch(int(opens_text[batch.texts].sum()), batch.tokens, cost(batch))

    def cost(batch: Batch) -> int:
        return batch.tokens if encoder.packed else batch.padded_tokens

    lost = list(compute_halving(batches, compute, cost, embedder.budget))
    on_batch(int(opens_text[alike != np.arange(len(alike))].sum()), 0, 0)
    return lost


def _texts_of(lost: list[int], alike: NDArray[np.int64], tokenized: TokenizedTexts) -> frozenset[int]:
    return frozenset(tokenized.texts[np.isin(alike, lost)].tolist()) if lost else frozenset()


def _groups(tokens: Tokens, batch: Batch, embedder: Embedder) -> list[TokenGroup]:
    """The batch's texts as rectangles, each with the mask of what takes part in the pooling."""
    device = embedder.encoder.device
    # Units choose their tokens themselves.
    leave_out = embedder.exclude_special and not embedder.unit_poolings
    before, behind = (tokens.prefix, tokens.suffix) if leave_out else (0, 0)
    before = max(before, embedder.pooling.skipped)
    ids = _ids_of(tokens, batch, embedder)
    if embedder.encoder.packed:
        groups, text = [], 0
        for run in batch.runs():
            mask = None
            if before or behind:
                place = torch.arange(run.length, device=device)
                mask = ((place >= before) & (place < run.length - behind)).expand(run.count, -1)
            of_run = None if ids is None else ids[run.start :][: run.count * run.length].view(run.count, -1)
            groups.append(TokenGroup(slice(text, text + run.count), run, mask, of_run))
            text += run.count
        return groups
    place = torch.arange(int(batch.lengths[-1]), device=device)
    lengths = torch.from_numpy(batch.lengths).to(device)[:, None]
    mask = (place >= before) & (place < lengths - behind)
    if ids is not None:
        ids = torch.zeros(mask.shape, dtype=ids.dtype, device=device).masked_scatter(place < lengths, ids)
    return [TokenGroup(slice(0, len(batch.texts)), None, mask, ids)]


def _ids_of(tokens: Tokens, batch: Batch, embedder: Embedder) -> torch.Tensor | None:
    """Token ids of the batch's texts laid end to end, int64 [T]; None where no pooler wants them."""
    if not embedder.pooling.poolers:
        return None
    ids = tokens.input_ids[tokens.places(batch.texts)[0]].astype(np.int64)
    return torch.from_numpy(ids).to(embedder.encoder.device)
