"""Spans of texts, from a file that refers to rows by their ids, or from a column of the table.

A file has one row a span: `id`, `start`, `end`, and optionally `label`. A column has one list a text, of objects
with these keys, of [start, end] or of [start, end, label]; as JSON if the format has no lists. Offsets
count characters from 0; `end` is exclusive.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from embedkit.arrow_values import plain_value
from embedkit.config import InputConfig
from embedkit.errors import InputError
from embedkit.sources.table import Table
from embedkit.sources.table_opening import open_table
from embedkit.types import Fault, Record, Span


class SpanBook:
    """The spans of a file, by the id of their text.

    Args:
        path: of the file, of any format but txt.
        table: of the texts; named in errors.

    Raises:
        InputError: the file cannot be read, lacks a column, or a row of it is not a span.
    """

    def __init__(self, path: str, table: Table) -> None:
        self.path = path
        self.place = table.shown
        self.table = _opened(path)
        self.by_id: Mapping[str, tuple[Span, ...]] = _read(self.table, path)
        self.unseen = set(self.by_id)
        self.unreadable = 0

    def attach(self, item: Record | Fault) -> Record | Fault:
        """Adds the spans of a record; a fault if one of them is not within its text."""
        if isinstance(item, Fault):
            self.unreadable += 1
            return item
        self.unseen.discard(item.id or "")
        return _with_spans(item, self.by_id.get(item.id or "", ()), self.place)

    def check_unknown_ids(self, unseen: int, unreadable: int) -> None:
        """Checks, after the last row, that every id of the file is that of a row.

        Args:
            unseen: number of ids that no row has.
            unreadable: number of rows that may have one of them.

        Raises:
            InputError: there is an id that no row can have.
        """
        if unseen > unreadable:
            raise InputError(
                f"{self.path} has spans for {unseen:,} ids that no row of the input has",
                hint="check --id-column: ids are compared as text, so 7 is not 007",
            )


class SpanColumn:
    """The spans in a kept column of a table of texts."""

    def __init__(self, table: Table, name: str) -> None:
        self.place = table.shown
        self.column = table.columns.keep.index(name)

    def attach(self, item: Record | Fault) -> Record | Fault:
        """Adds the spans of a record; a fault if they are malformed, or not within its text."""
        if isinstance(item, Fault):
            return item
        try:
            cell = plain_value(item.kept[self.column])
            listed = cell if not isinstance(cell, str) else json.loads(cell) if cell.strip() else None
            spans = _listed(listed)
        except (LookupError, TypeError, ValueError, RecursionError):
            return Fault(item.row, self.place, None, "bad_span")
        return _with_spans(item, spans, self.place)


def _with_spans(record: Record, spans: tuple[Span, ...], place: str) -> Record | Fault:
    length = len(record.text or "")
    if all(0 <= span.start < span.stop <= length for span in spans):
        return replace(record, spans=spans)
    return Fault(record.row, place, None, "bad_span")


def _listed(cell: Any) -> tuple[Span, ...]:
    if not isinstance(cell, list | tuple | None):
        raise TypeError("spans are a list")
    return tuple(_span(entry) for entry in cell or ())


def _span(entry: Any) -> Span:
    """Makes a span of {"start", "end", "label"} or [start, end, label]; the label is optional."""
    if isinstance(entry, Mapping):
        entry = (entry["start"], entry["end"], entry.get("label"))
    if not isinstance(entry, list | tuple):
        raise TypeError("a span is an object or a list")
    start, stop, *label = entry
    if len(label) > 1 or any(isinstance(end, float | bool) for end in (start, stop)):
        raise ValueError("a span is a start, an end and an optional label")
    name = None if not label or label[0] in {None, ""} else str(label[0])
    if name is not None:
        name.encode()  # JSON can express a lone surrogate, which outputs cannot hold
    return Span(int(start), int(stop), name)


def _opened(path: str) -> Table:
    ranges = ("start", "end")
    try:
        return open_table(InputConfig((path,), id_column="id", keep=(*ranges, "label")), has_texts=False)
    except InputError:
        # There may be no labels; any other error is raised again.
        return open_table(InputConfig((path,), id_column="id", keep=ranges), has_texts=False)


def _read(table: Table, path: str) -> Mapping[str, tuple[Span, ...]]:
    by_id: dict[str, list[Span]] = defaultdict(list)
    for item in table.records():
        name = None if isinstance(item, Fault) else item.id
        span = None if isinstance(item, Fault) else _maybe_span(item.kept)
        if name is None or span is None or not 0 <= span.start < span.stop:
            raise InputError(
                f"row {item.row} of {path} is not a span",
                hint="a row needs an id, and integers as start and end with start < end",
            )
        by_id[name].append(span)
    return {name: tuple(sorted(spans, key=lambda span: (span.start, span.stop))) for name, spans in by_id.items()}


def _maybe_span(entry: Any) -> Span | None:
    try:
        return _span(entry)
    except (TypeError, ValueError):
        return None
