"""The values that pass between the stages: rows, packed tokens, batches, finished shards.

Depends on no file format, tokenizer or model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Statuses of a receipt, in the order in which `inspect` lists them. A row kept by `--on-bad-row null` has the
#: code of its fault as status instead.
STATUSES = ("ok", "truncated", "chunked", "empty", "no_unit", "outside")


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the input.

    Attributes:
        row: number of the row in the input, from 0, counted over all files in order.
        id: the id column as text, or the row number; None if the id cell is null.
        text: the text to embed; None if every text cell is null.
        kept: values of the `--keep` columns, in that order.
        spans: the requested spans of the text; only with `--spans` or `--spans-column`.
    """

    row: int
    id: str | None
    text: str | None
    kept: tuple[Any, ...] = ()
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a text, such as an entity.

    Attributes:
        start, stop: characters [start, stop) of the text, from 0.
        label: its name; None if it has none.
    """

    start: int
    stop: int
    label: str | None = None


#: Code of a row that was skipped because it belongs to another shard or rank.
UNREAD = "unread"


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that cannot be read as a record: its position and an error code, never its content.

    Attributes:
        row: number of the row in the input, from 0.
        file: the file as the user named it.
        offset: bytes from the start of the (decompressed) file to the row; None if unknown.
        code: an error code such as `short_row` or `invalid_json`.
        layer: the first layer with non-finite states for this text; None for any other fault.
    """

    row: int
    file: str
    offset: int | None
    code: str
    layer: int | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of N texts, packed one after another, as the model sees them after any truncation.

    Attributes:
        input_ids: int32 [sum of lengths], special tokens included.
        token_type_ids: int32 of the same shape; None if the model takes none.
        lengths: int64 [N], tokens of each text.
        prefix, suffix: number of special tokens before and after each text.
    """

    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.int32] | None
    lengths: NDArray[np.int64]
    prefix: int
    suffix: int

    def indices_of(self, texts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Locates the tokens of some texts, packed in the given order.

        Returns:
            int64 [T] indices into `input_ids`, and int64 [T] positions of the same tokens in their texts, from 0.
        """
        lengths = self.lengths[texts]
        starts = (np.cumsum(self.lengths) - self.lengths)[texts]
        position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return np.repeat(starts, lengths) + position, position

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
    """The origin of each token of a `Tokens`, in arrays of the shape of its `input_ids`.

    Attributes:
        number: int32, index among the text's own tokens, from 0; -1 for special tokens and prompt tokens.
        start, stop: int32, the token's characters [start, stop) in the text, without leading and trailing
            blanks unless the token is blank; undefined where `number` is -1.
    """

    number: NDArray[np.int32]
    start: NDArray[np.int32]
    stop: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """The R texts of a shard as the tokens of W windows, with the counts for their receipts.

    Attributes:
        tokens: the windows, in input order; a text that fits is one window, an empty text has none.
        texts: int64 [W], the text of each window; ascending.
        added: int64 [W], the text's own tokens that are in no earlier window.
        n_tokens: int32 [R], tokens before truncation, special tokens included; 0 if empty.
        n_used: int32 [R], tokens that go through the model; 0 if empty.
        n_chunks: int32 [R], windows.
        offsets: the origins of the tokens; None unless requested.
        n_unknown: int32 [R], unknown tokens before truncation; None if the vocabulary covers every character.
        faults: error codes, by text, of texts that the model cannot take; these have no window.
    """

    tokens: Tokens
    texts: NDArray[np.int64]
    added: NDArray[np.int64]
    n_tokens: NDArray[np.int32]
    n_used: NDArray[np.int32]
    n_chunks: NDArray[np.int32]
    offsets: TokenOffsets | None
    n_unknown: NDArray[np.int32] | None
    faults: Mapping[int, str] = field(default_factory=dict)

    @property
    def n_content(self) -> NDArray[np.int32]:
        """Tokens before truncation, special tokens excluded: int32 [R]."""
        special = self.tokens.prefix + self.tokens.suffix
        return np.maximum(self.n_tokens - special, 0).astype(np.int32)


@dataclass(frozen=True, slots=True)
class LengthGroup:
    """Consecutive texts of equal length in a packed batch.

    Attributes:
        start: position of the group's first token in the batch, from 0.
        count: number of texts.
        length: tokens in each text.
    """

    start: int
    count: int
    length: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts that go through the model together, shortest first.

    Attributes:
        texts: int64 [n], positions of the texts in their shard: `out[batch.texts] = vectors`.
        lengths: int64 [n], their tokens, ascending.
    """

    texts: NDArray[np.int64]
    lengths: NDArray[np.int64]

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
    """One column of vectors in the output.

    Attributes:
        name: "" if it is the only one, otherwise a name such as `L09_mean`.
        dims: values in a vector (bits for binary precision).
    """

    name: str
    dims: int

    @property
    def column(self) -> str:
        """Name of the Parquet column: `embedding`, or `embedding_L09_mean`."""
        return f"embedding_{self.name}" if self.name else "embedding"


@dataclass(frozen=True, slots=True)
class TextCounts:
    """Counts per text for a shard in which a text may have several output rows.

    Attributes:
        rows: number of texts, those without a vector included.
        statuses: status → texts.
        n_tokens, n_used: tokens, each text counted once.
    """

    rows: int
    statuses: Mapping[str, int]
    n_tokens: int
    n_used: int


@dataclass(frozen=True, slots=True)
class RawVectors:
    """The vectors computed for U units of some texts.

    Attributes:
        texts: int64 [U], the text of each unit, ascending.
        vectors: by variant, float32 [U, D], or for token vectors U arrays [pooled tokens, D]. NaN where a unit
            has no token or ran out of memory.
        oom: texts with a window that ran out of memory even in a batch of its own.
    """

    texts: NDArray[np.int64]
    vectors: Mapping[str, Any]
    oom: frozenset[int]


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """The R output rows of one shard, in input order.

    Attributes:
        index: number of the shard.
        start, stop: input rows [start, stop) that it covers. R = stop - start unless rows were skipped or units
            are not texts.
        ids: [R] ids.
        kept: for each kept column and each column that describes a unit, its R values.
        n_tokens: int32 [R], tokens of the text before truncation, special tokens included.
        n_used: int32 [R], tokens that went through the model.
        n_chunks: int32 [R], windows of the text; 0 if there is no vector.
        status: [R] statuses, see STATUSES.
        has_vector: bool [R].
        vectors: by variant name, [V, D] in the output's precision, V = has_vector.sum(), in input order; binary
            precision has [V, ceil(D/8)] uint8. Token vectors (`--pool none`): V arrays [n_used, D] instead.
        rejects: faults of this shard's rows, skipped or kept as null.
        texts: the counts per text; None if each text has one row.
        n_content: tokens of all texts before truncation, special tokens excluded.
        n_unknown: unknown tokens among these; None if the vocabulary covers every character.
    """

    index: int
    start: int
    stop: int
    ids: Sequence[str | None]
    kept: Mapping[str, Sequence[Any]]
    n_tokens: NDArray[np.int32]
    n_used: NDArray[np.int32]
    n_chunks: NDArray[np.int32]
    status: Sequence[str]
    has_vector: NDArray[np.bool_]
    vectors: Mapping[str, NDArray[Any] | Sequence[NDArray[Any]]]
    rejects: Sequence[Fault]
    texts: TextCounts | None = None
    n_content: int = 0
    n_unknown: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """Device usage of a process so far.

    Attributes:
        busy: seconds spent on batches, from the first to the last operation of each.
        waited: seconds between the end of a batch and the start of the next. Another process on the same device
            may have used them.
        allocated: peak bytes held by tensors.
        reserved: peak bytes reserved for tensors.
    """

    busy: float
    waited: float
    allocated: int
    reserved: int

    @property
    def idle_fraction(self) -> float:
        """Share of the time that the device was idle, 0 to 1."""
        return self.waited / max(self.busy + self.waited, 1e-9)
