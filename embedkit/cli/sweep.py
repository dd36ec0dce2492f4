"""`embedkit sweep`: which layer and which pooling, answered on the user's own labels."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedkit.cli.encode import running
from embedkit.cli.options import ConfigFile, run_config, takes_options_of
from embedkit.cli.output_names import check_name, named
from embedkit.cli.progress import MODES
from embedkit.config import one_of
from embedkit.errors import UsageError
from embedkit.storage.filesystem import read_file

if TYPE_CHECKING:
    from embedkit.study.verdict import Row, Verdict

_LINE_SECONDS = 30.0
_SHOWN = 10
#: Options of `encode` that a sweep settles itself, or that make no sense for vectors that are compared.
_NOT_TAKEN = (
    *("keep", "layer_agg", "normalize", "truncate_dim", "precision", "output_format", "shard_id", "num_shards"),
    *("level", "subtoken_pooling", "spans", "spans_column", "group_by", "group_pool", "order_by", "with_head"),
)
#: Options that are about a sweep, or about how it runs, and not about the vectors.
_NOT_REPEATED = (
    *("inputs", "output", "label", "group", "task", "metric", "probe", "folds", "seed", "dedupe"),
    *("layers", "pool", "limit", "on_exists", "verify", "shard_rows", "private", "progress", "quiet", "config"),
    "help",
)


@takes_options_of(run_config, leave_out=_NOT_TAKEN)
def sweep(
    ctx: typer.Context,
    *,
    label: Annotated[str, typer.Option(help="Column of labels: classes, or values.")],
    output: Annotated[str, typer.Option("-o", "--output", help="Folder for the results and the vectors.")],
    group: Annotated[
        str | None,
        typer.Option(help="Column, such as patient_id: rows of one value are never in training and test both."),
    ] = None,
    task: Annotated[str, typer.Option(help="auto (by the labels), classification, regression.")] = "auto",
    metric: Annotated[
        str | None,
        typer.Option(help="Chooses: accuracy, macro_f1, auroc; r2, spearman. Default: accuracy or r2."),
    ] = None,
    probe: Annotated[str, typer.Option(help="ridge, or logistic (takes many times as long).")] = "ridge",
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option(help="Decides the folds.")] = 0,
    dedupe: Annotated[
        bool, typer.Option("--dedupe", help="Keep texts that are nearly the same in one fold.")
    ] = False,
    layers: Annotated[str, typer.Option(help="Layers to compare: all, -4:, 0,6,12.")] = "all",
    pool: Annotated[
        str, typer.Option(help="Poolings to compare, a comma list; auto: all that fit the model.")
    ] = "auto",
    private: Annotated[
        bool, typer.Option("--private", help="New files and folders are for you alone (0600, 0700).")
    ] = False,
    progress: Annotated[str, typer.Option(help="auto, bar, json, none.")] = "auto",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say errors and the result only.")] = False,
    config: ConfigFile = None,  # noqa: ARG001 - read before the other options, by its callback
    **options: Any,
) -> None:
    """Compare layers and poolings on labelled rows: a forward pass, then a linear probe for each.

    Example: embedkit sweep notes.csv --label label --group patient_id -o sweep
    """
    one_of("--progress", progress, MODES)
    if output == "-":
        raise UsageError("a sweep writes a folder of files, not to stdout", hint="name a folder with -o")
    check_name(output, ())
    # numpy and what builds on it are imported from here on: `--help` waits for none of them.
    from embedkit.storage.disk_errors import as_read_error
    from embedkit.study.run_sweep import SHARD_ROWS, VECTORS, SweepConfig
    from embedkit.study.run_sweep import sweep as carry_out

    options["shard_rows"] = options["shard_rows"] or SHARD_ROWS
    output = named(output)
    asked = SweepConfig(
        run=run_config(
            **options,
            output=str(Path(output) / VECTORS),
            output_format="arrow",
            layers=layers,
            layer_agg="separate",
            pool=pool,
            normalize=False,
            shard_id=0,
            num_shards=1,
        ),
        folder=Path(output),
        label=label,
        group=group,
        task=task,
        metric=metric,
        probe=probe,
        folds=folds,
        seed=seed,
        dedupe=dedupe,
    )
    repeated = _repeated(ctx)
    with running(progress, quiet=quiet, private=private) as (stop, watcher):
        found = carry_out(
            asked,
            watcher,
            stop,
            command=lambda winner: _command(options["inputs"], winner, repeated),
            on_judged=_Told(silent=quiet or progress == "none"),
        )
    summary = asked.folder / "summary.txt"
    with as_read_error(summary):
        told = read_file(summary).decode("utf-8", errors="surrogateescape")
    if found is None:
        print(told, end="")
        return
    near = found.facts["near_duplicates"]
    if near["pairs_across_folds"] and not quiet:
        print(
            f"warning: {near['pairs_across_folds']:,} pair(s) of texts are nearly the same and in two folds: "
            "tests have seen the like in training; --dedupe keeps such texts together",
            file=sys.stderr,
        )
    for line in _table(found.verdict):
        print(line)
    print(f"\n{told}", end="")


class _Told:
    """Says how many candidates are judged, every 30 s."""

    def __init__(self, *, silent: bool) -> None:
        self.silent = silent
        self.said = time.monotonic()

    def __call__(self, done: int, of: int) -> None:
        if not self.silent and (done == of or time.monotonic() - self.said > _LINE_SECONDS):
            self.said = time.monotonic()
            print(f"{done} of {of} candidates judged", file=sys.stderr, flush=True)


def _repeated(ctx: typer.Context) -> list[str]:
    """The options of `encode` that this sweep was given, as a command line, wherever they came from."""
    said: list[str] = []
    for option in ctx.command.params:
        name = option.name or ""
        value = ctx.params.get(name)
        if name in _NOT_REPEATED or not isinstance(value, (str, int, list, tuple)) or value == option.default:
            continue
        flag = option.opts[-1]
        if isinstance(value, bool):
            said += [flag] if value else []
            continue
        for one in value if isinstance(value, (list, tuple)) else [value]:
            said += [flag, str(one)]
    return said


def _command(inputs: list[str], winner: dict[str, str], repeated: list[str]) -> str:
    """The command line that makes the winner's vectors."""
    # With `=`, because a value such as -1 would look like an option.
    chosen = [f"--{name.replace('_', '-')}={value}" for name, value in winner.items()]
    return shlex.join(["embedkit", "encode", *inputs, *repeated, *chosen])


def _table(verdict: Verdict) -> list[str]:
    """The best candidates and the baselines, aligned."""
    best = verdict.ranked[:_SHOWN]
    shown = [*best, *(row for row in verdict.baselines if row not in best)]
    metrics = list(verdict.nested)
    cells = [["", "candidate", "dims", *metrics]]
    cells += [[_mark(row), row.candidate.name, str(row.dims), *_values(row, verdict)] for row in shown]
    widths = [max(len(line[place]) for line in cells) for place in range(len(cells[0]))]
    told = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    ]
    return [*told, "* best; = not distinguishable from it; b baseline"]


def _mark(row: Row) -> str:
    place = "*" if row.is_winner else ("" if row.distinguishable else "=")
    return f"{place}{'b' if row.baseline else ''}"


def _values(row: Row, verdict: Verdict) -> list[str]:
    return [verdict.value(interval, name) for name, interval in row.intervals.items()]
