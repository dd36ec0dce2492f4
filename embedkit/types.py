"""What travels between the stages: a row of the input, a faulty one, texts laid end to end, a finished shard.

Knows nothing of files, tokenizers or models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Statuses of a receipt, in the order in which `inspect` lists them. Rows that were kept as
#: null by `--on-bad-row null` have their fault's code as status instead.
STATUSES = ("ok", "truncated", "chunked", "empty", "no_unit", "outside")


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the input.

    Attributes:
        row: number of the row in the whole input, from 0, over all files in order.
        id: the id column as text, or the row number; None where the id cell is null.
        text: what is embedded; None where every text cell is null.
        kept: values of the columns named by `--keep`, in that order.
        spans: parts of the text that are asked for; only with `--spans` or `--spans-column`.
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
        label: what it is called; None if nobody said.
    """

    start: int
    stop: int
    label: str | None = None


#: The code of a row that was passed over, because nobody wants it.
UNREAD = "unread"


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that cannot be read as a record. Says where and why, never what it holds.

    Attributes:
        row: number of the row in the whole input, from 0.
        file: the file as the user named it.
        offset: bytes from the start of the (decompressed) file to the row; None if unknown.
        code: a word such as `short_row` or `invalid_json`.
        layer: from which on the states of its text are not finite; None if no layer is to blame.
    """

    row: int
    file: str
    offset: int | None
    code: str
    layer: int | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Texts as token ids, laid end to end; what the model sees of them, after any cut.

    Attributes:
        input_ids: int32 [sum of lengths], each text's special tokens included.
        token_type_ids: int32 of the same shape; None where the model takes none.
        lengths: int64 [N], tokens of each text.
        prefix, suffix: how many special tokens the tokenizer put before and behind each text.
    """

    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.int32] | None
    lengths: NDArray[np.int64]
    prefix: int
    suffix: int

    def places(self, texts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the tokens of `texts` are, laid end to end in that order.

        Returns:
            int64 [T] places in `input_ids`, and int64 [T] positions of the same tokens in their texts, from 0.
        """
        lengths = self.lengths[texts]
        starts = (np.cumsum(self.lengths) - self.lengths)[texts]
        position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return np.repeat(starts, lengths) + position, position

    def first_alike(self) -> NDArray[np.int64]:
        """For each text, the first one that has the same tokens; itself, if none before it has: int64 [N]."""
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
class TokenPlaces:
    """Where each token of a `Tokens` is from: arrays of the shape of its `input_ids`.

    Attributes:
        number: int32, its number among the text's own tokens, from 0; -1 for special tokens and the prompt's.
        start, stop: int32, the characters [start, stop) of the text that it stands for, blanks at its ends left
            out unless it stands for nothing else; meaningless where `number` is -1.
    """

    number: NDArray[np.int32]
    start: NDArray[np.int32]
    stop: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """A shard's texts as tokens, and what happened to each. R texts were given; W windows were made of them.

    Attributes:
        tokens: of the windows, in input order; a text that fits is one window, an empty one none.
        texts: int64 [W], which of the texts given each window is of; ascending.
        added: int64 [W], tokens of the text's own that are in no earlier window of it.
        n_tokens: int32 [R], tokens before any cut, special tokens included; 0 where empty.
        n_used: int32 [R], of these, the ones that go through the model; 0 where empty.
        n_chunks: int32 [R], windows.
        places: where the tokens are from; None unless it was asked for.
        n_unknown: int32 [R], tokens before any cut that the vocabulary has no entry for; None where it spells
            every character.
        faults: code by text, of the texts that the model cannot take: they have no window, like empty ones.
    """

    tokens: Tokens
    texts: NDArray[np.int64]
    added: NDArray[np.int64]
    n_tokens: NDArray[np.int32]
    n_used: NDArray[np.int32]
    n_chunks: NDArray[np.int32]
    places: TokenPlaces | None
    n_unknown: NDArray[np.int32] | None
    faults: Mapping[int, str] = field(default_factory=dict)

    @property
    def n_content(self) -> NDArray[np.int32]:
        """Tokens before any cut, special ones left out: int32 [R]."""
        special = self.tokens.prefix + self.tokens.suffix
        return np.maximum(self.n_tokens - special, 0).astype(np.int32)


@dataclass(frozen=True, slots=True)
class LengthGroup:
    """Consecutive texts of equal length inside a packed batch.

    Attributes:
        start: position of the run's first token in the batch, from 0.
        count: how many texts.
        length: tokens in each of them.
    """

    start: int
    count: int
    length: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts that go through the model at once, shortest first.

    Attributes:
        texts: int64 [n], positions of the texts in their shard: `out[batch.texts] = vectors`.
        lengths: int64 [n], their tokens, ascending.
    """

    texts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Tokens of the texts, no padding counted."""
        return int(self.lengths.sum())

    @property
    def padded_tokens(self) -> int:
        """Cells of the rectangle that holds the texts: n x the longest."""
        return len(self.lengths) * int(self.lengths[-1])

    def runs(self) -> Iterator[LengthGroup]:
        """The texts laid end to end, as runs of equal length; they cover all tokens in order."""
        lengths, counts = np.unique(self.lengths, return_counts=True)
        start = 0
        for length, count in zip(lengths.tolist(), counts.tolist(), strict=True):
            yield LengthGroup(start, count, length)
            start += length * count


@dataclass(frozen=True, slots=True)
class Variant:
    """One column of vectors in the output.

    Attributes:
        name: "" when it is the only one, else such as `L09_mean`.
        dims: values in a vector (for binary precision: bits, not bytes).
    """

    name: str
    dims: int

    @property
    def column(self) -> str:
        """Name of the Parquet column: `embedding`, or `embedding_L09_mean`."""
        return f"embedding_{self.name}" if self.name else "embedding"


@dataclass(frozen=True, slots=True)
class TextCounts:
    """A shard counted by texts, where a text may have several rows in the output.

    Attributes:
        rows: texts, those without a vector among them.
        statuses: word → texts.
        n_tokens, n_used: tokens of all texts, each text counted once.
    """

    rows: int
    statuses: Mapping[str, int]
    n_tokens: int
    n_used: int


@dataclass(frozen=True, slots=True)
class RawVectors:
    """What was computed for the units of some texts.

    Attributes:
        texts: int64 [U], the text that each unit is of, ascending.
        vectors: for each variant float32 [U, D], or for token vectors U arrays [tokens that take part, D]. NaN
            where a unit has no token, or did not fit into memory.
        unfit: texts with a window that did not fit into memory even alone.
    """

    texts: NDArray[np.int64]
    vectors: Mapping[str, Any]
    unfit: frozenset[int]


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """The finished rows of one shard, in input order, ready for a sink.

    Attributes:
        index: number of the shard.
        start, stop: rows of the input that it covers: [start, stop).
        ids: [R] ids; R counts the rows written: stop - start, unless rows were skipped or units are not texts.
        kept: for each kept column and each column that tells of a unit, its R values.
        n_tokens: int32 [R], tokens of the text before any cut, special tokens included.
        n_used: int32 [R], of these, the ones that went through the model.
        n_chunks: int32 [R], windows that the text was read in; 0 where there is no vector.
        status: [R] words, see STATUSES.
        has_vector: bool [R].
        vectors: for each variant's name, [V, D] in the output's precision, V = has_vector.sum(),
            rows in input order; binary precision has [V, ceil(D/8)] uint8.
            Token vectors (`--pool none`): a list of V arrays [n_used, D] instead.
        rejects: faults of this shard's rows, skipped or kept as null.
        texts: the shard counted by texts; None where each text has one row.
        n_content: tokens of all its texts before any cut, special ones left out.
        n_unknown: of these, the ones that the vocabulary has no entry for; None where it spells every character.
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
    """How a process used its device so far.

    Attributes:
        busy: seconds spent on batches, from the first to the last operation of each.
        waited: seconds between the end of a batch and the start of the next one. Another process on the same
            device may have used them.
        allocated: peak bytes held by tensors.
        reserved: peak bytes reserved on the device for tensors.
    """

    busy: float
    waited: float
    allocated: int
    reserved: int

    @property
    def idle_fraction(self) -> float:
        """Share of the time that the device waited, 0 to 1."""
        return self.waited / max(self.busy + self.waited, 1e-9)
