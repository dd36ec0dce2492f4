"""One `embedkit encode`, from what was asked to a finished output.

Checks everything that can be checked before the model is loaded, plans, and hands the shards to a Job.
"""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from typing import Any

from embedkit.assembly import Assembly, assemble, find_model, rough_width
from embedkit.config import InputConfig, RunConfig
from embedkit.destination import destination_of
from embedkit.engines.faults import unreadable_rows
from embedkit.engines.summary import Summary
from embedkit.engines.watcher import Watcher
from embedkit.errors import EmbedkitError, Stopped, UsageError
from embedkit.inspection import inspect_output
from embedkit.plan import ShardCutter, default_shard_rows, refuse_changes
from embedkit.recipe import canonical_json, fingerprint
from embedkit.sinks import Layout, make_sink
from embedkit.sources import Table, open_table


def run(config: RunConfig, watcher: Watcher, stop: threading.Event) -> Summary:
    """Carry out one `embedkit encode`.

    Args:
        config: what the user asked for.
        watcher: is told how it goes.
        stop: set from outside (a signal) to end the run between two batches.

    Raises:
        EmbedkitError: any of its kinds; what is committed stays.
    """
    began = time.monotonic()
    table = open_table(config.input)
    _refuse_second_reading(table, config)
    destination = destination_of(config.output)
    stored = destination.open()
    request = find_model(config.model, config.text, config.pooling)
    shard_rows = config.output.shard_rows or (stored or {}).get("shard_rows")
    if shard_rows is None:
        width = rough_width(request, config.pooling)
        shard_rows = default_shard_rows(width, to_stdout=config.output.is_stdout)
    plan: dict[str, Any] = {"version": 1, "shard_rows": shard_rows, "input": _input_facts(table, config.input)}
    # A plan that is there has been through this table already; that it is the same table is checked below.
    plan |= (
        {key: stored[key] for key in ("rows", "shards", "starts", "kept_types")}
        if stored
        else _scan(table, config, shard_rows)
    )

    from embedkit.engines.job import Job, calibrate, with_int8_ranges  # torch from here on

    assembly = assemble(request, config.model, config.text, config.pooling, config.batch)
    for sentence in assembly.notices:
        watcher.notice(sentence)
    plan |= _output_facts(assembly, config)
    if stored:
        refuse_changes({**stored, "int8_ranges": None}, plan)
        plan["int8_ranges"] = stored["int8_ranges"]
    elif config.pooling.precision == "int8":
        plan["int8_ranges"] = calibrate(table, assembly.embedder)
    embedder = with_int8_ranges(assembly.embedder, plan["int8_ranges"])
    sink = make_sink(config.output.format, _layout(plan, assembly))
    if destination.is_whole(sink):
        watcher.notice(f"{config.output.output} is whole already: made by this recipe from this input")
        return _summary_of_whole(config, assembly, time.monotonic() - began)
    if not stored:
        destination.begin(plan)
    job = Job(config, table, embedder, sink, destination, plan, watcher, stop)
    computing = time.monotonic()
    watcher.started(rows=plan["rows"], done=job.rows_done, device=assembly.device, dtype=assembly.recipe["dtype"])
    try:
        records = job.run()
    except Stopped:
        raise
    except EmbedkitError:
        if not job.records:
            destination.abandon()
        raise
    counts = _counts(records, plan["rows"])
    # A shard of empty texts has no npy files.
    empty = [record["index"] for record in records if config.output.format == "npy" and not record["vectors"]]
    manifest = {**_manifest(plan), **counts, "shards": len(records), "empty_shards": empty}
    destination.finish(sink, manifest, [record["index"] for record in records if record["index"] not in empty])
    ended = time.monotonic()
    return Summary(
        **_of_assembly(config, assembly),
        **counts,
        seconds=ended - began,
        encoding_seconds=ended - computing,
        computed_rows=job.rows_computed,
        computed_tokens=job.tokens_computed,
    )


def _of_assembly(config: RunConfig, assembly: Assembly) -> dict[str, Any]:
    return {
        "path": config.output.output,
        "dims": {variant.name: variant.dims for variant in assembly.embedder.variants},
        "max_length": assembly.embedder.tokenizer.max_length,
        "recipe": assembly.recipe,
        "fingerprint": assembly.fingerprint,
    }


def _summary_of_whole(config: RunConfig, assembly: Assembly, seconds: float) -> Summary:
    receipts = inspect_output(config.output.output).receipts
    return Summary(
        **_of_assembly(config, assembly),
        input_rows=receipts.rows,
        rows=receipts.rows,
        vectors=receipts.vectors,
        statuses=dict(receipts.status),
        rejects=0,
        n_tokens=receipts.n_tokens,
        n_used=receipts.n_used,
        seconds=seconds,
        encoding_seconds=0.0,
        computed_rows=0,
        computed_tokens=0,
    )


def _refuse_second_reading(table: Table, config: RunConfig) -> None:
    """Stdin can be read once: what needs a second look at it is refused at the start."""
    if not table.streaming:
        return
    if config.pooling.precision == "int8":
        raise UsageError(
            "--precision int8 reads the first rows twice, and stdin can be read only once",
            hint="give a file, or use --precision float16",
        )
    if config.output.on_exists == "resume":
        raise UsageError(
            "a run that reads stdin cannot be resumed: its rows are gone",
            hint="write the rows to a file and encode that",
        )


def _scan(table: Table, config: RunConfig, shard_rows: int) -> dict[str, Any]:
    """Rows and shards of a table; finds faulty rows before a model is loaded."""
    if table.streaming:
        return {"rows": None, "shards": None, "starts": None, "kept_types": table.kept_types()}
    cutter = ShardCutter(shard_rows)
    scan = table.scan(cutter.count)
    if scan.n_faults and config.output.on_bad_row == "fail":
        raise unreadable_rows(scan.faults, scan.n_faults)
    shards = len(cutter.starts)
    return {"rows": scan.rows, "shards": shards, "starts": cutter.starts, "kept_types": scan.kept_types}


def _input_facts(table: Table, config: InputConfig) -> dict[str, Any]:
    return {
        "files": [asdict(file) for file in table.files],
        "columns": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(table.columns).items()
        },
        "limit": config.limit,
    }


def _output_facts(assembly: Assembly, config: RunConfig) -> dict[str, Any]:
    return {
        "recipe": assembly.recipe,
        "fingerprint": assembly.fingerprint,
        "format": config.output.format,
        "precision": config.pooling.precision,
        "variants": [asdict(variant) for variant in assembly.embedder.variants],
        "on_bad_row": config.output.on_bad_row,
        "int8_ranges": None,
    }


def _layout(plan: dict[str, Any], assembly: Assembly) -> Layout:
    return Layout(
        variants=assembly.embedder.variants,
        precision=plan["precision"],
        token_vectors=not assembly.embedder.pooling.poolings,
        kept_types=plan["kept_types"],
        metadata={
            "embedkit.recipe": canonical_json(plan["recipe"]),
            "embedkit.fingerprint": plan["fingerprint"],
            "embedkit.input": fingerprint({key: plan[key] for key in ("input", "on_bad_row", "kept_types")}),
            **({"embedkit.int8_ranges": canonical_json(ranges)} if (ranges := plan["int8_ranges"]) else {}),
        },
    )


def _counts(records: list[dict[str, Any]], rows: int | None) -> dict[str, Any]:
    statuses: dict[str, int] = {}
    for record in records:
        for word, count in record["status_counts"].items():
            statuses[word] = statuses.get(word, 0) + count
    return {
        "input_rows": sum(record["stop"] - record["start"] for record in records) if rows is None else rows,
        "rows": sum(record["rows"] for record in records),
        "vectors": sum(record["vectors"] for record in records),
        "statuses": statuses,
        "rejects": sum(record["rejects"] for record in records),
        "n_tokens": sum(record["tokens"]["n_tokens"] for record in records),
        "n_used": sum(record["tokens"]["n_used"] for record in records),
    }


def _manifest(plan: dict[str, Any]) -> dict[str, Any]:
    names = ("version", "format", "precision", "variants", "recipe", "fingerprint", "int8_ranges", "input")
    return {**{name: plan[name] for name in names}, "token_vectors": plan["recipe"]["pool"] == ["none"]}
