"""The error that names faulty rows: where and why, never what they hold."""

from __future__ import annotations

from collections.abc import Sequence

from embedkit.errors import InputError
from embedkit.records import Fault


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
    return InputError(
        f"{count} {'row' if count == 1 else 'rows'} cannot be read: {', '.join(named)}{more}",
        hint="mend them, or use --on-bad-row null (kept without a vector) or skip (left out); both are listed",
    )
