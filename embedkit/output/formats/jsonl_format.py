r"""Shards as JSON Lines: an object per row, float32 as the shortest text that reads back equal.

Lines are bytes, separated by \n only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, ClassVar

import numpy as np
import orjson
import pyarrow as pa

from embedkit.arrow_values import plain_values
from embedkit.errors import OutputError
from embedkit.output.formats.arrays import plain_array
from embedkit.output.formats.columns import RecordBatch, Vectors, matrix, token_arrays
from embedkit.output.formats.layout import RECEIPT, Create, Layout
from embedkit.output.formats.sink import OneFile
from embedkit.output.formats.values import json_text, kept_array
from embedkit.storage.filesystem import open_file
from embedkit.storage.opener import IN_PLACE, FileOpener
from embedkit.storage.protocol import FilePath
from embedkit.types import EncodedShard, Variant

#: Lines read at a time: about 17 MB of text at 384 values a line.
_LINES = 4096
_WIDE = 2.0**63


@dataclass(frozen=True, slots=True)
class JsonlSink(OneFile):
    """`embeddings/part-00000.jsonl`."""

    suffix: ClassVar[str] = ".jsonl"

    def write(self, shard: EncodedShard, create: Create) -> None:
        """See Sink."""
        with create(self.files(shard.index)[0]) as file:
            file.writelines(jsonl_lines(shard, self.layout))

    def merge(self, folder: FilePath, indices: Sequence[int], name: str, create: Create) -> None:
        """Concatenates shards into one file."""
        with create(name) as file:
            for index in indices:
                with open_file(folder / self.files(index)[0]) as part:
                    file.writelines(iter(lambda: part.read(2**20), b""))

    def read(
        self,
        files: Sequence[FilePath],
        asked: Sequence[Variant],
        *,
        only: int | None = None,
        opener: FileOpener = IN_PLACE,
    ) -> Iterator[RecordBatch]:
        """Reads one file, some thousand lines at a time."""
        with opener.stream(files[0]) as file:
            for number in count():
                lines = list(islice(file, _LINES))
                if not lines:
                    return
                if only in {None, number}:
                    rows = [parse_line(line, files[0], number * _LINES + i) for i, line in enumerate(lines)]
                    yield self._batch(rows, asked, files[0])

    def _batch(self, rows: list[dict[str, Any]], asked: Sequence[Variant], path: FilePath) -> RecordBatch:
        vectors: dict[str, Vectors] = {}
        has_vector = np.zeros(len(rows), np.bool_)
        for variant in asked:
            cells = [row.get(variant.column) for row in rows]
            has_vector = np.array([cell is not None for cell in cells], np.bool_)
            cells = [cell for cell in cells if cell is not None]
            vectors[variant.name] = _vectors(cells, self.layout, variant, path)
        ours = {variant.column for variant in self.layout.variants}
        names = [name for name in rows[0] if name not in ours]
        facts = pa.table({name: _column(name, [row.get(name) for row in rows]) for name in names})
        return RecordBatch(facts, has_vector, vectors)


def jsonl_lines(shard: EncodedShard, layout: Layout) -> Iterator[bytes]:
    """Yields the R lines of a shard, with line feeds.

    Raises:
        OutputError: a kept value cannot be encoded as UTF-8; gives the row, not the value.
    """
    read = token_arrays if layout.token_vectors else matrix
    vectors = [(f'"{v.column}":'.encode(), read(shard, v, layout)) for v in layout.variants]
    nth = np.cumsum(shard.has_vector) - 1  # index among the rows with a vector
    kept = {name: plain_values(shard.kept[name]) for name in layout.kept_types}
    for row, has_vector in enumerate(shard.has_vector):
        facts = _facts_json(shard, kept, row)
        if facts is None:
            raise OutputError(
                f"the kept values at position {row} of shard {shard.index} cannot be written as UTF-8 JSON",
                hint="leave the column with lone surrogates (half characters) out of --keep",
            )
        cells = (
            key + (orjson.dumps(values[nth[row]], option=orjson.OPT_SERIALIZE_NUMPY) if has_vector else b"null")
            for key, values in vectors
        )
        yield b",".join((facts[:-1], *cells)) + b"}\n"


def sniff(path: FilePath) -> Layout:
    """Returns the layout of a file by its keys and first vectors.

    Precision is float32, since the text does not say which one it was.

    Raises:
        OutputError: embedkit did not write a line.
    """
    columns: dict[str, Any] = {}
    with open_file(path) as file:
        for number, line in enumerate(file):
            row = parse_line(line, path, number)
            names = ["embedding"] if "embedding" in row else [k for k in row if k.startswith("embedding_")]
            if not names:
                raise _not_ours(path, number)
            columns = {name: columns.get(name) or row[name] for name in names}
            if all(columns.values()):
                break
    token_vectors = any(cell and isinstance(cell[0], list) for cell in columns.values())
    variants = (
        Variant(name.removeprefix("embedding").removeprefix("_"), _dims(cell))
        for name, cell in (columns or {"embedding": None}).items()
    )
    return Layout(tuple(variants), "float32", token_vectors, {}, {})


def _dims(cell: list[Any] | None) -> int:
    if not cell:
        return 0
    return len(cell[0]) if isinstance(cell[0], list) else len(cell)


def parse_line(line: bytes, path: FilePath, number: int) -> dict[str, Any]:
    """Parses a line; raises OutputError if it is not an object that embedkit wrote."""
    try:
        row = orjson.loads(line)
        if isinstance(row, dict) and _may_be_wide({k: v for k, v in row.items() if not k.startswith("embedding")}):
            row = json.loads(line)  # orjson makes a double of an integer of more than 64 bits
    except ValueError:
        row = None
    if not isinstance(row, dict) or not {"id", *RECEIPT} <= row.keys():
        raise _not_ours(path, number)
    return row


def _may_be_wide(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_may_be_wide, value.values()))
    return (
        any(map(_may_be_wide, value))
        if isinstance(value, list)
        else (isinstance(value, float) and abs(value) >= _WIDE)
    )


def _not_ours(path: FilePath, number: int) -> OutputError:
    return OutputError(
        f"{path}: line {number + 1} is not a row that embedkit wrote",
        hint="give a file or folder made by `embedkit encode`",
    )


def _facts_json(shard: EncodedShard, kept: Mapping[str, Sequence[Any]], row: int) -> bytes | None:
    """Returns a row without vectors, None if it is no UTF-8. The exception is not chained: it quotes the text."""
    facts = {
        "id": shard.ids[row],
        **{name: values[row] for name, values in kept.items()},
        **{name: int(getattr(shard, name)[row]) for name in RECEIPT[:3]},
        "status": shard.status[row],
    }
    try:
        return json_text(facts).encode()
    except UnicodeEncodeError:
        return None


def _vectors(cells: list[Any], layout: Layout, variant: Variant, path: FilePath) -> Vectors:
    width = layout.width(variant)
    try:
        if layout.token_vectors:
            return [np.array(cell, layout.dtype).reshape(len(cell), width) for cell in cells]
        return np.array(cells, layout.dtype).reshape(len(cells), width)
    except (ValueError, TypeError, OverflowError):
        problem = f"{path}: {variant.column!r} has cells that are not vectors of {width} values"
    raise OutputError(problem, hint="`embedkit verify` names the damaged shard")


def _column(name: str, values: list[Any]) -> pa.Array:
    """Returns values as one Arrow type; nested and mixed ones become JSON text, strings among them unquoted."""
    if name == "id" or name in RECEIPT:
        return _array(values, pa.int32() if name in RECEIPT[:3] else pa.string())
    if not any(isinstance(value, dict | list) for value in values):
        for kind in (None, pa.uint64()):
            with suppress(pa.ArrowException, OverflowError):
                return _array(values, kind)
    mixed = any(isinstance(value, str) for value in values)
    return kept_array(name, values, "text" if mixed else "json")


def _array(values: list[Any], kind: pa.DataType | None) -> pa.Array:
    array = plain_array(values, kind)
    return pa.array(values, kind) if array is None else array
