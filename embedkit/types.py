"""The values that pass between the stages: rows, packed tokens, batches, finished shards.

Depends on no file format, tokenizer or model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Statuses of a receipt, in the order in which `inspect` lists them. A row kept by `--on-bad-row null` has the
#: code of its fault as status instead.
STATUSES = ("ok", "truncated", "chunked", "empty", "no_unit", "outside")


#: Columns that `--keep-hashes` adds, and their types: the keyed hash of a text as 32 hexadecimal digits, and how
#: many of its tokens are unknown to the vocabulary. Null where a row has no vector.
HASH_COLUMNS = {"text_hash": "string", "n_unknown": "int32"}


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the input."""

    row: int  # number of the row in the input, from 0, counted over all files in order
    id: str | None  # the id column as text, or the row number; None if the id cell is null
    text: str | None  # the text to embed; None if every text cell is null
    kept: tuple[Any, ...] = ()  # values of the `--keep` columns, in that order
    spans: tuple[Span, ...] = ()  # the requested spans of the text; only with `--spans` or `--spans-column`


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a text, such as an entity."""

    start: int  # characters [start, stop) of the text, from 0
    stop: int
    label: str | None = None


#: Code of a row that was skipped because it belongs to another shard or rank.
UNREAD = "unread"


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that cannot be read as a record: its position and an error code, never its content."""

    row: int  # number of the row in the input, from 0
    file: str  # the file as the user named it
    offset: int | None  # bytes from the start of the (decompressed) file to the row; None if unknown
    code: str  # an error code such as `short_row` or `invalid_json`
    layer: int | None = None  # the first layer with non-finite states for this text; None for any other fault


def ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenates the integers [start, start + count) of each pair."""
    concatenated: NDArray[np.int64] = np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return concatenated + np.arange(len(concatenated))


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of N texts, packed one after another, as the model sees them after any truncation."""

    input_ids: NDArray[np.int32]  # int32 [sum of lengths], special tokens included
    token_type_ids: NDArray[np.int32] | None  # int32 of the same shape; None if the model takes none
    lengths: NDArray[np.int64]  # int64 [N], tokens of each text
    prefix: int  # special tokens before each text
    suffix: int  # special tokens after each text

    def indices_of(self, texts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Locates the tokens of some texts, packed in the given order.

        Returns:
            int64 [T] indices into `input_ids`, and int64 [T] positions of the same tokens in their texts, from 0.
        """
        lengths = self.lengths[texts]
        starts = (np.cumsum(self.lengths) - self.lengths)[texts]
        return ranges(starts, lengths), ranges(np.zeros_like(starts), lengths)

    def select(self, texts: NDArray[np.int64]) -> Tokens:
        """Returns some texts, packed in the given order."""
        indices, _ = self.indices_of(texts)
        types = None if self.token_type_ids is None else self.token_type_ids[indices]
        return replace(self, input_ids=self.input_ids[indices], token_type_ids=types, lengths=self.lengths[texts])

    def duplicate_of(self) -> NDArray[np.int64]:
        """Returns for each text the first text with the same tokens, possibly itself: int64 [N]."""
        first: dict[bytes, int] = {}
        flat, stops = self.input_ids, np.cumsum(self.lengths)
        return np.fromiter(
            (
                first.setdefault(flat[stop - length : stop].tobytes(), text)
                for text, (stop, length) in enumerate(zip(stops.tolist(), self.lengths.tolist(), strict=True))
            ),
            np.int64,
            len(self.lengths),
        )


@dataclass(frozen=True, slots=True)
class TokenOffsets:
    """The origin of each token of a `Tokens`, in arrays of the shape of its `input_ids`."""

    #: int32, index among the text's own tokens, from 0; -1 for special tokens and prompt tokens.
    number: NDArray[np.int32]
    #: int32, the token's characters [start, stop) in the text, without leading and trailing blanks unless the
    #: token is blank; undefined where `number` is -1.
    start: NDArray[np.int32]
    stop: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """The R texts of a shard as the tokens of W windows, with the counts for their receipts."""

    tokens: Tokens  # the windows, in input order; a text that fits is one window, an empty text has none
    texts: NDArray[np.int64]  # int64 [W], the text of each window; ascending
    added: NDArray[np.int64]  # int64 [W], the text's own tokens that are in no earlier window
    n_tokens: NDArray[np.int32]  # int32 [R], tokens before truncation, special tokens included; 0 if empty
    n_used: NDArray[np.int32]  # int32 [R], tokens that go through the model; 0 if empty
    n_chunks: NDArray[np.int32]  # int32 [R], windows
    offsets: TokenOffsets | None  # the origins of the tokens; None unless requested
    #: int32 [R], unknown tokens before truncation; None if the vocabulary covers every character.
    n_unknown: NDArray[np.int32] | None
    #: Error codes, by text, of texts that the model cannot take; these have no window.
    faults: Mapping[int, str] = field(default_factory=dict)

    @property
    def n_content(self) -> NDArray[np.int32]:
        """Tokens before truncation, special tokens excluded: int32 [R]."""
        special = self.tokens.prefix + self.tokens.suffix
        return np.maximum(self.n_tokens - special, 0).astype(np.int32)


@dataclass(frozen=True, slots=True)
class LengthGroup:
    """Consecutive texts of equal length in a packed batch."""

    start: int  # position of the group's first token in the batch, from 0
    count: int  # number of texts
    length: int  # tokens in each text


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts that go through the model together, shortest first."""

    texts: NDArray[np.int64]  # int64 [n], positions of the texts in their shard: `out[batch.texts] = vectors`
    lengths: NDArray[np.int64]  # int64 [n], their tokens, ascending

    @property
    def tokens(self) -> int:
        """Tokens of the texts, without padding."""
        return int(self.lengths.sum())

    @property
    def padded_tokens(self) -> int:
        """Tokens of the padded batch: n x the longest text."""
        return len(self.lengths) * int(self.lengths[-1])

    def length_groups(self) -> Iterator[LengthGroup]:
        """Yields the groups of equal length; they cover all tokens of the packed batch, in order."""
        lengths, counts = np.unique(self.lengths, return_counts=True)
        start = 0
        for length, count in zip(lengths.tolist(), counts.tolist(), strict=True):
            yield LengthGroup(start, count, length)
            start += length * count


@dataclass(frozen=True, slots=True)
class Variant:
    """One column of vectors in the output."""

    name: str  # "" if it is the only one, otherwise a name such as `L09_mean`
    dims: int  # values in a vector (bits for binary precision)

    @property
    def column(self) -> str:
        """Name of the Parquet column: `embedding`, or `embedding_L09_mean`."""
        return f"embedding_{self.name}" if self.name else "embedding"


@dataclass(frozen=True, slots=True)
class TextCounts:
    """Counts per text for a shard in which a text may have several output rows."""

    rows: int  # number of texts, those without a vector included
    statuses: Mapping[str, int]  # status → texts
    n_tokens: int  # tokens, each text counted once
    n_used: int


@dataclass(frozen=True, slots=True)
class RawVectors:
    """The vectors computed for U units of some texts."""

    texts: NDArray[np.int64]  # int64 [U], the text of each unit, ascending
    #: By variant, float32 [U, D], or for token vectors U arrays [pooled tokens, D]. NaN where a unit has no token
    #: or ran out of memory.
    vectors: Mapping[str, Any]
    oom: frozenset[int]  # texts with a window that ran out of memory even in a batch of its own


@dataclass(frozen=True, slots=True)
class EarlierRows:
    """K rows of an earlier output, whose vectors are taken instead of computed."""

    #: By column, K values: n_tokens, n_used, n_chunks, status, n_unknown (None if not counted), scores of a head.
    columns: Mapping[str, Sequence[Any]]
    #: By variant, as stored: [K, width], or of token vectors K arrays [n, width].
    vectors: Mapping[str, NDArray[Any] | Sequence[NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """The R output rows of one shard, in input order."""

    index: int
    #: Input rows [start, stop) that it covers. R = stop - start unless rows were skipped or units are not texts.
    start: int
    stop: int
    ids: Sequence[str | None]  # [R]
    kept: Mapping[str, Sequence[Any]]  # for each kept column and each column that describes a unit, its R values
    n_tokens: NDArray[np.int32]  # int32 [R], tokens of the text before truncation, special tokens included
    n_used: NDArray[np.int32]  # int32 [R], tokens that went through the model
    n_chunks: NDArray[np.int32]  # int32 [R], windows of the text; 0 if there is no vector
    status: Sequence[str]  # [R] statuses, see STATUSES
    has_vector: NDArray[np.bool_]  # bool [R]
    #: By variant name, [V, D] in the output's precision, V = has_vector.sum(), in input order; binary precision
    #: has [V, ceil(D/8)] uint8. Token vectors (`--pool none`): V arrays [n_used, D] instead.
    vectors: Mapping[str, NDArray[Any] | Sequence[NDArray[Any]]]
    rejects: Sequence[Fault]  # faults of this shard's rows, skipped or kept as null
    texts: TextCounts | None = None  # the counts per text; None if each text has one row
    n_content: int = 0  # tokens of all texts before truncation, special tokens excluded
    n_unknown: int | None = None  # unknown tokens among these; None if the vocabulary covers every character
    reused: int = 0  # rows whose vectors are from an earlier output


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """Device usage of a process so far."""

    busy: float  # seconds spent on batches, from the first to the last operation of each
    #: Seconds between the end of a batch and the start of the next. Another process on the same device may have
    #: used them.
    waited: float
    allocated: int  # peak bytes held by tensors
    reserved: int  # peak bytes reserved for tensors

    @property
    def idle_fraction(self) -> float:
        """Share of the time that the device was idle, 0 to 1."""
        return self.waited / max(self.busy + self.waited, 1e-9)
