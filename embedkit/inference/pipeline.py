"""The story of a shard on one page: texts → tokens → vectors of its units → rows of the output.

The stages meet here and in `embedding.py`, and know nothing of each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import InputError, ModelError, OutputError
from embedkit.pooling.postprocess import Int8Range, finish, store
from embedkit.pooling.units import COLUMNS, Units, units_of
from embedkit.tokenizer import refuse_long
from embedkit.types import EncodedShard, Fault, RawVectors, Record, TextCounts, TokenizedTexts

if TYPE_CHECKING:  # torch is imported when a model is loaded, and not before
    from embedkit.inference.embedder import Embedder, EmbeddingTask, Finisher, OnBatch

#: Why a text has no vector although it has tokens: what an error says of it, and the way out.
_NO_VECTOR = {
    "non_finite": ("a vector is not finite (NaN or infinite)", "--dtype fp32"),
    "out_of_memory": ("a text does not fit into memory even alone", "a smaller --max-length"),
}
#: The same of a text that has no tokens that the model could take.
_NO_TOKENS = {
    "no_embedding": "a text has a token that the model has no embedding for",
    "unknown_character": "a text has a character that the model's vocabulary has no token for",
}


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
    """A shard's rows, their tokens, and the units that vectors are asked of; None = the texts."""

    read: ReadShard
    texts: TokenizedTexts
    units: Units | None


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of the output: arrays [R], in the order of the records and of the units within them.

    Attributes:
        record: int64, which record each is of.
        unit: int64, which unit it holds; -1 where there is none.
        has_vector: bool.
        status: what became of the text, or of the unit.
    """

    record: NDArray[np.int64]
    unit: NDArray[np.int64]
    has_vector: NDArray[np.bool_]
    status: Sequence[str]


def tokenize_shard(read: ReadShard, embedder: Finisher, *, on_bad_row: str = "null") -> TokenizedShard:
    """Tokens, receipts and units of a shard's texts.

    Raises:
        InputError: a text is too long, and `--on-long` is error; or the model cannot take its tokens, and
            `on_bad_row` is fail.
    """
    texts = embedder.tokenizer.tokenize([record.text for record in read.records])
    if texts.faults and on_bad_row == "fail":
        text, code = min(texts.faults.items())
        raise InputError(
            f"{_NO_TOKENS[code]}: row {read.records[text].row} ({code}){_and_more(len(texts.faults))}",
            hint="change these texts, or use --on-bad-row null (kept without a vector) or skip (left out)",
        )
    if embedder.on_long == "error":
        refuse_long(texts.n_tokens, embedder.tokenizer.max_length, [record.row for record in read.records])
    units = None if embedder.level == "text" else units_of(embedder.level, texts, read.records)
    return TokenizedShard(read, texts, units)


def _and_more(count: int) -> str:
    return f", and {count - 1} more of the rows near it" if count > 1 else ""


def embedding_of(shard: TokenizedShard, embedder: Embedder, on_batch: OnBatch) -> EmbeddingTask:
    """The vectors of a shard's units, to be computed."""
    from embedkit.inference.embedder import EmbeddingTask

    return EmbeddingTask(shard.texts, embedder, on_batch, shard.units, of=shard)


def broken_layers(shard: TokenizedShard, raw: RawVectors, embedder: Embedder) -> dict[int, int | None]:
    """For each text with a vector that is not finite, the layer at which that begins; runs the model.

    Args:
        shard: its tokens.
        raw: its vectors.
        embedder: what computed them.
    """
    from embedkit.inference.embedder import first_broken_layer

    return {
        text: first_broken_layer(shard.texts, text, embedder)
        for text in _unsound(raw, shard)
        if text not in raw.oom
    }


def finish_shard(
    shard: TokenizedShard,
    raw: RawVectors,
    finisher: Finisher,
    broken_layer: Callable[[int], int | None],
    *,
    keep: Sequence[str],
    on_bad_row: str,
    list_nulls: bool,
) -> EncodedShard:
    """Vectors and receipts of a shard's rows, in input order.

    Args:
        shard: its tokens.
        raw: the vectors of its units.
        finisher: what is done to them.
        broken_layer: for a text with a vector that is not finite, the layer at which that begins, if known.
        keep: names of the kept columns.
        on_bad_row: fail, null or skip, for a row whose vector is not finite.
        list_nulls: whether rows without a vector are rejects too, because the output leaves them out.

    Raises:
        ModelError: a vector is not finite, and `on_bad_row` is fail.
        OutputError: a vector does not fit the output's precision.
    """
    texts, records = shard.texts, shard.read.records
    status = _receipts(shard)
    unspelled = [Fault(records[text].row, "", None, code) for text, code in sorted(texts.faults.items())]
    faults = [*shard.read.faults, *unspelled, *_quarantine(raw, shard, status, broken_layer, on_bad_row)]
    rows = _rows(raw.texts, shard.units, status)
    if list_nulls:
        listed = {fault.row for fault in faults}
        without = zip(rows.record.tolist(), rows.status, rows.has_vector.tolist(), strict=True)
        numbered = ((records[record].row, word) for record, word, has_vector in without if not has_vector)
        faults += [Fault(row, "", None, word) for row, word in numbered if row not in listed]
    skipped = {*_NO_VECTOR, *_NO_TOKENS} if on_bad_row == "skip" else ()
    written = np.array([word not in skipped for word in rows.status], np.bool_)
    of_record = rows.record[written]
    used = rows.unit[rows.has_vector]
    kept: dict[str, Sequence[Any]] = {
        name: [records[record].kept[place] for record in of_record.tolist()] for place, name in enumerate(keep)
    }
    units = rows.unit[written].tolist()
    for name in COLUMNS[finisher.level]:
        values = shard.units.columns[name] if shard.units is not None else []
        plain = values.tolist() if isinstance(values, np.ndarray) else values
        kept[name] = [None if unit < 0 else plain[unit] for unit in units]
    if finisher.head is not None:
        has_vector = rows.has_vector[written]
        cells = finisher.head.cells(raw.vectors[""][rows.unit[written][has_vector]])
        kept |= {name: _beside_nulls(values, has_vector) for name, values in cells.items()}
    return EncodedShard(
        index=shard.read.index,
        start=shard.read.start,
        stop=shard.read.stop,
        ids=[records[record].id for record in of_record.tolist()],
        kept=kept,
        n_tokens=texts.n_tokens[of_record],
        n_used=texts.n_used[of_record],
        n_chunks=np.where(rows.has_vector, texts.n_chunks[rows.record], 0)[written].astype(np.int32),
        status=[word for word, is_written in zip(rows.status, written, strict=True) if is_written],
        has_vector=rows.has_vector[written],
        vectors={name: _finished(name, of_variant, used, finisher) for name, of_variant in raw.vectors.items()},
        rejects=faults,
        texts=None if shard.units is None else _count_texts(status, texts, skipped),
        n_content=int(texts.n_content.sum()),
        n_unknown=None if texts.n_unknown is None else int(texts.n_unknown.sum()),
    )


def _beside_nulls(values: Sequence[Any], has_value: NDArray[np.bool_]) -> list[Any]:
    """The values of the rows that have one, and None for the others."""
    coming = iter(values)
    return [next(coming) if has else None for has in has_value.tolist()]


def _receipts(shard: TokenizedShard) -> list[str]:
    """A word for each record: what happened to its text, or the code of the row's fault."""
    texts = shard.texts
    status = ["empty"] * len(shard.read.records)
    for record in texts.texts.tolist():
        cut = texts.n_used[record] < texts.n_tokens[record]
        status[record] = "truncated" if cut else "chunked" if texts.n_chunks[record] > 1 else "ok"
    if shard.units is not None:
        for record in np.setdiff1d(texts.texts, shard.units.texts).tolist():
            status[record] = "no_unit"
    for record, code in texts.faults.items():
        status[record] = code
    codes = {fault.row: fault.code for fault in shard.read.faults}
    for place, record in enumerate(shard.read.records):
        if record.row in codes:
            status[place] = codes[record.row]
    return status


def _quarantine(
    raw: RawVectors,
    shard: TokenizedShard,
    status: list[str],
    broken_layer: Callable[[int], int | None],
    on_bad_row: str,
) -> list[Fault]:
    """Faults of the texts that have a vector that cannot be used, whose status becomes the code."""
    faults: list[Fault] = []
    for text in _unsound(raw, shard):
        row, code = shard.read.records[text].row, "out_of_memory" if text in raw.oom else "non_finite"
        layer = broken_layer(text) if code == "non_finite" else None
        if on_bad_row == "fail":
            what, way = _NO_VECTOR[code]
            what += "" if layer is None else f" from layer {layer} on"
            raise ModelError(
                f"{what}: row {row}",
                hint=f"use {way}, or --on-bad-row null to keep such rows without a vector",
            )
        status[text] = code
        faults.append(Fault(row, "", None, code, layer))
    return faults


def _unsound(raw: RawVectors, shard: TokenizedShard) -> list[int]:
    """Texts that have a vector that is not finite, of one of their units, though it has tokens."""
    sound = _finite(raw.vectors, len(raw.texts))
    if shard.units is not None:
        sound |= shard.units.empty
    return list(dict.fromkeys(raw.texts[~sound].tolist()))


def _rows(texts: NDArray[np.int64], units: Units | None, status: Sequence[str]) -> _Rows:
    """A row a unit; one without a vector for a text that has none."""
    good = np.array([word not in _NO_VECTOR for word in status], np.bool_)
    kept = np.flatnonzero(good[texts])
    counts = np.bincount(texts[kept], minlength=len(status))
    record = np.repeat(np.arange(len(status)), np.maximum(counts, 1))
    unit = np.full(len(record), -1, np.int64)
    unit[counts[record] > 0] = kept
    has_vector = unit >= 0
    words = [status[number] for number in record.tolist()]
    if units is not None and units.empty.any():
        for row in np.flatnonzero(has_vector & units.empty[unit]).tolist():
            has_vector[row] = False
            words[row] = "outside"
    return _Rows(record, unit, has_vector, words)


def _count_texts(status: Sequence[str], texts: TokenizedTexts, skipped: Any) -> TextCounts:
    written = np.array([word not in skipped for word in status], np.bool_)
    statuses = dict(sorted(Counter(word for word in status if word not in skipped).items()))
    n_tokens, n_used = int(texts.n_tokens[written].sum()), int(texts.n_used[written].sum())
    return TextCounts(int(written.sum()), statuses, n_tokens, n_used)


def _finite(raw: Mapping[str, Any], n_texts: int) -> NDArray[np.bool_]:
    finite = np.ones(n_texts, np.bool_)
    for vectors in raw.values():
        if isinstance(vectors, np.ndarray):
            finite &= np.isfinite(vectors).all(axis=1)
        else:
            finite &= np.fromiter((bool(np.isfinite(states).all()) for states in vectors), np.bool_, n_texts)
    return finite


def _finished(name: str, raw: Any, used: NDArray[np.int64], finisher: Finisher) -> Any:
    """The vectors of the units that are used, as they are stored."""
    if isinstance(raw, list):
        return [as_stored(raw[unit], None, finisher.precision) for unit in used.tolist()]
    vectors = raw if len(used) == len(raw) else raw[used]
    vectors = finish(vectors, normalize=finisher.normalize, truncate_dim=finisher.truncate_dim)
    ranges = finisher.int8_ranges[name] if finisher.int8_ranges else None
    return as_stored(vectors, ranges, finisher.precision)


def as_stored(vectors: NDArray[np.float32], ranges: Int8Range | None, precision: str) -> NDArray[Any]:
    """Finished vectors in the output's precision.

    Raises:
        OutputError: a value is too large for it.
    """
    stored = store(vectors, precision, ranges)
    if precision == "float16" and not np.isfinite(stored).all():
        raise OutputError(
            "a vector has a value beyond 65,504, the largest of float16",
            hint="use --normalize, or --precision float32",
        )
    return stored


def int8_ranges(vectors: Mapping[str, NDArray[np.float32]], finisher: Finisher) -> dict[str, Int8Range]:
    """Ranges for int8 from the raw vectors of a sample of texts.

    Raises:
        InputError: the sample has no text with a vector.
    """
    ranges: dict[str, Int8Range] = {}
    for name, raw in vectors.items():
        # What is not finite has no vector: units that were cut away, or rows that `--on-bad-row` leaves out.
        sample = raw[np.isfinite(raw).all(axis=1)]
        if not len(sample):
            raise InputError(
                "--precision int8 is calibrated on the first texts, and none of them has a vector",
                hint="use --precision float32 or float16",
            )
        ranges[name] = Int8Range.of(
            finish(sample, normalize=finisher.normalize, truncate_dim=finisher.truncate_dim)
        )
    return ranges
