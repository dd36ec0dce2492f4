"""SQLite files, by Python's own library.

Not by ADBC: a column of SQLite may hold values of several types, and ADBC takes its type from the first rows and
fails at a later one.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import quote

from embedkit.config import InputConfig
from embedkit.errors import InputError
from embedkit.sources.columns import Column, Columns, Wanted, composer, every
from embedkit.sources.locate import SourceFile
from embedkit.sources.query import checked_order, quoted, refused, selection, unknown_name
from embedkit.types import Fault, Record

#: Actions that a query may take: reading, and calling functions.
_ALLOWED = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)
_NAMES = {
    "table": "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') ORDER BY 1",
    "column": "SELECT DISTINCT c.name FROM sqlite_schema AS t JOIN pragma_table_info(t.name) AS c ORDER BY 1",
}
_SELECT = "give a single SELECT, and try it in the sqlite3 program"
#: The problem and its remedy, by SQLite's codes.
_BY_CODE = {
    code: words
    for codes, words in {
        (sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY): (
            "the query does more than read, and the file is opened read-only",
            _SELECT,
        ),
        (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED): (
            "locked: another program is writing to it",
            "try again when that has ended",
        ),
        (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB): (
            "damaged, encrypted, or no SQLite database",
            "check it: PRAGMA integrity_check",
        ),
        (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR): (
            "SQLite cannot read it",
            "check the permissions of the file and its folder",
        ),
        (sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_FULL): (
            "too little memory to sort the rows",
            "make an index of the id column: rows need no sorting then",
        ),
    }.items()
    for code in codes
}
_UNKNOWN = re.compile(r"no such (table|column): (?:\w+\.)?(.+)")


class _NotTextError(ValueError):
    """A cell has no value of the needed type; the argument is the code of the fault."""


@contextmanager
def opened(file: SourceFile, config: InputConfig) -> Iterator[SqliteRows]:
    """Opens a query of a file, read-only; see `databases.opened_query`."""
    place = quote(os.path.abspath(file.name))  # noqa: PTH100 - no link is followed
    with _as_input_error(file, None):
        connection = sqlite3.connect(
            f"file:{place}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
    with closing(connection):
        with _as_input_error(file, connection):
            # Sorts in memory: a temporary file would hold texts.
            connection.execute("PRAGMA temp_store = MEMORY")
            if hasattr(connection, "setconfig"):  # from Python 3.12: a mistyped "name" is no string
                connection.setconfig(getattr(sqlite3, "SQLITE_DBCONFIG_DQS_DML"), False)  # noqa: B009 - see above
            # Without an exception: its message would quote the text.
            connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
            connection.set_authorizer(
                lambda action, *_: sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY
            )
        yield SqliteRows(file, connection, config)


class SqliteRows:
    """See `Reader`."""

    def __init__(self, file: SourceFile, connection: sqlite3.Connection, config: InputConfig) -> None:
        self._file, self._connection, self._config = file, connection, config
        with _as_input_error(file, connection):
            cursor = connection.execute(f"SELECT * FROM ({config.sql}\n) AS q LIMIT 1")  # noqa: S608 - the user's
            head = cursor.fetchone() or (None,) * len(cursor.description)
        self.columns = tuple(
            Column(name, "string" if isinstance(cell, str) else "unknown", "any", "text")
            for (name, *_), cell in zip(cursor.description, head, strict=True)
        )

    def rows(self, columns: Columns, first: int, wanted: Wanted = every) -> Iterator[Record | Fault]:  # noqa: ARG002
        """See `Reader`. A cell may be of any type: `text_not_string`, `id_not_string`, `not_utf8`."""
        identity = columns.id or ""
        statement = selection(
            self._config.sql or "", columns, f"q.{quoted(identity)} COLLATE BINARY", self._config.limit
        )
        return checked_order(self._records(statement, columns, first), self._file.shown, identity)

    def _records(self, statement: str, columns: Columns, first: int) -> Iterator[Record | Fault]:
        compose = composer(columns)
        place = {name: at for at, name in enumerate(columns.named)}
        with _as_input_error(self._file, self._connection):
            for row, cells in enumerate(self._connection.execute(statement), first):
                try:
                    texts = [_text(cells[place[name]]) for name in columns.text]
                    kept = tuple([_kept(cells[place[name]]) for name in columns.keep])
                    yield Record(row, _id(cells[place[columns.id or ""]]), compose(texts), kept)
                except _NotTextError as fault:
                    yield Fault(row, self._file.shown, None, str(fault))


def _text(cell: Any) -> str | None:
    if isinstance(cell, int | float):
        raise _NotTextError("text_not_string")
    kept: str | None = _kept(cell)
    return kept


def _id(cell: Any) -> str | None:
    if isinstance(cell, float):
        raise _NotTextError("id_not_string")
    return str(cell) if isinstance(cell, int) else _kept(cell)


def _kept(cell: Any) -> Any:
    """Returns a cell; bytes are decoded as UTF-8."""
    try:
        if isinstance(cell, str):
            cell.encode()
        return cell.decode() if isinstance(cell, bytes) else cell
    except UnicodeError:
        raise _NotTextError("not_utf8") from None


@contextmanager
def _as_input_error(file: SourceFile, connection: sqlite3.Connection | None) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code, message = getattr(error, "sqlite_errorcode", 0) & 0xFF, str(error)
    else:
        return
    raise _error(file.shown, code, message, connection)


def _error(file: str, code: int, message: str, connection: sqlite3.Connection | None) -> InputError:
    unknown = _UNKNOWN.fullmatch(message)
    if unknown and connection is not None:
        known: list[str] = []
        with suppress(sqlite3.Error):
            connection.set_authorizer(None)
            known = [name for (name,) in connection.execute(_NAMES[unknown[1]])]
        return unknown_name(file, unknown[1], unknown[2], known)
    return refused(file, *_BY_CODE.get(code, ("SQLite cannot run the query", _SELECT)))
