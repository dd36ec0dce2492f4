"""`embedkit verify`: checks an output's files, and its vectors against the model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from embedkit.cli.options import HUB_OPTIONS, STORE_OPTION, argument, option, read_query, take, takes
from embedkit.cli.parsing import given_on
from embedkit.cli.printing import show
from embedkit.cli.progress import shown_downloads
from embedkit.config import at_least
from embedkit.errors import OutputError, UsageError
from embedkit.output.output_path import output_path
from embedkit.percent import percent
from embedkit.storage.standard_streams import reserved_for_rows

if TYPE_CHECKING:
    from embedkit.verify.compare import Comparison
    from embedkit.verify.findings import Verification

#: Number of differing rows to list.
_LISTED = 20
#: Options that apply to --resample only.
_RESAMPLE_OPTIONS = ("input", "sql", "model", "revision", "offline", "trust_remote_code", "device", "seed")


@takes(
    argument("out", str, "OUT", "Folder or file written by encode, or its URI."),
    option("--resample N", int, "Also recompute N random rows in fp32 and compare them."),
    option("--seed N", 0, "Random seed of the choice of rows."),
    option("--input INPUT", list[str], "Input files, if they have moved. Repeatable."),
    option("--sql QUERY", str, "Query, if the input was a database."),
    option("-m --model", str, "Model, if it has moved."),
    *HUB_OPTIONS,
    option("--device", "cpu", "Device for --resample: auto, cpu, cuda, cuda:N, mps."),
    STORE_OPTION,
    option("--json", False, "Print one JSON object.", name="as_json"),
)
def verify(ctx: typer.Context, *, out: str, resample: int | None, as_json: bool, **options: Any) -> None:
    """Check the files of an output, and on request its vectors.

    Checks sizes, SHA-256, page checksums, rows and their order, without a model. With --resample N, also
    recomputes N random rows from the input, one at a time in fp32, and compares the vectors and scores.
    """
    at_least("--resample", resample, 1)
    unused = [name for name in _RESAMPLE_OPTIONS if name in given_on(ctx)]
    if resample is None and unused:
        raise UsageError(
            f"--{unused[0].replace('_', '-')} has no effect without --resample",
            hint="add --resample 100, or leave it out",
        )
    # Imports pyarrow: not before, so that `--help` is fast.
    from embedkit.verify import verify_output

    place = output_path(out)
    out = out if isinstance(place, Path) else str(place)  # without a secret
    found = verify_output(place)
    result = {"path": out, "ok": not found.problems, **found.as_json(), "resample": None}
    if not as_json:
        for note in found.notes:
            print(f"note: {note}", file=sys.stderr)
        show(found.problems or [_as_written(out, found)])
    error = None
    if count := len(found.problems):
        error = OutputError(
            f"{out} is not as it was written: {count:,} fault{'s' * (count != 1)}", hint=found.way_out
        )
    elif resample is not None:
        from embedkit.verify.recompute import ReferenceModel, recompute

        reference = take(ReferenceModel, options)
        with reserved_for_rows(), shown_downloads():
            compared = recompute(
                place,
                resample,
                seed=options["seed"],
                inputs=tuple(options["input"] or ()),
                reference=reference,
                sql=read_query(options["sql"]),
            )
        result |= {"ok": compared.passed, "resample": {"seed": options["seed"], **compared.as_json()}}
        if not as_json:
            show(_lines(compared, options["seed"]))
        if not compared.passed:
            error = OutputError(
                f"{out} differs from what the model computes in "
                f"{len({deviation.row for deviation in compared.deviations}):,} of {compared.rows:,} rows",
                hint="encode again with --on-exists overwrite; if it still differs, report it with "
                "`embedkit doctor`",
            )
    if as_json:
        print(json.dumps(result))
    if error is not None:
        raise error


def _as_written(out: str, found: Verification) -> str:
    return (
        f"{out}: as it was written: {found.rows:,} rows, {found.vectors:,} vectors, "
        f"{found.files:,} file{'s' * (found.files != 1)}, {found.bytes / 1e6:,.1f} MB"
    )


def _lines(found: Comparison, seed: int) -> list[str]:
    """Formats a comparison with vectors that were computed again."""
    lines = [str(deviation) for deviation in found.deviations[:_LISTED]]
    lines.append(f"{found.rows:,} random rows (--seed {seed}) recomputed, one at a time in fp32:")
    if found.cosines:
        lines.append(
            f"max |Δ| {found.max_difference:.2e}, cosine min {min(found.cosines):.7f}, "
            f"mean {sum(found.cosines) / len(found.cosines):.7f}"
        )
    if found.bits:
        lines.append(
            f"{found.equal_bits:,} of {found.bits:,} bits equal ({percent(found.equal_bits / found.bits, 3)})"
        )
    if found.scores:
        lines.append(f"{found.scores:,} scores of the head: max |Δ| {found.max_score_difference:.2e}")
    return [*lines, f"{'pass' if found.passed else 'FAIL'}: tolerance is {found.tolerance}"]
