"""Parquet and Arrow: record batches, streamed, only the columns that are needed.

Strings of every layout work, dictionaries of them too; binary cells are read as UTF-8. pyarrow's own
messages may quote cells, so none gets out of here: what it raises ends in `_attempt`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from embedkit.errors import InputError
from embedkit.sources.cells import Unreadable, kept_name, kind_of, strings, values
from embedkit.sources.columns import Column, Columns, Wanted, composer, every
from embedkit.sources.headers import shown
from embedkit.sources.opening import Limits
from embedkit.storage.parser_probe import probe_file
from embedkit.types import UNREAD, Fault, Record

T = TypeVar("T")

BATCH_ROWS = 1_024

#: Parquet column chunks are read by pieces of this size, not whole: a chunk may be gigabytes.
_PARQUET_BUFFER = 2**20

_FILE_MAGIC = b"ARROW1"

#: An open file: its schema, and a function of column names that reads them, batch by batch.
_Opened = tuple[Any, Callable[[tuple[str, ...]], Iterator[Any]]]


class Columnar:
    """One file of record batches, read once.

    Raises:
        InputError: it is damaged, cut off, of another format, or grows beyond the limits.
    """

    columns: tuple[Column, ...]

    def __init__(self, stream: io.BufferedReader, file: str, *, file_format: str, limits: Limits) -> None:
        self._file = file
        self._limits = limits
        self._format = file_format
        if file_format == "parquet":
            source, opener = _seekable(stream), self._open_parquet
        elif stream.peek(len(_FILE_MAGIC)).startswith(_FILE_MAGIC):
            source, opener = _seekable(stream), self._open_arrow_file
        else:
            source, opener = stream, self._open_arrow_stream
        # A pipe can be read only once: what comes through it is not looked at first.
        self._probed = None if source is stream and not stream.seekable() else _probed(source)
        self._refuse_unparsable("none", ())
        opened = _attempt(lambda: opener(source))
        if opened is None:
            raise self._damaged()
        schema, self._batches = opened
        self.columns = tuple(
            Column(field.name, kind_of(field.type), _told_type(field.type), kept_name(field.type))
            for field in schema
        )

    def rows(self, columns: Columns, first: int, wanted: Wanted = every) -> Iterator[Record | Fault]:
        """Every row, numbered from `first`; one with bytes that are not UTF-8 is the fault `not_utf8`."""
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

    def _refuse_unparsable(self, part: int | str, without: Collection[str]) -> None:
        """See that the parser survives a file, or a part of it: a damaged one may end the process that parses it.

        Args:
            part: number of a row group or a record batch; all; or none: what describes the file alone.
            without: columns that are not read.
        """
        if (
            self._probed is not None
            and probe_file(self._probed, self._format, part=part, without=without) is not None
        ):
            raise self._damaged()

    def _parts(self, count: int, names: tuple[str, ...]) -> Iterator[int]:
        """Numbers of the parts of a file, each when it is known to be harmless: a limit may leave most of them."""
        without = {column.name for column in self.columns} - set(names)
        if not isinstance(self._probed, str):
            self._refuse_unparsable("all", without)
            yield from range(count)
            return
        for part in range(count):
            self._refuse_unparsable(part, without)
            yield part

    def _open_parquet(self, source: BinaryIO) -> _Opened:
        file = pq.ParquetFile(source, buffer_size=_PARQUET_BUFFER, page_checksum_verification=True)
        groups = (file.metadata.row_group(at) for at in range(file.metadata.num_row_groups))
        self._limits.check(sum(group.total_byte_size for group in groups), source.seek(0, io.SEEK_END), self._file)

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
            return _pieces(reader.get_batch(part) for part in self._parts(reader.num_record_batches, names))

        return schema, batches

    def _open_arrow_stream(self, source: BinaryIO) -> _Opened:
        mapped = _mapped(source)
        stream = pa.ipc.open_stream(mapped)

        def batches(names: tuple[str, ...]) -> Iterator[Any]:
            self._refuse_unparsable("all", ())
            return _pieces(_sound(batch, names) for batch in _to_the_end(stream, mapped))

        return stream.schema, batches

    def _next(self, batches: Iterator[Any] | None) -> Any:
        """The next batch, or None after the last."""
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
                f"{self._file}: column {shown(name)}, of type {_told_type(column.type)}, cannot be read",
                hint="cast it to a string, or leave it out of --keep",
            )
        return cells

    def _damaged(self) -> InputError:
        return InputError(
            f"{self._file}: cannot be read as {self._format}: cut off, damaged, or of another format",
            hint="write or copy it again; if it is of another format, say so with --format",
        )


def _told_type(declared: Any) -> str:
    """The type's name for messages, without the names of fields within it, which nobody typed."""
    name = str(declared)
    return name.partition("<")[0] if "struct<" in name or "union<" in name else name


def _attempt(action: Callable[[], T]) -> T | None:
    """What the action gives, or None where pyarrow failed; an error of ours passes."""
    try:
        return action()
    except (pa.ArrowException, OSError, ValueError):
        return None


def _to_the_end(stream: Any, source: Any) -> Iterator[Any]:
    """The batches of a stream, which is to be all that the source holds: two streams in one file are not one."""
    yield from stream
    # Reading on to the end is what checks the checksum of a compressed file, too.
    if source.read(1):
        raise pa.ArrowInvalid("something follows the end of the stream")


def _sound(batch: Any, names: tuple[str, ...]) -> Any:
    """A batch that came through a pipe, every offset of the columns that are read held against what they have."""
    for name in names:
        try:
            batch.column(name).validate(full=True)
        except pa.ArrowInvalid as error:
            # What is not UTF-8 is a bad row and no danger. Characters are looked at after the offsets.
            if "UTF8" not in str(error):
                raise
    return batch


def _pieces(batches: Iterator[Any]) -> Iterator[Any]:
    """Arrow batches may be whole tables: slices of them become Python objects one at a time."""
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _mapped(source: BinaryIO) -> Any:
    """A file on disk is mapped, so that a batch larger than the memory can be read too."""
    name = getattr(source, "name", None)  # of a stream that is decompressed or held in memory there is none
    return pa.memory_map(os.fsencode(name)) if isinstance(name, str) else source


def _probed(source: BinaryIO) -> str | memoryview | None:
    """The path of a file on disk, or the bytes of one in memory."""
    name = getattr(source, "name", None)
    if isinstance(name, str):
        return name
    return source.getbuffer() if isinstance(source, io.BytesIO) else None


def _seekable(stream: io.BufferedReader) -> BinaryIO:
    """The stream itself, or its bytes in memory.

    Parquet and Arrow files are read from their end, which a pipe or a compressed file has not got. A temporary
    file would put texts on a disk that nobody chose for them.
    """
    if stream.seekable():
        return stream
    return io.BytesIO(stream.read())
