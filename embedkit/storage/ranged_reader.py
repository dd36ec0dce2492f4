"""Reads a remote file by ranges, few and large: what is read next is fetched with it.

The first range of a place has 1 MiB, the next ones 8 and then 32 MiB: reading on from a place takes 3 requests for
41 MiB. Several places are read on alternately, as columns of a Parquet file are. At most four windows are held.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from embedkit.storage.store_errors import ObjectChangedError

FIRST_BYTES, _GROWTH, MOST_BYTES = 2**20, 8, 32 * 2**20
#: Smaller files are read whole.
WHOLE_BYTES = 2 * FIRST_BYTES
_WINDOWS = 4
_KEPT_BYTES = 64 * 2**20


@dataclass(slots=True)
class _Window:
    start: int
    content: bytes
    fetched: int  # size of the request

    @property
    def stop(self) -> int:
        return self.start + len(self.content)


class RangedReader(io.RawIOBase):
    """A file of known size as a stream.

    Args:
        fetch: returns the bytes [start, stop).
        size: of the file in bytes.
        path: its URI, for errors.
        etag: of the content; ranges of one that is known are kept for the next reader of it.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, path: str, etag: str | None = None) -> None:
        super().__init__()
        self.size = size
        self.path = path
        self.etag = etag
        self.fetch = fetch
        self._position = 0
        self._windows: list[_Window] = []  # the one used last at the end

    def readable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def tell(self) -> int:
        """See `io.IOBase`."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """See `io.IOBase`."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("a position before the start of the file")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """See `io.RawIOBase`."""
        view = memoryview(buffer).cast("B")
        if self._position >= self.size or not len(view):
            return 0
        window = self._window(self._position, len(view))
        offset = self._position - window.start
        content = memoryview(window.content)[offset : offset + len(view)]
        view[: len(content)] = content
        self._position += len(content)
        return len(content)

    def read_range(self, start: int, stop: int) -> bytes:
        """Reads the bytes [start, stop) without keeping them."""
        stop = min(stop, self.size)
        if start >= stop:
            return b""
        for window in self._windows:
            if window.start <= start and stop <= window.stop:
                return window.content[start - window.start : stop - window.start]
        content = self.fetch(start, stop)
        if len(content) != stop - start:
            raise ObjectChangedError(self.path)
        return content

    def _window(self, at: int, wanted: int) -> _Window:
        """Returns a window that begins at or before a position and ends after it."""
        for window in reversed(self._windows):
            if window.start <= at < window.stop:
                self._windows.remove(window)
                self._windows.append(window)
                return window
        before = next((window for window in self._windows if window.stop == at), None)
        if before is not None:
            self._windows.remove(before)
        start, fetched = at, FIRST_BYTES if before is None else min(before.fetched * _GROWTH, MOST_BYTES)
        if self.size <= WHOLE_BYTES:
            start, fetched = 0, WHOLE_BYTES
        stop = min(start + max(fetched, min(wanted, MOST_BYTES)), self.size)
        window = _Window(start, self._content(start, stop), fetched)
        self._windows = [*self._windows[1 - _WINDOWS :], window]
        return window

    def _content(self, start: int, stop: int) -> bytes:
        if self.etag is None or stop - start > WHOLE_BYTES:
            return self.read_range(start, stop)
        key = (self.path, self.etag, start, stop)
        kept = _KEPT.get(key)
        if kept is None:
            kept = self.read_range(start, stop)
            _KEPT.add(key, kept)
        return kept


class _Kept:
    """Small ranges that were read last: heads and tails are looked at several times before rows are read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ranges: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
        self._size = 0

    def get(self, key: tuple[Any, ...]) -> bytes | None:
        with self._lock:
            if key in self._ranges:
                self._ranges.move_to_end(key)
            return self._ranges.get(key)

    def add(self, key: tuple[Any, ...], content: bytes) -> None:
        with self._lock:
            self._size += len(content) - len(self._ranges.pop(key, b""))
            self._ranges[key] = content
            while self._size > _KEPT_BYTES:
                self._size -= len(self._ranges.popitem(last=False)[1])


_KEPT = _Kept()
