"""`embedkit encode`: rows of text to vectors on disk."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import typer

from embedkit.cli.download_progress import shown_fetching
from embedkit.cli.options import ConfigFile, run_config, takes_options_of
from embedkit.cli.printing import check_stdin, check_stdout
from embedkit.cli.progress import MODES, make_watcher, told_memory
from embedkit.config import one_of
from embedkit.engines.base import Callbacks
from embedkit.engines.signals import stop_event
from embedkit.engines.summary import Summary
from embedkit.storage.standard_streams import reserved_for_rows


@takes_options_of(run_config)
def encode(
    *,
    private: Annotated[
        bool, typer.Option("--private", help="New files and folders are for you alone (0600, 0700).")
    ] = False,
    progress: Annotated[str, typer.Option(help="auto, bar, json, none.")] = "auto",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say errors only.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say the recipe, too.")] = False,
    config: ConfigFile = None,  # noqa: ARG001 - read before the other options, by its callback
    **options: Any,
) -> None:
    """Embed the texts of a table and write the vectors.

    Example: embedkit encode notes.csv --model Bio_ClinicalBERT --pool mean
    """
    one_of("--progress", progress, MODES)
    asked = run_config(**options)
    check_stdin(asked.input.inputs)
    if asked.output.is_stdout:
        check_stdout()
    # numpy and pyarrow are imported from here on: a wrong option is told without waiting for them.
    from embedkit.engines.run import run

    with running(progress, quiet=quiet, private=private) as (stop, watcher):
        summary = run(asked, watcher, stop)
    if progress == "json" and not quiet:
        print(json.dumps({"event": "done", **asdict(summary)}), file=sys.stderr)
    elif not quiet:
        for line in _told(summary, verbose=verbose):
            print(line, file=sys.stderr)


#: Who runs a model changes what is of the whole process (stdin, stdout, umask, signals): threads take turns.
_TURN = threading.RLock()


@contextmanager
def running(
    progress: str, *, quiet: bool, private: bool
) -> Generator[tuple[threading.Event, Callbacks], None, None]:
    """Carry out a command that runs a model: signals stop it, progress is told, stdin and stdout are for rows."""
    with (
        _TURN,
        stop_event(_AT_ONCE) as stop,
        umask(private=private),
        reserved_for_rows(),
        shown_fetching(progress, quiet=quiet, stop=stop),
        closing(make_watcher(progress, quiet=quiet)) as watcher,
    ):
        yield stop, watcher


_AT_ONCE = (
    b"error: stopped at once by a second signal\n"
    b"hint: what is committed stays; run the command again, an encode or a sweep with --on-exists resume\n"
)


@contextmanager
def umask(*, private: bool) -> Generator[None, None, None]:
    """Make new files 0600 and folders 0700, those of worker processes too; else the user's umask decides."""
    if not private:
        yield
        return
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _told(summary: Summary, *, verbose: bool) -> list[str]:
    """The summary of a run, for people."""
    if not summary.complete:
        return _told_of_part(summary)
    where = "stdout" if summary.path == "-" else summary.path
    used = {"ok", "truncated", "chunked"}
    words = ", ".join(f"{count:,} {word}" for word, count in summary.statuses.items() if word not in used)
    dims = ", ".join(f"{dims:,}" for dims in sorted(set(summary.dims.values())))
    several = f" in {len(summary.dims)} columns" if len(summary.dims) > 1 else ""
    lines = [f"{where}: {summary.rows:,} rows, {summary.vectors:,} vectors of {dims} dimensions{several}"]
    if words or summary.rejects:
        lines.append(f"without a vector: {words or 'none'}; rejects listed: {summary.rejects:,}")
    chunked, cut = (summary.statuses.get(word, 0) for word in ("chunked", "truncated"))
    lost = summary.n_tokens - summary.n_used
    if chunked:
        lines.append(
            f"chunked: {chunked:,} texts ({_percent(chunked, summary.input_rows)}) were read in windows of at "
            f"most {summary.max_length} tokens; no token was lost"
        )
    if cut:
        lines.append(
            f"truncated: {cut:,} rows ({_percent(cut, summary.input_rows)}), {lost:,} tokens lost "
            f"({_percent(lost, summary.n_tokens)}) at {summary.max_length} tokens a text"
        )
        if 2 * lost >= summary.n_tokens:
            lines.append("note: half of the tokens or more were cut; --on-long chunk reads long texts in windows")
    if summary.n_unknown:
        lines.append(f"unknown tokens: {summary.n_unknown:,} ({_percent(summary.n_unknown, summary.n_content)})")
    lines += _told_of_time(summary)
    if verbose:
        lines.append(f"recipe {summary.fingerprint}: {json.dumps(summary.recipe)}")
    return lines


def _told_of_time(summary: Summary) -> list[str]:
    """How long it took, and how fast it was."""
    if not summary.computed_rows:
        return [f"{summary.seconds:.1f} s; nothing was left to compute"]
    pace = max(summary.encoding_seconds, 1e-9)
    told = (
        f"{summary.seconds:.1f} s, of which {summary.encoding_seconds:.1f} s encoding: "
        f"{summary.computed_rows / pace:,.0f} rows/s, {summary.computed_tokens / pace:,.0f} tokens/s "
        f"on {summary.device} in {summary.recipe['dtype']}"
    )
    if summary.device_use is not None:
        use = summary.device_use
        waited = f"the device waited {use.idle_fraction:.1%} of the time between batches; {told_memory(use)}"
        return [told, waited]
    return [told]


def _told_of_part(summary: Summary) -> list[str]:
    """The summary of a rank that was not the last one."""
    so_far = f"{summary.rows:,} of {summary.input_rows:,} rows so far"
    return [
        f"rank {summary.rank} of {summary.world_size}: its shards are done; the output is complete when all are",
        f"{summary.path}: {so_far}; {summary.computed_rows:,} of them by this rank, in {summary.seconds:.1f} s",
    ]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"
