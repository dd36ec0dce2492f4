"""Opens a file or stdin as a stream of decompressed bytes."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from embedkit.config import FORMATS, InputConfig
from embedkit.errors import InputError, UsageError
from embedkit.sources.compression import ByteStream, Decompressed
from embedkit.sources.locate import STDIN, SourceFile, canonical, unreadable
from embedkit.storage.filesystem import open_file

#: First bytes of compressions; of zstd also those of skippable frames, with which `pzstd` begins.
_MAGIC = {
    b"\x1f\x8b": "gz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"\xfd7zXZ\x00": "xz",
    **{bytes((0x50 + digit, 0x2A, 0x4D, 0x18)): "zst" for digit in range(16)},
}
_COMPRESSION_NAMES = {"gz": "gzip", "zst": "zstd", "xz": "xz", "bz2": "bzip2"}
_BZ2_MAGIC, _BZ2_BLOCKS = b"BZh", (b"1AY&SY", b"\x17rE8P\x90")  # a digit lies between: a column may be named BZh…
_MAGIC_BYTES = 10

#: First bytes of files that are not tables of the expected format: what they are, and what to do.
_OTHERS = {
    b"PK\x03\x04": ("a ZIP file, as .xlsx is one", "unpack it, or save the sheet as CSV"),
    b"\xd0\xcf\x11\xe0\xa1\xb1": ("an old Office file, such as .xls", "save the sheet as CSV"),
    b"%PDF-": ("a PDF", "extract its text first"),
    b"SQLite for": ("a SQLite database", 'name the rows with --sql "SELECT id, text FROM note"'),
    b"\x93NUMPY": ("an array of NumPy", "name a table of texts"),
    b"\x89HDF\r\n": ("HDF5", "export the table as CSV or Parquet"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z file", "unpack it"),
    b"\x04\x22\x4d\x18": ("lz4", "decompress it, and pipe it in: lz4 -dc NAME | embedkit encode - --format …"),
    b"PAR1\x15": ("parquet", "use --format parquet"),
    b"ARROW1\0\0": ("arrow", "use --format arrow"),
}

#: Most bytes of stdin to search for the first one that is not blank.
_SNIFFED = 64 * 2**10

#: Any compressed file may grow to this size: a small table of equal rows is not a bomb. Notes shrink to a fifth,
#: tables of repeated rows to a hundredth; a bomb of gzip grows 1,030 times, one of zstd 30,000 times.
_HARMLESS = 64 * 2**20
_GB = 10**9

#: A function that makes a stream of another one with the same bytes.
Wrap = Callable[[io.BufferedReader], io.BufferedReader]


def check_size(config: InputConfig, made: int, taken: int, file: str) -> None:
    """Checks the size `made` of decompressed bytes from `taken` compressed ones.

    Raises:
        InputError: it exceeds a limit of `config`.
    """
    if made > config.max_decompressed_gb * _GB:
        option, limit = "--max-decompressed-gb", f"{config.max_decompressed_gb} GB"
    elif made > max(_HARMLESS, config.max_expansion * taken):
        option, limit = "--max-expansion", f"{config.max_expansion:,} times its size"
    else:
        return
    raise InputError(
        f"{file}: decompresses to more than {limit}, as files made to fill the memory do",
        hint=f"if you trust it, raise {option}",
    )


@contextmanager
def opened(file: SourceFile, config: InputConfig, wrap: Wrap | None = None) -> Iterator[io.BufferedReader]:
    """Opens a file as decompressed bytes; seekable only if it is not compressed.

    Args:
        file: as it was located.
        config: of the input.
        wrap: makes another stream of that of the file's bytes.

    Raises:
        InputError: it cannot be opened; while read: it is damaged, cut off, or exceeds the config.
    """
    try:
        raw = open_file(file.name, file.known)
        raw = raw if wrap is None else wrap(raw)
    except OSError as error:
        raise unreadable(file.name, error) from None
    with raw:
        try:
            stream = raw
            if file.compression is not None:
                found = _compression(raw.peek(_MAGIC_BYTES)[:_MAGIC_BYTES])
                if found not in {None, file.compression}:
                    raise InputError(
                        f"{file.shown}: this is {_COMPRESSION_NAMES[found]}, named .{file.compression}",
                        hint=f"name it so that it ends in .{found}",
                    )
                stream = _decompressed(raw, file.compression, file.shown, config)
            _check_content(stream, file)
        except OSError as error:
            raise unreadable(file.name, error) from None
        yield stream


def opened_stdin(stdin: BinaryIO, config: InputConfig) -> tuple[SourceFile, io.BufferedReader]:
    """Opens stdin, decompressed according to its first bytes; JSON Lines are recognised by their first `{`.

    Raises:
        InputError: stdin cannot be read, or is not a table.
        UsageError: the format is `auto`, and this is not JSON Lines.
    """
    try:
        head = b""
        while len(head) < _MAGIC_BYTES and (more := stdin.read(_MAGIC_BYTES - len(head))):
            head += more
        compression = _compression(head)
        stream = _joined(head, stdin)
        if compression is not None:
            stream = _decompressed(stream, compression, STDIN, config)
        file_format = config.format
        if file_format == "auto":
            stream, file_format = _sniffed(stream)
        file = SourceFile(STDIN, canonical(file_format), compression)
        _check_content(stream, file)
    except (OSError, ValueError) as error:  # a folder, a descriptor for writing, a closed file
        raise unreadable("stdin", error) from None
    return file, stream


def _decompressed(raw: io.BufferedReader, compression: str, file: str, config: InputConfig) -> io.BufferedReader:
    def check(delivered: int) -> None:
        check_size(config, delivered, raw.tell(), file)

    return io.BufferedReader(Decompressed(raw, compression, file=file, check=check), buffer_size=2**16)


def _joined(head: bytes, rest: BinaryIO) -> io.BufferedReader:
    """Returns a stream of the bytes of `head` and then those of `rest`."""
    heads, read = iter((head,)), getattr(rest, "read1", rest.read)
    return io.BufferedReader(ByteStream(lambda: next(heads, b"") or read(2**16)), buffer_size=2**16)


def _compression(head: bytes) -> str | None:
    if head.startswith(_BZ2_MAGIC) and head[4:] in _BZ2_BLOCKS:
        return "bz2"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def _check_content(stream: io.BufferedReader, file: SourceFile) -> None:
    """Refuses a file whose first bytes are those of a compression or of another format."""
    head = stream.peek(_MAGIC_BYTES)[:_MAGIC_BYTES]
    found = _compression(head)
    if found is not None:
        what, hint = _COMPRESSION_NAMES[found], f"name it so that it ends in .{file.format}.{found}"
        if file.compression:
            what, hint = f"{what} within {_COMPRESSION_NAMES[file.compression]}", "decompress it once"
        raise InputError(f"{file.shown}: this is {what}, not {file.format}", hint=hint)
    for magic, (what, hint) in _OTHERS.items():
        if head.startswith(magic) and what != file.format:
            raise InputError(f"{file.shown}: this is {what}, not {file.format}", hint=hint)


def _sniffed(stream: io.BufferedReader) -> tuple[io.BufferedReader, str]:
    head = b""
    while not head.removeprefix(codecs.BOM_UTF8).strip() and len(head) < _SNIFFED:
        more = stream.read1(_SNIFFED)
        if not more:
            break
        head += more
    if not head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
        raise UsageError(
            f"the format of stdin is unknown: {'it is not JSON Lines' if head else 'it is empty'}",
            hint=f"name it with --format: {', '.join(FORMATS[1:])}",
        )
    return _joined(head, stream), "jsonl"
