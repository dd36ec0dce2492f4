"""`embedkit fit`: a pooler made from a user's own texts and labels, the encoder left as it is."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedkit.cli.encode import running
from embedkit.cli.options import ConfigFile, run_config, takes_options_of
from embedkit.cli.parsing import given_on
from embedkit.cli.printing import check_stdin
from embedkit.cli.progress import MODES
from embedkit.config import one_of
from embedkit.config.fit_config import KINDS, TRAINED, WITH_LAYER_POOL, FitConfig
from embedkit.errors import UsageError

if TYPE_CHECKING:
    from embedkit.study.fit_pooler import FitSummary
    from embedkit.study.training import Epoch

#: Options of encode that say how vectors are written, or what else they may be of.
_NOT_FOR_FIT = (
    *("output", "pool", "normalize", "truncate_dim", "precision", "output_format", "shard_rows", "on_exists"),
    *("verify", "keep", "shard_id", "num_shards", "with_head", "stride", "chunk_pool"),
    *("level", "subtoken_pooling", "spans", "spans_column", "group_by", "group_pool", "order_by"),
)
#: Options of the training, which poolers that are counted have none of.
_OF_TRAINING = ("task", "epochs", "lr", "batch_size", "class_weight", "validation", "test", "patience")


@takes_options_of(run_config, leave_out=_NOT_FOR_FIT)
def fit(
    ctx: typer.Context,
    *,
    pooler: Annotated[
        str,
        typer.Option(
            help="idf, pca:N, whiten; with --label: mean, cls, weighted-layers, lstm, attention, attention-tanh, "
            "multihead-attention."
        ),
    ],
    output: Annotated[str, typer.Option("-o", "--output", help="The .safetensors file to write.")],
    label: Annotated[str | None, typer.Option(help="Column of labels: classes or numbers.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Column whose rows of one value stay together when rows are split.")
    ] = None,
    task: Annotated[str, typer.Option(help="auto (by the labels), classification, regression.")] = "auto",
    layer_start: Annotated[
        int | None, typer.Option(help="weighted-layers, lstm: the first layer; by default 1, instead of --layers.")
    ] = None,
    layer_pool: Annotated[
        str, typer.Option(help="weighted-layers, lstm, pca, whiten: mean or cls, the vector of a layer.")
    ] = "mean",
    project: Annotated[
        int | None, typer.Option(help="mean, cls: width of a learned projection behind the vector.")
    ] = None,
    hidden_size: Annotated[
        int | None,
        typer.Option(help="attention, attention-tanh, lstm: width inside; tanh has 512, else the model's."),
    ] = None,
    heads: Annotated[int | None, typer.Option(help="multihead-attention: heads; by default 8.")] = None,
    epochs: Annotated[int, typer.Option(help="At most so many times through the training rows.")] = 30,
    lr: Annotated[float, typer.Option(help="Learning rate of AdamW.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="Rows in a training step.")] = 32,
    class_weight: Annotated[str, typer.Option(help="none, balanced (each class counts the same).")] = "none",
    validation: Annotated[float, typer.Option(help="Share of the rows that say when to stop.")] = 0.15,
    test: Annotated[float, typer.Option(help="Share of the rows that are judged once, at the end.")] = 0.15,
    patience: Annotated[int, typer.Option(help="Epochs without a lower validation loss before it stops.")] = 4,
    states: Annotated[
        str, typer.Option(help="float16, float32: what states of tokens are kept in on disk meanwhile.")
    ] = "float16",
    seed: Annotated[int, typer.Option(help="The same seed gives the same file.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    private: Annotated[bool, typer.Option("--private", help="The file is for you alone (0600).")] = False,
    progress: Annotated[str, typer.Option(help="auto, bar, json, none.")] = "auto",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say errors only.")] = False,
    config: ConfigFile = None,  # noqa: ARG001 - read before the other options, by its callback
    **options: Any,
) -> None:
    """Count or train a pooler on a frozen encoder, and write it for `encode --pool`.

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
    from embedkit.study.fit_pooler import fit as carry_out

    def on_epoch(epoch: Epoch) -> None:
        if not quiet and progress != "none":
            _show_epoch(epoch, as_json=progress == "json")

    with running(progress, quiet=quiet, private=private) as (stop, watcher):
        summary = carry_out(wanted, asked, watcher, on_epoch, stop)
    if quiet:
        return
    if progress == "json":
        told = {"path": summary.path, "sha256": summary.sha256, "recipe": dict(summary.recipe)}
        print(json.dumps({"event": "done", **told}), file=sys.stderr)
        return
    for line in _told(summary):
        print(line, file=sys.stderr)


def _check_kind(kind: str, given: frozenset[str]) -> None:
    """Refuse options that the kind of pooler has no use for."""
    for names, kinds in ((_OF_TRAINING, TRAINED), (("layer_pool",), WITH_LAYER_POOL)):
        unused = [name for name in names if name in given]
        if unused and kind in KINDS and kind not in kinds:
            raise UsageError(
                f"--{unused[0].replace('_', '-')} is not for --pooler {kind}",
                hint=f"leave it out; it is for {', '.join(kinds)}",
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
    best = "  best yet" if epoch.best else ""
    print(
        f"epoch {epoch.number}: loss {epoch.loss:.4f}, validation {epoch.validation_loss:.4f}, "
        f"score {epoch.score:.4f}{best}",
        file=sys.stderr,
        flush=True,
    )


def _told(summary: FitSummary) -> list[str]:
    """What came of it, for people."""
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
        lines.append(f"{100 * recipe['variance_kept']:.1f} % of the variance of {recipe['rows']:,} rows is kept")
    lines.append(f"{summary.seconds_encoding:.1f} s encoding, {summary.seconds_fitting:.1f} s fitting")
    lines.append(f"use it with: embedkit encode INPUT --pool {option}")
    return lines
