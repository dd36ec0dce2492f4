"""Findings of a check: paths and problems, no content of any row. Opens no file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from embedkit.manifest.schema import Plan, ShardRecord
from embedkit.output.contents import Contents


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference from what was written."""

    path: str  # of the file, in the output
    what: str  # the problem, without content of any row

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass(slots=True)
class Verification:
    """The result of `embedkit verify`."""

    way_out: str  # hint for the problems
    problems: list[Finding] = field(default_factory=list)  # in the order of the files
    notes: list[Finding] = field(default_factory=list)  # remarks that are no problems of the output
    rows: int = 0  # checked, as are `vectors`
    vectors: int = 0
    files: int = 0  # read, as are `bytes`
    bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        """Returns all fields as JSON values."""
        return asdict(self)


def wrong_counts(record: ShardRecord, plan: Plan) -> Iterator[str]:
    """Yields where a record contradicts itself: rows in = vectors + nulls + rejects."""
    span, rows, vectors = record.stop - record.start, record.by_row.rows, record.vectors
    texts = record.by_text.rows
    skipped = record.rejects if plan.on_bad_row == "skip" else 0
    if plan.format == "npy":  # a row without a vector is a reject, skipped or not
        adds_up = vectors + record.rejects == rows + span - texts and texts <= span
    else:
        adds_up = texts + skipped == span
    if not adds_up:
        yield f"{span:,} rows in are not {vectors:,} vectors, {rows - vectors:,} nulls and {skipped:,} left out"
    if sum(record.by_row.statuses.values()) != rows:
        yield "its statuses do not add up to its rows"


def wrong_rows(contents: Contents, record: ShardRecord, plan: Plan) -> Iterator[str]:
    """Yields where a shard's files contradict their record."""
    left_out = plan.format == "npy"  # rows without a vector
    rows = record.by_row
    if contents.rows != (record.vectors if left_out else rows.rows):
        yield f"holds {contents.rows:,} rows, and its record says {rows.rows:,}"
    if contents.vectors != record.vectors:
        yield f"holds {contents.vectors:,} vectors, and its record says {record.vectors:,}"
    if not left_out and (contents.statuses, contents.tokens) != (rows.statuses, (rows.n_tokens, rows.n_used)):
        yield "its receipts do not add up to those of its record"
    if not contents.finite:
        yield "holds a number that is not finite"
    if plan.input.id is None and plan.groups is None:
        rows_in = range(record.start, record.stop)
        ids = contents.ids_as_numbers()
        # A text has a row for each of its units.
        ordered = ids is not None and all(a < b or (record.has_units and a == b) for a, b in pairwise(ids))
        if not ordered or (ids and not (ids[0] in rows_in and ids[-1] in rows_in)):
            yield "its ids are not the numbers of its rows in their order"
