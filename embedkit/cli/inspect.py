"""`embedkit inspect`: shows what an output or a pooler's file contains."""

from __future__ import annotations

import json

from embedkit.cli.options import STORE_OPTION, argument, option, takes


@takes(
    argument(
        "out", str, "OUT", "Folder or file written by encode, or its URI; or a .safetensors file of fit or sweep."
    ),
    STORE_OPTION,
    option("--json", False, "Print one JSON object.", name="as_json"),
)
def inspect(*, out: str, as_json: bool, store_option: list[str] | None) -> None:  # noqa: ARG001 - applied by its callback
    """Show the contents of an output or of a pooler's file.

    Shows rows, dimensions, the recipe, receipts and norms of an output; layers, learned weights of layers, classes
    and scores of a pooler. Needs no model.
    """
    if out.endswith(".safetensors"):
        from embedkit.pooling.pooler_facts import facts_lines, pooler_facts
        from embedkit.pooling.pooler_files import read_pooler

        facts = pooler_facts(read_pooler(out))
        for line in [json.dumps(facts)] if as_json else facts_lines(facts):
            print(line)
        return
    # Imports pyarrow: not before, so that `--help` is fast.
    from embedkit.output.inspect import inspect_output, lines

    inspection = inspect_output(out)
    if as_json:
        print(json.dumps(inspection.as_json()))
        return
    for line in lines(inspection):
        print(line)
