"""CSV and TSV, by Python's `csv` in strict mode, without sniffing.

Reads UTF-8, UTF-16 with a byte order mark, and lines that end in LF, CRLF or CR. A row of another width or with
invalid UTF-8 is a fault. A file with an unclosed quote, or text after a closing quote, cannot be split into rows
and is an error. Blank lines are skipped, as `csv` does; in tables of one column each is a row with an empty text,
because many writers write an empty cell as nothing. NUL is kept in cells, but refused in the header, where it
means UTF-16 without a mark. `NA`, `null` and `nan` are texts.

Without `--quoting`, two kinds of rows are faults because they are probably several rows or cells: a quoted cell of
a TSV file that contains lines and tabs (databases write TSV without quoting, and a text may begin with a quote),
and a quote that opens inside a cell and closes inside a later one. Other quotes inside cells (`6" tall`) are
counted.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator

from embedkit.errors import InputError
from embedkit.sources import plain_text
from embedkit.sources.columns import Column, Columns, Wanted, composer, every
from embedkit.types import UNREAD, Fault, Record

#: An opening quote: neither inches after a digit nor a closing quote.
_OPENING = re.compile(r'(?<!\d)"\S')
#: The start of a JSON object or array.
_JSON = re.compile(rb'\s*(\[\s*)?\{\s*("|\}\s*$)')
_SNIFFED = 4096


class Delimited:
    """One file of separated values, read once; the constructor reads the header."""

    def __init__(self, stream: io.BufferedReader, file: str, *, delimiter: str, quoting: str) -> None:
        if _JSON.match(stream.peek(_SNIFFED)[:_SNIFFED].removeprefix(codecs.BOM_UTF8)):
            raise InputError(
                f"{file}: the first line is JSON instead of a header",
                hint="if each line is an object, use --format jsonl",
            )
        self._stream = stream
        self._file = file
        self._codec, self._position = _encoding(stream, file)
        self._start = self._position  # of the current record
        self._raw: list[str] = []  # its lines, if they contain a quote
        self._bad: int | None = None  # offset of its first invalid byte
        self._quoting = quoting
        self._delimiter = delimiter
        self.stray_quotes = 0
        self.first_stray: int | None = None
        self.seekable = stream.seekable()
        # The limit of `csv` is global in a process; records are limited below.
        csv.field_size_limit(max(csv.field_size_limit(), plain_text.MAX_RECORD_BYTES))
        # `utf-8-sig` and `utf-16` drop the byte order mark; as encoders they would write it again.
        self._reader = self._records("utf-8-sig" if self._codec == "utf-8" else "utf-16")
        self.columns = tuple(Column(name, "string", "string", "string") for name in self._header())

    @property
    def place(self) -> int:
        """See `Reader`."""
        return self._start

    def rows(
        self, columns: Columns, first: int, wanted: Wanted = every, start: int | None = None
    ) -> Iterator[Record | Fault]:
        """Reads every row, numbered from `first`.

        Raises:
            InputError: the file cannot be split into rows from here on.
        """
        names = [column.name for column in self.columns]
        width = len(names)
        compose = composer(columns)
        texts = [names.index(name) for name in columns.text]
        keeps = [names.index(name) for name in columns.keep]
        identity = None if columns.id is None else names.index(columns.id)
        if start is not None:
            self._seek(start)
        row = first
        while (cells := self._next(f"row {row}")) is not None:
            if not cells and width > 1:
                continue
            cells = cells or [""]
            code = self._fault(cells, width, row) if wanted(row, row + 1) else UNREAD
            if code is not None:
                yield Fault(row, self._file, self._start, code)
            else:
                yield Record(
                    row,
                    str(row) if identity is None else cells[identity],
                    compose([cells[at] for at in texts]),
                    tuple([cells[at] for at in keeps]),
                )
            row += 1

    def _seek(self, start: int) -> None:
        """Goes on at a byte where a record begins: `csv` keeps nothing from one record to the next."""
        self._text.detach()
        self._stream.seek(start)
        self._position = start
        self._reader = self._records(self._codec)

    def _records(self, encoding: str) -> Iterator[list[str]]:
        # Invalid bytes become lone surrogates, which mark the row.
        errors, unit = ("surrogateescape", 1) if self._codec == "utf-8" else ("surrogatepass", 2)
        self._text = io.TextIOWrapper(self._stream, encoding=encoding, errors=errors, newline="")
        return csv.reader(
            self._lines(self._text, errors, unit),
            strict=True,
            delimiter=self._delimiter,
            quoting=csv.QUOTE_NONE if self._quoting == "none" else csv.QUOTE_MINIMAL,
        )

    def _fault(self, cells: list[str], width: int, row: int) -> str | None:
        """Returns the code of a bad record; None if it is good."""
        if self._bad is not None:
            return "not_utf8" if self._codec == "utf-8" else "lone_surrogate"
        quotes = self._raw and self._quoting != "none"
        if quotes and self._quoting == "auto" and self._delimiter == "\t":
            # In a table of one column, merged rows have no tab between them.
            marks = "\t" if width > 1 else ""
            if any(marks in cell and ("\n" in cell or "\r" in cell) for cell in cells):
                return "lines_and_tabs_in_quotes" if width > 1 else "lines_in_quotes"
        if len(cells) != width:
            return "short_row" if len(cells) < width else "long_row"
        stray = _stray_quotes("".join(self._raw), cells) if quotes and any('"' in cell for cell in cells) else []
        if stray and self._quoting == "auto" and _spans_cells(stray):
            return "quote_across_cells"
        if stray:
            self.stray_quotes += 1
            self.first_stray = row if self.first_stray is None else self.first_stray
        return None

    def _header(self) -> list[str]:
        names: list[str] | None = []
        while not names:
            names = self._next("the header")
            if names is None:
                raise InputError(
                    f"{self._file}: empty file, no header",
                    hint="write the names of the columns in the first line, such as: id,text",
                )
        if self._bad is not None:
            raise plain_text.not_utf8(self._file, self._bad)
        if any("\0" in name for name in names):
            raise InputError(
                f"{self._file}: NUL bytes in the header",
                hint="if it is UTF-16, convert it: iconv -f UTF-16LE -t UTF-8",
            )
        return names

    def _next(self, where: str) -> list[str] | None:
        """Returns the next record's cells; None at the end of the file."""
        self._start = self._position
        self._raw.clear()
        self._bad = None
        try:
            return next(self._reader, None)
        except csv.Error as error:
            unclosed = str(error) == "unexpected end of data"
        what = "has a quote that is never closed" if unclosed else "has text after a closing quote"
        raise InputError(
            f"{self._file}: {where}, at byte {self._start}, {what}",
            hint='quote a field that contains a quote, and double the quote: "a ""b"" c"; '
            "if quotes have no meaning in this file, use --quoting none",
        )

    def _lines(self, text: io.TextIOWrapper, errors: str, unit: int) -> Iterator[str]:
        """Reads lines with their ends, for `csv`, and counts bytes, for the offsets of faults."""
        limit = plain_text.MAX_RECORD_BYTES
        while True:
            try:
                line = text.readline(limit + 1)
            except UnicodeDecodeError as error:
                # Half a code unit at the end of UTF-16. The decoder has all bytes up to the stream's position.
                bad = self._stream.tell() - len(error.object) + error.start
                break
            if not line:
                return
            self._position += len(line) * unit if line.isascii() else self._length(line, errors)
            if self._position - self._start > limit:
                raise plain_text.too_long(self._file, self._start)
            if '"' in line or self._raw:
                self._raw.append(line)
            yield line
        # Raised outside of the handler, because the first exception holds bytes of the file.
        raise InputError(
            f"{self._file}: not UTF-16, as its first bytes say, at byte {bad}",
            hint="it may be cut off: copy it again and compare its size",
        )

    def _length(self, line: str, errors: str) -> int:
        """Returns the length of a line in bytes, and notes the offset of its first invalid byte."""
        try:
            return len(line.encode(self._codec))
        except UnicodeEncodeError as error:
            if self._bad is None:
                self._bad = self._position + len(line[: error.start].encode(self._codec))
        return len(line.encode(self._codec, errors))


def _stray_quotes(raw: str, cells: list[str]) -> list[str]:
    """Finds the cells of a record that are not quoted and contain a quote.

    Args:
        raw: the record in the file, from its first line with a quote.
        cells: the record by `csv`.
    """
    found, offset = [], 0
    for cell in cells:
        if raw.startswith('"', offset):
            offset += 2 + len(cell) + cell.count('"') + 1
            continue
        if '"' in cell:
            found.append(cell)
        offset += len(cell) + 1
    return found


def _spans_cells(stray: list[str]) -> bool:
    """Checks for a quote that opens inside a cell and closes at the end of a later one: both were one cell.

    A quote after a digit counts as inches, one before a blank or at a cell's end as closing.
    """
    odd = [cell for cell in stray if cell.count('"') % 2]
    opens = next((number for number, cell in enumerate(odd) if _OPENING.search(cell)), None)
    return opens is not None and any(cell.rstrip().endswith('"') for cell in odd[opens + 1 :])


def _encoding(stream: io.BufferedReader, file: str) -> tuple[str, int]:
    """Detects the encoding and the length of the byte order mark."""
    head = stream.peek(4)
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise InputError(f"{file}: UTF-32 is not supported", hint="convert it: iconv -f UTF-32 -t UTF-8")
    if head.startswith(plain_text.UTF16_MARKS):
        return ("utf-16-le" if head.startswith(codecs.BOM_UTF16_LE) else "utf-16-be"), 2
    return "utf-8", 3 if head.startswith(codecs.BOM_UTF8) else 0
