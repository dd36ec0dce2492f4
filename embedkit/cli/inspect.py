"""`embedkit inspect`: what an output holds."""

from __future__ import annotations

from typing import Annotated

import typer


def inspect(out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or file that encode wrote.")]) -> None:
    """Show what an output holds: rows, dimensions, recipe, receipts, norms. Needs no model."""
    # pyarrow is imported here, so that `--help` does not wait for it.
    from embedkit.output.inspect import inspect_output, lines

    for line in lines(inspect_output(out)):
        print(line)
