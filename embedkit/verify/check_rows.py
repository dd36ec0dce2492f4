"""Where a record contradicts itself, and where a shard's files contradict their record.

Knows counts; opens nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from embedkit.output.contents import Contents


def wrong_counts(record: Mapping[str, Any], plan: Mapping[str, Any]) -> Iterator[str]:
    """Where a record contradicts itself: rows in = vectors + nulls + rejects."""
    span, rows, vectors = record["stop"] - record["start"], record["rows"], record["vectors"]
    texts = record.get("texts", record)["rows"]
    skipped = record["rejects"] if plan["on_bad_row"] == "skip" else 0
    if plan["format"] == "npy":  # whatever has no vector is a reject, skipped or not
        adds_up = vectors + record["rejects"] == rows + span - texts and texts <= span
    else:
        adds_up = texts + skipped == span
    if not adds_up:
        yield f"{span:,} rows in are not {vectors:,} vectors, {rows - vectors:,} nulls and {skipped:,} left out"
    if sum(record["status_counts"].values()) != rows:
        yield "its statuses do not add up to its rows"


def wrong_rows(contents: Contents, record: Mapping[str, Any], plan: Mapping[str, Any]) -> Iterator[str]:
    """Where a shard's files say other than its record."""
    left_out = plan["format"] == "npy"  # rows without a vector
    if contents.rows != record["vectors" if left_out else "rows"]:
        yield f"holds {contents.rows:,} rows, and its record says {record['rows']:,}"
    if contents.vectors != record["vectors"]:
        yield f"holds {contents.vectors:,} vectors, and its record says {record['vectors']:,}"
    if not left_out and (contents.statuses, contents.tokens) != (record["status_counts"], record["tokens"]):
        yield "its receipts do not add up to those of its record"
    if not contents.finite:
        yield "holds a number that is not finite"
    if plan["input"]["columns"]["id"] is None and "groups" not in plan:
        rows_in = range(record["start"], record["stop"])
        ids = contents.ids_as_numbers()
        # A text has a row for each of its units.
        ordered = ids is not None and all(a < b or ("texts" in record and a == b) for a, b in pairwise(ids))
        if not ordered or (ids and not (ids[0] in rows_in and ids[-1] in rows_in)):
            yield "its ids are not the numbers of its rows in their order"
