"""The options that define what is computed and from what: `encode` has all of them, other commands some.

`run_config` declares them. A command decorated with `takes_options_of(run_config)` has them on its command line
and receives their values as keyword arguments, to pass on to `run_config`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from embedkit.cli.config_file import read_config_file
from embedkit.cli.output_names import absolute_name, default_output
from embedkit.cli.output_names import output_format as format_of
from embedkit.config import (
    BatchConfig,
    GroupConfig,
    InputConfig,
    ModelConfig,
    OutputConfig,
    PoolingConfig,
    RunConfig,
    TextConfig,
    UnitConfig,
)
from embedkit.engines.ranks import share_of
from embedkit.errors import UsageError
from embedkit.storage.filesystem import seems_file

_Function = TypeVar("_Function", bound=Callable[..., None])

# An option with its section of `--help`. Sections are shown in this order, the options without one last.
_input = partial(typer.Option, rich_help_panel="Input")
_model = partial(typer.Option, rich_help_panel="Model")
_text = partial(typer.Option, rich_help_panel="Texts")
_pooling = partial(typer.Option, rich_help_panel="Layers, pooling and vectors")
_unit = partial(typer.Option, rich_help_panel="Units and groups")
_output = partial(typer.Option, rich_help_panel="Output")
_batch = partial(typer.Option, rich_help_panel="Batches and processes")

#: Options of several commands, declared once.
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Read options from a TOML file; those on the command line win.",
        is_eager=True,
        callback=read_config_file,
    ),
]
Progress = Annotated[str, typer.Option(help="How to report progress on stderr: auto, bar, json, none.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors.")]
Private = Annotated[
    bool, typer.Option("--private", help="Make new files and folders readable only by you (0600, 0700).")
]
Revision = Annotated[str | None, _model(help="Branch, tag or commit of the model on the hub.")]
Offline = Annotated[bool, _model("--offline", help="Do not access the network.")]
TrustRemoteCode = Annotated[
    bool,
    _model("--trust-remote-code", help="Run Python code that comes with the model; needs a commit as --revision."),
]


def takes_options_of(
    source: Callable[..., Any], *, leave_out: tuple[str, ...] = ()
) -> Callable[[_Function], _Function]:
    """Adds the parameters of `source` to a command, before its own; it receives them in its `**options`.

    Args:
        source: a function whose parameters are declared for Typer.
        leave_out: names of parameters that the command does not take.
    """

    def decorate(command: _Function) -> _Function:
        shared = inspect.signature(source, eval_str=True).parameters.values()
        own = inspect.signature(command, eval_str=True).parameters.values()
        excluded = {parameter.name for parameter in own} | set(leave_out)
        parameters = [
            *(parameter for parameter in shared if parameter.name not in excluded),
            *(parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD),
        ]
        parameters.sort(key=lambda parameter: parameter.kind)
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def run_config(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Files, globs or folders to read, or - for stdin.")
    ],
    *,
    format: Annotated[  # noqa: A002 - the option's name
        str,
        _input(
            "--format", help="Input format: auto (by file name), csv, tsv, jsonl, ndjson, parquet, arrow, txt."
        ),
    ] = "auto",
    text_column: Annotated[
        list[str] | None, _input(metavar="COLUMN", help="Column to embed; several are joined. Repeatable.")
    ] = None,
    template: Annotated[
        str | None, _input(help='Build each text from columns, such as "{title}. {body}".')
    ] = None,
    id_column: Annotated[
        str | None, _input(metavar="COLUMN", help="Column of ids. By default `id` if present, else row numbers.")
    ] = None,
    keep: Annotated[
        list[str] | None, _input(metavar="COLUMN", help="Copy a column to the output. Repeatable.")
    ] = None,
    limit: Annotated[int | None, _input(metavar="N", help="Read only the first N rows.")] = None,
    delimiter: Annotated[str | None, _input(help="Cell delimiter of csv and tsv: one character, or tab.")] = None,
    quoting: Annotated[
        str, _input(help="Quotes in csv and tsv: auto, double (they enclose cells), none (plain characters).")
    ] = "auto",
    max_expansion: Annotated[
        int,
        _input(metavar="N", help="Largest decompressed size of a file over 64 MiB, as a multiple of its size."),
    ] = 1000,
    max_decompressed_gb: Annotated[
        int, _input(metavar="GB", help="Largest decompressed size of a file, in GB.")
    ] = 1000,
    model: Annotated[str, _model("-m", "--model", help="Model: a folder, an alias or a hub id.")] = "minilm",
    revision: Revision = None,
    offline: Offline = False,
    trust_remote_code: TrustRemoteCode = False,
    lowercase: Annotated[str, _model(help="Lowercase texts before tokenizing: auto, yes, no.")] = "auto",
    device: Annotated[
        str, _model(help="auto, cpu, cuda, cuda:N, mps, or a comma list with one process per entry.")
    ] = "auto",
    dtype: Annotated[
        str, _model(help="auto (fp32 on CPU, bf16 on GPUs that support it), fp32, bf16, fp16, int8 (CPU only).")
    ] = "auto",
    max_length: Annotated[
        str, _text(help="Maximum tokens per text, special tokens included; auto = the model's limit.")
    ] = "auto",
    on_long: Annotated[
        str, _text(help="Texts over the maximum length: truncate (and report), chunk (into windows), error.")
    ] = "truncate",
    stride: Annotated[
        int | None, _text(metavar="N", help="Tokens that consecutive windows share. By default 0.")
    ] = None,
    chunk_pool: Annotated[
        str | None, _text(help="Combine the windows of a text: mean (weighted by tokens), max, first.")
    ] = None,
    prompt: Annotated[str | None, _text(help="Text to put before each text.")] = None,
    prompt_name: Annotated[str | None, _text(help="Name of a prompt that the model defines.")] = None,
    layers: Annotated[
        str, _pooling(help="Layers, such as -1 (the last), -1,-2, -4:, 9:13, all; 0 is the embedding output.")
    ] = "-1",
    layer_agg: Annotated[
        str, _pooling(help="Combine several layers: concat, mean, sum, max, separate (a column for each).")
    ] = "concat",
    pool: Annotated[
        str,
        _pooling(
            help="Pooling of tokens: auto (the model's own, else mean), cls, mean, max, min, mean_sqrt_len, "
            "weightedmean, lasttoken, pooler, none (token vectors), idf:FILE, a .safetensors file from `fit`, "
            "or a comma list."
        ),
    ] = "auto",
    exclude_special: Annotated[
        bool, _pooling("--exclude-special", help="Exclude special tokens from the pooling.")
    ] = False,
    with_head: Annotated[
        bool, _pooling("--with-head", help="Add the predictions of the head that `fit` trained with the pooler.")
    ] = False,
    normalize: Annotated[
        bool | None,
        _pooling("--normalize/--no-normalize", help="Scale vectors to length 1.", show_default=False),
    ] = None,
    truncate_dim: Annotated[int | None, _pooling(metavar="N", help="Keep only the first N dimensions.")] = None,
    precision: Annotated[str, _pooling(help="Stored precision: float32, float16, int8, binary.")] = "float32",
    level: Annotated[str, _unit(help="Unit that gets a vector: text, chunk, word, token.")] = "text",
    subtoken_pooling: Annotated[
        str | None, _unit(help="Combine the tokens of a word: mean, first, last, max.")
    ] = None,
    spans: Annotated[
        str | None,
        _unit(
            metavar="FILE", help="Table of character ranges to embed: columns id, start, end and optionally label."
        ),
    ] = None,
    spans_column: Annotated[
        str | None, _unit(metavar="COLUMN", help="Column with the list of character ranges of each text.")
    ] = None,
    group_by: Annotated[
        list[str] | None,
        _unit(metavar="COLUMN", help="One vector per group of rows. Repeatable, the finest grouping first."),
    ] = None,
    group_pool: Annotated[
        str | None, _unit(help="Combine the rows of a group: mean (weighted by tokens), row_mean, max, last.")
    ] = None,
    order_by: Annotated[
        str | None, _unit(metavar="COLUMN", help="Column that orders the rows of a group, for --group-pool last.")
    ] = None,
    output: Annotated[
        str | None,
        _output(
            "-o",
            "--output",
            help="A .parquet, .npy, .jsonl or .arrow file, a folder of shards, or - for JSON Lines on stdout. "
            "By default the folder INPUTNAME.embeddings.",
        ),
    ] = None,
    output_format: Annotated[
        str | None,
        _output(help="parquet, npy, jsonl, arrow. By default taken from the output's name, else parquet."),
    ] = None,
    shard_rows: Annotated[int | None, _output(metavar="N", help="Maximum rows per shard.")] = None,
    on_exists: Annotated[str, _output(help="If the output exists: error, resume, overwrite.")] = "error",
    verify: Annotated[
        bool, _output("--verify", help="When resuming, also check the SHA-256 of committed files.")
    ] = False,
    on_bad_row: Annotated[
        str, _output(help="Rows that cannot be read: fail, null (keep without a vector), skip.")
    ] = "fail",
    batch_tokens: Annotated[str, _batch(help="Tokens per batch, or auto.")] = "auto",
    batch_size: Annotated[int | None, _batch(metavar="N", help="Maximum texts per batch.")] = None,
    shard_id: Annotated[
        int | None,
        _batch(metavar="N", help="This process's part of the work, from 0. By default from the environment."),
    ] = None,
    num_shards: Annotated[
        int | None,
        _batch(metavar="N", help="Number of processes that share the work. By default from the environment."),
    ] = None,
    workers: Annotated[
        int | None, _batch(metavar="N", help="Worker processes on this machine. By default one per device.")
    ] = None,
) -> RunConfig:
    """Builds the configuration of a run from the options.

    Raises:
        UsageError: a value cannot be used, or two options exclude each other.
    """
    if template is not None and text_column:
        raise UsageError("--template and --text-column exclude each other", hint="give only one of them")
    if revision is not None and not trust_remote_code and seems_file(Path(model) / "config.json"):
        raise UsageError(
            f"--revision is for models on the hub, and '{model}' is a folder", hint="leave out --revision"
        )
    out = default_output(inputs) if output is None else absolute_name(output)
    return RunConfig(
        input=InputConfig(
            inputs=tuple(inputs),
            format=format,
            text_columns=tuple(text_column or ()),
            template=template,
            id_column=id_column,
            keep=tuple(keep or ()),
            limit=limit,
            delimiter=delimiter,
            quoting=quoting,
            max_expansion=max_expansion,
            max_decompressed_gb=max_decompressed_gb,
        ),
        output=OutputConfig(out, format_of(out, output_format), shard_rows, on_exists, on_bad_row, verify),
        model=ModelConfig(model, revision, offline, trust_remote_code, lowercase, device, dtype),
        text=TextConfig(
            _number_or_auto("--max-length", max_length), on_long, stride, chunk_pool, prompt, prompt_name
        ),
        pooling=PoolingConfig(
            layers, layer_agg, pool, exclude_special, normalize, truncate_dim, precision, with_head
        ),
        batch=BatchConfig(_number_or_auto("--batch-tokens", batch_tokens), batch_size),
        share=share_of(shard_id, num_shards, workers, os.environ),
        units=UnitConfig(level, subtoken_pooling, spans, spans_column),
        groups=GroupConfig(tuple(group_by or ()), group_pool, order_by),
    )


def _number_or_auto(option: str, text: str | int) -> int | None:
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option} cannot be '{text}'", hint="use auto or a whole number") from None
