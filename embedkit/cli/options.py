"""The options that say what is computed from what: `encode` has all of them, other commands some.

`run_config` is their one list. A command that is decorated with `takes_options_of(run_config)` has them on its
command line, and gets them as keyword arguments to hand on.
"""

from __future__ import annotations

import inspect
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from embedkit.cli.output_names import default_output, named
from embedkit.cli.output_names import output_format as format_of
from embedkit.cli.parsing import JOINED, annotation_of, closest_options
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
from embedkit.storage.filesystem import read_file, seems_file
from embedkit.suggest import closest_names

Command = TypeVar("Command", bound=Callable[..., None])


def takes_options_of(
    source: Callable[..., Any], *, leave_out: tuple[str, ...] = ()
) -> Callable[[Command], Command]:
    """Give a command the parameters of `source` before its own; it gets them in its `**options`.

    Args:
        source: a function whose parameters are declared for Typer.
        leave_out: names of parameters that the command does not take.
    """

    def decorate(command: Command) -> Command:
        theirs = inspect.signature(source, eval_str=True).parameters.values()
        own = inspect.signature(command, eval_str=True).parameters.values()
        named = {parameter.name for parameter in own} | set(leave_out)
        parameters = [
            *(parameter for parameter in theirs if parameter.name not in named),
            *(parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD),
        ]
        parameters.sort(key=lambda parameter: parameter.kind)
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def run_config(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Files, globs, folders, or - for stdin.")
    ],
    *,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="A .parquet, .npy, .jsonl or .arrow file, a folder of shards, or -. "
            "Default: the folder INPUTNAME.embeddings.",
        ),
    ] = None,
    model: Annotated[str, typer.Option("-m", "--model", help="Folder, alias or hub id.")] = "minilm",
    pool: Annotated[
        str,
        typer.Option(
            help="auto, cls, mean, max, min, mean_sqrt_len, weightedmean, lasttoken, pooler, none "
            "(token vectors), idf:FILE, FILE.safetensors of `fit`, or a comma list."
        ),
    ] = "auto",
    layers: Annotated[str, typer.Option(help="-1, -1,-2, -4:, 9:13, all; 0 is the embeddings.")] = "-1",
    layer_agg: Annotated[str, typer.Option(help="concat, mean, sum, max, separate.")] = "concat",
    exclude_special: Annotated[
        bool, typer.Option("--exclude-special", help="Leave special tokens out of the pooling.")
    ] = False,
    normalize: Annotated[
        bool | None,
        typer.Option("--normalize/--no-normalize", help="Scale vectors to length 1.", show_default=False),
    ] = None,
    truncate_dim: Annotated[int | None, typer.Option(help="Keep the first N dimensions.")] = None,
    precision: Annotated[str, typer.Option(help="float32, float16, int8, binary.")] = "float32",
    with_head: Annotated[
        bool, typer.Option("--with-head", help="Add the scores of the head that `fit` trained with the pooler.")
    ] = False,
    format: Annotated[  # noqa: A002 - the option's name
        str, typer.Option("--format", help="auto (by name), csv, tsv, jsonl, ndjson, parquet, arrow, txt.")
    ] = "auto",
    text_column: Annotated[list[str] | None, typer.Option(help="Column of text; repeatable.")] = None,
    template: Annotated[str | None, typer.Option(help='Such as "{title}. {body}".')] = None,
    id_column: Annotated[str | None, typer.Option(help="Default: id, else the row number.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Column passed through; repeatable.")] = None,
    limit: Annotated[int | None, typer.Option(help="First N rows.")] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="What is between the cells of csv and tsv: a character, or tab.")
    ] = None,
    quoting: Annotated[
        str, typer.Option(help="Quotes in csv and tsv: auto, double (they hold cells together), none (letters).")
    ] = "auto",
    max_expansion: Annotated[
        int, typer.Option(help="How many times its size a compressed file may grow to, beyond 64 MiB.")
    ] = 1000,
    max_decompressed_gb: Annotated[int, typer.Option(help="How many GB a compressed file may grow to.")] = 1000,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Open no socket.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    lowercase: Annotated[str, typer.Option(help="auto, yes, no.")] = "auto",
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:N, mps; or a comma list, a process each.")
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (fp32 on CPU, bf16 on a GPU that has it), fp32, bf16, fp16, int8 (CPU).")
    ] = "auto",
    max_length: Annotated[
        str, typer.Option(help="Most tokens of a text, special tokens counted; auto = what the model takes.")
    ] = "auto",
    on_long: Annotated[
        str, typer.Option(help="truncate (counted and said), chunk (read in windows), error.")
    ] = "truncate",
    stride: Annotated[
        int | None, typer.Option(help="Tokens that a window shares with the one before it; 0.")
    ] = None,
    chunk_pool: Annotated[
        str | None, typer.Option(help="mean (weighted by tokens), max, first: one vector of all windows.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Text put before each text.")] = None,
    prompt_name: Annotated[str | None, typer.Option(help="A name from the model's own prompts.")] = None,
    level: Annotated[str, typer.Option(help="What a vector is of: text, chunk, word, token.")] = "text",
    subtoken_pooling: Annotated[
        str | None, typer.Option(help="mean, first, last, max: one vector of a word's tokens.")
    ] = None,
    spans: Annotated[
        str | None, typer.Option(help="File of id, start, end and maybe label: a vector a span.")
    ] = None,
    spans_column: Annotated[str | None, typer.Option(help="Column that lists the spans of its text.")] = None,
    group_by: Annotated[
        list[str] | None, typer.Option(help="Column; a vector a group of rows. Repeatable, the finest first.")
    ] = None,
    group_pool: Annotated[str | None, typer.Option(help="mean (weighted by tokens), row_mean, max, last.")] = None,
    order_by: Annotated[str | None, typer.Option(help="Column that says which row is the last.")] = None,
    output_format: Annotated[
        str | None, typer.Option(help="parquet, npy, jsonl, arrow; by the name of OUT, else parquet.")
    ] = None,
    shard_rows: Annotated[int | None, typer.Option(help="Most rows a shard.")] = None,
    on_exists: Annotated[str, typer.Option(help="error, resume, overwrite.")] = "error",
    verify: Annotated[
        bool, typer.Option("--verify", help="On resume, check the SHA-256 of what is committed, too.")
    ] = False,
    on_bad_row: Annotated[str, typer.Option(help="fail, null (kept without a vector), skip.")] = "fail",
    batch_tokens: Annotated[str, typer.Option(help="Tokens in a batch; auto.")] = "auto",
    batch_size: Annotated[int | None, typer.Option(help="Most texts in a batch.")] = None,
    shard_id: Annotated[
        int | None, typer.Option(help="This process's part, from 0; by default from the environment.")
    ] = None,
    num_shards: Annotated[
        int | None, typer.Option(help="How many processes do a part each; by default from the environment.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes on this machine; by default one a device.")
    ] = None,
) -> RunConfig:
    """What these options ask for, checked.

    Raises:
        UsageError: a value that cannot be used, or two that exclude each other.
    """
    if template is not None and text_column:
        raise UsageError("--template and --text-column exclude each other", hint="give one of the two")
    if revision is not None and not trust_remote_code and seems_file(Path(model) / "config.json"):
        raise UsageError(
            f"--revision is of a model on the hub, and '{model}' is a folder", hint="leave out --revision"
        )
    out = default_output(inputs) if output is None else named(output)
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


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Use a TOML file's values as defaults, so that flags win."""
    if path is None:
        return None
    try:
        values = tomllib.loads(read_file(path).decode("utf-8-sig"))
    except OSError as fault:
        raise UsageError(f"--config {path}: {os.strerror(fault.errno or 0)}", hint="check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise UsageError(
            f"--config {path} is not valid TOML ({_where_broken(fault)})", hint="mend it there"
        ) from None
    known = {str(one.name): one for one in ctx.command.params if one.name not in {"config", "help"}}
    read: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            raise _unknown_key(path, key, value, known, str(ctx.info_name))
        if name in read:
            raise UsageError(
                f"--config {path} sets {key} twice, with - and with _", hint="leave out one of the two"
            )
        read[name] = _from_toml(path, key, value, known[name], str(ctx.info_name))
    ctx.default_map = {**(ctx.default_map or {}), **read}
    return path


def _where_broken(fault: tomllib.TOMLDecodeError | UnicodeDecodeError) -> str:
    if isinstance(fault, UnicodeDecodeError):
        return f"byte {fault.start} is not UTF-8"
    what, _, where = str(fault).rpartition(" (")
    return f"{'a key is there twice, ' * what.startswith('Cannot overwrite')}{where.rstrip(')')}"


def _unknown_key(path: Path, key: str, value: Any, known: dict[str, Any], command: str) -> UsageError:
    if isinstance(value, dict):
        return UsageError(
            f"--config {path} has a section [{key}], and options stand in none",
            hint=f'write them without a section, such as pool = "mean", and leave out the line [{key}]',
        )
    keys = sorted(name.replace("_", "-") for name in known)
    short = next((one for one in known.values() if f"-{key}" in one.opts), None)
    near = [f"-{key}"] if short else closest_options(key, list(known.values()))
    lines = dict.fromkeys(_as_toml(option, known) for option in near or closest_names(key, keys))
    meant = f"did you mean {' or '.join(lines)}? " if lines else ""
    return UsageError(
        f"--config {path} sets '{key}', which is no option of {command}",
        hint=f"{meant}it may set: {', '.join(keys)}",
    )


def _as_toml(phrase: str, known: dict[str, Any]) -> str:
    """What stands in a config file for an option: `pool` for --pool, `dtype = "fp16"` for --dtype fp16."""
    option, _, value = phrase.partition(" ")
    one = next((one for one in known.values() if option in (*one.opts, *one.secondary_opts)), None)
    if one is None:
        return f"'{phrase}'"
    name = str(one.name).replace("_", "-")
    if option in one.secondary_opts:
        return f"{name} = false"
    return f'{name} = "{value}"' if value else f"'{name}'"


#: TOML's types, as messages call them.
_TOML_TYPES = {
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "a list",
    dict: "a table",
}


def _from_toml(path: Path, key: str, value: Any, option: Any, command: str) -> Any:
    """A value of a config file as the option takes it.

    Raises:
        UsageError: it is of a type that the option has no use for; names the key, both types and the value.
    """
    taken: Any
    if option.multiple or option.nargs == -1:
        needed, taken = "a list of strings", _as_strings(value)
    elif option.is_flag:
        needed, taken = "a boolean, true or false,", value if isinstance(value, bool) else None
    elif annotation_of(option) in (int, float):
        is_integer = annotation_of(option) is int
        needed = "an integer" if is_integer else "a number"
        taken = _as_number(value, is_integer=is_integer)
    else:
        needed = "a string or a list of them" if option.name in JOINED else "a string"
        taken = _as_string(value, option.name)
    if taken is None:
        there = _TOML_TYPES.get(type(value), "a date or a time")
        flag = option.opts[-1] if option.opts[-1].startswith("-") else option.metavar
        raise UsageError(
            f"--config {path} sets {key} ({flag}) to {there}, {str(value)[:80]!r}, and {needed} is needed",
            hint=f"`embedkit {command} --help` lists what each option takes",
        )
    return taken


def _as_strings(value: Any) -> list[str] | None:
    values = value if isinstance(value, list) else [value]
    return values if all(isinstance(one, str) for one in values) else None


def _as_string(value: Any, name: str) -> str | None:
    if isinstance(value, list) and name in JOINED:
        parts = [_as_string(one, "") for one in value]
        return ",".join(map(str, parts)) if parts and None not in parts else None
    if isinstance(value, bool):
        return {True: "yes", False: "no"}[value] if name == "lowercase" else None
    return str(value) if isinstance(value, (str, int, float)) else None


def _as_number(value: Any, *, is_integer: bool) -> int | float | None:
    """An integer or a float; a string of one, too; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (str, int) if is_integer else (str, int, float)):
        return None
    try:
        return int(value) if is_integer else float(value)
    except ValueError:
        return None


#: TOML file of the options of the command that it is given to.
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", help="TOML file with the same names; flags win.", is_eager=True, callback=_read_config
    ),
]


def _number_or_auto(option: str, text: str | int) -> int | None:
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option} cannot be '{text}'", hint="use auto or a whole number") from None
