"""Lines of a binary stream, bounded in length, each with its byte offset.

Knows nothing of what a line holds: only LF ends one, never U+2028 or U+0085.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator

from embedkit.errors import InputError

#: A record longer than this is not a text but a file that is read wrongly (an unclosed quote, no
#: line ends); reading on would fill the memory: csv holds 4 bytes a character. The longest note in MIMIC-III
#: is 0.06 MB.
MAX_RECORD_BYTES = 64 * 2**20

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def bounded_lines(stream: io.BufferedReader, file: str) -> Iterator[tuple[int, bytes]]:
    """Every line without its end (LF or CRLF), and the offset where it starts; a UTF-8 mark is left out.

    Raises:
        InputError: a line is longer than `MAX_RECORD_BYTES`, or the stream is UTF-16.
    """
    offset = 0
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        if len(line) > MAX_RECORD_BYTES:
            raise too_long(file, offset)
        length = len(line)
        if offset == 0:
            line, offset, length = _without_mark(line, file)
        yield offset, line.removesuffix(b"\n").removesuffix(b"\r")
        offset += length


def too_long(file: str, offset: int) -> InputError:
    """The error of a record that is over the bound."""
    return InputError(
        f"{file}: the record at byte {offset} is over {MAX_RECORD_BYTES / 2**20:g} MiB",
        hint="look there for a quote that is never closed, or for line ends of another kind",
    )


def not_utf8(file: str, offset: int) -> InputError:
    """The error of a file that is in another encoding."""
    return InputError(
        f"{file}: not UTF-8 at byte {offset}",
        hint="convert it: iconv -f WINDOWS-1252 -t UTF-8 (or the encoding that it is in)",
    )


def _without_mark(line: bytes, file: str) -> tuple[bytes, int, int]:
    if line.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise InputError(f"{file}: UTF-32, where UTF-8 is read", hint="convert it: iconv -f UTF-32 -t UTF-8")
    if line.startswith(UTF16_MARKS):
        raise InputError(f"{file}: UTF-16, where UTF-8 is read", hint="convert it: iconv -f UTF-16 -t UTF-8")
    bare = line.removeprefix(codecs.BOM_UTF8)
    return bare, len(line) - len(bare), len(bare)
