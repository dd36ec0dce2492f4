"""`embedkit encode`: rows of text to vectors on disk."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import tomllib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from embedkit.cli.progress import MODES, make_watcher
from embedkit.config import (
    OUTPUT_FORMATS,
    BatchConfig,
    InputConfig,
    ModelConfig,
    OutputConfig,
    PoolingConfig,
    RunConfig,
    TextConfig,
    one_of,
)
from embedkit.engines.ranks import share_of
from embedkit.engines.signals import heed
from embedkit.engines.summary import Summary
from embedkit.errors import UsageError

#: What is surely meant to be a file; any other name is a folder's.
_OTHER_FILES = ("csv", "tsv", "txt", "json", "ndjson", "feather", "npz", "pt", "pkl", "h5", "gz", "zst")


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Use a TOML file's values as defaults, so that flags win."""
    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise UsageError(f"--config {path}: {os.strerror(fault.errno or 0)}", hint="check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        where = str(fault).rpartition(" (")[2].rstrip(")")
        raise UsageError(f"--config {path} is not valid TOML ({where})", hint="mend it there") from None
    known = {option.name: option for option in ctx.command.params if option.name not in {"config", "help"}}
    renamed = {name.replace("-", "_"): value for name, value in values.items()}
    unknown = next((name for name in renamed if name not in known), None)
    if unknown is not None:
        raise UsageError(
            f"--config {path} sets '{unknown}', which is no option of encode",
            hint=f"it may set: {', '.join(sorted(str(name).replace('_', '-') for name in known))}",
        )
    ctx.default_map = {**(ctx.default_map or {}), **renamed}
    return path


def encode(
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
            "(token vectors), or a comma list."
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
    format: Annotated[  # noqa: A002 - the option's name
        str, typer.Option("--format", help="auto (by name), csv, tsv, jsonl, ndjson, parquet, arrow, txt.")
    ] = "auto",
    text_column: Annotated[list[str] | None, typer.Option(help="Column of text; repeatable.")] = None,
    template: Annotated[str | None, typer.Option(help='Such as "{title}. {body}".')] = None,
    id_column: Annotated[str | None, typer.Option(help="Default: id, else the row number.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Column passed through; repeatable.")] = None,
    limit: Annotated[int | None, typer.Option(help="First N rows.")] = None,
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
        str, typer.Option(help="auto (fp32 on CPU, bf16 on a GPU that has it), fp32, bf16, fp16.")
    ] = "auto",
    max_length: Annotated[
        str, typer.Option(help="Most tokens of a text, special tokens counted; auto = what the model takes.")
    ] = "auto",
    on_long: Annotated[str, typer.Option(help="truncate (counted and said), error.")] = "truncate",
    prompt: Annotated[str | None, typer.Option(help="Text put before each text.")] = None,
    prompt_name: Annotated[str | None, typer.Option(help="A name from the model's own prompts.")] = None,
    output_format: Annotated[
        str | None, typer.Option(help="parquet, npy, jsonl, arrow; by the name of OUT, else parquet.")
    ] = None,
    shard_rows: Annotated[int | None, typer.Option(help="Most rows a shard.")] = None,
    on_exists: Annotated[str, typer.Option(help="error, resume, overwrite.")] = "error",
    verify: Annotated[
        bool, typer.Option("--verify", help="On resume, check the SHA-256 of what is committed, too.")
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="New files and folders are for you alone (0600, 0700).")
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
    progress: Annotated[str, typer.Option(help="auto, bar, json, none.")] = "auto",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say errors only.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say the recipe, too.")] = False,
    config: Annotated[  # noqa: ARG001 - read before the other options, by its callback
        Path | None,
        typer.Option(help="TOML file with the same names; flags win.", is_eager=True, callback=_read_config),
    ] = None,
) -> None:
    """Embed the texts of a table and write the vectors.

    Example: embedkit encode notes.csv --model Bio_ClinicalBERT --pool mean
    """
    one_of("--progress", progress, MODES)
    out = output or _default_output(inputs)
    run_config = RunConfig(
        input=InputConfig(
            inputs=tuple(inputs),
            format=format,
            text_columns=tuple(text_column or ()),
            template=template,
            id_column=id_column,
            keep=tuple(keep or ()),
            limit=limit,
            max_expansion=max_expansion,
            max_decompressed_gb=max_decompressed_gb,
        ),
        output=OutputConfig(out, _output_format(out, output_format), shard_rows, on_exists, on_bad_row, verify),
        model=ModelConfig(model, revision, offline, trust_remote_code, lowercase, device, dtype),
        text=TextConfig(_number_or_auto("--max-length", max_length), on_long, prompt, prompt_name),
        pooling=PoolingConfig(layers, layer_agg, pool, exclude_special, normalize, truncate_dim, precision),
        batch=BatchConfig(_number_or_auto("--batch-tokens", batch_tokens), batch_size),
        share=share_of(shard_id, num_shards, workers, os.environ),
    )
    # numpy and pyarrow are imported from here on: a wrong option is told without waiting for them.
    from embedkit.engines.local import run

    with _stoppable() as stop, _umask(private=private):
        summary = run(run_config, make_watcher(progress, quiet=quiet), stop)
    if progress == "json" and not quiet:
        print(json.dumps({"event": "done", **asdict(summary)}), file=sys.stderr)
    elif not quiet:
        for line in _told(summary, verbose=verbose):
            print(line, file=sys.stderr)


@contextmanager
def _stoppable() -> Generator[threading.Event, None, None]:
    """Turn the first signal into a request to stop, and the second into leaving at once."""
    stop = threading.Event()
    before = heed(stop)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _umask(*, private: bool) -> Generator[None, None, None]:
    """Make new files 0600 and folders 0700, those of worker processes too; else the user's umask decides."""
    if not private:
        yield
        return
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _default_output(inputs: list[str]) -> str:
    name = Path(inputs[0].rstrip("/")).name
    if inputs[0] == "-" or not name or any(letter in name for letter in "*?["):
        raise UsageError(
            f"there is no name to make the output's from in '{inputs[0]}'",
            hint="say where the vectors go with -o OUT, or -o - for JSON Lines on stdout",
        )
    return f"{name.split('.')[0] or name}.embeddings"


def _output_format(output: str, asked: str | None) -> str:
    named = "jsonl" if output == "-" else Path(output).suffix.removeprefix(".")
    if named not in OUTPUT_FORMATS:
        if named.lower() in (*OUTPUT_FORMATS, *_OTHER_FILES):
            raise UsageError(
                f"-o {output}: embedkit writes no .{named} files",
                hint=f"name a folder, or a file that ends in .{', .'.join(OUTPUT_FORMATS)}",
            )
        return asked or "parquet"
    if asked is not None and asked != named:
        raise UsageError(
            f"-o {output} is {named}, and --output-format says {asked}", hint="leave out one of the two"
        )
    return named


def _number_or_auto(option: str, text: str | int) -> int | None:
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option} cannot be '{text}'", hint="use auto or a whole number") from None


def _told(summary: Summary, *, verbose: bool) -> list[str]:
    """The summary of a run, for people."""
    if not summary.complete:
        return _told_of_part(summary)
    where = "stdout" if summary.path == "-" else summary.path
    words = ", ".join(
        f"{count:,} {word}" for word, count in summary.statuses.items() if word not in {"ok", "truncated"}
    )
    dims = ", ".join(f"{dims:,}" for dims in sorted(set(summary.dims.values())))
    several = f" in {len(summary.dims)} columns" if len(summary.dims) > 1 else ""
    lines = [f"{where}: {summary.rows:,} rows, {summary.vectors:,} vectors of {dims} dimensions{several}"]
    if words or summary.rejects:
        lines.append(f"without a vector: {words or 'none'}; rejects listed: {summary.rejects:,}")
    cut = summary.statuses.get("truncated", 0)
    lost = summary.n_tokens - summary.n_used
    lines.append(
        f"truncated: {cut:,} rows ({_percent(cut, summary.rows)}), {lost:,} tokens lost "
        f"({_percent(lost, summary.n_tokens)}) at {summary.max_length} tokens a text"
    )
    if not summary.computed_rows:
        lines.append(f"{summary.seconds:.1f} s; nothing was left to compute")
        return lines
    pace = max(summary.encoding_seconds, 1e-9)
    lines.append(
        f"{summary.seconds:.1f} s, of which {summary.encoding_seconds:.1f} s encoding: "
        f"{summary.computed_rows / pace:,.0f} rows/s, {summary.computed_tokens / pace:,.0f} tokens/s"
    )
    if verbose:
        lines.append(f"recipe {summary.fingerprint}: {json.dumps(summary.recipe)}")
    return lines


def _told_of_part(summary: Summary) -> list[str]:
    """The summary of a rank that was not the last one."""
    so_far = f"{summary.rows:,} of {summary.input_rows:,} rows so far"
    return [
        f"rank {summary.rank} of {summary.world_size}: its shards are done; the output is complete when all are",
        f"{summary.path}: {so_far}; {summary.computed_rows:,} of them by this rank, in {summary.seconds:.1f} s",
    ]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"
