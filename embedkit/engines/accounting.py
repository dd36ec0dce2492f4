"""Rows in = vectors + nulls + rejects: held against the records of all shards before an output is called whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from embedkit.errors import EmbedkitError

#: Statuses of rows that have a vector; every other one says why there is none.
_WITH_VECTOR = ("ok", "truncated", "chunked")
#: Statuses of rows that have none although nothing is wrong with them.
_WITHOUT_FAULT = ("empty", "no_unit", "outside")


def account_for_rows(
    records: Iterable[Mapping[str, Any]], rows: int | None, *, on_bad_row: str, lists_empty: bool
) -> None:
    """See that every row of the input is in exactly one shard, and there a vector, a null or a reject.

    Args:
        records: of all shards, by number.
        rows: of the input; None if it was a stream, which the records alone tell of.
        on_bad_row: fail, null or skip; only skipped rows are missing from the output.
        lists_empty: whether empty texts are rejects too, as beside .npy.

    Raises:
        EmbedkitError: they are not. That is a fault of embedkit's, and the output is not whole.
    """
    next_row = 0
    for record in records:
        status, texts = record["status_counts"], record.get("texts", record)
        listed = sum(status.get(word, 0) for word in _WITHOUT_FAULT) if lists_empty else 0
        skipped = record["rejects"] - listed if on_bad_row == "skip" else 0
        sound = (
            record["start"] == next_row
            and texts["rows"] + skipped == record["stop"] - record["start"]
            and texts["rows"] == sum(texts["status_counts"].values())
            and record["rows"] == sum(status.values())
            and record["vectors"] == sum(status.get(word, 0) for word in _WITH_VECTOR)
        )
        if not sound:
            raise _unaccounted(f"shard {record['index']}, rows {record['start']} to {record['stop']}")
        next_row = record["stop"]
    if rows is not None and next_row != rows:
        raise _unaccounted(f"rows {next_row} to {rows}")


def _unaccounted(where: str) -> EmbedkitError:
    return EmbedkitError(
        f"a fault of embedkit: not every row is accounted for in {where}; the output is not finished",
        hint="please report this line with your versions (`embedkit doctor`)",
    )
