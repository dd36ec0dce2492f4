"""`embedkit fit`: trains a pooler on a frozen encoder."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedkit.cli.options import ConfigFile, Private, Progress, Quiet, run_config, takes_options_of
from embedkit.cli.parsing import given_on
from embedkit.cli.printing import check_stdin
from embedkit.cli.progress import MODES
from embedkit.cli.run_context import run_context
from embedkit.config import one_of
from embedkit.config.fit_config import KINDS, TRAINED, WITH_LAYER_POOL, FitConfig
from embedkit.errors import UsageError

if TYPE_CHECKING:
    from embedkit.study.fit_pooler import FitSummary
    from embedkit.study.training import Epoch

#: Options of encode about units and about how vectors are written.
_NOT_FOR_FIT = (
    *("output", "pool", "normalize", "truncate_dim", "precision", "output_format", "shard_rows", "on_exists"),
    *("verify", "keep", "shard_id", "num_shards", "with_head", "stride", "chunk_pool"),
    *("level", "subtoken_pooling", "spans", "spans_column", "group_by", "group_pool", "order_by"),
)
#: Options for poolers that are trained.
_TRAINING_OPTIONS = ("task", "epochs", "lr", "batch_size", "class_weight", "validation", "test", "patience")


@takes_options_of(run_config, leave_out=_NOT_FOR_FIT)
def fit(
    ctx: typer.Context,
    *,
    pooler: Annotated[
        str,
        typer.Option(
            help="Kind of pooler: idf, pca:N, whiten; with --label also mean, cls, weighted-layers, lstm, "
            "attention, attention-tanh, multihead-attention."
        ),
    ],
    output: Annotated[str, typer.Option("-o", "--output", help="The .safetensors file to write.")],
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of labels: classes or numbers.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Keep rows with the same value in this column in the same split."),
    ] = None,
    task: Annotated[str, typer.Option(help="auto (from the labels), classification, regression.")] = "auto",
    layer_start: Annotated[
        int | None,
        typer.Option(metavar="N", help="weighted-layers, lstm: first layer, instead of --layers. By default 1."),
    ] = None,
    layer_pool: Annotated[
        str, typer.Option(help="weighted-layers, lstm, pca, whiten: how to pool each layer: mean, cls.")
    ] = "mean",
    project: Annotated[
        int | None, typer.Option(metavar="N", help="mean, cls: dimensions of a learned projection of the vector.")
    ] = None,
    hidden_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="attention, attention-tanh, lstm: hidden size. By default 512 (attention-tanh) or the model's.",
        ),
    ] = None,
    heads: Annotated[
        int | None, typer.Option(metavar="N", help="multihead-attention: number of heads. By default 8.")
    ] = None,
    epochs: Annotated[int, typer.Option(metavar="N", help="Maximum epochs.")] = 30,
    lr: Annotated[float, typer.Option(metavar="RATE", help="Learning rate of AdamW.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Rows per training step.")] = 32,
    class_weight: Annotated[
        str, typer.Option(help="Weights of the classes in the loss: none, balanced.")
    ] = "none",
    validation: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the rows for early stopping.")
    ] = 0.15,
    test: Annotated[float, typer.Option(metavar="SHARE", help="Share of the rows for the final test.")] = 0.15,
    patience: Annotated[
        int, typer.Option(metavar="N", help="Stop after N epochs without a lower validation loss.")
    ] = 4,
    states: Annotated[
        str, typer.Option(help="Precision of temporary token states on disk: float16, float32.")
    ] = "float16",
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed; the same seed gives the same file.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    private: Private = False,
    progress: Progress = "auto",
    quiet: Quiet = False,
    config: ConfigFile = None,  # noqa: ARG001 - read before the other options, by its callback
    **options: Any,
) -> None:
    """Train a pooler on a frozen encoder.

    The file that it writes is used with `encode --pool FILE`.

    Example: embedkit fit notes.csv --label label --pooler attention -o attention.safetensors
    """
    one_of("--progress", progress, MODES)
    _check_kind(pooler.partition(":")[0], given_on(ctx))
    wanted = FitConfig(
        pooler=pooler,
        output=output,
        label=label,
        group=group,
        task=task,
        layer_start=layer_start,
        layer_pool=layer_pool,
        project=project,
        hidden_size=hidden_size,
        heads=heads,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        class_weight=class_weight,
        validation=validation,
        test=test,
        patience=patience,
        states=states,
        seed=seed,
        overwrite=overwrite,
    )
    asked = run_config(**options, output=f"{output}.states")
    check_stdin(asked.input.inputs)
    from embedkit.study.fit_pooler import fit as run_fit

    def on_epoch(epoch: Epoch) -> None:
        if not quiet and progress != "none":
            _show_epoch(epoch, as_json=progress == "json")

    with run_context(progress, quiet=quiet, private=private) as (stop, callbacks):
        summary = run_fit(wanted, asked, callbacks, on_epoch, stop)
    if quiet:
        return
    if progress == "json":
        done = {"event": "done", "path": summary.path, "sha256": summary.sha256, "recipe": dict(summary.recipe)}
        print(json.dumps(done), file=sys.stderr)
        return
    for line in _lines(summary):
        print(line, file=sys.stderr)


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
        event = {
            "event": "epoch",
            "epoch": epoch.number,
            "loss": epoch.loss,
            "validation_loss": epoch.validation_loss,
            "score": epoch.score,
            "best": epoch.best,
        }
        print(json.dumps(event), file=sys.stderr, flush=True)
        return
    best = "  best so far" if epoch.best else ""
    print(
        f"epoch {epoch.number}: loss {epoch.loss:.4f}, validation {epoch.validation_loss:.4f}, "
        f"score {epoch.score:.4f}{best}",
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
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in measures.items())
        lines.append(f"{part}: {shown} on {recipe['rows'][part]:,} rows")
    if "training" in recipe:
        training = recipe["training"]
        lines.append(
            f"trained on {recipe['rows']['train']:,} rows; epoch {training['best_epoch']} of {training['epochs']}"
        )
    if "variance_kept" in recipe:
        lines.append(f"{100 * recipe['variance_kept']:.1f} % of the variance of {recipe['rows']:,} rows explained")
    lines.append(f"{summary.seconds_encoding:.1f} s encoding, {summary.seconds_fitting:.1f} s fitting")
    lines.append(f"use it with: embedkit encode INPUT --pool {option}")
    return lines
