"""Decompresses all streams of a file, to its last byte.

A .gz file may have several members, .bz2 and .xz several streams, .zst several frames (skippable ones too). The
file classes of Python's library ignore what follows a stream unless it looks like another one, so that a damaged
second stream would silently lose rows. Here, anything but a stream or the padding of the format is an error.
"""

from __future__ import annotations

import bz2
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from embedkit.errors import InputError

#: Compressed bytes to read, and decompressed bytes to make, at a time.
_INPUT, _OUTPUT = 32 * 2**10, 64 * 2**10

#: The largest window of zstd (`--ultra --long=31`), by its binary logarithm. Memory is taken as the window fills.
_ZSTD_WINDOW_LOG = 31

#: Zero bytes that may follow a stream: any number in gzip (tapes fill their blocks, and `gzip -t` agrees),
#: multiples of this number in xz (its specification, 2.2), none elsewhere.
_PADDING = {"gz": 1, "xz": 4}


class _GzipMember:
    """A decoder of a member of a gzip file, header and checksum included, with the interface of the others."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = 0) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _zstd_frame() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})


#: Decoders of one stream, with the interface of `bz2.BZ2Decompressor`.
_DECODERS: dict[str, Callable[[], Any]] = {
    "gz": _GzipMember,
    "bz2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
    "zst": _zstd_frame,
}


class ByteStream(io.RawIOBase):
    """The bytes that `read_next` returns, call by call, until it returns none."""

    def __init__(self, read_next: Callable[[], bytes]) -> None:
        super().__init__()
        self._read_next = read_next
        self._content = memoryview(b"")
        self._delivered = 0

    def readable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def tell(self) -> int:
        """Returns the number of bytes delivered so far."""
        return self._delivered

    def readinto(self, buffer: Any, /) -> int:
        """See `io.RawIOBase`."""
        view = memoryview(buffer)
        if not self._content:
            self._content = memoryview(self._read_next())
        data, self._content = self._content[: len(view)], self._content[len(view) :]
        view[: len(data)] = data
        self._delivered += len(data)
        return len(data)


class Decompressed(ByteStream):
    """The content of a compressed file.

    Args:
        source: the compressed bytes.
        compression: gz, bz2, xz or zst.
        file: its name, for errors.
        check: called with the number of bytes made so far; raises if they are too many.

    Raises:
        InputError: while it is read: it is damaged, cut off, or not of this compression.
    """

    def __init__(self, source: BinaryIO, compression: str, *, file: str, check: Callable[[int], None]) -> None:
        super().__init__(self._next)
        self._source = source
        self._compression = compression
        self._file = file
        self._check = check
        self._decoder: Any = None
        self._complete = 0  # streams
        self._unused = b""  # compressed bytes that were read

    def readinto(self, buffer: Any, /) -> int:
        """See `io.RawIOBase`."""
        count = super().readinto(buffer)
        self._check(self._delivered)
        return count

    def _next(self) -> bytes:
        """Decompress the next bytes; b"" at the end of the last stream."""
        while (decoder := self._decoder or self._next_stream()) is not None:
            data = self._read() if decoder.needs_input else b""
            content = self._decompress(decoder, data)
            if decoder.eof:
                self._unused, self._decoder = decoder.unused_data, None
                self._complete += 1
            elif not content and not data and decoder.needs_input:
                raise self._error("is cut off")
            if content:
                return content
        return b""

    def _next_stream(self) -> Any:
        """Starts with the next stream; None at the end of the file."""
        unit = _PADDING.get(self._compression, 0) if self._complete else 0
        padding = 0
        while data := self._read():
            self._unused = data.lstrip(b"\0") if unit else data
            padding += len(data) - len(self._unused)
            if self._unused:
                break
        if padding and padding % unit:
            raise self._damaged()
        if not self._unused and not self._complete:
            raise self._error("is cut off: it is empty")
        self._decoder = _DECODERS[self._compression]() if self._unused else None
        return self._decoder

    def _read(self) -> bytes:
        data, self._unused = self._unused or self._source.read(_INPUT), b""
        return data

    def _decompress(self, decoder: Any, data: bytes) -> bytes:
        try:
            return bytes(decoder.decompress(data, _OUTPUT))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - each decoder has its own; none of them reads the disk
            is_window_too_large = "too much memory" in str(error)
        # Raised outside of the handler: the exception of a decoder would stay in memory as the context.
        if is_window_too_large:
            raise InputError(
                f"{self._file}: the zst file needs a window of more than 2 GiB, the most that zstd reads",
                hint="compress it again with a smaller one: zstd --long=27",
            )
        raise self._damaged()

    def _damaged(self) -> InputError:
        if not self._complete:
            return self._error(f"is damaged, or not {self._compression} at all")
        streams = "stream" if self._complete == 1 else "streams"
        return self._error(
            f"is damaged after {self._complete:,} complete {streams}, or something else follows them"
        )

    def _error(self, what: str) -> InputError:
        return InputError(
            f"{self._file}: the {self._compression} file {what}", hint="copy it again and compare its size"
        )
