"""The error that names faulty rows: where and why, never what they hold."""

from __future__ import annotations

from collections.abc import Sequence

from embedkit.errors import InputError
from embedkit.types import Fault


def unreadable_rows(faults: Sequence[Fault], count: int) -> InputError:
    """The error for rows that cannot be read.

    Args:
        faults: those that are named, at least one.
        count: how many there are in all.
    """
    named = [
        f"row {fault.row} of {fault.file} ({fault.code}{'' if fault.offset is None else f', byte {fault.offset}'})"
        for fault in faults
    ]
    more = f" and {count - len(named)} more" if count > len(named) else ""
    ways = [way for code, way in _WAYS.items() if any(fault.code == code for fault in faults)]
    return InputError(
        f"{count} {'row' if count == 1 else 'rows'} cannot be read: {', '.join(named)}{more}",
        hint="; ".join((*ways, _LISTED)) if ways else f"mend them, or {_LISTED}",
    )


_LISTED = "use --on-bad-row null (kept without a vector) or skip (left out); both are listed"
#: Faults that are seldom those of a row, and what else to do about them.
_WAYS = {
    "not_utf8": "if the file is in another encoding, convert it: iconv -f WINDOWS-1252 -t UTF-8",
    **dict.fromkeys(
        ("lines_and_tabs_in_quotes", "lines_in_quotes"),
        "if quotes are mere letters in this file, say --quoting none; if cells do hold lines, --quoting double",
    ),
    "quote_across_cells": "if the quotes are mere letters, say --quoting double or none",
}
