"""The needed ranges of a remote file as a local file of the same size, with holes, for parsers that want a path.

Of a Parquet file, the footer and the chunks of the needed columns.

The copy has no name, so that nothing of it is left however the process ends. Up to 1 GiB it is in memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from typing import Any, BinaryIO

from embedkit.storage.ranged_reader import MOST_BYTES, RangedReader

_IN_MEMORY = 2**30
_TAIL = 2**20
_MAGIC = b"PAR1"
#: Ranges closer to each other than this are fetched as one.
_NEAR = 2**20
#: Old writers say a little less than the size of a column chunk.
_PADDING = 128


class PartialCopy:
    """Ranges of a file, at the places that they have there. Released when nothing refers to it any more.

    Args:
        source: the remote file.
        ranges: [start, stop) of each, in bytes; what is beyond the end of the file is left out.
        footer: content of the end of the file, which is known already.

    Raises:
        OSError: they cannot be read, or there is no space for them.
    """

    def __init__(self, source: RangedReader, ranges: Iterable[tuple[int, int]], footer: bytes = b"") -> None:
        joined = _joined(ranges, source.size - len(footer))
        self._file = _unnamed(sum(stop - start for start, stop in joined))
        self._file.truncate(source.size)
        for start, stop in joined:
            self._file.seek(start)
            for at in range(start, stop, MOST_BYTES):
                self._file.write(source.read_range(at, min(at + MOST_BYTES, stop)))
        self._file.seek(source.size - len(footer))
        self._file.write(footer)
        self._file.flush()

    @property
    def path(self) -> str:
        """Its path, also for child processes, as long as this object exists."""
        of_process = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        return of_process if os.path.exists(of_process) else f"/dev/fd/{self._file.fileno()}"  # noqa: PTH110


def ranged(stream: Any) -> RangedReader | None:
    """Returns the remote file that a stream reads, if it is one."""
    raw = getattr(stream, "raw", None)
    return raw if isinstance(raw, RangedReader) else None


def columns_of(group: Any) -> Iterator[Any]:
    """Yields the column chunks of a row group of pyarrow's metadata."""
    return (group.column(at) for at in range(group.num_columns))


def chunk_ranges(group: Any, names: Collection[str]) -> list[tuple[int, int]]:
    """Returns where the chunks of these columns are in the file."""
    ranges = []
    for chunk in columns_of(group):
        path = chunk.path_in_schema  # of a nested value, the column's name is the start of it
        if any(path == name or path.startswith(f"{name}.") for name in names):
            start = chunk.data_page_offset
            if chunk.has_dictionary_page:
                start = min(start, chunk.dictionary_page_offset)
            ranges.append((start, start + chunk.total_compressed_size + _PADDING))
    return ranges


def footer_of_parquet(source: RangedReader) -> bytes:
    """Reads the end of a Parquet file with its footer; of any other file, the last MiB."""
    tail = _tail(source, _TAIL)
    size = int.from_bytes(tail[-8:-4], "little") + 8 if tail.endswith(_MAGIC) else 0
    return _tail(source, size) if len(tail) < size <= source.size else tail


def _tail(source: RangedReader, size: int) -> bytes:
    source.seek(max(0, source.size - size))
    return b"".join(iter(lambda: source.read(size) or b"", b""))


def _unnamed(size: int) -> BinaryIO:
    if size <= _IN_MEMORY and hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("embedkit"), "w+b")
    return tempfile.TemporaryFile()


def _joined(ranges: Iterable[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, stop in sorted((max(0, start), min(stop, size)) for start, stop in ranges):
        if joined and start <= joined[-1][1] + _NEAR:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        elif start < stop:
            joined.append((start, stop))
    return joined
