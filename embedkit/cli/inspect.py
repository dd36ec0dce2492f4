"""`embedkit inspect`: shows what an output contains."""

from __future__ import annotations

import json

from embedkit.cli.options import argument, option, takes


@takes(
    argument("out", str, "OUT", "Folder or file written by encode."),
    option("--json", False, "Print one JSON object.", name="as_json"),
)
def inspect(*, out: str, as_json: bool) -> None:
    """Show the contents of an output.

    Shows rows, dimensions, the recipe, receipts and norms. Needs no model.
    """
    # Imports pyarrow: not before, so that `--help` is fast.
    from embedkit.output.inspect import inspect_output, lines

    inspection = inspect_output(out)
    if as_json:
        print(json.dumps(inspection.as_json()))
        return
    for line in lines(inspection):
        print(line)
