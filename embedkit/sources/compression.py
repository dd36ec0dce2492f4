"""Compressed bytes → what was compressed: every stream of a file, to its last byte, or an error.

A .gz file may have several members, .bz2 and .xz several streams, .zst several frames (skippable ones too). The
readers of Python's library take what follows a whole stream for padding if it does not look like another one, so
a damaged second stream would be rows that are missing without a word: here, what is neither a stream nor the
padding that the format allows is an error. Knows nothing of rows.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol

import zstandard

from embedkit.errors import InputError

#: Compressed bytes taken at a time. zstd packs 128 KiB of zeros into 4 bytes, and its decoder hands out all that
#: its input makes: fed 2 KiB at a time, it never makes more than 64 MiB at once.
_INPUT, _ZSTD_INPUT = 32 * 2**10, 2 * 2**10
#: Bytes made at a time by the decoders that can be told.
_MADE = 64 * 2**10

#: The largest window that zstd knows (`zstd --ultra --long=31`). Its memory is taken as it fills, so a file that
#: declares a large one and holds little takes little.
_ZSTD_WINDOW = 2**31

#: Zero bytes after a stream, which hold nothing: any number after gzip's (tapes fill their blocks, and `gzip -t`
#: agrees), a multiple of four after xz's (its specification, 2.2), none elsewhere.
_PADDING = {"gz": 1, "xz": 4}

_BROKEN = (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


class _Decoder(Protocol):
    """Decompresses one stream, as `lzma.LZMADecompressor` does."""

    @property
    def eof(self) -> bool:
        """The stream is whole, and its checksum right."""

    @property
    def needs_input(self) -> bool:
        """There is nothing to come without more input."""

    @property
    def unused_data(self) -> bytes:
        """Input after the end of the stream."""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """Give the next bytes, b"" if there are none yet."""


class _GzipMember:
    """A member of a gzip file, header and checksum included."""

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


class _ZstdFrame:
    """A frame of a zstd file."""

    needs_input = True

    def __init__(self) -> None:
        self._inner = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data)

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:  # noqa: ARG002 - it makes all there is
        return bytes(self._inner.decompress(data)) if data else b""


_DECODERS: dict[str, Callable[[], _Decoder]] = {
    "gz": _GzipMember,
    "bz2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
    "zst": _ZstdFrame,
}


class Decompressed(io.RawIOBase):
    """The content of a compressed file.

    Args:
        source: the compressed bytes.
        compression: gz, bz2, xz or zst.
        file: its name, for errors.
        check: told how many bytes were made, each time that some were; raises where they are too many.

    Raises:
        InputError: when read: it is damaged, cut off, or not of this compression.
    """

    def __init__(self, source: BinaryIO, compression: str, *, file: str, check: Callable[[int], None]) -> None:
        super().__init__()
        self._source = source
        self._compression = compression
        self._file = file
        self._check = check
        self._at_once = _ZSTD_INPUT if compression == "zst" else _INPUT
        self._decoder: _Decoder | None = None
        self._whole = 0  # streams that were read to their ends
        self._rest = b""  # compressed bytes that were read and not used
        self._made = memoryview(b"")
        self._delivered = 0

    def readable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def tell(self) -> int:
        """Bytes handed out so far."""
        return self._delivered

    def readinto(self, buffer: Any, /) -> int:
        """See `io.RawIOBase`."""
        view = memoryview(buffer)
        if not self._made:
            self._made = memoryview(self._next())
        data, self._made = self._made[: len(view)], self._made[len(view) :]
        view[: len(data)] = data
        self._delivered += len(data)
        self._check(self._delivered)
        return len(data)

    def _next(self) -> bytes:
        """The next bytes of content; b"" at the end of the last stream."""
        while self._decoder is not None or self._begin():
            decoder = self._decoder
            assert decoder is not None  # noqa: S101 - `_begin` made it
            data = self._take() if decoder.needs_input else b""
            made = self._decompress(decoder, data)
            if decoder.eof:
                self._rest, self._decoder = decoder.unused_data, None
                self._whole += 1
            elif not made and not data and decoder.needs_input:
                raise self._error("is cut off")
            if made:
                return made
        return b""

    def _begin(self) -> bool:
        """Start with the next stream; False if there is none, and nothing else either."""
        unit = _PADDING.get(self._compression, 0) if self._whole else 0
        padding = 0
        while data := self._take():
            self._rest = data.lstrip(b"\0") if unit else data
            padding += len(data) - len(self._rest)
            if self._rest:
                break
        if padding and padding % unit:
            raise self._error(self._damaged())
        if not self._rest and not self._whole:
            raise self._error("is cut off: it is empty")
        self._decoder = _DECODERS[self._compression]() if self._rest else None
        return self._decoder is not None

    def _take(self) -> bytes:
        data, self._rest = self._rest or self._source.read(self._at_once), b""
        return data

    def _decompress(self, decoder: _Decoder, data: bytes) -> bytes:
        try:
            return decoder.decompress(data, _MADE)
        except _BROKEN as error:
            too_large = "too much memory" in str(error)
        # Raised out here because an exception remembers the one in whose handler it was raised.
        if too_large:
            raise InputError(
                f"{self._file}: the zst file needs a window of more than 2 GiB, the most that zstd reads",
                hint="compress it again with a smaller one: zstd --long=27",
            )
        raise self._error(self._damaged())

    def _damaged(self) -> str:
        if not self._whole:
            return f"is damaged, or not {self._compression} at all"
        streams = "stream" if self._whole == 1 else "streams"
        return f"is damaged after {self._whole:,} whole {streams}, or something else follows"

    def _error(self, what: str) -> InputError:
        return InputError(
            f"{self._file}: the {self._compression} file {what}", hint="copy it again and compare its size"
        )
