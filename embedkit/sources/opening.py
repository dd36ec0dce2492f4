"""A file or stdin → a stream of its decompressed bytes.

Knows compressions, by name or by their first bytes; knows nothing of rows.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import zstandard

from embedkit.config import FORMATS
from embedkit.errors import InputError, UsageError
from embedkit.sources.locate import STDIN, SourceFile, canonical, unreadable

_MAGIC = {b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst", b"\xfd7zXZ\x00": "xz"}
_BZ2_MAGIC, _BZ2_BLOCK = b"BZh", b"1AY&SY"  # with a digit between: a column may well be named BZh…
_MAGIC_BYTES = 10

#: zstd packs 128 KiB of zeros into 4 bytes, and its decoder hands out all that its input makes: fed
#: 2 KiB at a time, it never makes more than 64 MiB at once.
_ZSTD_INPUT = 2 * 2**10

#: How far into stdin to look for the first byte that is not blank.
_SNIFFED = 64 * 2**10

#: What a compressed file may grow to whatever its size: a small table of equal rows is no bomb.
_HARMLESS = 64 * 2**20
_GB = 10**9

_BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a compressed file may grow to; beyond 64 MiB, which any may.

    Attributes:
        expansion: times its own size. Notes shrink to a fifth, tables of repeated rows to a hundredth; a bomb of
            gzip grows 1,030 times, one of zstd 30,000 times.
        gigabytes: of 10^9 bytes.
    """

    expansion: int
    gigabytes: int

    def check(self, made: int, taken: int, file: str) -> None:
        """Hold the bytes that were made of those taken against the limits.

        Raises:
            InputError: they are too many.
        """
        if made > self.gigabytes * _GB:
            option, limit = "--max-decompressed-gb", f"{self.gigabytes} GB"
        elif made > max(_HARMLESS, self.expansion * taken):
            option, limit = "--max-expansion", f"{self.expansion:,} times its size"
        else:
            return
        raise InputError(
            f"{file}: decompresses to more than {limit}, as files do that are made to fill a memory",
            hint=f"if you trust it, raise {option}",
        )


@contextmanager
def opened(file: SourceFile, limits: Limits) -> Iterator[io.BufferedReader]:
    """The bytes of a file, decompressed; seekable only where there is nothing to decompress.

    Raises:
        InputError: it cannot be opened; when read: it is damaged or cut off, or grows beyond the limits.
    """
    try:
        raw = open(file.name, "rb")  # noqa: PTH123, SIM115 - a name as typed; closed below
    except OSError as error:
        raise unreadable(file.name, error) from None
    with raw:
        yield raw if file.compression is None else _decompressed(raw, file.compression, file.name, limits)


def opened_stdin(stdin: BinaryIO, file_format: str, limits: Limits) -> tuple[SourceFile, io.BufferedReader]:
    """Stdin, decompressed as its first bytes tell; JSON Lines are known by their first `{`.

    Raises:
        UsageError: the format is `auto`, and this is not JSON Lines.
    """
    head = b""
    while len(head) < _MAGIC_BYTES and (more := stdin.read(_MAGIC_BYTES - len(head))):
        head += more
    compression = _compression(head)
    stream = _joined(head, stdin)
    if compression is not None:
        stream = _decompressed(stream, compression, STDIN, limits)
    if file_format == "auto":
        stream, file_format = _sniffed(stream)
    return SourceFile(STDIN, canonical(file_format), compression, None, None, None), stream


class _Feed(io.RawIOBase):
    """Bytes of `source` after those of `head`, as they come; where it is damaged, an InputError."""

    def __init__(
        self,
        source: Any,
        *,
        head: bytes = b"",
        file: str = STDIN,
        compression: str = "",
        check: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__()
        self._read = getattr(source, "read1", source.read)
        self._head = head
        self._file = file
        self._compression = compression
        self._delivered = 0
        self._check = check

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._delivered

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)
        data = self._head[: len(view)] or self._more(len(view))
        self._head = self._head[len(view) :]
        view[: len(data)] = data
        self._delivered += len(data)
        if self._check is not None:
            self._check(self._delivered)
        return len(data)

    def _more(self, size: int) -> bytes:
        try:
            return bytes(self._read(size))
        except _BROKEN as error:
            if not self._compression:
                raise
            cut_off = isinstance(error, EOFError)
        what = "is cut off" if cut_off else f"is damaged, or not {self._compression} at all"
        raise InputError(
            f"{self._file}: the {self._compression} file {what}", hint="copy it again and compare its size"
        )


class _ZstdReader:
    """Frames of zstd, one after the other. zstandard's own stream takes a cut-off file for a whole one."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._rest = b""
        self._made = memoryview(b"")
        self._frame: Any = None

    def read(self, size: int) -> memoryview:
        while not self._made and (data := self._rest or self._source.read(_ZSTD_INPUT)):
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._made = memoryview(self._frame.decompress(data))
            self._rest = b""
            if self._frame.eof:
                self._rest = self._frame.unused_data
                self._frame = None
        if not self._made and self._frame is not None:
            raise EOFError
        made, self._made = self._made[:size], self._made[size:]
        return made


def _decompressed(raw: BinaryIO, compression: str, file: str, limits: Limits) -> io.BufferedReader:
    openers: dict[str, Any] = {
        "gz": lambda: gzip.GzipFile(fileobj=raw, mode="rb"),
        "bz2": lambda: bz2.BZ2File(raw),
        "xz": lambda: lzma.LZMAFile(raw),  # noqa: SIM115 - closing `raw` is all there is to close
        "zst": lambda: _ZstdReader(raw),
    }

    def check(delivered: int) -> None:
        limits.check(delivered, raw.tell(), file)

    feed = _Feed(openers[compression](), file=file, compression=compression, check=check)
    return io.BufferedReader(feed, buffer_size=2**16)


def _joined(head: bytes, rest: BinaryIO) -> io.BufferedReader:
    return io.BufferedReader(_Feed(rest, head=head), buffer_size=2**16)


def _compression(head: bytes) -> str | None:
    if head.startswith(_BZ2_MAGIC) and head[4:] == _BZ2_BLOCK:
        return "bz2"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def _sniffed(stream: io.BufferedReader) -> tuple[io.BufferedReader, str]:
    head = b""
    while not head.removeprefix(codecs.BOM_UTF8).strip() and len(head) < _SNIFFED:
        more = stream.read1(_SNIFFED)
        if not more:
            break
        head += more
    if not head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
        raise UsageError(
            "stdin does not tell its format, unless it is JSON Lines",
            hint=f"say it with --format: {', '.join(FORMATS[1:])}",
        )
    return _joined(head, stream), "jsonl"
