"""What travels between the stages: a row of the input, a faulty one, texts laid end to end, a finished shard.

Knows nothing of files, tokenizers or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Statuses of a receipt, in the order in which `inspect` lists them. Rows that were kept as
#: null by `--on-bad-row null` have their fault's code as status instead.
STATUSES = ("ok", "truncated", "empty")


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the input.

    Attributes:
        row: number of the row in the whole input, from 0, over all files in order.
        id: the id column as text, or the row number; None where the id cell is null.
        text: what is embedded; None where every text cell is null.
        kept: values of the columns named by `--keep`, in that order.
    """

    row: int
    id: str | None
    text: str | None
    kept: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that cannot be read as a record. Says where and why, never what it holds.

    Attributes:
        row: number of the row in the whole input, from 0.
        file: the file as the user named it.
        offset: bytes from the start of the (decompressed) file to the row; None if unknown.
        code: a word such as `short_row` or `invalid_json`.
    """

    row: int
    file: str
    offset: int | None
    code: str


@dataclass(frozen=True, slots=True)
class Run:
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
class EncodedShard:
    """The finished rows of one shard, in input order, ready for a sink.

    Attributes:
        index: number of the shard.
        start, stop: rows of the input that it covers: [start, stop).
        ids: [R] ids; R counts the rows written, so R = stop - start unless rows were skipped.
        kept: for each kept column, its R values.
        n_tokens: int32 [R], tokens of the text before any cut, special tokens included.
        n_used: int32 [R], tokens that went through the model.
        n_chunks: int32 [R], windows that the text was read in; 0 where there is no vector.
        status: [R] words, see STATUSES.
        has_vector: bool [R].
        vectors: for each variant's name, [V, D] in the output's precision, V = has_vector.sum(),
            rows in input order; binary precision has [V, ceil(D/8)] uint8.
            Token vectors (`--pool none`): a list of V arrays [n_used, D] instead.
        rejects: faults of this shard's rows, skipped or kept as null.
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
