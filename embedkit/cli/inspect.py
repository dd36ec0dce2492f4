"""`embedkit inspect`: what an output holds."""

from __future__ import annotations

from typing import Annotated

import typer

from embedkit.inspection import inspect_output, lines


def inspect(out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or file that encode wrote.")]) -> None:
    """Show what an output holds: rows, dimensions, recipe, receipts, norms. Needs no model."""
    for line in lines(inspect_output(out)):
        print(line)
