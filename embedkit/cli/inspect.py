"""`embedkit inspect`: shows what an output contains."""

from __future__ import annotations

from embedkit.cli.options import argument, takes


@takes(argument("out", str, "OUT", "Folder or file written by encode."))
def inspect(*, out: str) -> None:
    """Show the contents of an output.

    Shows rows, dimensions, the recipe, receipts and norms. Needs no model.
    """
    # Imports pyarrow: not before, so that `--help` is fast.
    from embedkit.output.inspect import inspect_output, lines

    for line in lines(inspect_output(out)):
        print(line)
