"""`embedkit sweep`: compares layers and poolings on labelled rows."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from embedkit.cli.options import (
    CONFIG,
    LABEL_OPTIONS,
    PROCESS_OPTIONS,
    label_option,
    option,
    pop_fields,
    run_config,
    study_options,
    take,
    takes,
)
from embedkit.cli.output_names import absolute_name, check_name
from embedkit.cli.progress import LINE_SECONDS, MODES, Interval, print_event
from embedkit.cli.run_context import run_context
from embedkit.config import LabelConfig, ModelConfig, one_of
from embedkit.config.fit_config import WITHOUT_LABELS
from embedkit.errors import UsageError
from embedkit.output.sweep_summary import WINNER
from embedkit.storage.filesystem import read_file

if TYPE_CHECKING:
    from embedkit.study.sweep_config import SweepConfig
    from embedkit.study.verdict import Row, Verdict

_SHOWN = 10
#: Options about the sweep itself, and those that it chooses: `encode` is suggested without them.
_NOT_OF_ENCODE = frozenset(
    {
        *("output", "model", "revision", "layers", "pool", "pooler", "metric", "probe", "folds", "limit"),
        *("on_exists", "verify", "shard_rows", "private", "progress", "quiet", "config", "help"),
        *(field.name for field in fields(LabelConfig)),
    }
)
#: Options that `fit` lacks, or that mean something else there.
_NOT_OF_FIT = frozenset({"stride", "chunk_pool", "batch_size"})
#: Options that new rows need too: the file of the probe says how texts become tokens, but not where they are.
_OF_NEW_ROWS = ("text_column", "template", "id_column", "offline", "trust_remote_code", "device", "dtype")

_MODELS = option(
    "-m --model",
    list[str],
    "Model: a folder, an alias or a hub id. Repeatable: all are compared. By default minilm.",
    rich_help_panel="Model",
)
_comparison = partial(option, rich_help_panel="Comparison")


@takes(
    *(_MODELS if one.name == "model" else one for one in study_options("layers", "layer_agg")),
    label_option("--label COLUMN", str, "Column of labels: classes or numbers.", required=True),
    option("-o --output", str, "Folder for the results and the vectors.", required=True, rich_help_panel="Output"),
    *LABEL_OPTIONS,
    label_option("--test FILE", list[str], "File of test rows, used for the final score only. Repeatable."),
    _comparison(
        "--metric",
        str,
        "Metric to rank by: accuracy (default), macro_f1 (default of multilabel), micro_f1, auroc, "
        "average_precision; for ordinal qwk (default), spearman, accuracy; for regression r2 (default), spearman.",
    ),
    _comparison("--probe", "ridge", "Linear probe: ridge, logistic (much slower)."),
    _comparison("--folds N", 5, "Folds of the cross-validation."),
    _comparison("--layers", "all", "Layers to compare, such as all, -4:, 0,6,12."),
    _comparison("--pool", "auto", "Poolings to compare: a comma list, or auto for all that suit the model."),
    _comparison(
        "--pooler KIND",
        list[str],
        "Poolers to fit and compare on the same folds: idf, pca:N, whiten, mean, cls, weighted-layers, lstm, "
        "attention, attention-tanh, multihead-attention, or a package's; a comma list. Repeatable.",
    ),
    *PROCESS_OPTIONS,
    CONFIG,
)
def sweep(ctx: typer.Context, *, output: str, private: bool, progress: str, quiet: bool, **options: Any) -> None:
    """Compare models, layers and poolings on labelled rows.

    Trains a linear probe on the vectors of each, with cross-validation, and says which is best.

    Example: embedkit sweep notes.csv --label label --group patient_id -o sweep
    """
    one_of("--progress", progress, MODES)
    if output == "-":
        raise UsageError("a sweep writes a folder, not to stdout", hint="name a folder with -o")
    check_name(output, ())
    # Imports numpy and more: not before, so that `--help` is fast.
    from embedkit.output.sweep_summary import VECTORS
    from embedkit.storage.disk_errors import as_read_error
    from embedkit.study.run_sweep import SHARD_ROWS
    from embedkit.study.run_sweep import sweep as run_sweep
    from embedkit.study.sweep_config import SweepConfig

    folder = Path(absolute_name(output))
    options["shard_rows"] = options["shard_rows"] or SHARD_ROWS
    poolers = tuple(name.strip() for typed in options.pop("pooler") or () for name in typed.split(","))
    own = {**pop_fields(SweepConfig, options), "labels": take(LabelConfig, options), "poolers": poolers}
    vectors = str(folder / VECTORS)
    options.update(output=vectors, output_format="arrow", layer_agg="separate", normalize=False)
    models = options.pop("model") or [ModelConfig().model]
    runs = tuple(run_config(**options, model=model, shard_id=0, num_shards=1) for model in models)
    asked = SweepConfig(**own, runs=runs, folder=folder)
    commands = _Commands(ctx, asked, output)
    with run_context(progress, quiet=quiet, private=private) as (stop, callbacks):
        found = run_sweep(
            asked,
            callbacks,
            stop,
            command=commands,
            on_candidate=_CountCandidates("none" if quiet else progress),
        )
    path = asked.folder / "summary.txt"
    with as_read_error(path):
        summary = read_file(path).decode("utf-8", errors="surrogateescape")
    if found is None:
        print(summary, end="")
        return
    for line in _table(found.verdict, found.facts["models"]):
        print(line)
    print(f"\n{summary}", end="")


class _CountCandidates:
    """Prints the number of evaluated candidates every 30 s, as `--progress` asks."""

    def __init__(self, progress: str) -> None:
        self.progress = progress
        self.interval = Interval()

    def __call__(self, done: int, total: int) -> None:
        if self.progress == "none" or not (self.interval.has_passed(LINE_SECONDS) or done == total):
            return
        if self.progress == "json":
            print_event(event="candidates", done=done, total=total)
        else:
            print(f"{done} of {total} candidates evaluated", file=sys.stderr, flush=True)


class _Commands:
    """Makes the command lines that a sweep suggests."""

    def __init__(self, ctx: typer.Context, config: SweepConfig, output: str) -> None:
        self.inputs = config.run.input.shown_inputs
        self.labels = config.labels
        self.output = output
        self.given = dict(_given(ctx))

    def __call__(self, name: str, chosen: Mapping[str, str]) -> str:
        """Returns the command line to `encode` the input, to `fit` a pooler to it, or to `predict` new rows.

        Args:
            name: encode, fit or predict.
            chosen: options that the sweep has chosen.
        """
        file = str(Path(self.output) / WINNER)
        chosen = {option: of.replace(WINNER, file) if option == "pool" else of for option, of in chosen.items()}
        words = [_assigned(f"--{option.replace('_', '-')}", value) for option, value in chosen.items()]
        inputs: tuple[str, ...] = (*self.inputs, *self.labels.test)
        names = [option for option in self.given if option not in _NOT_OF_ENCODE]
        match name:
            case "predict":
                inputs, names = ("NEW.csv",), [*_OF_NEW_ROWS]
                words.append("--with-head")
            case "fit":
                inputs = self.inputs
                names = [option for option in (*names, "limit") if option not in _NOT_OF_FIT]
                if chosen["pooler"].partition(":")[0] not in WITHOUT_LABELS:
                    names += [field.name for field in fields(LabelConfig)]
                    words += ["--test=0"] if not self.labels.test and self.labels.split_column is None else []
        # A file named `-notes.csv` would look like an option.
        files = [f"./{typed}" if typed.startswith("-") else typed for typed in inputs]
        used = [word for option in names for word in self.given.get(option, ())]
        return shlex.join(["embedkit", "fit" if name == "fit" else "encode", *files, *used, *words])


def _given(ctx: typer.Context) -> Iterator[tuple[str, list[str]]]:
    """Yields the options that this sweep has, from the command line, a config file or the environment, by name."""
    for parameter in ctx.command.params:
        name = parameter.name or ""
        value = ctx.params.get(name)
        if name == "inputs" or not isinstance(value, (str, int, list, tuple)) or value == parameter.default:
            continue
        flag = parameter.opts[-1]
        if isinstance(value, bool):
            if value:
                yield name, [flag]
            continue
        if name == "sql" and not str(value).startswith("@"):
            value = "@QUERY.sql"  # a query may name people
        yield name, [_assigned(flag, one) for one in (value if isinstance(value, (list, tuple)) else [value])]


def _assigned(flag: str, value: object) -> str:
    """Returns an option with its value after `=`, since a value such as -1 would look like an option."""
    return f"{flag}={value}"


def _table(verdict: Verdict, models: list[dict[str, Any]]) -> list[str]:
    """Formats the best candidates and the baselines; of several models with what they cost."""
    best = verdict.ranked[:_SHOWN]
    shown = [*best, *(row for row in verdict.baselines if row not in best)]
    several = len(models) > 1
    seconds = {model["name"]: model["seconds_per_1000_rows"] for model in models}
    cells = [["", "candidate", "dims", *(["bytes", "s/1,000 rows"] if several else []), *verdict.winner.intervals]]
    for row in shown:
        taken = seconds.get(row.candidate.model)
        costs = [str(4 * row.dims), "" if taken is None else f"{taken:.3g}"] if several else []
        cells.append([_mark(row), row.candidate.name, str(row.dims), *costs, *_values(row, verdict)])
    widths = [max(len(line[place]) for line in cells) for place in range(len(cells[0]))]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    return [*lines, "* best; = not distinguishable from the best; b baseline"]


def _mark(row: Row) -> str:
    rank = "*" if row.is_winner else ("" if row.distinguishable else "=")
    return f"{rank}{'b' if row.baseline else ''}"


def _values(row: Row, verdict: Verdict) -> list[str]:
    return [verdict.value(interval, name) for name, interval in row.intervals.items()]
