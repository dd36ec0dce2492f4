"""Parquet and Arrow files: record batches, streamed, of the needed columns."""

from __future__ import annotations

import io
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from embedkit.config import InputConfig
from embedkit.errors import InputError
from embedkit.sources.columns import Columns, Wanted, every
from embedkit.sources.kept_types import KeptTypes
from embedkit.sources.measuring import measure, names_to_measure
from embedkit.sources.opening import check_size
from embedkit.sources.record_batches import BATCH_ROWS, RecordBatches, attempt, between, sliced
from embedkit.storage.filesystem import open_file
from embedkit.storage.parser_probe import probe_file
from embedkit.storage.partial_copy import PartialCopy, chunk_ranges, columns_of, footer_of_parquet, ranged
from embedkit.storage.ranged_reader import RangedReader
from embedkit.types import Fault, Record

#: How a Parquet file is read: 1 MiB of a column chunk at a time, since a chunk may have gigabytes.
_PARQUET: dict[str, Any] = {"buffer_size": 2**20, "pre_buffer": False, "page_checksum_verification": True}

_FILE_MAGIC = b"ARROW1"
#: Row groups of a remote file are fetched together up to this many bytes.
_TOGETHER = 8 * 2**20

#: A function that reads columns, by name, of the rows [start, stop); None: to the end.
_BatchesBetween = Callable[[Sequence[str], int, int | None], Iterator[Any]]
#: An open file: its schema, and the function that reads its batches.
_Opened = tuple[Any, _BatchesBetween]


class Columnar(RecordBatches):
    """One file of record batches, read once.

    Args:
        stream: of its bytes.
        file: its name, for errors.
        file_format: parquet or arrow.
        config: of the input.
        sound: columns that the parser is known to survive, since planning has read them; the footer, too, then.

    Raises:
        InputError: it is damaged, cut off, of another format, or grows beyond the limits.
    """

    def __init__(
        self,
        stream: io.BufferedReader,
        file: str,
        *,
        file_format: str,
        config: InputConfig,
        sound: Collection[str] = (),
    ) -> None:
        self._file = file
        self._sound = frozenset(sound)
        self._config = config
        #: The first row of each row group, and the number of rows; [0] unless it is Parquet.
        self.group_starts = [0]
        self._format = file_format
        self._remote = ranged(stream)
        self._copy: PartialCopy | None = None  # of what is read of a remote file
        self._held = range(0)  # row groups in it
        self._footer = b""
        #: Columns that are not read, but hashed, and read later: fetched and probed with the others.
        self._also: Collection[str] = ()
        if self._remote is not None:
            source, opener = self._copied(self._remote)
        elif file_format == "parquet":
            source, opener = _seekable(stream), self._open_parquet
        elif stream.peek(len(_FILE_MAGIC)).startswith(_FILE_MAGIC):
            source, opener = _seekable(stream), self._open_arrow_file
        else:
            source, opener = stream, self._open_arrow_stream
        # A pipe can be read only once, so it is not probed.
        self._probed = None if source is stream and not stream.seekable() else _probed(source)
        if not self._sound:
            self._check_parser("none", ())
        opened = attempt(lambda: opener(source))
        if opened is None:
            raise self._damaged()
        self._schema, self._between = opened
        super().__init__(self._schema, lambda columns: self._between(columns.named, 0, None), file)

    #: See `Place`: an offset is the number of a row, at which reading can begin.
    seekable = True
    place = 0

    def stretch_of(self, row: int) -> int:
        """Returns the number of the row group of a row; 0 in an Arrow file, whose batches are read one by one."""
        return max(0, bisect_right(self.group_starts, row) - 1)

    def rows(
        self,
        columns: Columns,
        first: int,
        wanted: Wanted = every,
        start: int | None = None,
        stop: int | None = None,
    ) -> Iterator[Record | Fault]:
        """Reads the rows [start, stop) of the file, numbered from `first`; see `RecordBatches.rows`."""
        return self._records(lambda: self._between(columns.named, start or 0, stop), columns, first, wanted)

    def measured(
        self, columns: Columns, first: int, found: KeptTypes, start: int | None, stop: int | None
    ) -> Iterator[int | Record | Fault]:
        """Reads as `rows` does; where `found` needs no more, of most rows only the number of characters."""
        floats = found.floats()
        names = names_to_measure(self._schema, columns, floats)
        if names is None or floats is None:
            yield from self.rows(columns, first, every, start, stop)
            return
        row = begin = start or 0
        self._also = columns.named
        batches = attempt(lambda: self._between(names, begin, stop))
        while (batch := self._next(batches)) is not None:
            measures = attempt(partial(measure, batch, columns, floats))
            if measures is None:
                yield from self.rows(columns, first + row - begin, every, row, row + batch.num_rows)
            else:
                found.non_finite.update(measures[1])
                yield from measures[0]
            row += batch.num_rows

    def piece(self, first: int, stop: int) -> tuple[int, int]:
        """Returns the rows [start, stop) of the row groups of a Parquet file that begin in these bytes of it."""
        sizes = (sum(column.total_compressed_size for column in columns_of(group)) for group in self._groups)
        offsets = [0, *accumulate(sizes)][:-1]
        low, high = bisect_left(offsets, first), bisect_left(offsets, stop)
        return self.group_starts[low], self.group_starts[high]

    def chunks(self, first: int, stop: int, names: Collection[str]) -> list[tuple[int, int]]:
        """Returns the bytes [first, stop) of these columns, in a piece of a Parquet file."""
        low, high = self.piece(first, stop)
        found = []
        for group, row in zip(self._groups, self.group_starts, strict=False):
            for column in columns_of(group) if low <= row < high else ():
                path = column.path_in_schema  # of a nested column, its name and those of its fields
                if any(path == name or path.startswith(f"{name}.") for name in names):
                    begin = column.dictionary_page_offset or column.data_page_offset
                    found.append((begin, begin + column.total_compressed_size))
        return found

    def _copied(self, remote: RangedReader) -> tuple[BinaryIO, Callable[[BinaryIO], _Opened]]:
        """Copies the footer of a remote Parquet file; of an Arrow file, which says less of its parts, all."""
        if self._format == "parquet":
            self._footer = footer_of_parquet(remote)
            self._copy = PartialCopy(remote, (), self._footer)
            return open_file(self._copy.path), self._open_parquet
        self._copy = PartialCopy(remote, [(0, remote.size)])
        source = open_file(self._copy.path)
        is_file = source.peek(len(_FILE_MAGIC)).startswith(_FILE_MAGIC)
        return source, self._open_arrow_file if is_file else self._open_arrow_stream

    def _check_parser(self, part: int | str, without: Collection[str]) -> None:
        """Checks that the parser survives the file, or a part of it; see `probe_file`."""
        if self._probed is not None and probe_file(self._probed, self._format, part=part, without=without):
            raise self._damaged()

    def _parts(self, parts: range, names: Sequence[str]) -> Iterator[int]:
        """Yields the numbers of the parts, each probed before it is read; all at once if they are in memory."""
        probed = {*names, *self._also} - self._sound
        without = {column.name for column in self.columns} - probed
        is_file = isinstance(self._probed, str) and bool(probed)
        if probed and not is_file:
            self._check_parser("all", without)
        for part in parts:
            if self._remote is not None and self._format == "parquet":
                self._fetch(self._remote, range(part, parts.stop), {*names, *self._also})
            if is_file:
                self._check_parser(part, without)
            yield part

    def _open_parquet(self, source: BinaryIO) -> _Opened:
        file = pq.ParquetFile(source, **_PARQUET)
        groups = self._groups = [file.metadata.row_group(at) for at in range(file.metadata.num_row_groups)]
        size = sum(group.total_byte_size for group in groups)
        check_size(self._config, size, source.seek(0, io.SEEK_END), self._file)
        starts = self.group_starts = [0, *accumulate(group.num_rows for group in groups)]

        def batches(names: Sequence[str], start: int, stop: int | None) -> Iterator[Any]:
            last = starts[-1] if stop is None else stop
            parts = range(bisect_right(starts, start) - 1, bisect_left(starts, last))
            for part in self._parts(parts, names):
                here = file if self._remote is None else self._reopened(file)
                of_group = here.iter_batches(BATCH_ROWS, row_groups=[part], columns=list(names))
                yield from between(of_group, start - starts[part], last - starts[part])

        return file.schema_arrow, batches

    def _reopened(self, file: Any) -> Any:
        """Opens the present copy of a remote file, whose footer `file` has."""
        return pq.ParquetFile(self._probed, metadata=file.metadata, **_PARQUET)

    def _fetch(self, remote: RangedReader, parts: range, names: Collection[str]) -> None:
        """Copies the needed columns of the first of these row groups, and of those after it if they are small."""
        if not parts or parts[0] in self._held:
            return
        ranges: list[tuple[int, int]] = []
        for part in parts:
            more = chunk_ranges(self._groups[part], names)
            if ranges and sum(end - start for start, end in (*ranges, *more)) > _TOGETHER:
                break
            ranges += more
            self._held = range(parts[0], part + 1)
        self._copy = PartialCopy(remote, ranges, self._footer)
        self._probed = self._copy.path

    def _open_arrow_file(self, source: BinaryIO) -> _Opened:
        mapped = _mapped(source)
        schema = pa.ipc.open_file(mapped).schema

        def batches(names: Sequence[str], start: int, stop: int | None) -> Iterator[Any]:
            fields = [schema.get_field_index(name) for name in names]
            reader = pa.ipc.open_file(mapped, options=pa.ipc.IpcReadOptions(included_fields=fields))
            parts = self._parts(range(reader.num_record_batches), names)
            return sliced(between((reader.get_batch(part) for part in parts), start, stop))

        return schema, batches

    def _open_arrow_stream(self, source: BinaryIO) -> _Opened:
        mapped = _mapped(source)
        stream = pa.ipc.open_stream(mapped)

        def batches(names: Sequence[str], start: int, stop: int | None) -> Iterator[Any]:
            self._check_parser("all", ())
            return sliced(between((_checked(batch, names) for batch in _to_the_end(stream, mapped)), start, stop))

        return stream.schema, batches

    def _damaged(self) -> InputError:
        return InputError(
            f"{self._file}: cannot be read as {self._format}: cut off, damaged, or of another format",
            hint="write or copy it again; if it is of another format, name that with --format",
        )


def _to_the_end(stream: Any, source: Any) -> Iterator[Any]:
    """Reads the batches of a stream, after which the source must end: two streams in one file are an error."""
    yield from stream
    # Reading to the end also verifies the checksum of a compressed file.
    if source.read(1):
        raise pa.ArrowInvalid("something follows the end of the stream")


def _checked(batch: Any, names: Sequence[str]) -> Any:
    """Checks every offset of the needed columns of a batch from a pipe."""
    for name in names:
        try:
            batch.column(name).validate(full=True)
        except pa.ArrowInvalid as error:
            # Invalid UTF-8 is a bad row and harmless; it is checked after the offsets.
            if "UTF8" not in str(error):
                raise
    return batch


def _mapped(source: BinaryIO) -> Any:
    """Maps a file on disk into memory, so that a batch larger than the memory can be read."""
    name = getattr(source, "name", None)  # none if it is decompressed or in memory
    return pa.memory_map(os.fsencode(name)) if isinstance(name, str) else source


def _probed(source: BinaryIO) -> str | memoryview | None:
    """Returns the path of a file on disk, or the bytes of one in memory."""
    name = getattr(source, "name", None)
    if isinstance(name, str):
        return name
    return source.getbuffer() if isinstance(source, io.BytesIO) else None


def _seekable(stream: io.BufferedReader) -> BinaryIO:
    """Returns the stream itself, or its bytes in memory.

    Parquet and Arrow files are read from their end, which a pipe or a compressed file does not offer. A temporary
    file would write texts to a disk that the user did not choose.
    """
    return stream if stream.seekable() else io.BytesIO(stream.read())
