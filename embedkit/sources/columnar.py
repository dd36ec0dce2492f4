"""Parquet and Arrow: record batches, streamed, of the needed columns.

Strings of every layout work, dictionaries of them too; binary cells are read as UTF-8. Errors of pyarrow end in
`_attempt`, because their messages may quote cells.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from embedkit.arrow_values import (
    holds,
    is_binary,
    is_exact,
    is_string,
    json_values,
    kept_values,
    stored,
    stored_type,
    texts,
    type_name,
)
from embedkit.config import InputConfig
from embedkit.errors import InputError
from embedkit.sources.columns import Column, Columns, Kind, Wanted, composer, every
from embedkit.sources.headers import shown
from embedkit.sources.opening import check_size
from embedkit.storage.parser_probe import probe_file
from embedkit.types import UNREAD, Fault, Record

T = TypeVar("T")

BATCH_ROWS = 1_024

#: Bytes of a Parquet column chunk to read at a time: a chunk may have gigabytes.
_PARQUET_BUFFER = 2**20

_FILE_MAGIC = b"ARROW1"

#: Positions in a batch of the rows with invalid UTF-8.
Unreadable = set[int]

#: An open file: its schema, and a function that reads the columns of the given names, batch by batch.
_Opened = tuple[Any, Callable[[tuple[str, ...]], Iterator[Any]]]


class Columnar:
    """One file of record batches, read once.

    Raises:
        InputError: it is damaged, cut off, of another format, or grows beyond the limits.
    """

    columns: tuple[Column, ...]

    def __init__(self, stream: io.BufferedReader, file: str, *, file_format: str, config: InputConfig) -> None:
        self._file = file
        self._config = config
        self._format = file_format
        if file_format == "parquet":
            source, opener = _seekable(stream), self._open_parquet
        elif stream.peek(len(_FILE_MAGIC)).startswith(_FILE_MAGIC):
            source, opener = _seekable(stream), self._open_arrow_file
        else:
            source, opener = stream, self._open_arrow_stream
        # A pipe can be read only once, so it is not probed.
        self._probed = None if source is stream and not stream.seekable() else _probed(source)
        self._check_parser("none", ())
        opened = _attempt(lambda: opener(source))
        if opened is None:
            raise self._damaged()
        schema, self._batches = opened
        self.columns = tuple(
            Column(field.name, kind_of(field.type), _shown_type(field.type), type_name(stored_type(field.type)))
            for field in schema
        )

    def rows(self, columns: Columns, first: int, wanted: Wanted = every) -> Iterator[Record | Fault]:
        """Read every row, numbered from `first`; one with invalid UTF-8 is the fault `not_utf8`."""
        compose = composer(columns)
        row = first
        batches = _attempt(lambda: self._batches(columns.named))
        while (batch := self._next(batches)) is not None:
            if not wanted(row, row + batch.num_rows):
                yield from (Fault(row + at, self._file, None, UNREAD) for at in range(batch.num_rows))
                row += batch.num_rows
                continue
            unreadable: Unreadable = set()
            texts = [self._cells(batch, name, strings, unreadable) for name in columns.text]
            keeps = [self._cells(batch, name, values, unreadable) for name in columns.keep]
            ids: list[str | None] = [str(number) for number in range(row, row + batch.num_rows)]
            if columns.id is not None:
                ids = self._cells(batch, columns.id, strings, unreadable)
            for at, identity in enumerate(ids):
                if at in unreadable:
                    yield Fault(row, self._file, None, "not_utf8")
                else:
                    text = compose([cells[at] for cells in texts])
                    yield Record(row, identity, text, tuple([cells[at] for cells in keeps]))
                row += 1

    def _check_parser(self, part: int | str, without: Collection[str]) -> None:
        """Check that the parser survives the file, or a part of it; see `probe_file`."""
        if self._probed is not None and probe_file(self._probed, self._format, part=part, without=without):
            raise self._damaged()

    def _parts(self, count: int, names: tuple[str, ...]) -> Iterator[int]:
        """Yield the numbers of the parts, each probed before it is read; all at once if they are in memory."""
        without = {column.name for column in self.columns} - set(names)
        is_file = isinstance(self._probed, str)
        if not is_file:
            self._check_parser("all", without)
        for part in range(count):
            if is_file:
                self._check_parser(part, without)
            yield part

    def _open_parquet(self, source: BinaryIO) -> _Opened:
        file = pq.ParquetFile(source, buffer_size=_PARQUET_BUFFER, page_checksum_verification=True)
        groups = (file.metadata.row_group(at) for at in range(file.metadata.num_row_groups))
        size = sum(group.total_byte_size for group in groups)
        check_size(self._config, size, source.seek(0, io.SEEK_END), self._file)

        def batches(names: tuple[str, ...]) -> Iterator[Any]:
            for part in self._parts(file.metadata.num_row_groups, names):
                yield from file.iter_batches(BATCH_ROWS, row_groups=[part], columns=list(names))

        return file.schema_arrow, batches

    def _open_arrow_file(self, source: BinaryIO) -> _Opened:
        mapped = _mapped(source)
        schema = pa.ipc.open_file(mapped).schema

        def batches(names: tuple[str, ...]) -> Iterator[Any]:
            fields = [schema.get_field_index(name) for name in names]
            reader = pa.ipc.open_file(mapped, options=pa.ipc.IpcReadOptions(included_fields=fields))
            return _sliced(reader.get_batch(part) for part in self._parts(reader.num_record_batches, names))

        return schema, batches

    def _open_arrow_stream(self, source: BinaryIO) -> _Opened:
        mapped = _mapped(source)
        stream = pa.ipc.open_stream(mapped)

        def batches(names: tuple[str, ...]) -> Iterator[Any]:
            self._check_parser("all", ())
            return _sliced(_checked(batch, names) for batch in _to_the_end(stream, mapped))

        return stream.schema, batches

    def _next(self, batches: Iterator[Any] | None) -> Any:
        """Return the next batch, or None after the last."""
        end = object()
        batch = None if batches is None else _attempt(lambda: next(batches, end))
        if batch is None:
            raise self._damaged()
        return None if batch is end else batch

    def _cells(
        self, batch: Any, name: str, convert: Callable[[Any, Unreadable], list[Any]], unreadable: Unreadable
    ) -> list[Any]:
        column = batch.column(name)
        cells = _attempt(lambda: convert(column, unreadable))
        if cells is None:
            raise InputError(
                f"{self._file}: column {shown(name)}, of type {_shown_type(column.type)}, cannot be read",
                hint="cast it to a string, or leave it out of --keep",
            )
        return cells

    def _damaged(self) -> InputError:
        return InputError(
            f"{self._file}: cannot be read as {self._format}: cut off, damaged, or of another format",
            hint="write or copy it again; if it is of another format, name that with --format",
        )


def _shown_type(declared: Any) -> str:
    """Return the type's name for messages, without names of fields, which may be row content."""
    name = str(declared)
    return name.partition("<")[0] if "struct<" in name or "union<" in name else name


def _attempt(action: Callable[[], T]) -> T | None:
    """Run the action; None if pyarrow fails. Errors of embedkit pass."""
    try:
        return action()
    except (pa.ArrowException, OSError, ValueError):
        return None


def _to_the_end(stream: Any, source: Any) -> Iterator[Any]:
    """Read the batches of a stream, after which the source must end: two streams in one file are an error."""
    yield from stream
    # Reading to the end also verifies the checksum of a compressed file.
    if source.read(1):
        raise pa.ArrowInvalid("something follows the end of the stream")


def _checked(batch: Any, names: tuple[str, ...]) -> Any:
    """Check every offset of the needed columns of a batch from a pipe."""
    for name in names:
        try:
            batch.column(name).validate(full=True)
        except pa.ArrowInvalid as error:
            # Invalid UTF-8 is a bad row and harmless; it is checked after the offsets.
            if "UTF8" not in str(error):
                raise
    return batch


def _sliced(batches: Iterator[Any]) -> Iterator[Any]:
    """Slice batches, which may be whole tables, so that few rows at a time become Python objects."""
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _mapped(source: BinaryIO) -> Any:
    """Map a file on disk into memory, so that a batch larger than the memory can be read."""
    name = getattr(source, "name", None)  # none if it is decompressed or in memory
    return pa.memory_map(os.fsencode(name)) if isinstance(name, str) else source


def _probed(source: BinaryIO) -> str | memoryview | None:
    """Return the path of a file on disk, or the bytes of one in memory."""
    name = getattr(source, "name", None)
    if isinstance(name, str):
        return name
    return source.getbuffer() if isinstance(source, io.BytesIO) else None


def _seekable(stream: io.BufferedReader) -> BinaryIO:
    """Return the stream itself, or its bytes in memory.

    Parquet and Arrow files are read from their end, which a pipe or a compressed file does not offer. A temporary
    file would write texts to a disk that the user did not choose.
    """
    return stream if stream.seekable() else io.BytesIO(stream.read())


def kind_of(declared: Any) -> Kind:
    """Classify the cells of an Arrow type."""
    kind = stored_type(declared)
    if is_exact(kind):
        return "exact"
    plain = kind
    while isinstance(plain, pa.BaseExtensionType):
        plain = plain.storage_type
    if is_string(plain):
        return "string"
    if is_binary(plain):
        return "binary"
    if pa.types.is_integer(plain) and plain == kind:
        return "integer"
    return "null" if pa.types.is_null(plain) else "other"


def strings(array: Any, unreadable: Unreadable) -> list[str | None]:
    """Convert cells to text: strings unchanged, bytes decoded, others by `texts`."""
    plain = stored(array)
    while isinstance(plain.type, pa.BaseExtensionType) and not is_exact(plain.type):
        plain = plain.storage
    try:
        if not is_binary(plain.type):
            return texts(plain)
    except UnicodeDecodeError:  # pyarrow does not check what a file declares as UTF-8
        pass
    return [_decoded(cell, at, unreadable) for at, cell in enumerate(plain)]


def values(array: Any, unreadable: Unreadable) -> list[Any]:
    """Convert cells to kept values: see `arrow_values.kept_values`."""
    plain = stored(array)
    if is_string(plain.type):
        return strings(plain, unreadable)
    kept = kept_values(plain)
    if holds(plain.type, is_string) and not _is_readable(plain):
        unreadable |= {at for at in range(len(plain)) if not _is_readable(plain.slice(at, 1))}
    return kept


def _is_readable(array: Any) -> bool:
    try:
        json_values(array)
    except UnicodeDecodeError:
        return False
    return True


def _decoded(cell: Any, at: int, unreadable: Unreadable) -> str | None:
    if not cell.is_valid:
        return None
    try:
        return bytes(cell.as_buffer()).decode()
    except UnicodeDecodeError:
        unreadable.add(at)
        return None
