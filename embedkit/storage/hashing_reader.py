"""Hashes ranges of a file while something else reads them, so that each byte is read once."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from embedkit.storage.ranged_reader import RangedReader

_BYTES = 2**20


class RangeHashes:
    """SHA-256 of ranges of a file, fed with what is read of it.

    Each range should be read from its start on; several may be read alternately, as columns of a Parquet file are.
    Bytes that come again are not hashed again.

    Args:
        ranges: bytes [start, stop) of each.
        read: returns the bytes [start, stop), or those that the file has; called for bytes that were passed over.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]], read: Callable[[int, int], bytes]) -> None:
        self._ranges = list(ranges)
        self._read = read
        self._hashed = [start for start, _ in ranges]  # up to which byte, of each range
        self._hashes = [hashlib.sha256() for _ in ranges]
        # Others are hashed in the end: no writer makes such files.
        is_ascending = all(before[1] <= after[0] for before, after in pairwise(ranges))
        self._starts = [start for start, _ in ranges] if is_ascending else []

    def add(self, start: int, data: memoryview) -> None:
        """Hashes the bytes from `start` on, which were just read, in the ranges that they are in."""
        if not self._starts or not data:
            return
        last = bisect_right(self._starts, start + len(data) - 1)
        for number in range(max(0, bisect_right(self._starts, start) - 1), last):
            stop = min(start + len(data), self._ranges[number][1])
            if stop > self._hashed[number]:
                self._hash_up_to(number, start)
                self._hashes[number].update(data[self._hashed[number] - start : stop - start])
                self._hashed[number] = stop

    def digests(self) -> list[str]:
        """Returns the SHA-256 of each range, as 64 hexadecimal digits; reads what nobody has read.

        Raises:
            OSError: it cannot be read.
        """
        for number, (_, stop) in enumerate(self._ranges):
            self._hash_up_to(number, stop)
        return [of.hexdigest() for of in self._hashes]

    def _hash_up_to(self, number: int, stop: int) -> None:
        while (at := self._hashed[number]) < stop and (data := self._read(at, min(at + _BYTES, stop))):
            self._hashes[number].update(data)
            self._hashed[number] += len(data)


class _Hashed(ABC):
    """A file of which ranges are hashed; subclasses add to `_hashes` what they read."""

    _hashes: RangeHashes | None = None

    def watch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Begins to hash the bytes [start, stop) of these ranges."""
        self._hashes = RangeHashes(ranges, self._read_between)

    def digests(self) -> list[str]:
        """See RangeHashes."""
        return [] if self._hashes is None else self._hashes.digests()

    @abstractmethod
    def _read_between(self, start: int, stop: int) -> bytes:
        """Returns the bytes [start, stop), or those that the file has; hashes nothing and moves nothing."""


class HashingReader(_Hashed, io.RawIOBase):
    """A file on a disk that is hashed as it is read; see RangeHashes.

    Args:
        file: open, with `seek`; closed with this object.
    """

    def __init__(self, file: io.FileIO | io.BufferedReader) -> None:
        super().__init__()
        self._file = file
        self.name = getattr(file, "name", None)
        self._position = 0

    def readinto(self, buffer: Any, /) -> int:
        """See `io.RawIOBase`."""
        view = memoryview(buffer).cast("B")
        count = self._file.readinto(view) or 0
        start, self._position = self._position, self._position + count
        if self._hashes is not None:
            self._hashes.add(start, view[:count])
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """See `io.IOBase`."""
        self._position = self._file.seek(offset, whence)
        return self._position

    def tell(self) -> int:
        """See `io.IOBase`."""
        return self._position

    def readable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.IOBase`."""
        return self._file.seekable()

    def close(self) -> None:
        """See `io.IOBase`."""
        self._file.close()
        super().close()

    def _read_between(self, start: int, stop: int) -> bytes:
        self._file.seek(start)
        data = self._file.read(stop - start)
        self._file.seek(self._position)
        return data


class HashingRangedReader(_Hashed, RangedReader):
    """A remote file that is hashed as it is fetched or read; see RangeHashes.

    Args:
        source: the file, of which nothing was read.
    """

    def __init__(self, source: RangedReader) -> None:
        super().__init__(source.fetch, source.size, source.path, source.etag)

    def readinto(self, buffer: Any, /) -> int:
        """See `io.RawIOBase`."""
        start = self.tell()
        count = super().readinto(buffer)
        if self._hashes is not None:
            self._hashes.add(start, memoryview(buffer).cast("B")[:count])
        return count

    def read_range(self, start: int, stop: int) -> bytes:
        """See RangedReader."""
        content = super().read_range(start, stop)
        if self._hashes is not None:
            self._hashes.add(start, memoryview(content))
        return content

    def _read_between(self, start: int, stop: int) -> bytes:
        """Reads by a window, since that of the start of the file is there already; hashes nothing."""
        before, hashes = self.tell(), self._hashes
        self._hashes = None
        try:
            self.seek(start)
            content = bytearray(stop - start)
            return bytes(content[: super().readinto(content)])
        finally:
            self.seek(before)
            self._hashes = hashes
