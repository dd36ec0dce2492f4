"""Parquet and Arrow files: record batches, streamed, of the needed columns."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from embedkit.config import InputConfig
from embedkit.errors import InputError
from embedkit.sources.columns import Columns
from embedkit.sources.opening import check_size
from embedkit.sources.record_batches import BATCH_ROWS, Batches, RecordBatches, attempt, sliced
from embedkit.storage.parser_probe import probe_file

#: Bytes of a Parquet column chunk to read at a time: a chunk may have gigabytes.
_PARQUET_BUFFER = 2**20

_FILE_MAGIC = b"ARROW1"

#: An open file: its schema, and the function that reads its batches.
_Opened = tuple[Any, Batches]


class Columnar(RecordBatches):
    """One file of record batches, read once.

    Raises:
        InputError: it is damaged, cut off, of another format, or grows beyond the limits.
    """

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
        opened = attempt(lambda: opener(source))
        if opened is None:
            raise self._damaged()
        super().__init__(*opened, file)

    def _check_parser(self, part: int | str, without: Collection[str]) -> None:
        """Check that the parser survives the file, or a part of it; see `probe_file`."""
        if self._probed is not None and probe_file(self._probed, self._format, part=part, without=without):
            raise self._damaged()

    def _parts(self, count: int, columns: Columns) -> Iterator[int]:
        """Yield the numbers of the parts, each probed before it is read; all at once if they are in memory."""
        without = {column.name for column in self.columns} - set(columns.named)
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

        def batches(columns: Columns) -> Iterator[Any]:
            for part in self._parts(file.metadata.num_row_groups, columns):
                yield from file.iter_batches(BATCH_ROWS, row_groups=[part], columns=list(columns.named))

        return file.schema_arrow, batches

    def _open_arrow_file(self, source: BinaryIO) -> _Opened:
        mapped = _mapped(source)
        schema = pa.ipc.open_file(mapped).schema

        def batches(columns: Columns) -> Iterator[Any]:
            fields = [schema.get_field_index(name) for name in columns.named]
            reader = pa.ipc.open_file(mapped, options=pa.ipc.IpcReadOptions(included_fields=fields))
            return sliced(reader.get_batch(part) for part in self._parts(reader.num_record_batches, columns))

        return schema, batches

    def _open_arrow_stream(self, source: BinaryIO) -> _Opened:
        mapped = _mapped(source)
        stream = pa.ipc.open_stream(mapped)

        def batches(columns: Columns) -> Iterator[Any]:
            self._check_parser("all", ())
            return sliced(_checked(batch, columns.named) for batch in _to_the_end(stream, mapped))

        return stream.schema, batches

    def _damaged(self) -> InputError:
        return InputError(
            f"{self._file}: cannot be read as {self._format}: cut off, damaged, or of another format",
            hint="write or copy it again; if it is of another format, name that with --format",
        )


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
