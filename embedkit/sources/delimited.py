"""CSV and TSV, by Python's `csv` in strict mode: no sniffing, quoted newlines byte for byte.

Knows UTF-8 and UTF-16 by their marks, LF, CRLF and lone CR. A row of another width is a fault; a file
in which quotes do not close, or text follows a closing quote, cannot be split into rows and is an
error. Blank lines are skipped, as `csv` does, but for tables of one column: there each is a row with
an empty text, because many writers put an empty cell as nothing. NUL is kept in cells, as in JSON,
but not in the header, where it means UTF-16 without a mark. `NA`, `null` and `nan` are texts.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator

from embedkit.errors import InputError
from embedkit.records import UNREAD, Fault, Record
from embedkit.sources import lines
from embedkit.sources.columns import Column, Columns, Wanted, composer, every


class Delimited:
    """One file of separated values, read once, header first."""

    def __init__(self, stream: io.BufferedReader, file: str, *, delimiter: str) -> None:
        self._stream = stream
        self._file = file
        self._codec, self._position = _encoding(stream)
        self._start = self._position  # of the record being read
        # A process has one limit for all its csv readers; the bound on records below is the real one.
        csv.field_size_limit(max(csv.field_size_limit(), lines.MAX_RECORD_BYTES))
        self._reader = csv.reader(self._lines(), strict=True, delimiter=delimiter)
        self.columns = tuple(Column(name, "string", "string", "string") for name in self._header())

    def rows(self, columns: Columns, first: int, wanted: Wanted = every) -> Iterator[Record | Fault]:
        """Every row, numbered from `first`.

        Raises:
            InputError: the file cannot be split into rows from here on.
        """
        names = [column.name for column in self.columns]
        width = len(names)
        compose = composer(columns)
        texts = [names.index(name) for name in columns.text]
        keeps = [names.index(name) for name in columns.keep]
        identity = None if columns.id is None else names.index(columns.id)
        row = first
        while (cells := self._next(f"row {row}")) is not None:
            if not cells and width == 1:
                cells = [""]
            elif not cells:
                continue
            if not wanted(row, row + 1):
                yield Fault(row, self._file, self._start, UNREAD)
            elif len(cells) != width:
                code = "short_row" if len(cells) < width else "long_row"
                yield Fault(row, self._file, self._start, code)
            else:
                yield Record(
                    row,
                    str(row) if identity is None else cells[identity],
                    compose([cells[at] for at in texts]),
                    tuple([cells[at] for at in keeps]),
                )
            row += 1

    def _header(self) -> list[str]:
        names: list[str] | None = []
        while not names:
            names = self._next("the header")
            if names is None:
                raise InputError(
                    f"{self._file}: empty file, no header",
                    hint="the first line is to name the columns, such as: id,text",
                )
        if any("\0" in name for name in names):
            raise InputError(
                f"{self._file}: NUL bytes in the header",
                hint="if it is UTF-16, convert it: iconv -f UTF-16LE -t UTF-8",
            )
        return names

    def _next(self, where: str) -> list[str] | None:
        """The next record's cells; None at the end of the file."""
        self._start = self._position
        try:
            return next(self._reader, None)
        except csv.Error as error:
            unclosed = str(error) == "unexpected end of data"
        what = "has a quote that is never closed" if unclosed else "has text after a closing quote"
        raise InputError(
            f"{self._file}: {where}, at byte {self._start}, {what}",
            hint='a field with a quote in it is to be quoted, and the quote doubled: "a ""b"" c"',
        )

    def _lines(self) -> Iterator[str]:
        """Lines as `csv` wants them, ends and all; counts bytes, so that a fault can tell where it is."""
        # `utf-8-sig` and `utf-16` take the mark away; an encoder of that name would write one again.
        encoding = "utf-8-sig" if self._codec == "utf-8" else "utf-16"
        text = io.TextIOWrapper(self._stream, encoding=encoding, newline="")
        unit = 1 if self._codec == "utf-8" else 2
        limit = lines.MAX_RECORD_BYTES
        while True:
            try:
                line = text.readline(limit + 1)
            except UnicodeDecodeError as error:
                # The decoder was given all bytes up to where the stream now stands.
                bad = self._stream.tell() - len(error.object) + error.start
                break
            if not line:
                return
            self._position += len(line) * unit if line.isascii() else len(line.encode(self._codec))
            if self._position - self._start > limit:
                raise lines.too_long(self._file, self._start)
            yield line
        # Raised out here because an exception remembers the one in whose handler it was raised, and
        # that one holds the bytes it could not decode.
        raise lines.not_utf8(self._file, bad)


def _encoding(stream: io.BufferedReader) -> tuple[str, int]:
    """The encoding by the byte order mark, and the mark's length."""
    head = stream.peek(3)
    if head.startswith(lines.UTF16_MARKS):
        return ("utf-16-le" if head.startswith(codecs.BOM_UTF16_LE) else "utf-16-be"), 2
    return "utf-8", 3 if head.startswith(codecs.BOM_UTF8) else 0
