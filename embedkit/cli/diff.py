"""`embedkit diff`: compares two outputs row by row."""

from __future__ import annotations

import json
from typing import Any

from embedkit.cli.options import STORE_OPTION, argument, option, take, takes
from embedkit.cli.printing import show
from embedkit.config import at_least
from embedkit.errors import OutputError
from embedkit.output.output_path import output_path


@takes(
    argument("first", str, "A", "Folder or file written by encode, or its URI."),
    argument("second", str, "B", "Folder or file to compare it with."),
    option("--tolerance X", float, "Largest |Δ| of any value in equal vectors. By default 0: equal to the bit."),
    option("--min-cosine X", float, "Smallest cosine of equal vectors; |Δ| is then judged only with --tolerance."),
    option("--sample N", 10_000, "Maximum rows for linear CKA and shared neighbours."),
    option("--seed N", 0, "Random seed of the choice of these rows."),
    option("--limit-rows-shown N", 20, "Maximum rows to list."),
    STORE_OPTION,
    option("--json", False, "Print one JSON object.", name="as_json"),
)
def diff(*, first: str, second: str, limit_rows_shown: int, as_json: bool, **options: Any) -> None:
    """Compare two outputs row by row.

    Matches rows by id, and shows which rows, receipts, vectors and fields of the recipe differ. Linear CKA and
    shared neighbours compare vectors of other dimensions, too. Exit code 0 if the outputs are the same, 5 if they
    differ. Needs no model.

    Example: embedkit diff notes.embeddings again.embeddings --tolerance 1e-5
    """
    options.pop("store_option")
    at_least("--limit-rows-shown", limit_rows_shown, 0)
    # Imports numpy and pyarrow: not before, so that `--help` is fast.
    from embedkit import comparison

    config = take(comparison.ComparisonConfig, options, first=output_path(first), second=output_path(second))
    found = comparison.compare_outputs(config)
    if as_json:
        shown = comparison.as_json(found, most_rows=limit_rows_shown)
        show([json.dumps(shown, allow_nan=False)])
    else:
        show(comparison.as_lines(found, most_rows=limit_rows_shown))
    if not found.is_same:
        raise OutputError(
            f"{config.first} and {config.second} differ: {found.differences}",
            hint="the lines above say how; --tolerance or --min-cosine allow for rounding",
        )
    if not as_json:
        print("the same")
