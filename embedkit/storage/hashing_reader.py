"""Hashes ranges of a file while something else reads them, so that each byte is read once."""

from __future__ import annotations

import hashlib
import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

_BYTES = 2**20


class HashingReader(io.RawIOBase):
    """A file that is hashed as it is read.

    Each range should be read from its start on; several may be read alternately, as columns of a Parquet file are.
    Bytes that are passed over are read by this object, those that come again are not hashed again.

    Args:
        file: open, with `seek`; closed with this object.
    """

    def __init__(self, file: io.FileIO | io.BufferedReader) -> None:
        super().__init__()
        self._file = file
        self.name = getattr(file, "name", None)
        self._position = 0
        self._ranges: list[tuple[int, int]] = []
        self._hashed: list[int] = []  # up to which byte, of each range
        self._hashes: list[Any] = []
        self._starts: list[int] = []  # of the ranges that are hashed while they are read

    def watch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Begins to hash the bytes [start, stop) of these ranges."""
        self._ranges = list(ranges)
        self._hashed, self._hashes = [start for start, _ in ranges], [hashlib.sha256() for _ in ranges]
        # Others are hashed in the end: no writer makes such files.
        is_ascending = all(before[1] <= after[0] for before, after in pairwise(ranges))
        self._starts = [start for start, _ in ranges] if is_ascending else []

    def digests(self) -> list[str]:
        """Returns the SHA-256 of each range, as 64 hexadecimal digits; reads what nobody has read.

        Raises:
            OSError: it cannot be read.
        """
        for number, (_, stop) in enumerate(self._ranges):
            self._hash_up_to(number, stop)
        return [of.hexdigest() for of in self._hashes]

    def readinto(self, buffer: Any, /) -> int:
        """See `io.RawIOBase`."""
        view = memoryview(buffer).cast("B")
        count = self._file.readinto(view) or 0
        start, self._position = self._position, self._position + count
        if self._starts and count:
            for number in range(
                max(0, bisect_right(self._starts, start) - 1), bisect_right(self._starts, self._position - 1)
            ):
                self._hash(number, start, view[:count])
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

    def _hash(self, number: int, start: int, data: memoryview) -> None:
        """Hashes what is new of the bytes from `start` on in one of the ranges."""
        stop = min(start + len(data), self._ranges[number][1])
        if stop > self._hashed[number]:
            self._hash_up_to(number, start)
            self._hashes[number].update(data[self._hashed[number] - start : stop - start])
            self._hashed[number] = stop

    def _hash_up_to(self, number: int, stop: int) -> None:
        if self._hashed[number] >= stop:
            return
        self._file.seek(self._hashed[number])
        while (left := stop - self._hashed[number]) > 0 and (data := self._file.read(min(_BYTES, left))):
            self._hashes[number].update(data)
            self._hashed[number] += len(data)
        self._file.seek(self._position)
