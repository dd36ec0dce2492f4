"""Plain text: a line is a text, blank lines too; the only column is `text`.

Knows nothing of ids: they are row numbers, as in any table without an id column.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from embedkit.sources.columns import Column, Columns, Wanted, composer, every
from embedkit.sources.lines import bounded_lines
from embedkit.types import UNREAD, Fault, Record


class PlainText:
    """One text file, read once."""

    def __init__(self, stream: io.BufferedReader, file: str) -> None:
        self._stream = stream
        self._file = file
        self.columns = (Column("text", "string", "string", "string"),)

    def rows(self, columns: Columns, first: int, wanted: Wanted = every) -> Iterator[Record | Fault]:
        """Every line, numbered from `first`; one that is not UTF-8 is the fault `not_utf8`."""
        compose = composer(columns)
        for row, (offset, line) in enumerate(bounded_lines(self._stream, self._file), first):
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
