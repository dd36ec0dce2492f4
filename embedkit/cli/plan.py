"""`embedkit plan`: estimates a run without loading the model."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import typer

from embedkit.cli.options import CONFIG, RUN_OPTIONS, names_model, option, run_config, takes
from embedkit.cli.printing import check_stdin
from embedkit.cli.progress import shown_downloads
from embedkit.errors import UsageError
from embedkit.storage.standard_streams import reserved_for_rows


@takes(
    *RUN_OPTIONS,
    option("--rate TOKENS/S", float, "Speed of the model, as encode reports it, for an estimate of the time."),
    option("--json", False, "Print one JSON object.", name="as_json"),
    CONFIG,
)
def plan(ctx: typer.Context, *, rate: float | None, as_json: bool, **options: Any) -> None:
    """Estimate a run without running the model.

    Reads and tokenizes the table as encode would. Reports rows and faults, text lengths, truncation, unknown
    tokens and casing, size on disk, time and memory. Writes nothing.
    """
    if rate is not None and not 0 < rate < math.inf:
        raise UsageError(f"--rate cannot be {rate:g}", hint="give tokens per second, such as 8000")
    # Nothing is written, so no name is derived from the input.
    options["output"] = options["output"] or "planned.embeddings"
    asked = run_config(**options)
    check_stdin(asked.input.inputs)
    # Imports numpy and pyarrow: not before, so that a wrong option is reported at once.
    from embedkit.estimate import estimate
    from embedkit.pooling.fitted_model import with_model_of_poolers

    asked, taken = (asked, ()) if names_model(ctx) else with_model_of_poolers(asked)
    with reserved_for_rows(), shown_downloads():
        found = estimate(asked, rate)
    if as_json:
        print(json.dumps(found.as_json()))
        return
    for sentence in (*taken, *found.notices):
        print(f"note: {sentence}", file=sys.stderr)
    for line in found.as_text():
        print(line)
