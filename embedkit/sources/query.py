"""Order, identity and errors of queries, the same for all databases.

The query is wrapped, `SELECT columns FROM (query) ORDER BY id`, so that every pass reads the rows in one order. A
pass is one statement in a read-only transaction: one snapshot. Errors of a database are raised again without their
messages, which may quote cells.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

from embedkit.arrow_values import plain_value
from embedkit.errors import InputError
from embedkit.sources.columns import Column, Columns
from embedkit.sources.headers import is_header, listed
from embedkit.sources.locate import SourceFile
from embedkit.suggest import did_you_mean
from embedkit.types import Fault, Record

#: Most names that a hint lists.
_LISTED = 10


def with_id(columns: Columns, present: tuple[Column, ...], file: str) -> Columns:
    """Returns the columns with that of the ids, by which rows are ordered.

    Without `id` it is the only column, besides texts and kept ones, whose name ends in `id`, such as `note_id`.

    Raises:
        InputError: there is none.
    """
    if columns.id is not None:
        return columns
    names = [column.name for column in present]
    found = [name for name in names if name.lower().endswith("id") and name not in {*columns.text, *columns.keep}]
    if len(found) == 1 and is_header(names):
        return Columns(columns.text, columns.template, found[0], columns.keep)
    raise InputError(
        f"{file}: rows of a query are ordered by their ids, and no column is named id; columns: {listed(names)}",
        hint="name a column whose values occur once with --id-column",
    )


def selection(sql: str, columns: Columns, order: str, limit: int | None) -> str:
    """Returns the statement that reads the columns in use, in order; the line end closes a comment."""
    names = ", ".join(quoted(name) for name in columns.named)
    rows = "" if limit is None else f" LIMIT {limit}"
    return f"SELECT {names} FROM ({sql}\n) AS q ORDER BY {order}{rows}"  # noqa: S608 - the query is the user's


def quoted(name: str) -> str:
    """Quotes the name of a column as the SQL standard does."""
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def checked_order(rows: Iterator[Record | Fault], file: str, column: str) -> Iterator[Record | Fault]:
    """Passes on rows that are ordered by id.

    Raises:
        InputError: an id is null, or occurs twice: the order of such rows is undefined.
    """
    previous = None
    for item in rows:
        if isinstance(item, Record):
            if item.id is None:
                raise InputError(
                    f"{file}: row {item.row} of the query has no id: {column} is NULL",
                    hint=f"add WHERE {column} IS NOT NULL to the query, or name another column with --id-column",
                )
            if item.id == previous:
                raise InputError(
                    f"{file}: rows {item.row - 1} and {item.row} of the query have the same id: their order is not"
                    " defined",
                    hint="name a column whose values occur once with --id-column; --keep copies this one",
                )
            previous = item.id
        yield item


class RowsDigest:
    """Size and SHA-256 of the rows that a pass has read.

    `sha256` is of ids and texts, on which vectors depend, `content_sha256` of these and the kept values.
    """

    def __init__(self) -> None:
        self._size = 0
        self._texts, self._all = hashlib.sha256(), hashlib.sha256()

    def add(self, item: Record | Fault) -> None:
        """Adds a row."""
        data = _framed(item.code) if isinstance(item, Fault) else _framed(item.id) + _framed(item.text)
        self._size += len(data)
        self._texts.update(data)
        self._all.update(data)
        if isinstance(item, Record) and item.kept:
            self._all.update(_framed(repr([plain_value(cell) for cell in item.kept])))

    def of(self, file: SourceFile) -> SourceFile:
        """Returns the file with what was read of it."""
        return replace(file, size=self._size, sha256=self._texts.hexdigest(), content_sha256=self._all.hexdigest())


def _framed(text: str | None) -> bytes:
    if text is None:
        return b"-"
    data = text.encode("utf-8", "surrogatepass")
    return b"%d:" % len(data) + data


def library(module: str, package: str) -> ModuleType:
    """Imports the library of a database.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"reading this database needs {package}, which is not installed",
            hint=f"pip install {package}, or install embedkit with its extra: pip install '.[sql]'",
        ) from None


def unknown_name(file: str, what: str, name: str | None, known: list[str]) -> InputError:
    """Returns the error of a query that names a table or a column which does not exist.

    The name itself is not shown: a value in double quotes is taken for one.
    """
    listed_names = ", ".join(known[:_LISTED]) + (", …" if len(known) > _LISTED else "")
    otherwise = f"{what}s: {listed_names}" if known else "check its names and its schema"
    return InputError(
        f"{file}: the query names a {what} that does not exist", hint=did_you_mean(name or "", known, otherwise)
    )


def refused(file: str, what: str, hint: str) -> InputError:
    """Returns the error of a query, without the database's own message."""
    return InputError(f"{file}: {what}", hint=hint)
