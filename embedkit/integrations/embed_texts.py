"""`EmbedTexts`: a function from batches of a table to the same batches with vectors, for others' pipelines.

Knows no pipeline: batches are recognised by their type, and only libraries that made one are imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedkit.errors import InputError, UsageError
from embedkit.integrations.shared_encoder import checked_config, shared_encoder
from embedkit.output.formats.columns import vector_cells
from embedkit.types import Variant

#: The columns of vectors by name; NaN where a text is empty.
_Columns = dict[str, NDArray[np.float32]]


class EmbedTexts:
    """Embeds a column of texts, batch by batch.

    Called with a batch, it returns a batch of the same type with a column of vectors; called with a column, it
    returns the vectors. The model is loaded by the first call in a process, and shared there by all EmbedTexts of
    the same options. It is pickled by its options, without weights.

    | batch | vectors | of an empty or missing text |
    | --- | --- | --- |
    | `pyarrow.Table`, `pyarrow.RecordBatch` | FixedSizeList<float32>[D] | null |
    | dict or other mapping of numpy arrays (Ray Data) | float32 [n, D] | NaN |
    | dict or other mapping of lists (datasets) | list of float32 [D] | None |
    | `pandas.DataFrame` | object, float32 [D] each | None |
    | `polars.DataFrame` | Array(Float32, D) | null |

    A column may be a `pyarrow.Array` or `ChunkedArray`, a `pandas.Series`, a `polars.Series`, or anything with a
    method `to_arrow` (Daft), which gives a `pyarrow.FixedSizeListArray`.

    Args:
        column: the column of texts in a batch.
        output: the column of vectors. With `layer_agg="separate"` its name is followed by that of the layer and
            pooling, such as `embedding_L09_mean`.
        options: those of `embedkit.Encoder`.

    Raises:
        UsageError: an option that does not exist, or a value that cannot be used.
    """

    def __init__(self, column: str = "text", *, output: str = "embedding", **options: Any) -> None:
        self.column, self.output, self.options = column, output, options
        if checked_config(options).pooling.pool == "none":
            raise UsageError("pool='none' gives a vector a token", hint="choose a pooling, such as pool='mean'")

    def __repr__(self) -> str:
        """Returns the call that makes it."""
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"EmbedTexts({self.column!r}, output={self.output!r}{options})"

    def __call__(self, batch: Any) -> Any:
        """Returns a batch with its vectors, or the vectors of a column.

        Raises:
            UsageError: the batch has a column of vectors already, or is of a type that is not supported.
            InputError: the batch has no such column, or the column holds something other than texts.
            ModelError: the model is unavailable, or a vector is not finite.
        """
        if isinstance(batch, pa.Table | pa.RecordBatch):
            for name, vectors in self._embed(batch, batch.column_names).items():
                batch = batch.append_column(name, fixed_size_lists(vectors))
            return batch
        if isinstance(batch, Mapping):
            as_arrays = isinstance(batch.get(self.column), np.ndarray)
            found = self._embed(batch, batch.keys())
            return {**batch, **{n: vectors if as_arrays else _cells(vectors) for n, vectors in found.items()}}
        match _library_of(batch), type(batch).__name__:
            case "pandas", "DataFrame":
                return batch.assign(**{n: _cells(of) for n, of in self._embed(batch, batch.columns).items()})
            case "polars", "DataFrame":
                import polars as pl

                found = self._embed(batch, batch.columns)
                return batch.with_columns([pl.Series(n, fixed_size_lists(of)) for n, of in found.items()])
        return self._column(batch)

    def map_in_arrow(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yields each batch with its vectors, as Spark's `DataFrame.mapInArrow` wants it.

        A vector is a list<float32>, which is Spark's `array<float>`; null for an empty text.
        """
        for batch in batches:
            for name, vectors in self._embed(batch, batch.column_names).items():
                lists = fixed_size_lists(vectors)
                batch = batch.append_column(name, lists.cast(pa.list_(pa.float32())))  # noqa: PLW2901 - grows
            yield batch

    def _column(self, column: Any) -> Any:
        """Returns the vectors of a column of texts, in the type of its library."""
        is_arrow = isinstance(column, pa.Array | pa.ChunkedArray)
        library = _library_of(column)
        if not (is_arrow or library in {"pandas", "polars"} or callable(getattr(column, "to_arrow", None))):
            raise UsageError(
                f"EmbedTexts cannot embed a {type(column).__name__}",
                hint="give a batch or a column of pyarrow, pandas, polars or Daft, or a dict of columns; "
                "embedkit.Encoder takes lists of texts",
            )
        texts = column if is_arrow or library in {"pandas", "polars"} else column.to_arrow()
        encoded = self._encode(texts)
        if len(encoded) > 1:
            raise UsageError(
                f"layer_agg='separate' gives {len(encoded)} vectors a text", hint="give a batch and not a column"
            )
        vectors = next(iter(encoded.values()))
        match library:
            case "pandas":
                return column.__class__(_cells(vectors), index=column.index, name=self.output)
            case "polars":
                return column.__class__(self.output, fixed_size_lists(vectors))
        return fixed_size_lists(vectors)

    def _embed(self, batch: Any, names: Iterable[str]) -> _Columns:
        names = list(names)
        if self.column not in names:
            raise InputError(
                f"the batch has no column '{self.column}'; it has {', '.join(map(repr, names))}",
                hint="name the column of texts: EmbedTexts('COLUMN')",
            )
        encoded = self._encode(batch[self.column])
        if taken := encoded.keys() & set(names):
            raise UsageError(
                f"the batch has a column '{min(taken)}' already",
                hint="choose another name: EmbedTexts(…, output='NAME')",
            )
        return encoded

    def _encode(self, texts: Any) -> _Columns:
        """Returns the vectors of N texts in each variant, float32 [N, D], by the name of its column."""
        encoded = shared_encoder(self.options).encode_variants(texts)
        columns = {name: Variant(name, vectors.shape[1]).column for name, vectors in encoded.items()}
        return {columns[name].replace("embedding", self.output, 1): of for name, of in encoded.items()}


def fixed_size_lists(vectors: NDArray[np.float32]) -> pa.FixedSizeListArray:
    """Returns vectors [n, D] as a FixedSizeList<float32>[D], null where a vector is NaN: its text is empty."""
    has_vector: NDArray[np.bool_] = ~np.isnan(vectors[:, 0])
    return vector_cells(vectors[has_vector], has_vector, pa.list_(pa.float32(), vectors.shape[1]))


def _cells(vectors: NDArray[np.float32]) -> list[NDArray[np.float32] | None]:
    return [None if np.isnan(vector[0]) else vector for vector in vectors]


def _library_of(value: Any) -> str:
    return type(value).__module__.partition(".")[0]
