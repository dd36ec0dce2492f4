"""The options that define what is computed and from what: `encode` has all of them, other commands some.

Options are declared once, as parameters for Typer. A command decorated with `takes` has them on its command line,
and receives the values of those that it does not name as `**options`, to pass on to `run_config`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from embedkit.cli.config_file import read_config_file
from embedkit.cli.option_values import completions_of
from embedkit.cli.output_names import absolute_name, default_output
from embedkit.cli.output_names import output_format as format_of
from embedkit.config import (
    BatchConfig,
    EngineConfig,
    GroupConfig,
    InputConfig,
    ModelConfig,
    OutputConfig,
    PoolingConfig,
    ReuseConfig,
    RunConfig,
    TextConfig,
    UnitConfig,
    parse_workers,
)
from embedkit.engines.ranks import share_of
from embedkit.errors import InputError, UsageError
from embedkit.storage.filesystem import read_file, seems_file
from embedkit.storage.fsspec_filesystem import keep_secrets
from embedkit.storage.store_options import configure_stores

_Function = TypeVar("_Function", bound=Callable[..., None])
_Config = TypeVar("_Config")


def argument(name: str, kind: Any, metavar: str, text: str) -> Parameter:
    """Declares an argument; `text` is its help."""
    declaration = typer.Argument(metavar=metavar, help=text, autocompletion=completions_of(name))
    annotation = Annotated[kind, declaration]
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation)


def option(
    declared: str, default: Any, text: str, *, required: bool = False, name: str = "", **more: Any
) -> Parameter:
    """Declares an option.

    Args:
        declared: its names and then its metavar, as in `-o --output FILE`; by default the name in capitals.
        default: its default value, or its type if it has none.
        text: its help.
        required: True if the command cannot run without it.
        name: the parameter that receives the value; by default as the last name.
        more: other arguments of `typer.Option`.
    """
    words = declared.split()
    names = [word for word in words if word.startswith("-")]
    is_type = not isinstance(default, (str, int, float))
    kind = (default if required else default | None) if is_type else type(default)
    long_name = names[-1].partition("/")[0].lstrip("-")
    metavar = words[-1] if len(words) > len(names) else None if kind in (bool, bool | None) else long_name.upper()
    name = name or long_name.replace("-", "_")
    declaration = typer.Option(*names, metavar=metavar, help=text, autocompletion=completions_of(name), **more)
    return Parameter(
        name,
        Parameter.KEYWORD_ONLY,
        default=Parameter.empty if required else None if is_type else default,
        annotation=Annotated[kind, declaration],
    )


# An option with its section of `--help`. Sections are shown in this order, the options without one last.
_input = partial(option, rich_help_panel="Input")
_model = partial(option, rich_help_panel="Model")
_text = partial(option, rich_help_panel="Texts")
_pooling = partial(option, rich_help_panel="Layers, pooling and vectors")
_unit = partial(option, rich_help_panel="Units and groups")
_output = partial(option, rich_help_panel="Output")
_batch = partial(option, rich_help_panel="Batches and processes")
label_option = partial(option, rich_help_panel="Labels")


def _configured(texts: list[str] | None) -> list[str]:
    """Applies the options of stores at once: other options may name files there."""
    configure_stores(texts or ())
    return texts or []


CONFIG = option(
    "--config FILE",
    Path,
    "Read options from a TOML file; those on the command line win.",
    is_eager=True,
    callback=read_config_file,
)
_STORE_HELP = "Setting of object stores, such as endpoint=URL or region=REGION; never a key. Repeatable."
#: Of every command that reads or writes URIs.
STORE_OPTION = _input("--store-option KEY=VALUE", list[str], _STORE_HELP, callback=_configured)
#: Options of every command that runs a model.
PROCESS_OPTIONS = (
    option("--private", False, "Make new files and folders readable only by you (0600, 0700)."),
    option("--progress", "auto", "How to report progress on stderr: auto, bar, json, none."),
    option("-q --quiet", False, "Print only errors."),
)
HUB_OPTIONS = (
    _model("--revision", str, "Branch, tag or commit of the model on the hub."),
    _model("--offline", False, "Do not access the network."),
    _model(
        "--trust-remote-code", False, "Run Python code that comes with the model; needs a commit as --revision."
    ),
)
RUN_OPTIONS = (
    argument(
        "inputs",
        list[str],
        "INPUT...",
        "Files, globs, folders, URIs such as s3://, gs://, az:// or hf://, a database for --sql, or - for stdin.",
    ),
    _input("--sql QUERY", str, "Read the rows of this SELECT, or of the one in @FILE, from the database."),
    _input("--format", "auto", "Input format: auto (by file name), csv, tsv, jsonl, ndjson, parquet, arrow, txt."),
    _input("--text-column COLUMN", list[str], "Column to embed; several are joined. Repeatable."),
    _input("--template", str, 'Build each text from columns, such as "{title}. {body}".'),
    _input("--id-column COLUMN", str, "Column of ids. By default `id` if present, else row numbers."),
    _input("--keep COLUMN", list[str], "Copy a column to the output. Repeatable."),
    _input("--limit N", int, "Read only the first N rows."),
    _input("--delimiter", str, "Cell delimiter of csv and tsv: one character, or tab."),
    _input(
        "--quoting", "auto", "Quotes in csv and tsv: auto, double (they enclose cells), none (plain characters)."
    ),
    STORE_OPTION,
    _input(
        "--max-expansion N", 1000, "Largest decompressed size of a file over 64 MiB, as a multiple of its size."
    ),
    _input("--max-decompressed-gb GB", 1000, "Largest decompressed size of a file, in GB."),
    _model("-m --model", "minilm", "Model: a folder, an alias or a hub id."),
    *HUB_OPTIONS,
    _model("--lowercase", "auto", "Lowercase texts before tokenizing: auto, yes, no."),
    _model("--device", "auto", "auto, cpu, cuda, cuda:N, mps, or a comma list with one process per entry."),
    _model(
        "--dtype", "auto", "auto (fp32 on CPU, bf16 on GPUs that support it), fp32, bf16, fp16, int8 (CPU only)."
    ),
    _text(
        "--max-length",
        "auto",
        "Maximum tokens per text, special tokens included; auto = by a pooler's file, else the model's limit.",
    ),
    _text(
        "--on-long",
        str,
        "Texts over the maximum length: truncate, chunk (into windows), error. By default by a pooler's file, "
        "else truncate.",
    ),
    _text("--stride N", int, "Tokens that consecutive windows share. By default 0."),
    _text("--chunk-pool", str, "Combine the windows of a text: mean (weighted by tokens), max, first."),
    _text("--prompt", str, "Text to put before each text."),
    _text("--prompt-name", str, "Name of a prompt that the model defines."),
    _pooling("--layers", "-1", "Layers, such as -1 (the last), -1,-2, -4:, 9:13, all; 0 is the embedding output."),
    _pooling(
        "--layer-agg", "concat", "Combine several layers: concat, mean, sum, max, separate (a column for each)."
    ),
    _pooling(
        "--pool",
        "auto",
        "Pooling of tokens: auto (the model's own, else mean), cls, mean, max, min, mean_sqrt_len, weightedmean, "
        "lasttoken, pooler, none (token vectors), idf:FILE, a .safetensors file of fit or sweep, a comma list.",
    ),
    _pooling("--exclude-special", False, "Exclude special tokens from the pooling."),
    _pooling("--with-head", False, "Add the predictions of the head in the pooler's file."),
    _pooling("--normalize/--no-normalize", bool, "Scale vectors to length 1.", show_default=False),
    _pooling("--truncate-dim N", int, "Keep only the first N dimensions."),
    _pooling("--precision", "float32", "Stored precision: float32, float16, int8, binary."),
    _unit("--level", "text", "Unit that gets a vector: text, chunk, word, token."),
    _unit("--subtoken-pooling", str, "Combine the tokens of a word: mean, first, last, max."),
    _unit("--spans FILE", str, "Table of character ranges to embed: columns id, start, end and optionally label."),
    _unit("--spans-column COLUMN", str, "Column with the list of character ranges of each text."),
    _unit("--group-by COLUMN", list[str], "One vector per group of rows. Repeatable, the finest grouping first."),
    _unit("--group-pool", str, "Combine the rows of a group: mean (weighted by tokens), row_mean, max, last."),
    _unit("--order-by COLUMN", str, "Column that orders the rows of a group, for --group-pool last."),
    _output(
        "-o --output",
        str,
        "A .parquet, .npy, .jsonl or .arrow file, a folder of shards (local, s3://, gs:// or az://), or - for "
        "JSON Lines on stdout. By default the folder INPUTNAME.embeddings.",
    ),
    _output(
        "--output-format",
        str,
        "parquet, npy, jsonl, arrow. By default taken from the output's name, else parquet.",
    ),
    _output("--shard-rows N", int, "Maximum rows per shard."),
    _output("--on-exists", "error", "If the output exists: error, resume, overwrite."),
    _output("--verify", False, "When resuming, also check the SHA-256 of committed files."),
    _output("--on-bad-row", "fail", "Rows that cannot be read: fail, null (keep without a vector), skip."),
    _output(
        "--update OLD",
        list[str],
        "Take the vectors of known texts from this earlier output, and compute only the others. Repeatable.",
    ),
    _output(
        "--other-versions",
        False,
        "With --update: also take vectors that other versions of embedkit, torch or transformers computed.",
    ),
    _output("--keep-hashes", False, "Store a keyed hash of each text, for a later --update."),
    _output("--hash-key FILE", str, "File with the key of the hashes. By default OUT.key, made with mode 0600."),
    _batch("--batch-tokens", "auto", "Tokens per batch, or auto."),
    _batch("--batch-size N", int, "Maximum texts per batch."),
    _batch("--shard-id N", int, "This process's part of the work, from 0. By default from the environment."),
    _batch("--num-shards N", int, "Number of processes that share the work. By default from the environment."),
    _batch(
        "--workers N",
        str,
        "Worker processes on this machine, by default one per device; with --engine ray on all nodes: N, or "
        "MIN:MAX to begin with MIN of them, by default one per GPU, else one per node.",
    ),
    _batch("--engine", "local", "What runs the workers: local (this machine), ray (a cluster)."),
    _batch(
        "--ray-address HOST:PORT",
        str,
        "The Ray cluster, or auto for the one that this machine is in. By default RAY_ADDRESS, else a Ray that "
        "is started here for this run.",
    ),
    _batch("--workers-per-gpu N", int, "With --engine ray: workers that share a GPU. By default 1."),
)
#: Options of labels and splits that `sweep` and `fit` share; `--label` and `--test` differ a little.
LABEL_OPTIONS = (
    label_option("--group COLUMN", str, "Keep rows with the same value in this column on one side of each split."),
    label_option("--task", "auto", "auto (from the labels), classification, multilabel, ordinal, regression."),
    label_option("--label-delimiter TEXT", str, "Text between several labels in a cell, such as ';'."),
    label_option(
        "--missing-label TEXT",
        list[str],
        "Spelling of a missing label, instead of the usual NA, NaN, null, None and the like. Repeatable.",
    ),
    label_option("--split-column COLUMN", str, "Column that assigns rows to train, validation and test."),
    label_option("--exclude-rare N", 0, "Leave out classes with fewer than N rows."),
    label_option("--dedupe", False, "Keep near-duplicate texts on one side of each split."),
    label_option("--seed N", 0, "Random seed; the same seed gives the same result."),
)
#: Those about units, ranks and how vectors are written: commands that compare or train do not take them.
_FOR_OUTPUTS_ONLY = {
    *("keep", "with_head", "pool", "normalize", "truncate_dim", "precision", "level", "subtoken_pooling", "spans"),
    *("spans_column", "group_by", "group_pool", "order_by", "output", "output_format", "shard_id", "num_shards"),
    *("update", "other_versions", "keep_hashes", "hash_key", "engine", "ray_address", "workers_per_gpu"),
}


def study_options(*left_out: str) -> list[Parameter]:
    """Returns the options of a run that apply to commands that compare or train, less those named."""
    return [one for one in RUN_OPTIONS if one.name not in _FOR_OUTPUTS_ONLY.union(left_out)]


def takes(*parameters: Parameter) -> Callable[[_Function], _Function]:
    """Gives a command these arguments and options."""

    def decorate(command: _Function) -> _Function:
        context = [own for own in signature(command, eval_str=True).parameters.values() if own.name == "ctx"]
        command.__signature__ = Signature([*context, *parameters])  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in (*context, *parameters)}
        return command

    return decorate


def pop_fields(config: Callable[..., Any], options: dict[str, Any], *left_out: str) -> dict[str, Any]:
    """Removes the options named as fields of a configuration, and returns those that have a value."""
    names = options.keys() & signature(config).parameters.keys() - set(left_out)
    values = {name: options.pop(name) for name in names}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if v is not None}


def take(config: Callable[..., _Config], options: dict[str, Any], **others: Any) -> _Config:
    """Builds a configuration from the options named as its fields, which it removes, and `others`."""
    return config(**pop_fields(config, options, *others), **others)


def run_config(inputs: list[str], **options: Any) -> RunConfig:
    """Builds the configuration of a run from the values of RUN_OPTIONS; those left out have their defaults.

    Raises:
        UsageError: a value cannot be used, or two options exclude each other.
    """
    text_columns = tuple(options.pop("text_column", None) or ())
    if options.get("template") is not None and text_columns:
        raise UsageError("--template and --text-column exclude each other", hint="give only one of them")
    model = take(ModelConfig, options)
    is_pinned = model.revision is not None and not model.trust_remote_code
    if is_pinned and seems_file(Path(model.model) / "config.json"):
        raise UsageError(
            f"--revision is for models on the hub, and '{model.model}' is a folder", hint="leave out --revision"
        )
    output, group_by = options.pop("output", None), options.pop("group_by", None)
    shard_id, num_shards, workers = (options.pop(name, None) for name in ("shard_id", "num_shards", "workers"))
    out = default_output(inputs) if output is None else absolute_name(output)
    sql = read_query(options.pop("sql", None))
    several = parse_workers(workers)
    engine = take(EngineConfig, options) if several is None else _engine(several, options)
    local = several[1] if several and not engine.is_ray else None
    config = RunConfig(
        input=take(InputConfig, options, inputs=tuple(inputs), text_columns=text_columns, sql=sql),
        output=take(OutputConfig, options, output=out, format=format_of(out, options.pop("output_format", None))),
        model=model,
        text=take(TextConfig, options, max_length=_number_or_auto("--max-length", options)),
        pooling=take(PoolingConfig, options),
        batch=take(BatchConfig, options, batch_tokens=_number_or_auto("--batch-tokens", options)),
        share=share_of(shard_id, num_shards, local, os.environ),
        units=take(UnitConfig, options),
        groups=take(GroupConfig, options, by=tuple(group_by or ()), pool=options.pop("group_pool", None)),
        reuse=take(ReuseConfig, options),
        engine=engine,
        store=tuple(options.pop("store_option", None) or ()),
    )
    keep_secrets(config.input.uri_secrets)
    if unknown := options.keys() - {"config"}:
        raise TypeError(f"not options of a run: {', '.join(unknown)}")
    return config


def _engine(workers: tuple[int, int], options: dict[str, Any]) -> EngineConfig:
    least, most = workers
    engine = take(EngineConfig, options, least_workers=least, most_workers=most)
    if least > 1 and not engine.is_ray:
        raise UsageError(
            f"--workers {least}:{most}: processes of this machine all start at once",
            hint=f"use --workers {most}, or --engine ray",
        )
    return engine


def names_model(ctx: typer.Context) -> bool:
    """Checks whether the model is from the command line, a config file or the environment, and not the default."""
    source = ctx.get_parameter_source("model")
    return source is not None and source.name != "DEFAULT"


def read_query(sql: str | None) -> str | None:
    """Returns the query of `--sql`, which is the content of a file after an `@`.

    Raises:
        InputError: the file cannot be read.
    """
    if sql is None or not sql.startswith("@"):
        return sql
    try:
        return read_file(sql[1:]).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"--sql {sql}: {reason}", hint="name a file that holds one SELECT") from None


def _number_or_auto(option: str, options: dict[str, Any]) -> int | None:
    text = options.pop(option.lstrip("-").replace("-", "_"), "auto")
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option} cannot be '{text}'", hint="use auto or a whole number") from None
