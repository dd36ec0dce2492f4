"""A file or stdin → a stream of its decompressed bytes.

Knows compressions, by name or by their first bytes; knows nothing of rows.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from embedkit.config import FORMATS
from embedkit.errors import InputError, UsageError
from embedkit.sources.compression import Decompressed
from embedkit.sources.locate import STDIN, SourceFile, canonical, unreadable
from embedkit.storage.filesystem import open_file

#: First bytes → compression. zstd's skippable frames, with which `pzstd` begins, have 16 of them.
_MAGIC = {
    b"\x1f\x8b": "gz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"\xfd7zXZ\x00": "xz",
    **{bytes((0x50 + digit, 0x2A, 0x4D, 0x18)): "zst" for digit in range(16)},
}
_TOLD = {"gz": "gzip", "zst": "zstd", "xz": "xz", "bz2": "bzip2"}
_BZ2_MAGIC, _BZ2_BLOCKS = b"BZh", (b"1AY&SY", b"\x17rE8P\x90")  # with a digit between: a column may be named BZh…
_MAGIC_BYTES = 10

#: First bytes → what a file is that is no table of ours, and what to do with it.
_OTHERS = {
    b"PK\x03\x04": ("a ZIP file, as .xlsx is one", "unpack it, or save the sheet as CSV"),
    b"\xd0\xcf\x11\xe0\xa1\xb1": ("an old Office file, such as .xls", "save the sheet as CSV"),
    b"%PDF-": ("a PDF", "take the text out of it first"),
    b"SQLite for": ("a SQLite database", "export the table as CSV"),
    b"\x93NUMPY": ("an array of NumPy", "name a table of texts"),
    b"\x89HDF\r\n": ("HDF5", "export the table as CSV or Parquet"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z file", "unpack it"),
    b"\x04\x22\x4d\x18": ("lz4", "decompress it, and pipe it in: lz4 -dc NAME | embedkit encode - --format …"),
    b"PAR1\x15": ("parquet", "say so: --format parquet"),
    b"ARROW1\0\0": ("arrow", "say so: --format arrow"),
}

#: How far into stdin to look for the first byte that is not blank.
_SNIFFED = 64 * 2**10

#: What a compressed file may grow to whatever its size: a small table of equal rows is no bomb.
_HARMLESS = 64 * 2**20
_GB = 10**9


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
        raw = open_file(file.name)
    except OSError as error:
        raise unreadable(file.name, error) from None
    with raw:
        try:
            stream = _stream_of(raw, file, limits)
        except OSError as error:
            raise unreadable(file.name, error) from None
        yield stream


def _stream_of(raw: io.BufferedReader, file: SourceFile, limits: Limits) -> io.BufferedReader:
    if file.compression is None:
        _check_content(raw, file)
        return raw
    found = _compression(raw.peek(_MAGIC_BYTES)[:_MAGIC_BYTES])
    if found is not None and found != file.compression:
        raise InputError(
            f"{file.shown}: this is {_TOLD[found]}, and its name says .{file.compression}",
            hint=f"name it so that it ends in .{found}",
        )
    stream = _decompressed(raw, file.compression, file.shown, limits)
    _check_content(stream, file)
    return stream


def opened_stdin(stdin: BinaryIO, file_format: str, limits: Limits) -> tuple[SourceFile, io.BufferedReader]:
    """Stdin, decompressed as its first bytes tell; JSON Lines are known by their first `{`.

    Raises:
        InputError: stdin cannot be read, or is no table.
        UsageError: the format is `auto`, and this is not JSON Lines.
    """
    try:
        return _opened_stdin(stdin, file_format, limits)
    except (OSError, ValueError) as error:  # a folder, a descriptor that is for writing, a file that was closed
        raise unreadable("stdin", error) from None


def _opened_stdin(stdin: BinaryIO, file_format: str, limits: Limits) -> tuple[SourceFile, io.BufferedReader]:
    head = b""
    while len(head) < _MAGIC_BYTES and (more := stdin.read(_MAGIC_BYTES - len(head))):
        head += more
    compression = _compression(head)
    stream = _joined(head, stdin)
    if compression is not None:
        stream = _decompressed(stream, compression, STDIN, limits)
    if file_format == "auto":
        stream, file_format = _sniffed(stream)
    file = SourceFile(STDIN, canonical(file_format), compression, None, None, None)
    _check_content(stream, file)
    return file, stream


class _Feed(io.RawIOBase):
    """Bytes of `source` after those of `head`, as they come."""

    def __init__(self, source: Any, *, head: bytes) -> None:
        super().__init__()
        self._read = getattr(source, "read1", source.read)
        self._head = head
        self._delivered = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._delivered

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)
        data = self._head[: len(view)] or self._read(len(view))
        self._head = self._head[len(view) :]
        view[: len(data)] = data
        self._delivered += len(data)
        return len(data)


def _decompressed(raw: io.BufferedReader, compression: str, file: str, limits: Limits) -> io.BufferedReader:
    def check(delivered: int) -> None:
        limits.check(delivered, raw.tell(), file)

    return io.BufferedReader(Decompressed(raw, compression, file=file, check=check), buffer_size=2**16)


def _joined(head: bytes, rest: BinaryIO) -> io.BufferedReader:
    return io.BufferedReader(_Feed(rest, head=head), buffer_size=2**16)


def _compression(head: bytes) -> str | None:
    if head.startswith(_BZ2_MAGIC) and head[4:] in _BZ2_BLOCKS:
        return "bz2"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def _check_content(stream: io.BufferedReader, file: SourceFile) -> None:
    """Refuse what its first bytes tell to be something else: its name or `--format` is wrong.

    Raises:
        InputError: it is compressed (once more), or of a format that embedkit does not read as this one.
    """
    head = stream.peek(_MAGIC_BYTES)[:_MAGIC_BYTES]
    found = _compression(head)
    if found is not None:
        what = f"{_TOLD[found]} within {_TOLD[file.compression]}" if file.compression else _TOLD[found]
        way = "decompress it once" if file.compression else f"name it so that it ends in .{file.format}.{found}"
        raise InputError(f"{file.shown}: this is {what}, not {file.format}", hint=way)
    for magic, (what, way) in _OTHERS.items():
        if head.startswith(magic) and what != file.format:
            raise InputError(f"{file.shown}: this is {what}, not {file.format}", hint=way)


def _sniffed(stream: io.BufferedReader) -> tuple[io.BufferedReader, str]:
    head = b""
    while not head.removeprefix(codecs.BOM_UTF8).strip() and len(head) < _SNIFFED:
        more = stream.read1(_SNIFFED)
        if not more:
            break
        head += more
    if not head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
        raise UsageError(
            f"stdin does not tell its format, {'unless it is JSON Lines' if head else 'for it is empty'}",
            hint=f"say it with --format: {', '.join(FORMATS[1:])}",
        )
    return _joined(head, stream), "jsonl"
