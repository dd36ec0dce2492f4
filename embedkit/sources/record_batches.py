"""Rows of record batches: strings of every layout, dictionaries of them too; binary cells are read as UTF-8.

Errors of pyarrow end in `attempt`, because their messages may quote cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pyarrow as pa

from embedkit.arrow_values import (
    holds,
    is_binary,
    is_exact,
    is_string,
    json_values,
    kept_values,
    stored,
    stored_type,
    texts,
    type_name,
)
from embedkit.errors import InputError
from embedkit.sources.columns import Column, Columns, Kind, Wanted, composer, every
from embedkit.sources.headers import shown
from embedkit.storage.store_errors import StoreError
from embedkit.types import UNREAD, Fault, Record

T = TypeVar("T")

BATCH_ROWS = 1_024

#: Positions in a batch of the rows with invalid UTF-8.
Unreadable = set[int]

#: A function that reads the columns in use, batch by batch.
Batches = Callable[[Columns], Iterator[Any]]


class RecordBatches:
    """A table of record batches, read once.

    Args:
        schema: its columns.
        batches: reads them.
        file: the name of the table, for errors.
    """

    def __init__(self, schema: Any, batches: Batches, file: str) -> None:
        self._file = file
        self._batches = batches
        self.columns = tuple(
            Column(field.name, kind_of(field.type), _shown_type(field.type), type_name(stored_type(field.type)))
            for field in schema
        )

    def rows(self, columns: Columns, first: int, wanted: Wanted = every) -> Iterator[Record | Fault]:
        """Reads every row, numbered from `first`; one with invalid UTF-8 is the fault `not_utf8`."""
        return self._records(lambda: self._batches(columns), columns, first, wanted)

    def _records(
        self, read: Callable[[], Iterator[Any]], columns: Columns, first: int, wanted: Wanted
    ) -> Iterator[Record | Fault]:
        compose = composer(columns)
        row = first
        batches = attempt(read)
        while (batch := self._next(batches)) is not None:
            if not wanted(row, row + batch.num_rows):
                yield from (Fault(row + at, self._file, None, UNREAD) for at in range(batch.num_rows))
                row += batch.num_rows
                continue
            unreadable: Unreadable = set()
            texts = [self._cells(batch, name, strings, unreadable) for name in columns.text]
            keeps = [self._cells(batch, name, values, unreadable) for name in columns.keep]
            ids: list[str | None] = [str(number) for number in range(row, row + batch.num_rows)]
            if columns.id is not None:
                ids = self._cells(batch, columns.id, strings, unreadable)
            for at, identity in enumerate(ids):
                if at in unreadable:
                    yield Fault(row, self._file, None, "not_utf8")
                else:
                    text = compose([cells[at] for cells in texts])
                    yield Record(row, identity, text, tuple([cells[at] for cells in keeps]))
                row += 1

    def _next(self, batches: Iterator[Any] | None) -> Any:
        """Returns the next batch, or None after the last."""
        end = object()
        batch = None if batches is None else attempt(lambda: next(batches, end))
        if batch is None:
            raise self._damaged()
        return None if batch is end else batch

    def _cells(
        self, batch: Any, name: str, convert: Callable[[Any, Unreadable], list[Any]], unreadable: Unreadable
    ) -> list[Any]:
        column = batch.column(name)
        cells = attempt(lambda: convert(column, unreadable))
        if cells is None:
            raise InputError(
                f"{self._file}: column {shown(name)}, of type {_shown_type(column.type)}, cannot be read",
                hint="cast it to a string, or leave it out of --keep",
            )
        return cells

    def _damaged(self) -> InputError:
        return InputError(
            f"{self._file}: its rows cannot be read as record batches", hint="cast unusual columns to strings"
        )


def _shown_type(declared: Any) -> str:
    """Returns the type's name for messages, without names of fields, which may be row content."""
    name = str(declared)
    return name.partition("<")[0] if "struct<" in name or "union<" in name else name


def attempt(action: Callable[[], T]) -> T | None:
    """Runs the action; None if pyarrow fails. Errors of embedkit and of a store pass."""
    try:
        return action()
    except StoreError:
        raise
    except (pa.ArrowException, OSError, ValueError):
        return None


def sliced(batches: Iterator[Any]) -> Iterator[Any]:
    """Slices batches, which may be whole tables, so that few rows at a time become Python objects."""
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def between(batches: Iterator[Any], start: int, stop: int | None) -> Iterator[Any]:
    """Cuts batches, of rows from 0 on, to the rows [start, stop); the rest is not read."""
    row = 0
    for batch in batches:
        if stop is not None and row >= stop:
            return
        low = max(start - row, 0)
        high = batch.num_rows if stop is None else min(batch.num_rows, stop - row)
        row += batch.num_rows
        if low < high:
            yield batch if high - low == batch.num_rows else batch.slice(low, high - low)


def kind_of(declared: Any) -> Kind:
    """Classifies the cells of an Arrow type."""
    kind = stored_type(declared)
    if is_exact(kind):
        return "exact"
    plain = kind
    while isinstance(plain, pa.BaseExtensionType):
        plain = plain.storage_type
    if is_string(plain):
        return "string"
    if is_binary(plain):
        return "binary"
    if pa.types.is_integer(plain) and plain == kind:
        return "integer"
    return "null" if pa.types.is_null(plain) else "other"


def strings(array: Any, unreadable: Unreadable) -> list[str | None]:
    """Converts cells to text: strings unchanged, bytes decoded, others by `texts`."""
    plain = stored(array)
    while isinstance(plain.type, pa.BaseExtensionType) and not is_exact(plain.type):
        plain = plain.storage
    try:
        if not is_binary(plain.type):
            return texts(plain)
    except UnicodeDecodeError:  # pyarrow does not check what a file declares as UTF-8
        pass
    return [_decoded(cell, at, unreadable) for at, cell in enumerate(plain)]


def values(array: Any, unreadable: Unreadable) -> list[Any]:
    """Converts cells to kept values: see `arrow_values.kept_values`."""
    plain = stored(array)
    if is_string(plain.type):
        return strings(plain, unreadable)
    kept = kept_values(plain)
    if holds(plain.type, is_string) and not _is_readable(plain):
        unreadable |= {at for at in range(len(plain)) if not _is_readable(plain.slice(at, 1))}
    return kept


def _is_readable(array: Any) -> bool:
    try:
        json_values(array)
    except UnicodeDecodeError:
        return False
    return True


def _decoded(cell: Any, at: int, unreadable: Unreadable) -> str | None:
    if not cell.is_valid:
        return None
    try:
        return bytes(cell.as_buffer()).decode()
    except UnicodeDecodeError:
        unreadable.add(at)
        return None
