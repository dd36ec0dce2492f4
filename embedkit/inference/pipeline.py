"""A shard from end to end: texts → tokens → vectors of its units → rows of the output.

Imports no torch: `embedkit plan` uses all of it but the model. The model's part is in `embedder.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import InputError, ModelError, OutputError
from embedkit.pooling.postprocess import Int8Range, finish, store
from embedkit.pooling.units import COLUMNS, Units, units_of
from embedkit.tokenizer import check_length
from embedkit.types import (
    HASH_COLUMNS,
    EarlierRows,
    EncodedShard,
    Fault,
    RawVectors,
    Record,
    TextCounts,
    TokenizedTexts,
    Variant,
)

if TYPE_CHECKING:
    from embedkit.pooling.heads import PredictionHead
    from embedkit.tokenizer import TextTokenizer

#: Code of a text that has tokens and no vector → the problem, and its remedy.
_NO_VECTOR = {
    "non_finite": ("a vector is not finite (NaN or infinite)", "--dtype fp32"),
    "out_of_memory": ("a text does not fit into memory even alone", "a smaller --max-length"),
}
#: Code of a text whose tokens the model cannot take → the problem.
_NO_TOKENS = {
    "no_embedding": "a text has a token that the model has no embedding for",
    "unknown_character": "a text has a character that the model's vocabulary has no token for",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSettings:
    """Settings that turn texts into tokens, and vectors into rows of the output."""

    tokenizer: TextTokenizer
    on_long: str  # truncate, chunk or error
    level: str = "text"  # unit of a vector: text, chunk, word, token or span
    normalize: bool = False
    truncate_dim: int | None = None
    precision: str = "float32"
    head: PredictionHead | None = None  # adds its scores as columns
    int8_ranges: Mapping[str, Int8Range] | None = None  # by variant; only for int8


@dataclass(frozen=True, slots=True)
class ReadShard:
    """The rows of a shard as they were read."""

    index: int
    start: int  # of its rows [start, stop) of the input
    stop: int
    records: Sequence[Record]  # for the output, in order; faulty rows that are kept as null among them
    faults: Sequence[Fault]  # rows that could not be read


@dataclass(frozen=True, slots=True)
class KnownTexts:
    """Hashes of the texts of a shard, and which of them earlier outputs have."""

    hashes: Sequence[bytes | None]  # of each record; None if it has no text
    records: NDArray[np.int64]  # int64 [K], indices of the records that earlier outputs have, ascending
    sources: NDArray[np.int64]  # int64 [K], number of the earlier output that each is in
    rows: NDArray[np.int64]  # int64 [K], its row there


@dataclass(frozen=True, slots=True)
class TokenizedShard:
    """The rows of a shard, their tokens, and the units to compute vectors of; None = the texts."""

    read: ReadShard
    texts: TokenizedTexts
    units: Units | None
    known: KnownTexts | None = None  # texts that are not tokenized, as an earlier output has their vectors


@dataclass(frozen=True, slots=True)
class ReusedRecords:
    """Records of a shard whose vectors are from an earlier output."""

    records: NDArray[np.int64]  # int64 [K], their indices, ascending
    rows: EarlierRows  # K rows


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of the output: arrays [R], in the order of the records and of the units within them."""

    record: NDArray[np.int64]  # int64 [R], index of the record
    unit: NDArray[np.int64]  # int64 [R], index of the unit; -1 if there is none
    has_vector: NDArray[np.bool_]  # [R]
    status: Sequence[str]  # [R], of the text or of the unit


#: Places among the rows of a shard, and the rows of an earlier output to put there.
_Taken = Sequence[tuple[NDArray[np.int64], EarlierRows]]


def tokenize_shard(
    read: ReadShard,
    settings: ShardSettings,
    *,
    on_bad_row: str = "null",
    known: KnownTexts | None = None,
) -> TokenizedShard:
    """Tokenizes the texts of a shard and finds their units.

    Args:
        read: its rows.
        settings: of the texts.
        on_bad_row: fail, null or skip, for texts whose tokens the model cannot take.
        known: texts to leave out, as an earlier output has their vectors.

    Raises:
        InputError: a text is too long and `--on-long` is error, or the model cannot take its tokens and
            `on_bad_row` is fail.
    """
    contents = [record.text for record in read.records]
    for record in () if known is None else known.records.tolist():
        contents[record] = None
    texts = settings.tokenizer.tokenize(contents)
    if texts.faults and on_bad_row == "fail":
        text, code = min(texts.faults.items())
        more = f", and {len(texts.faults) - 1} more of the rows near it" if len(texts.faults) > 1 else ""
        raise InputError(
            f"{_NO_TOKENS[code]}: row {read.records[text].row} ({code}){more}",
            hint="change these texts, or use --on-bad-row null (kept without a vector) or skip (left out)",
        )
    if settings.on_long == "error":
        check_length(texts.n_tokens, settings.tokenizer.max_length, [record.row for record in read.records])
    units = None if settings.level == "text" else units_of(settings.level, texts, read.records)
    return TokenizedShard(read, texts, units, known)


def finish_shard(
    shard: TokenizedShard,
    raw: RawVectors,
    settings: ShardSettings,
    layers: Mapping[int, int | None],
    *,
    keep: Sequence[str],
    on_bad_row: str,
    list_nulls: bool,
    reused: Sequence[ReusedRecords] = (),
    keep_hashes: bool = False,
) -> EncodedShard:
    """Makes the rows of a shard, in input order.

    Args:
        shard: its tokens.
        raw: the vectors of its units.
        settings: of the finished vectors.
        layers: see `embedder.non_finite_layers`.
        keep: names of the kept columns.
        on_bad_row: fail, null or skip, for a row whose vector is not finite.
        list_nulls: list rows without a vector as rejects, because the output leaves them out.
        reused: records whose vectors are from earlier outputs, and which were tokenized as empty.
        keep_hashes: write the hashes of the texts.

    Raises:
        ModelError: a vector is not finite, and `on_bad_row` is fail.
        OutputError: a vector does not fit the output's precision.
    """
    texts, records = _with_receipts(shard.texts, reused), shard.read.records
    status = _statuses(shard, reused)
    untaken = [Fault(records[text].row, "", None, code) for text, code in sorted(texts.faults.items())]
    faults = [*shard.read.faults, *untaken, *_quarantine(raw, shard, status, layers, on_bad_row)]
    rows = _rows(raw.texts, shard.units, status)
    is_computed = rows.has_vector.copy()
    taken = [(np.searchsorted(rows.record, of.records), of.rows) for of in reused]
    for places, _ in taken:
        rows.has_vector[places] = True
    if list_nulls:
        listed = {fault.row for fault in faults}
        without = zip(rows.record.tolist(), rows.status, rows.has_vector.tolist(), strict=True)
        numbered = ((records[record].row, word) for record, word, has_vector in without if not has_vector)
        faults += [Fault(row, "", None, word) for row, word in numbered if row not in listed]
    skipped = {*_NO_VECTOR, *_NO_TOKENS} if on_bad_row == "skip" else ()
    written = np.array([word not in skipped for word in rows.status], np.bool_)
    of_record = rows.record[written]
    used = rows.unit[is_computed]
    kept: dict[str, Sequence[Any]] = {
        name: [records[record].kept[place] for record in of_record.tolist()] for place, name in enumerate(keep)
    }
    units = rows.unit[written].tolist()
    for name in COLUMNS[settings.level]:
        values = shard.units.columns[name] if shard.units is not None else []
        plain = values.tolist() if isinstance(values, np.ndarray) else values
        kept[name] = [None if unit < 0 else plain[unit] for unit in units]
    if settings.head is not None:
        for name, values in settings.head.cells(raw.vectors[""][used]).items():
            kept[name] = list(compress(_spread(values, name, is_computed, taken), written))
    if shard.known is not None and keep_hashes:
        kept |= _hash_columns(shard.known.hashes, texts, of_record, rows.has_vector[written])
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
        vectors={
            name: _with_taken(_finished(name, vectors, used, settings), name, rows.has_vector, is_computed, taken)
            for name, vectors in raw.vectors.items()
        },
        rejects=faults,
        texts=None if shard.units is None else _count_texts(status, texts, skipped),
        n_content=int(texts.n_content.sum()),
        n_unknown=None if texts.n_unknown is None else int(texts.n_unknown.sum()),
        reused=sum(len(of.records) for of in reused),
    )


def _with_receipts(texts: TokenizedTexts, reused: Sequence[ReusedRecords]) -> TokenizedTexts:
    """Returns the texts with the counts of those whose vectors are from earlier outputs."""
    if not reused:
        return texts
    counts = {name: getattr(texts, name) for name in ("n_tokens", "n_used", "n_chunks", "n_unknown")}
    counts = {name: None if of is None else of.copy() for name, of in counts.items()}
    for of in reused:
        for name, values in counts.items():
            if values is not None:
                values[of.records] = [count or 0 for count in of.rows.columns[name]]
    return replace(texts, **counts)


def _hash_columns(
    hashes: Sequence[bytes | None],
    texts: TokenizedTexts,
    of_record: NDArray[np.int64],
    has_vector: NDArray[np.bool_],
) -> dict[str, Sequence[Any]]:
    """Returns the columns of `HASH_COLUMNS` for the written rows, given the record of each."""
    with_vector = [record if has else None for record, has in zip(of_record.tolist(), has_vector, strict=True)]
    unknown = texts.n_unknown
    columns = (
        [None if record is None else (hashes[record] or b"").hex() for record in with_vector],
        [None if record is None or unknown is None else int(unknown[record]) for record in with_vector],
    )
    return dict(zip(HASH_COLUMNS, columns, strict=True))


def _with_taken(
    computed: Any,
    name: str,
    has_vector: NDArray[np.bool_],
    is_computed: NDArray[np.bool_],
    taken: _Taken,
) -> Any:
    """Puts vectors of earlier outputs among the computed ones of a variant.

    Args:
        computed: [C, width], or C arrays of token vectors.
        name: of the variant.
        has_vector: [R] True for the V rows with a vector.
        is_computed: [R] True for the C rows among these whose vector was computed.
        taken: places of the other rows, and their vectors.

    Returns:
        [V, width], or V arrays.
    """
    if not taken:
        return computed
    nth = np.cumsum(has_vector) - 1
    parts = [(nth[is_computed], computed), *((nth[places], earlier.vectors[name]) for places, earlier in taken)]
    if isinstance(computed, list):
        arrays: list[Any] = [None] * int(has_vector.sum())
        for places, found in parts:
            for place, tokens in zip(places.tolist(), found, strict=True):
                arrays[place] = tokens
        return arrays
    merged = np.empty((int(has_vector.sum()), computed.shape[1]), computed.dtype)
    for places, found in parts:
        merged[places] = found
    return merged


def _spread(values: Sequence[Any], name: str, is_computed: NDArray[np.bool_], taken: _Taken) -> list[Any]:
    """Returns [R] the computed values of a column and those of earlier outputs; None for rows without a vector."""
    remaining = iter(values)
    cells = [next(remaining) if is_next else None for is_next in is_computed.tolist()]
    for places, earlier in taken:
        for place, value in zip(places.tolist(), earlier.columns[name], strict=True):
            cells[place] = value
    return cells


def _statuses(shard: TokenizedShard, reused: Sequence[ReusedRecords]) -> list[str]:
    """Returns the status of each record's text, or the code of the row's fault."""
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
    for of in reused:
        for place, word in zip(of.records.tolist(), of.rows.columns["status"], strict=True):
            status[place] = word
    return status


def _quarantine(
    raw: RawVectors,
    shard: TokenizedShard,
    status: list[str],
    layers: Mapping[int, int | None],
    on_bad_row: str,
) -> list[Fault]:
    """Returns the faults of texts with an unusable vector, and sets their statuses to the code."""
    faults: list[Fault] = []
    for text in non_finite_texts(raw, shard):
        row, code = shard.read.records[text].row, "out_of_memory" if text in raw.oom else "non_finite"
        layer = layers.get(text) if code == "non_finite" else None
        if on_bad_row == "fail":
            problem, remedy = _NO_VECTOR[code]
            problem += "" if layer is None else f" from layer {layer} on"
            raise ModelError(
                f"{problem}: row {row}",
                hint=f"use {remedy}, or --on-bad-row null to keep such rows without a vector",
            )
        status[text] = code
        faults.append(Fault(row, "", None, code, layer))
    return faults


def non_finite_texts(raw: RawVectors, shard: TokenizedShard) -> list[int]:
    """Returns the texts with a unit that has tokens and a non-finite vector."""
    finite = np.ones(len(raw.texts), np.bool_)
    for vectors in raw.vectors.values():
        if isinstance(vectors, np.ndarray):
            finite &= np.isfinite(vectors).all(axis=1)
        else:
            finite &= np.fromiter((bool(np.isfinite(states).all()) for states in vectors), np.bool_, len(finite))
    if shard.units is not None:
        finite |= shard.units.empty
    return list(dict.fromkeys(raw.texts[~finite].tolist()))


def _rows(texts: NDArray[np.int64], units: Units | None, status: Sequence[str]) -> _Rows:
    """Makes a row of each unit, and a row without a vector for each text that has none."""
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


def _finished(name: str, raw: Any, used: NDArray[np.int64], settings: ShardSettings) -> Any:
    """Returns the vectors of the used units in the output's precision."""
    if isinstance(raw, list):
        return [as_stored(raw[unit], None, settings.precision) for unit in used.tolist()]
    vectors = raw if len(used) == len(raw) else raw[used]
    vectors = finish(vectors, normalize=settings.normalize, truncate_dim=settings.truncate_dim)
    ranges = settings.int8_ranges[name] if settings.int8_ranges else None
    return as_stored(vectors, ranges, settings.precision)


def cut_variants(variants: Iterable[Variant], truncate_dim: int | None) -> tuple[Variant, ...]:
    """Returns the columns of the output, given those before `truncate_dim`."""
    return tuple(Variant(each.name, min(truncate_dim or each.dims, each.dims)) for each in variants)


def as_stored(vectors: NDArray[np.float32], ranges: Int8Range | None, precision: str) -> NDArray[Any]:
    """Returns finished vectors in the output's precision.

    Raises:
        OutputError: a value is too large for it.
    """
    stored = store(vectors, precision, ranges)
    if precision == "float16" and not np.isfinite(stored).all():
        raise OutputError(
            "a vector has a value above 65,504, the largest of float16",
            hint="use --normalize, or --precision float32",
        )
    return stored


def int8_ranges(vectors: Mapping[str, NDArray[np.float32]], settings: ShardSettings) -> dict[str, Int8Range]:
    """Returns the ranges for int8 by variant, from the raw vectors of a sample of texts.

    Raises:
        InputError: the sample has no text with a vector.
    """
    ranges: dict[str, Int8Range] = {}
    for name, raw in vectors.items():
        # Not finite: units outside the windows, or rows that `--on-bad-row` leaves out.
        sample = raw[np.isfinite(raw).all(axis=1)]
        if not len(sample):
            raise InputError(
                "--precision int8 is calibrated on the first texts, and none of them has a vector",
                hint="use --precision float32 or float16",
            )
        ranges[name] = Int8Range.of(
            finish(sample, normalize=settings.normalize, truncate_dim=settings.truncate_dim)
        )
    return ranges
