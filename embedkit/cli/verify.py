"""`embedkit verify`: whether an output is as it was written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from embedkit.errors import OutputError


def verify(out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or file that encode wrote.")]) -> None:
    """Check every file of an output: size, SHA-256, page checksums, rows and their order. Needs no model."""
    # pyarrow is imported here, so that `--help` does not wait for it.
    from embedkit.verification import verify_output

    found = verify_output(Path(out))
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    for problem in found.problems:
        print(problem)
    if found.problems:
        raise OutputError(f"{out} is not as it was written: {_faults(len(found.problems))}", hint=found.way_out)
    print(
        f"{out}: as it was written: {found.rows:,} rows, {found.vectors:,} vectors, "
        f"{found.files:,} files, {found.bytes / 1e6:,.1f} MB"
    )


def _faults(count: int) -> str:
    return "1 fault" if count == 1 else f"{count:,} faults"
