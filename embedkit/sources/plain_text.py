"""Plain text: each line is a text, blank ones too; and lines of bounded length, for JSON Lines as well."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator

from embedkit.errors import InputError
from embedkit.sources.columns import Column, Columns, Wanted, composer, every
from embedkit.types import UNREAD, Fault, Record

#: A longer record means a file that is read wrongly (an unclosed quote, no line ends) and would fill the memory:
#: csv holds 4 bytes a character. The longest note in MIMIC-III has 0.06 MB.
MAX_RECORD_BYTES = 64 * 2**20

LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def bounded_lines(stream: io.BufferedReader, file: str, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Reads a file by lines, from a line's first byte on; the stream is at that byte, `offset`.

    Only LF ends a line, not U+2028 or U+0085.

    Yields:
        The byte offset of a line, and the line without its LF or CRLF, nor a byte order mark.

    Raises:
        InputError: a line is longer than `MAX_RECORD_BYTES`, or the stream is UTF-16.
    """
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        if len(line) > MAX_RECORD_BYTES:
            raise too_long(file, offset)
        length = len(line)
        if offset == 0:
            line, offset, length = _without_mark(line, file)
        yield offset, line.removesuffix(b"\n").removesuffix(b"\r")
        offset += length


def too_long(file: str, offset: int) -> InputError:
    """Returns the error of a record that is too long."""
    return InputError(
        f"{file}: the record at byte {offset} is over {MAX_RECORD_BYTES / 2**20:g} MiB",
        hint="look there for an unclosed quote, or for other line ends",
    )


def not_utf8(file: str, offset: int) -> InputError:
    """Returns the error of a file in another encoding."""
    return InputError(
        f"{file}: not UTF-8 at byte {offset}",
        hint="convert it: iconv -f WINDOWS-1252 -t UTF-8 (or its real encoding)",
    )


def _without_mark(line: bytes, file: str) -> tuple[bytes, int, int]:
    if line.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise InputError(f"{file}: UTF-32 instead of UTF-8", hint="convert it: iconv -f UTF-32 -t UTF-8")
    if line.startswith(UTF16_MARKS):
        raise InputError(f"{file}: UTF-16 instead of UTF-8", hint="convert it: iconv -f UTF-16 -t UTF-8")
    bare = line.removeprefix(codecs.BOM_UTF8)
    return bare, len(line) - len(bare), len(bare)


class PlainText:
    """One text file, read once; its only column is `text`."""

    def __init__(self, stream: io.BufferedReader, file: str) -> None:
        self._stream = stream
        self._file = file
        self.seekable = stream.seekable()
        self.place = 0
        self.columns = (Column("text", "string", "string", "string"),)

    def rows(
        self, columns: Columns, first: int, wanted: Wanted = every, start: int | None = None
    ) -> Iterator[Record | Fault]:
        """Reads every line, numbered from `first`; one that is not UTF-8 is the fault `not_utf8`."""
        compose = composer(columns)
        if start is not None:
            self._stream.seek(start)
        for row, (offset, line) in enumerate(bounded_lines(self._stream, self._file, start or 0), first):
            self.place = offset
            text = _decoded(line) if wanted(row, row + 1) else None
            if text is None:
                yield Fault(row, self._file, offset, "not_utf8" if wanted(row, row + 1) else UNREAD)
                continue
            identity = str(row) if columns.id is None else text
            yield Record(row, identity, compose([text] * len(columns.text)), (text,) * len(columns.keep))


def _decoded(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None
