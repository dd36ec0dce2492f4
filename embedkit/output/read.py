"""Finished outputs as arrays: `embedkit.read(OUT)`. Needs no model, and imports none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedkit.errors import OutputError, UsageError
from embedkit.output.formats.arrays import column_numbers, number_array
from embedkit.output.formats.columns import Vectors, vector_cells
from embedkit.output.formats.layout import RECEIPT
from embedkit.output.formats.values import json_text
from embedkit.output.open import Stored, open_stored
from embedkit.output.output_path import output_path
from embedkit.pooling.heads import PREDICTED, PREDICTION, SCORE
from embedkit.storage.protocol import FilePath
from embedkit.storage.remote_path import RemotePath
from embedkit.storage.store_options import StoreOptions
from embedkit.types import Variant

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


def read(
    path: str | os.PathLike[str], *, check: bool = True, store_options: Mapping[str, str | bool] | None = None
) -> Embeddings:
    """Opens an output of `embedkit encode`: a folder, or a .parquet, .arrow, .npy or .jsonl file.

    Only its description is read here; vectors are read on first access.

    Args:
        path: of the output: a local one, or a URI such as `s3://bucket/notes.embeddings`.
        check: before a file is read, compare it with the SHA-256 of its record; without a record, parse it in a
            child process first, since a damaged file may end the process that parses it. False reads each file
            once: for large outputs that `embedkit verify` has passed.
        store_options: settings of the object store by name, such as `{"endpoint": "https://minio.lab:9000"}`:
            those of `--store-option`. Credentials come from the environment, a profile or a role.

    Raises:
        UsageError: `path` is neither a str nor a Path, or a setting cannot be used.
        OutputError: there is no output, it is not finished, or embedkit did not write it.
    """
    is_path = isinstance(path, str | RemotePath) or (
        isinstance(path, os.PathLike) and isinstance(os.fspath(path), str)
    )
    if not is_path:
        raise UsageError(f"path cannot be a {type(path).__name__}", hint="give the output's path as a str or Path")
    options = None if store_options is None else StoreOptions.of(store_options)
    place = output_path(str(path) if isinstance(path, RemotePath) else os.fspath(path), options)
    return Embeddings(open_stored(place, checks=check), place)


class Embeddings:
    """The vectors of an output, and the rows they belong to.

    `ids` and `vectors` are aligned and hold the rows that have a vector. `table` holds every stored row, and
    `has_vector` marks those that have a vector: `table.filter(has_vector)` is aligned with `vectors`.
    """

    def __init__(self, stored: Stored, path: FilePath) -> None:
        self._stored = stored
        self._path = path
        self._by_name = {variant.name: variant for variant in stored.layout.variants}
        self._columns: dict[str, _Column] = {}

    @property
    def format(self) -> str:
        """parquet, npy, jsonl or arrow."""
        return self._stored.format

    @property
    def precision(self) -> str:
        """Type of a stored value: float32, float16, int8 or binary."""
        return self._stored.layout.precision

    @property
    def recipe(self) -> Mapping[str, Any]:
        """All that decided the numbers; {} for a single JSON Lines file, which cannot hold it."""
        return self._stored.recipe

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the recipe; None without one."""
        return self._stored.fingerprint

    @property
    def variants(self) -> tuple[str, ...]:
        """Names for `variant()`; `("",)` if there is one column of vectors."""
        return tuple(self._by_name)

    @property
    def ids(self) -> list[str | None]:
        """[N] ids of the rows that have a vector."""
        ids: list[str | None] = self.table["id"].filter(number_array(self.has_vector)).to_pylist()
        return ids

    @property
    def vectors(self) -> NDArray[np.float32]:
        """[N, D] vectors of the first variant: see `variant`."""
        return self.variant(self.variants[0])

    @property
    def token_vectors(self) -> list[NDArray[np.float32]]:
        """N arrays [n, D] of token vectors of the first variant: see `token_variant`."""
        return self.token_variant(self.variants[0])

    @property
    def has_vector(self) -> NDArray[np.bool_]:
        """[R] True for the N rows of `table` that have a vector; reads no vectors.

        Raises:
            OutputError: the rows are not as many as the manifest says.
        """
        # `n_chunks` is 0 without a vector, so that the column of vectors need not be read.
        found: NDArray[np.bool_] = column_numbers(self.table["n_chunks"]) > 0
        self._check_count(int(found.sum()))
        return found

    @cached_property
    def table(self) -> pa.Table:
        """[R] id, kept columns and receipt of every stored row (of .npy: those with a vector)."""
        tables = [batch.facts for batch in self._stored.batches(())]
        return _concatenate(tables or [self._stored.layout.facts_schema().empty_table()])

    def to_arrow(self) -> pa.Table:
        """Returns `table` with a column of vectors for each variant, null where a row has none.

        A vector is a FixedSizeList<float32>[D]; the vectors of a row's tokens are a list of these.
        """
        table = self.table
        for name, variant in self._by_name.items():
            column, kind = self._column(name), pa.list_(pa.float32(), variant.dims)
            kind = kind if isinstance(column.vectors, np.ndarray) else pa.large_list(kind)
            table = table.append_column(variant.column, vector_cells(column.vectors, column.has_vector, kind))
        return table

    def to_pandas(self) -> pd.DataFrame:
        """Returns `to_arrow()` as a pandas DataFrame: in each cell a float32 array [D], None without a vector.

        Raises:
            UsageError: pandas is not installed.
        """
        _check_installed("pandas")
        return self.to_arrow().to_pandas()

    def to_polars(self) -> pl.DataFrame:
        """Returns `to_arrow()` as a polars DataFrame: vectors are of type Array(Float32, D).

        Raises:
            UsageError: polars is not installed.
        """
        _check_installed("polars")
        import polars as pl

        # In one chunk: polars 2.1 cuts other columns where one has chunks, and fails at cut lists with nulls.
        return pl.DataFrame(self.to_arrow().combine_chunks())

    def __repr__(self) -> str:
        """Returns the place, the format and the columns of vectors; reads no vector."""
        columns = ", ".join(f"{of.column} {self.precision}[{of.dims}]" for of in self._by_name.values())
        rows = "" if self._stored.rows is None else f"{self._stored.rows:,} rows, "
        return f"<Embeddings {str(self._path)!r}: {rows}{columns}, {self.format}>"

    @property
    def classes(self) -> tuple[str, ...]:
        """K names of the classes of the head that made `probabilities`.

        Raises:
            OutputError: the output has no predictions of a head, or a head that predicts values.
        """
        columns = self._columns_of_head
        if columns[0] == PREDICTION:
            raise OutputError(
                "the head of this output predicts values, no probabilities of classes", hint="use .predicted"
            )
        return tuple(name.removeprefix(SCORE) for name in columns[:-1])

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """[N, K] probabilities of `classes`, by the head that `--with-head` applied; aligned with `vectors`.

        Raises:
            OutputError: the output has no predictions of a head, or a head that predicts values.
        """
        table = self.table.filter(number_array(self.has_vector))
        columns = [table[f"{SCORE}{name}"].to_numpy() for name in self.classes]
        return np.stack(columns, axis=1).astype(np.float32)

    @property
    def predicted(self) -> list[Any]:
        """N predictions of the head, aligned with `vectors`: a class, a list of labels, or a value each.

        Raises:
            OutputError: the output has no predictions of a head.
        """
        columns = self._columns_of_head
        found: list[Any] = self.table[columns[-1]].filter(number_array(self.has_vector)).to_pylist()
        if self.format == "jsonl" and columns[0] != PREDICTION and not set(self.classes).issuperset(found):
            return [json.loads(labels) for labels in found]  # lists are read as JSON
        return found

    @property
    def _columns_of_head(self) -> tuple[str, ...]:
        """Names of the columns of a head."""
        columns = columns_of_head(self._stored, self.table.column_names)
        if not columns:
            raise OutputError(
                "this output has no predictions of a head",
                hint="encode with --pool FILE --with-head, where FILE is of `embedkit fit --label` or `sweep`",
            )
        return columns

    def variant(self, name: str) -> NDArray[np.float32]:
        """Returns [N, D] the vectors of one variant.

        A single local .npy or .arrow file of float32 is memory-mapped, read-only (.arrow: if every row has a
        vector).
        Others are read into memory: float16 widened, int8 dequantised with the output's ranges, binary as a 0 or 1
        per bit.

        Raises:
            OutputError: there is no such variant, it is of token vectors, or a file is damaged.
        """
        vectors = self._column(name).vectors
        if isinstance(vectors, list):
            raise OutputError(
                f"{self._by_name[name].column} holds a vector per token, not per row",
                hint="use .token_vectors, a list of arrays [n, D]",
            )
        return vectors

    def token_variant(self, name: str) -> list[NDArray[np.float32]]:
        """Returns N arrays [n, D] of one variant, where n tokens of a text have a vector.

        Raises:
            OutputError: there is no such variant, it has one vector per row, or a file is damaged.
        """
        vectors = self._column(name).vectors
        if not isinstance(vectors, list):
            raise OutputError(f"{self._by_name[name].column} holds one vector per row", hint="use .vectors")
        return vectors

    def _column(self, name: str) -> _Column:
        """Returns one variant's column, read once."""
        if name not in self._by_name:
            raise OutputError(
                f"there is no variant {name!r}; there are {', '.join(map(repr, self.variants))}",
                hint="choose one of .variants",
            )
        if name not in self._columns:
            column = _load(self._stored, self._by_name[name])
            self._check_count(len(column.vectors))
            self._columns[name] = column
        return self._columns[name]

    def _check_count(self, found: int) -> None:
        if self._stored.vectors not in {None, found}:
            raise OutputError(
                f"the files hold {found} vectors, and manifest.json says {self._stored.vectors}",
                hint="`embedkit verify` names the shard that differs",
            )


def columns_of_head(stored: Stored, names: Sequence[str]) -> tuple[str, ...]:
    """Returns the columns of a head in an output with columns of these names; () without a head."""
    if not stored.scores and (stored.format == "jsonl" or "poolers" in stored.recipe):
        return _columns_before_receipt(names)
    return stored.scores


def _columns_before_receipt(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the columns of a head by name and place, in outputs that do not say which they are; () if none."""
    others = list(names[: names.index(RECEIPT[0])])
    if others[-1:] == [PREDICTION] or others[-2:] == [PREDICTION, PREDICTED]:
        return tuple(others[others.index(PREDICTION) :])
    if others[-1:] != [PREDICTED]:
        return ()
    first = len(others) - 1
    while others[first - 1].startswith(SCORE):
        first -= 1
    return tuple(others[first:]) if first < len(others) - 1 else ()


@dataclass(frozen=True, slots=True)
class _Column:
    """A variant's vectors, [N, D] or N arrays [n, D], and the mask [R] of their rows."""

    has_vector: NDArray[np.bool_]
    vectors: NDArray[np.float32] | list[NDArray[np.float32]]


def _load(stored: Stored, variant: Variant) -> _Column:
    masks = [np.zeros(0, np.bool_)]

    def vectors_of_batches() -> Iterator[Vectors]:
        for batch in stored.batches([variant]):
            masks.append(batch.has_vector)
            yield batch.vectors[variant.name]

    if stored.layout.token_vectors:
        tokens = [stored.floats(text, variant) for texts in vectors_of_batches() for text in texts]
        return _Column(np.concatenate(masks), tokens)
    vectors = _join((stored.floats(np.asanyarray(batch), variant) for batch in vectors_of_batches()), variant.dims)
    return _Column(np.concatenate(masks), vectors)


def _check_installed(library: str) -> None:
    if find_spec(library) is None:
        raise UsageError(f"{library} is not installed", hint=f"pip install {library}, or use .vectors and .table")


def _join(arrays: Iterator[NDArray[np.float32]], dims: int) -> NDArray[np.float32]:
    """Returns [N, D] the arrays concatenated; a single one as it is: mapped, not copied."""
    first = next(arrays, np.empty((0, dims), np.float32))
    second = next(arrays, None)
    if second is None:
        return first
    joined = np.empty((0, dims), np.float32)
    for array in chain([first, second], arrays):
        filled = len(joined)
        # realloc moves pages, not bytes; concatenating a list at the end would hold every vector twice.
        joined.resize((filled + len(array), dims), refcheck=False)
        joined[filled:] = array
    return joined


def _concatenate(tables: Sequence[pa.Table]) -> pa.Table:
    """Returns the rows of all tables; columns without a common type become text."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        clashing = {
            name for name in tables[0].column_names if len({t.schema.field(name).type for t in tables}) > 1
        }
    return pa.concat_tables([_as_text(table, clashing) for table in tables])


def _as_text(table: pa.Table, names: set[str]) -> pa.Table:
    for place, name in enumerate(table.column_names):
        if name in names and not pa.types.is_string(table[name].type):
            values = [None if v is None else json_text(v) for v in table[name].to_pylist()]
            table = table.set_column(place, name, pa.array(values, pa.string()))
    return table
