"""`embedkit plan`: what a run would come to, before a model is loaded."""

from __future__ import annotations

import json
import math
import sys
from typing import Annotated, Any

import typer

from embedkit.cli.download_progress import shown_fetching
from embedkit.cli.options import ConfigFile, run_config, takes_options_of
from embedkit.cli.printing import check_stdin
from embedkit.errors import UsageError
from embedkit.storage.standard_streams import reserved_for_rows


@takes_options_of(run_config)
def plan(
    *,
    rate: Annotated[
        float | None,
        typer.Option(metavar="TOKENS/S", help="How fast the model runs, as encode says at its end; for the time."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    config: ConfigFile = None,  # noqa: ARG001 - read before the other options, by its callback
    **options: Any,
) -> None:
    """Read a table as encode would, with the tokenizer alone, and say what a run comes to. Writes nothing.

    Rows and faults, lengths of the texts, what is cut, unknown tokens and casing, bytes on disk, time, memory.
    """
    if rate is not None and not 0 < rate < math.inf:
        raise UsageError(f"--rate cannot be {rate:g}", hint="give tokens a second, such as 8000")
    # Nothing is written, so the input need not give the output a name.
    options["output"] = options["output"] or "planned.embeddings"
    asked = run_config(**options)
    check_stdin(asked.input.inputs)
    # numpy and pyarrow are imported from here on: a wrong option is told without waiting for them.
    from embedkit.estimate import estimate

    with reserved_for_rows(), shown_fetching():
        found = estimate(asked, rate)
    if as_json:
        print(json.dumps(found.as_json()))
        return
    for sentence in found.notices:
        print(f"note: {sentence}", file=sys.stderr)
    for line in found.as_text():
        print(line)
