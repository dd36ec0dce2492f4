"""`embedkit encode`: embeds the texts of a table."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import typer

from embedkit.cli.options import CONFIG, PROCESS_OPTIONS, RUN_OPTIONS, names_model, option, run_config, takes
from embedkit.cli.printing import check_stdin
from embedkit.cli.progress import MODES, describe_memory, print_event
from embedkit.cli.run_context import run_context
from embedkit.config import one_of
from embedkit.engines.summary import Summary
from embedkit.errors import UsageError
from embedkit.percent import percent
from embedkit.storage.standard_streams import rows_out


@takes(*RUN_OPTIONS, *PROCESS_OPTIONS, option("-v --verbose", False, "Also print the recipe."), CONFIG)
def encode(
    ctx: typer.Context, *, private: bool, progress: str, quiet: bool, verbose: bool, **options: Any
) -> None:
    """Embed the texts of a table.

    Example: embedkit encode notes.csv --model Bio_ClinicalBERT --pool mean
    """
    one_of("--progress", progress, MODES)
    asked = run_config(**options)
    check_stdin(asked.input.inputs)
    if private and asked.output.is_remote:
        raise UsageError(
            "--private sets the permissions of local files, and who may read an object store is up to its bucket",
            hint="leave it out, and check the bucket's policy",
        )
    if asked.output.is_stdout:
        rows_out()
    # Imports numpy and pyarrow: not before, so that a wrong option is reported at once.
    from embedkit.engines.run import run
    from embedkit.pooling.fitted_model import with_model_of_poolers

    asked, taken = (asked, ()) if names_model(ctx) else with_model_of_poolers(asked)
    with run_context(progress, quiet=quiet, private=private) as (stop, callbacks):
        for sentence in taken:
            callbacks.notice(sentence)
        summary = run(asked, callbacks, stop)
    if quiet:
        return
    if progress == "json":
        print_event(event="done", **asdict(summary))
        return
    for line in _lines(summary) if summary.complete else _lines_of_rank(summary):
        print(line, file=sys.stderr)
    if verbose and summary.complete:
        print(f"recipe {summary.fingerprint}: {json.dumps(summary.recipe)}", file=sys.stderr)


def _lines(summary: Summary) -> list[str]:
    """Formats the summary of a complete output."""
    output = "stdout" if summary.path == "-" else summary.path
    with_vector = {"ok", "truncated", "chunked"}
    without = ", ".join(f"{count:,} {word}" for word, count in summary.statuses.items() if word not in with_vector)
    dims = ", ".join(f"{dims:,}" for dims in sorted(set(summary.dims.values())))
    columns = f" in {len(summary.dims)} columns" if len(summary.dims) > 1 else ""
    lines = [f"{output}: {summary.rows:,} rows, {summary.vectors:,} vectors of {dims} dimensions{columns}"]
    if summary.reused:
        lines.append(
            f"taken from earlier outputs: {summary.reused:,} vectors ({_percent(summary.reused, summary.vectors)})"
        )
    if without or summary.rejects:
        lines.append(f"without a vector: {without or 'none'}; rejects listed: {summary.rejects:,}")
    chunked, truncated = (summary.statuses.get(word, 0) for word in ("chunked", "truncated"))
    lost = summary.n_tokens - summary.n_used
    if chunked:
        lines.append(
            f"chunked: {chunked:,} texts ({_percent(chunked, summary.input_rows)}) were read in windows of at "
            f"most {summary.max_length} tokens; no token was lost"
        )
    if truncated:
        lines.append(
            f"truncated: {truncated:,} rows ({_percent(truncated, summary.input_rows)}), {lost:,} tokens lost "
            f"({_percent(lost, summary.n_tokens)}) at {summary.max_length} tokens a text"
        )
        if 2 * lost >= summary.n_tokens:
            lines.append(
                "note: at least half of the tokens were lost; --on-long chunk reads long texts in windows"
            )
    if summary.n_unknown:
        lines.append(f"unknown tokens: {summary.n_unknown:,} ({_percent(summary.n_unknown, summary.n_content)})")
    if not summary.computed_rows:
        return [*lines, f"{summary.seconds:.1f} s; nothing was left to compute"]
    seconds = max(summary.encoding_seconds, 1e-9)
    lines.append(
        f"{summary.seconds:.1f} s, of which {summary.encoding_seconds:.1f} s encoding: "
        f"{summary.computed_rows / seconds:,.0f} rows/s, {summary.computed_tokens / seconds:,.0f} tokens/s "
        f"on {summary.device} in {summary.recipe['dtype']}"
    )
    if summary.device_use is not None:
        use = summary.device_use
        lines.append(f"the device was idle for {percent(use.idle_fraction)} of the time; {describe_memory(use)}")
    return lines


def _lines_of_rank(summary: Summary) -> list[str]:
    """Formats the summary of a rank that finished before the others."""
    rows = f"{summary.rows:,} of {summary.input_rows:,} rows so far"
    return [
        f"rank {summary.rank} of {summary.world_size}: its shards are done; the output is complete when all are",
        f"{summary.path}: {rows}; {summary.computed_rows:,} of them by this rank, in {summary.seconds:.1f} s",
    ]


def _percent(part: int, whole: int) -> str:
    return percent(part / whole) if whole else "0 %"
