"""The story of a shard on one page: texts → tokens → batches → hidden states → vectors.

The stages meet here and know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embedkit.batching import make_batches
from embedkit.errors import InputError, ModelError, OutputError
from embedkit.memory import TokenBudget, compute_halving
from embedkit.models.encoder import FrozenEncoder
from embedkit.pooling.finish import Int8Range, finish, store
from embedkit.pooling.plan import BatchPooler, PoolingPlan, TokenGroup
from embedkit.records import Batch, EncodedShard, Fault, Record, Tokens, Variant
from embedkit.tokenizer import TextTokenizer, TokenizedTexts, refuse_long

#: Why a text has no vector although it has tokens: what an error says of it, and the way out.
_NO_VECTOR = {
    "non_finite": ("a vector is not finite (NaN or infinite)", "--dtype fp32"),
    "out_of_memory": ("a text does not fit into memory even alone", "a smaller --max-length"),
}
#: Called after each batch with its texts, its tokens, and the cells computed for them (padding included).
OnBatch = Callable[[int, int, int], None]


@dataclass(frozen=True, slots=True)
class Embedder:
    """Everything that turns texts into vectors, settled for one recipe.

    Attributes:
        tokenizer: texts → tokens.
        encoder: tokens → hidden states of the layers wanted.
        pooling: hidden states → vectors.
        exclude_special: leave the special tokens that the tokenizer added out of the pooling.
        normalize, truncate_dim, precision: what is done to a finished vector.
        on_long: truncate or error.
        budget: tokens of a batch; shrinks where memory runs out.
        batch_size: most texts in a batch; None = as many as the tokens allow.
        int8_ranges: by variant; None unless the precision is int8.
    """

    tokenizer: TextTokenizer
    encoder: FrozenEncoder
    pooling: PoolingPlan
    exclude_special: bool
    normalize: bool
    truncate_dim: int | None
    precision: str
    on_long: str
    budget: TokenBudget
    batch_size: int | None
    int8_ranges: Mapping[str, Int8Range] | None = None

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Columns of the output, after `truncate_dim`."""
        variants = self.pooling.variants(self.encoder.hidden_size)
        kept = self.truncate_dim
        return tuple(replace(variant, dims=min(kept or variant.dims, variant.dims)) for variant in variants)


@dataclass(frozen=True, slots=True)
class ReadShard:
    """A shard's rows as they were read; faulty ones that are kept as null are among the records.

    Attributes:
        index, start, stop: which rows of the input.
        records: those that will be in the output, in order.
        faults: rows that could not be read, skipped or kept as null.
    """

    index: int
    start: int
    stop: int
    records: Sequence[Record]
    faults: Sequence[Fault]


@dataclass(frozen=True, slots=True)
class TokenizedShard:
    """A shard's rows and their tokens."""

    read: ReadShard
    texts: TokenizedTexts


def tokenize_shard(read: ReadShard, embedder: Embedder) -> TokenizedShard:
    """Tokens and receipts of a shard's texts.

    Raises:
        InputError: a text is too long, and `--on-long` is error.
    """
    texts = embedder.tokenizer.tokenize([record.text for record in read.records])
    if embedder.on_long == "error":
        refuse_long(texts.n_tokens, embedder.tokenizer.max_length, [record.row for record in read.records])
    return TokenizedShard(read, texts)


def embed_shard(
    shard: TokenizedShard,
    embedder: Embedder,
    *,
    keep: Sequence[str],
    on_bad_row: str,
    list_nulls: bool,
    on_batch: OnBatch,
) -> EncodedShard:
    """Vectors and receipts of a shard's rows, in input order.

    Args:
        shard: its tokens.
        embedder: what computes them.
        keep: names of the kept columns.
        on_bad_row: fail, null or skip, for a row whose vector is not finite.
        list_nulls: whether rows without a vector are rejects too, because the output leaves them out.
        on_batch: told of each batch.

    Raises:
        ModelError: a vector is not finite, and `on_bad_row` is fail.
        OutputError: a vector does not fit the output's precision.
    """
    texts = shard.texts
    records = shard.read.records
    raw, unfit = embed_tokens(texts.tokens, embedder, on_batch)
    status = _receipts(shard)
    kept_vectors = np.ones(len(texts.texts), np.bool_)
    faults = list(shard.read.faults)
    for vector in np.flatnonzero(~_finite(raw, len(texts.texts))):
        row = int(texts.texts[vector])
        code = "out_of_memory" if vector in unfit else "non_finite"
        if on_bad_row == "fail":
            what, way = _NO_VECTOR[code]
            raise ModelError(
                f"{what}: row {records[row].row}",
                hint=f"use {way}, or --on-bad-row null to keep such rows without a vector",
            )
        kept_vectors[vector] = False
        status[row] = code
        faults.append(Fault(records[row].row, "", None, code))
    if list_nulls:
        listed = {fault.row for fault in faults}
        empty = (record.row for record, word in zip(records, status, strict=True) if word == "empty")
        faults += [Fault(row, "", None, "empty") for row in empty if row not in listed]
    has_vector = np.zeros(len(records), np.bool_)
    has_vector[texts.texts[kept_vectors]] = True
    vectors = {name: _finished(name, of_variant, kept_vectors, embedder) for name, of_variant in raw.items()}
    written = np.array([on_bad_row != "skip" or word not in _NO_VECTOR for word in status], np.bool_)
    rows = [record for record, is_written in zip(records, written, strict=True) if is_written]
    return EncodedShard(
        index=shard.read.index,
        start=shard.read.start,
        stop=shard.read.stop,
        ids=[record.id for record in rows],
        kept={name: [record.kept[place] for record in rows] for place, name in enumerate(keep)},
        n_tokens=texts.n_tokens[written],
        n_used=texts.n_used[written],
        n_chunks=has_vector[written].astype(np.int32),
        status=[word for word, is_written in zip(status, written, strict=True) if is_written],
        has_vector=has_vector[written],
        vectors=vectors,
        rejects=faults,
    )


@torch.inference_mode()
def embed_tokens(tokens: Tokens, embedder: Embedder, on_batch: OnBatch) -> tuple[dict[str, Any], list[int]]:
    """Raw vectors of texts, in the order of the texts.

    Returns:
        For each variant float32 [N, D], or for token vectors N arrays [tokens that take part, D]; and the numbers
        of the texts that did not fit into memory even alone, whose rows are NaN.
    """
    encoder, plan = embedder.encoder, embedder.pooling
    n_texts = len(tokens.lengths)
    out: dict[str, Any] = {
        variant.name: np.full((n_texts, variant.dims), np.nan, np.float32)
        if plan.poolings
        else [np.full((1, variant.dims), np.nan, np.float32)] * n_texts
        for variant in plan.variants(encoder.hidden_size)
    }
    # Notes are copied forward: what has the same tokens has the same vector, and is computed once.
    alike = tokens.first_alike()
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
            for name, vectors in pooler.vectors().items():
                out[name][batch.texts] = vectors.cpu().numpy()
        else:
            for name, states in pooler.token_vectors().items():
                for text, of_text in zip(batch.texts.tolist(), states, strict=True):
                    out[name][text] = of_text.cpu().numpy()
        on_batch(len(batch.texts), batch.tokens, cost(batch))

    def cost(batch: Batch) -> int:
        return batch.tokens if encoder.packed else batch.padded_tokens

    unfit = set(compute_halving(batches, compute, cost, embedder.budget))
    for text in np.flatnonzero(alike != np.arange(n_texts)).tolist():
        for of_variant in out.values():
            of_variant[text] = of_variant[alike[text]]
    on_batch(n_texts - len(distinct), 0, 0)
    return out, [text for text in range(n_texts) if alike[text] in unfit]


def _groups(tokens: Tokens, batch: Batch, embedder: Embedder) -> list[TokenGroup]:
    """The batch's texts as rectangles, each with the mask of what takes part in the pooling."""
    device = embedder.encoder.device
    before, behind = (tokens.prefix, tokens.suffix) if embedder.exclude_special else (0, 0)
    before = max(before, embedder.pooling.skipped)
    if embedder.encoder.packed:
        groups, text = [], 0
        for run in batch.runs():
            mask = None
            if before or behind:
                place = torch.arange(run.length, device=device)
                mask = ((place >= before) & (place < run.length - behind)).expand(run.count, -1)
            groups.append(TokenGroup(slice(text, text + run.count), run, mask))
            text += run.count
        return groups
    place = torch.arange(int(batch.lengths[-1]), device=device)
    lengths = torch.from_numpy(batch.lengths).to(device)[:, None]
    mask = (place >= before) & (place < lengths - behind)
    return [TokenGroup(slice(0, len(batch.texts)), None, mask)]


def _receipts(shard: TokenizedShard) -> list[str]:
    """A word for each row: what happened to its text, or the code of the row's fault."""
    texts = shard.texts
    status = ["empty"] * len(shard.read.records)
    for row in texts.texts.tolist():
        status[row] = "truncated" if texts.n_used[row] < texts.n_tokens[row] else "ok"
    codes = {fault.row: fault.code for fault in shard.read.faults}
    for place, record in enumerate(shard.read.records):
        if record.row in codes:
            status[place] = codes[record.row]
    return status


def _finite(raw: Mapping[str, Any], n_texts: int) -> NDArray[np.bool_]:
    finite = np.ones(n_texts, np.bool_)
    for vectors in raw.values():
        if isinstance(vectors, np.ndarray):
            finite &= np.isfinite(vectors).all(axis=1)
        else:
            finite &= np.fromiter((bool(np.isfinite(states).all()) for states in vectors), np.bool_, n_texts)
    return finite


def _finished(name: str, raw: Any, keep: NDArray[np.bool_], embedder: Embedder) -> Any:
    if isinstance(raw, list):
        return [states for states, is_kept in zip(raw, keep, strict=True) if is_kept]
    vectors = raw if keep.all() else raw[keep]
    vectors = finish(vectors, normalize=embedder.normalize, truncate_dim=embedder.truncate_dim)
    ranges = embedder.int8_ranges[name] if embedder.int8_ranges else None
    stored = store(vectors, embedder.precision, ranges)
    if embedder.precision == "float16" and not np.isfinite(stored).all():
        raise OutputError(
            "a vector has a value beyond 65,504, the largest of float16",
            hint="use --normalize, or --precision float32",
        )
    return stored


def int8_ranges(vectors: Mapping[str, NDArray[np.float32]], embedder: Embedder) -> dict[str, Int8Range]:
    """Ranges for int8 from the raw vectors of a sample of texts.

    Raises:
        InputError: the sample has no text with a vector.
    """
    if not all(len(of_variant) for of_variant in vectors.values()):
        raise InputError(
            "--precision int8 is calibrated on the first texts, and they are all empty",
            hint="use --precision float32 or float16",
        )
    return {
        name: Int8Range.of(finish(raw, normalize=embedder.normalize, truncate_dim=embedder.truncate_dim))
        for name, raw in vectors.items()
    }
