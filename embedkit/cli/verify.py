"""`embedkit verify`: whether an output is as it was written, and whether it is what the model says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedkit.cli.download_progress import shown_fetching
from embedkit.cli.parsing import given_on
from embedkit.cli.printing import show
from embedkit.config import at_least
from embedkit.errors import OutputError, UsageError
from embedkit.storage.standard_streams import reserved_for_rows

if TYPE_CHECKING:
    from embedkit.verify.recompute import ReferenceModel

#: Rows told one by one.
_TOLD = 20


#: Options that say how rows are computed again.
_OF_RESAMPLING = ("input", "model", "revision", "offline", "trust_remote_code", "device", "seed")


def verify(
    ctx: typer.Context,
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or file that encode wrote.")],
    *,
    resample: Annotated[
        int | None, typer.Option(metavar="N", help="Compute N random rows again, each alone in fp32, and compare.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of rows.")] = 0,
    input: Annotated[  # noqa: A002 - the option's name
        list[str] | None, typer.Option(help="Where the input is now, by default where it was; repeatable.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("-m", "--model", help="Where the model is now, by default where it was.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Open no socket.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, mps.")] = "cpu",
) -> None:
    """Check every file of an output: size, SHA-256, page checksums, rows and their order. Needs no model.

    With --resample N, N random rows are computed again from the input, each alone, unbatched and in fp32.
    """
    at_least("--resample", resample, 1)
    unused = [name for name in _OF_RESAMPLING if name in given_on(ctx)]
    if resample is None and unused:
        raise UsageError(
            f"--{unused[0].replace('_', '-')} is for --resample", hint="add --resample 100, or leave it out"
        )
    # pyarrow is imported here, so that `--help` does not wait for it.
    from embedkit.verify import verify_output

    found = verify_output(Path(out))
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    show(found.problems)
    if found.problems:
        raise OutputError(f"{out} is not as it was written: {_faults(len(found.problems))}", hint=found.way_out)
    print(
        f"{out}: as it was written: {found.rows:,} rows, {found.vectors:,} vectors, "
        f"{found.files:,} file{'s' * (found.files != 1)}, {found.bytes / 1e6:,.1f} MB"
    )
    if resample is not None:
        from embedkit.verify.recompute import ReferenceModel

        reference = ReferenceModel(model, revision, offline, trust_remote_code, device)
        _resample(Path(out), resample, seed, tuple(input or ()), reference)


def _resample(out: Path, rows: int, seed: int, inputs: tuple[str, ...], reference: ReferenceModel) -> None:
    from embedkit.verify.recompute import recompute

    with reserved_for_rows(), shown_fetching():
        came = recompute(out, rows, seed=seed, inputs=inputs, reference=reference)
    told = [str(deviation) for deviation in came.deviations[:_TOLD]]
    told.append(f"{came.rows:,} random rows (--seed {seed}) computed again, each alone in fp32:")
    if came.cosines:
        told.append(
            f"max |Δ| {came.max_difference:.2e}, cosine min {min(came.cosines):.7f}, "
            f"mean {sum(came.cosines) / len(came.cosines):.7f}"
        )
    if came.bits:
        told.append(f"{came.equal_bits:,} of {came.bits:,} bits equal ({came.equal_bits / came.bits:.3%})")
    show([*told, f"{'pass' if came.passed else 'FAIL'}: allowed is {came.tolerance}"])
    if not came.passed:
        raise OutputError(
            f"{out} differs from what the model gives for {len(came.deviations):,} of {came.rows:,} rows",
            hint="encode again with --on-exists overwrite; if it fails again, report it (see `embedkit doctor`)",
        )


def _faults(count: int) -> str:
    return "1 fault" if count == 1 else f"{count:,} faults"
