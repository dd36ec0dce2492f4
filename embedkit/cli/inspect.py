"""`embedkit inspect`: shows what an output contains."""

from __future__ import annotations

from typing import Annotated

import typer


def inspect(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or file written by encode.")],
) -> None:
    """Show the contents of an output.

    Shows rows, dimensions, the recipe, receipts and norms. Needs no model.
    """
    # Imports pyarrow: not before, so that `--help` is fast.
    from embedkit.output.inspect import inspect_output, lines

    for line in lines(inspect_output(out)):
        print(line)
