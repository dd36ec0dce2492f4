"""Spans of texts: from a file that names rows by their ids, or from a column of the table itself.

A file has a row a span: `id`, `start`, `end`, and `label` if it likes. A column has a list a text, of such objects
or of [start, end] or [start, end, label]; as JSON where the format has no lists. Characters are counted from 0,
and `end` is the first one behind the span.
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
from embedkit.sources.table import Table, open_table
from embedkit.types import Fault, Record, Span


class SpanBook:
    """The spans of a file, by the id of their text.

    Args:
        path: of the file: csv, tsv, jsonl, parquet or arrow, plain or compressed.
        table: the table that the spans are of; its name is told where a span does not fit a text.

    Raises:
        InputError: the file cannot be read, lacks a column, or a row of it is no span.
    """

    def __init__(self, path: str, table: Table) -> None:
        self.path = path
        self.place = place_of(table)
        self.table = _opened(path)
        self.by_id: Mapping[str, tuple[Span, ...]] = _read(self.table, path)
        self.unseen = set(self.by_id)
        self.unreadable = 0

    def attach(self, item: Record | Fault) -> Record | Fault:
        """A record with its spans; a fault if one of them is not in its text."""
        if isinstance(item, Fault):
            self.unreadable += 1
            return item
        self.unseen.discard(item.id or "")
        return _with_spans(item, self.by_id.get(item.id or "", ()), self.place)

    def refuse_strangers(self) -> None:
        """To be called when every row has been seen.

        Raises:
            InputError: spans are of ids that no row has, nor one that cannot be read.
        """
        if len(self.unseen) > self.unreadable:
            raise InputError(
                f"{self.path} has spans of {len(self.unseen):,} ids that no row of the input has",
                hint="check --id-column: ids are compared as text, so 7 is not 007",
            )


class SpanColumn:
    """The spans in one of the columns that are read.

    Args:
        table: whose column it is.
        name: of the column, among the table's kept ones.
    """

    def __init__(self, table: Table, name: str) -> None:
        self.place = place_of(table)
        self.column = table.columns.keep.index(name)

    def attach(self, item: Record | Fault) -> Record | Fault:
        """A record with its spans; a fault if they are none, or not in its text."""
        if isinstance(item, Fault):
            return item
        try:
            cell = plain_value(item.kept[self.column])
            listed = cell if not isinstance(cell, str) else json.loads(cell) if cell.strip() else None
            spans = _listed(listed)
        except (LookupError, TypeError, ValueError, RecursionError):
            return Fault(item.row, self.place, None, "bad_span")
        return _with_spans(item, spans, self.place)


def place_of(table: Table) -> str:
    """How errors call the table."""
    return table.files[0].shown if len(table.files) == 1 else "the input"


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
    """A span from {"start", "end", "label"}, or from [start, end, label]; the label may be missing."""
    if isinstance(entry, Mapping):
        entry = (entry["start"], entry["end"], entry.get("label"))
    if not isinstance(entry, list | tuple):
        raise TypeError("a span is an object or a list")
    start, stop, *label = entry
    if len(label) > 1 or any(isinstance(end, float | bool) for end in (start, stop)):
        raise ValueError("a span is a start, an end and maybe a label")
    told = None if not label or label[0] in {None, ""} else str(label[0])
    if told is not None:
        told.encode()  # JSON can spell half a character, which no output can hold
    return Span(int(start), int(stop), told)


def _opened(path: str) -> Table:
    ranges = ("start", "end")
    try:
        return open_table(InputConfig((path,), id_column="id", keep=(*ranges, "label")), has_texts=False)
    except InputError:
        # Without labels, or the error that says what is wrong.
        return open_table(InputConfig((path,), id_column="id", keep=ranges), has_texts=False)


def _read(table: Table, path: str) -> Mapping[str, tuple[Span, ...]]:
    by_id: dict[str, list[Span]] = defaultdict(list)
    for item in table.records():
        name = None if isinstance(item, Fault) else item.id
        span = None if isinstance(item, Fault) else _maybe_span(item.kept)
        if name is None or span is None or not 0 <= span.start < span.stop:
            raise InputError(
                f"row {item.row} of {path} is no span",
                hint="a row has an id, and whole numbers as start and end, the first of them less",
            )
        by_id[name].append(span)
    return {name: tuple(sorted(spans, key=lambda span: (span.start, span.stop))) for name, spans in by_id.items()}


def _maybe_span(entry: Any) -> Span | None:
    try:
        return _span(entry)
    except (TypeError, ValueError):
        return None
