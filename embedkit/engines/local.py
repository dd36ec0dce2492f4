"""One `embedkit encode`, from what was asked to a finished output.

Checks everything that can be checked before a model is loaded, plans, has the shards done by this process or by
several workers, and makes the output whole when every shard is there.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from embedkit.config import RunConfig
from embedkit.destination import Destination, Overtaken, destination_of
from embedkit.engines.account import account_for_rows
from embedkit.engines.alone import Alone
from embedkit.engines.crew import Crew
from embedkit.engines.grouping import run_grouped
from embedkit.engines.planning import (
    ModelFacts,
    counts,
    cutter_of,
    input_digests,
    input_facts,
    layout,
    manifest_of,
    output_facts,
    scan,
    table_of,
)
from embedkit.engines.ranks import shards_of
from embedkit.engines.summary import Summary
from embedkit.engines.summing import of_model, summary_of_whole
from embedkit.engines.watcher import Watcher
from embedkit.errors import EmbedkitError, OutputError, Stopped, UsageError
from embedkit.plan import refuse_changes
from embedkit.request import Request, find_model
from embedkit.sinks import make_sink
from embedkit.sources import SpanBook, Table

#: A share of unknown tokens that is worth a word.
_MANY_UNKNOWN = 0.05


def run(config: RunConfig, watcher: Watcher, stop: threading.Event) -> Summary:
    """Carry out one `embedkit encode`.

    Args:
        config: what the user asked for.
        watcher: is told how it goes.
        stop: set from outside (a signal) to end the run between two batches.

    Raises:
        EmbedkitError: any of its kinds; what is committed stays.
    """
    if config.groups.by:
        return run_grouped(config, watcher, stop, _run, _foreseen)
    return _run(config, watcher, stop)


def _run(config: RunConfig, watcher: Watcher, stop: threading.Event) -> Summary:
    """The same, of rows: what becomes of groups of them is not seen to here."""
    began = time.monotonic()
    share = config.share
    if share.source:
        watcher.notice(
            f"rank {share.rank} of {share.world_size}, as {share.source} say; --num-shards 1 would do all of it"
        )
    table, spans = table_of(config)
    _refuse_second_reading(table, config)
    destination = destination_of(config.output, share)
    stored = destination.open()
    request = find_model(config.model, config.text, config.pooling, config.units)
    plan = _planned(table, spans, config, request, stored)
    part = None if plan["shards"] is None else shards_of(share, plan["shards"])
    if share.rank and not part:
        # Its fellows may be through already, so what is there is no matter to a rank without a shard.
        return _summary_of_part(config, plan, {}, began)
    workers = 1 if part is None else max(1, min(config.workers, len(part)))
    with (
        Crew(config, workers, watcher, stop) if workers > 1 else Alone(config, table, request, watcher, stop)
    ) as engine:
        model = engine.load()
        for sentence in model.notices:
            watcher.notice(sentence)
        plan |= output_facts(model, config)
        if stored:
            _adopt(stored, plan)
        elif config.pooling.precision == "int8":
            plan["int8_ranges"] = engine.calibrate()
        try:
            if destination.is_whole(make_sink(config.output.format, layout(plan)), input_digests(plan)):
                watcher.notice(f"{config.output.output} is whole already: made by this recipe from this input")
                return summary_of_whole(config, model, time.monotonic() - began)
            if not stored:
                _adopt(destination.begin(plan), plan)
            return _carry_out(config, table, engine, model, plan, part, destination, watcher, began)
        except Overtaken:
            watcher.notice(f"another process has made {config.output.output} whole meanwhile")
            return summary_of_whole(config, model, time.monotonic() - began)


def _foreseen(config: RunConfig, watcher: Watcher, stop: threading.Event) -> tuple[dict[str, Any], ModelFacts]:
    """The plan that a run from the start would have, and the model that it would load; encodes nothing."""
    table, spans = table_of(config)
    _refuse_second_reading(table, config)
    request = find_model(config.model, config.text, config.pooling, config.units)
    plan = _planned(table, spans, config, request, None)
    with Alone(config, table, request, watcher, stop) as engine:
        model = engine.load()
    return plan | output_facts(model, config), model


def _carry_out(
    config: RunConfig,
    table: Table,
    engine: Alone | Crew,
    model: ModelFacts,
    plan: dict[str, Any],
    part: range | None,
    destination: Destination,
    watcher: Watcher,
    began: float,
) -> Summary:
    """Do the shards of this part that are not done, and finish if that was all."""
    sink = make_sink(config.output.format, layout(plan))
    done = destination.committed()
    rows_done = sum(record["stop"] - record["start"] for record in done.values())
    computing = time.monotonic()
    watcher.started(rows=plan["rows"], done=rows_done, device=model.device, dtype=model.recipe["dtype"])
    wanted = None if part is None else [index for index in part if index not in done]
    try:
        records = engine.run(plan, destination, sink, done, wanted)
    except Stopped:
        raise
    except EmbedkitError:
        destination.abandon()
        raise
    table.refuse_changes()
    use = engine.device_use
    computed: dict[str, Any] = {
        "computed_rows": engine.rows_computed,
        "computed_tokens": engine.tokens_computed,
        "device_use": use,
        "device_waiting": None if use is None else round(use.waiting, 4),
    }
    if config.share.several:
        records = destination.committed()
    if plan["shards"] is not None and len(records) < plan["shards"]:
        if not config.share.several:
            raise OutputError(
                f"{plan['shards'] - len(records)} shards are gone that were committed",
                hint="leave the output alone while embedkit writes it; --on-exists resume makes them again",
            )
        return _summary_of_part(config, plan, records, began, model, time.monotonic() - computing, **computed)
    in_order = [records[index] for index in sorted(records)]
    account_for_rows(
        in_order, plan["rows"], on_bad_row=plan["on_bad_row"], lists_empty=config.output.format == "npy"
    )
    total = counts(in_order, plan["rows"])
    if (total["unknown_share"] or 0) > _MANY_UNKNOWN:
        watcher.notice(
            f"{total['unknown_share']:.1%} of the tokens are unknown to the model's vocabulary: `embedkit plan` "
            "tells whether --lowercase changes that; else use a model for this language"
        )
    # A shard of empty texts has no npy files.
    empty = [record["index"] for record in in_order if config.output.format == "npy" and not record["vectors"]]
    manifest = {**manifest_of(plan), **total, "shards": len(records), "empty_shards": empty}
    destination.finish(sink, manifest, [index for index in sorted(records) if index not in set(empty)])
    for sentence in destination.notices:
        watcher.notice(sentence)
    ended = time.monotonic()
    return Summary(
        **of_model(config, model),
        **total,
        **computed,
        seconds=ended - began,
        encoding_seconds=ended - computing,
    )


def _planned(
    table: Table,
    spans: SpanBook | None,
    config: RunConfig,
    request: Request,
    stored: dict[str, Any] | None,
) -> dict[str, Any]:
    """The plan as far as the input alone decides it."""
    cutter = cutter_of(request, config, (stored or {}).get("shard_rows"))
    plan: dict[str, Any] = {
        "version": 1,
        "shard_rows": cutter.shard_rows,
        "shard_characters": cutter.shard_characters,
        "input": input_facts(table, spans, config.input, None if stored is None else stored["input"]),
    }
    scores = request.head.columns if request.head else {}
    if scores:
        plan["scores"] = list(scores)
    # A plan that is there has been through this table already; that it is the same table is checked later.
    return plan | (
        {key: stored[key] for key in ("rows", "shards", "starts", "kept_types")}
        if stored
        else scan(table, spans, config, cutter, scores)
    )


def _adopt(stored: dict[str, Any], plan: dict[str, Any]) -> None:
    """Take over what only the plan that is there can say, if it is this run's in all else."""
    apart = {"int8_ranges": None, "batch_tokens": None}
    refuse_changes({**stored, **apart}, {**plan, **apart})
    # The same content: where it lay when it was planned is what the plan and all that repeats it say.
    plan["input"] = stored["input"]
    plan["int8_ranges"] = stored["int8_ranges"]
    if "batch_tokens" in stored:
        plan["batch_tokens"] = stored["batch_tokens"]


_NO_MODEL = ModelFacts(
    recipe={}, fingerprint="", notices=(), device="", engine="", variants=(), max_length=0, source={}
)


def _summary_of_part(
    config: RunConfig,
    plan: dict[str, Any],
    records: dict[int, dict[str, Any]],
    began: float,
    model: ModelFacts = _NO_MODEL,
    encoding_seconds: float = 0.0,
    **computed: Any,
) -> Summary:
    """What one rank has done, and not the last; counts are over the shards that are there."""
    return Summary(
        **of_model(config, model),
        **counts(records.values(), plan["rows"]),
        seconds=time.monotonic() - began,
        encoding_seconds=encoding_seconds,
        **{"computed_rows": 0, "computed_tokens": 0, **computed},
        complete=False,
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
