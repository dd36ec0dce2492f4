"""`embedkit fit`: trains a pooler on a frozen encoder."""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from embedkit.cli.options import (
    CONFIG,
    LABEL_OPTIONS,
    PROCESS_OPTIONS,
    label_option,
    option,
    run_config,
    study_options,
    take,
    takes,
)
from embedkit.cli.output_names import check_no_uri
from embedkit.cli.parsing import given_on
from embedkit.cli.printing import check_stdin
from embedkit.cli.progress import MODES, print_event
from embedkit.cli.run_context import run_context
from embedkit.config import LabelConfig, one_of
from embedkit.config.fit_config import KINDS, TRAINED, WITH_LAYER_POOL, FitConfig
from embedkit.errors import UsageError
from embedkit.percent import percent

if TYPE_CHECKING:
    from embedkit.study.run_fit import FitSummary
    from embedkit.study.train_pooler import Epoch

#: Options for poolers that are trained.
_TRAINING_OPTIONS = ("task", "epochs", "lr", "batch_size", "class_weight", "validation", "test", "patience")


_pooler = partial(option, rich_help_panel="Pooler")
_training = partial(option, rich_help_panel="Training")


@takes(
    *study_options("stride", "chunk_pool", "shard_rows", "on_exists", "verify", "batch_size"),
    _pooler(
        "--pooler",
        str,
        "Kind of pooler: idf, pca:N, whiten[:N]; with --label also mean, cls, weighted-layers, lstm, attention, "
        "attention-tanh, multihead-attention.",
        required=True,
    ),
    option("-o --output", str, "The .safetensors file to write.", required=True, rich_help_panel="Output"),
    label_option("--label COLUMN", str, "Column of labels: classes or numbers."),
    *LABEL_OPTIONS,
    _pooler("--layer-start N", int, "weighted-layers, lstm: first layer, instead of --layers. By default 1."),
    _pooler("--layer-pool", "mean", "weighted-layers, lstm, pca, whiten: how to pool each layer: mean, cls."),
    _pooler("--project N", int, "mean, cls: dimensions of a learned projection of the vector."),
    _pooler(
        "--hidden-size N",
        int,
        "attention, attention-tanh, lstm: hidden size. By default 512 (attention-tanh) or the model's.",
    ),
    _pooler("--heads N", int, "multihead-attention: number of heads. By default 8."),
    _training("--epochs N", 30, "Maximum epochs."),
    _training("--lr RATE", 1e-3, "Learning rate of AdamW."),
    _training("--batch-size N", 32, "Rows per training step."),
    _training("--class-weight", "none", "Weights of the classes in the loss: none, balanced."),
    _training("--validation SHARE", 0.15, "Share of the rows for early stopping."),
    label_option(
        "--test SHARE|FILE",
        list[str],
        "Share of the rows for the final score, or a file of test rows. By default 0.15. Repeatable.",
    ),
    _training("--patience N", 4, "Stop after N epochs without a lower validation loss."),
    _training("--states", "float16", "Precision of temporary token states on disk: float16, float32."),
    option("--overwrite", False, "Replace an existing file.", rich_help_panel="Output"),
    *PROCESS_OPTIONS,
    CONFIG,
)
def fit(ctx: typer.Context, *, private: bool, progress: str, quiet: bool, **options: Any) -> None:
    """Train a pooler on a frozen encoder.

    Writes a file for `encode --pool FILE`.

    Example: embedkit fit notes.csv --label label --pooler attention -o attention.safetensors
    """
    one_of("--progress", progress, MODES)
    _check_kind(options["pooler"].partition(":")[0], given_on(ctx))
    share, files = _test_rows(options.pop("test") or [])
    labels = take(LabelConfig, options, test=files)
    check_no_uri(options["output"])
    wanted = take(FitConfig, options, labels=labels, **share)
    asked = run_config(**options, output=f"{wanted.output}.states")
    check_stdin(asked.input.inputs)
    from embedkit.study.run_fit import fit as run_fit

    def on_epoch(epoch: Epoch) -> None:
        if not quiet and progress != "none":
            _show_epoch(epoch, as_json=progress == "json")

    with run_context(progress, quiet=quiet, private=private) as (stop, callbacks):
        summary = run_fit(wanted, asked, callbacks, on_epoch, stop)
    if quiet:
        return
    if progress == "json":
        print_event(event="done", path=summary.path, sha256=summary.sha256, recipe=dict(summary.recipe))
        return
    for line in _lines(summary):
        print(line, file=sys.stderr)


def _test_rows(values: list[str]) -> tuple[dict[str, float], tuple[str, ...]]:
    """Returns the test share, if `--test` is a number, and the test files, which are its other values.

    Raises:
        UsageError: there are several values, and one of them is a number.
    """
    shares = []
    for value in values:
        with suppress(ValueError):
            shares.append(float(value))
    if shares and len(values) > 1:
        raise UsageError("--test is given several times, and one is a share", hint="give one share, or files only")
    if shares:
        return {"test": shares[0]}, ()
    return ({"test": 0.0} if values else {}), tuple(values)


def _check_kind(kind: str, given: frozenset[str]) -> None:
    """Rejects options that have no effect for the kind of pooler."""
    for names, kinds in ((_TRAINING_OPTIONS, TRAINED), (("layer_pool",), WITH_LAYER_POOL)):
        unused = [name for name in names if name in given]
        if unused and kind in KINDS and kind not in kinds:
            raise UsageError(
                f"--{unused[0].replace('_', '-')} has no effect with --pooler {kind}",
                hint=f"leave it out; it applies to {', '.join(kinds)}",
            )


def _show_epoch(epoch: Epoch, *, as_json: bool) -> None:
    if as_json:
        numbers = {"loss": epoch.loss, "validation_loss": epoch.validation_loss, "score": epoch.score}
        print_event(event="epoch", epoch=epoch.number, **numbers, best=epoch.best)
        return
    best = "  best so far" if epoch.best else ""
    print(
        f"epoch {epoch.number}: loss {epoch.loss:.4f}, validation {epoch.validation_loss:.4f}, "
        f"score {'undefined' if epoch.score is None else f'{epoch.score:.4f}'}{best}",
        file=sys.stderr,
        flush=True,
    )


def _lines(summary: FitSummary) -> list[str]:
    """Formats the result."""
    recipe = summary.recipe
    if recipe["kind"] == "idf":
        lines = [f"{summary.path}: document frequencies of {recipe['n_documents']:,} texts"]
        option = f"idf:{summary.path}"
    else:
        layers = ", ".join(map(str, recipe["input"]["layers"]))
        lines = [f"{summary.path}: {recipe['kind']}, {recipe['dims']:,} dimensions, from layers {layers}"]
        option = summary.path
    for part, measures in recipe.get("scores", {}).items():
        shown = ", ".join(
            f"{name.replace('_', ' ')} {value:{'.4f' if abs(value) < 1e6 else '.4g'}}"
            for name, value in measures.items()
        )
        lines.append(f"{part}: {shown} on {recipe['rows'][part]:,} rows")
    if "training" in recipe:
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in recipe["left_out"].items())
        lines.append(f"{recipe['rows']['input']:,} rows; left out: {left_out or 'none'}")
        training = recipe["training"]
        lines.append(
            f"trained on {recipe['rows']['train']:,} rows; epoch {training['best_epoch']} of {training['epochs']}"
        )
    if "variance_kept" in recipe:
        lines.append(f"{percent(recipe['variance_kept'])} of the variance of {recipe['rows']:,} rows explained")
    if "shrinkage" in recipe:
        shrinkage = percent(recipe["shrinkage"])
        lines.append(f"covariance of {recipe['rows']:,} rows shrunk by {shrinkage} towards equal variances")
    lines.append(f"{summary.seconds_encoding:.1f} s encoding, {summary.seconds_fitting:.1f} s fitting")
    lines.append(f"use it with: embedkit encode INPUT --pool {option}")
    return lines
