"""Accounts for every row of the input: rows in = vectors + nulls + rejects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from embedkit.errors import EmbedkitError, InputError
from embedkit.manifest.schema import Plan, ShardRecord
from embedkit.types import Fault

#: Statuses of rows that have a vector; the others give the reason for having none.
_WITH_VECTOR = ("ok", "truncated", "chunked")
#: Statuses of rows without a vector that are no fault.
_WITHOUT_FAULT = ("empty", "no_unit", "outside")


def account_for_rows(records: Iterable[ShardRecord], plan: Plan) -> None:
    """Checks that each row of the input is in exactly one shard, as a vector, a null or a reject.

    Args:
        records: of all shards, by number.
        plan: of the run; a stream's has no number of rows, which the records alone give.

    Raises:
        EmbedkitError: a row is missing or counted twice, by a fault of embedkit; the output is not complete.
    """
    next_row = 0
    for record in records:
        statuses, texts = record.by_row.statuses, record.by_text
        # Only skipped rows are missing from the output. With .npy, empty texts are listed as rejects too.
        listed = sum(statuses.get(word, 0) for word in _WITHOUT_FAULT) if plan.format == "npy" else 0
        skipped = record.rejects - listed if plan.on_bad_row == "skip" else 0
        adds_up = (
            record.start == next_row
            and texts.rows + skipped == record.stop - record.start
            and texts.rows == sum(texts.statuses.values())
            and record.by_row.rows == sum(statuses.values())
            and record.vectors == sum(statuses.get(word, 0) for word in _WITH_VECTOR)
        )
        if not adds_up:
            raise _unaccounted(f"shard {record.index}, rows {record.start} to {record.stop}")
        next_row = record.stop
    rows = plan.sharding.rows
    if rows is not None and next_row != rows:
        raise _unaccounted(f"rows {next_row} to {rows}")


def _unaccounted(where: str) -> EmbedkitError:
    return EmbedkitError(
        f"a fault of embedkit: not every row is accounted for in {where}; the output is not finished",
        hint="please report this line with your versions (`embedkit doctor`)",
    )


def unreadable_rows(faults: Sequence[Fault], count: int) -> InputError:
    """Returns the error for `count` unreadable rows: where `faults` of them are and why, never their content."""
    named = [
        f"row {fault.row} of {fault.file} ({fault.code}{'' if fault.offset is None else f', byte {fault.offset}'})"
        for fault in faults
    ]
    more = f" and {count - len(named)} more" if count > len(named) else ""
    ways = [way for code, way in _WAYS.items() if any(fault.code == code for fault in faults)]
    return InputError(
        f"{count} {'row' if count == 1 else 'rows'} cannot be read: {', '.join(named)}{more}",
        hint="; ".join((*ways, _LISTED)) if ways else f"fix them, or {_LISTED}",
    )


_LISTED = "use --on-bad-row null (kept without a vector) or skip (left out); both are listed"
#: Faults that are seldom a single row's, and what else to do about them.
_WAYS = {
    "not_utf8": "if the file is in another encoding, convert it: iconv -f WINDOWS-1252 -t UTF-8",
    **dict.fromkeys(
        ("lines_and_tabs_in_quotes", "lines_in_quotes"),
        "use --quoting none if quotes are ordinary characters here, --quoting double if cells contain line ends",
    ),
    "quote_across_cells": "use --quoting double or none if the quotes are ordinary characters",
}
