"""One `embedkit encode`, from what was asked to a finished output.

Checks everything that can be checked before a model is loaded, plans, has the shards done by this process or by
several workers, and makes the output whole when every shard is there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from embedkit.config import RunConfig, ShareConfig
from embedkit.engines.accounting import account_for_rows
from embedkit.engines.callbacks import Callbacks
from embedkit.engines.existing_output import other_outputs_spared
from embedkit.engines.grouping import run_grouped
from embedkit.engines.in_process import InProcessEngine
from embedkit.engines.planning import (
    check_inputs_are_safe,
    non_finite_notes,
    plan_input,
    table_of,
)
from embedkit.engines.ranks import shards_of
from embedkit.engines.summary import Summary, of_model, summary_of_finished
from embedkit.engines.worker_pool import WorkerPool
from embedkit.errors import EmbedkitError, OutputError, Stopped, UsageError
from embedkit.inference.build import ModelFacts
from embedkit.inference.model_spec import ModelSpec, find_model
from embedkit.manifest.identity import input_digests, refuse_changes
from embedkit.manifest.recipe import as_text
from embedkit.manifest.schema import Manifest, ModelSource, Plan, Sharding, Totals
from embedkit.output.destination import AlreadyCompleted, Destination, destination_of
from embedkit.output.formats import layout_of, make_sink
from embedkit.sources import Table

#: A share of unknown tokens that is worth a word.
_MANY_UNKNOWN = 0.05


def run(config: RunConfig, watcher: Callbacks, stop: threading.Event) -> Summary:
    """Carry out one `embedkit encode`.

    Args:
        config: what the user asked for.
        watcher: is told how it goes.
        stop: set from outside (a signal) to end the run between two batches.

    Raises:
        EmbedkitError: any of its kinds; what is committed stays.
    """
    with other_outputs_spared(config):
        if config.groups.by:
            return run_grouped(config, watcher, stop, _run, _foreseen)
        return _run(config, watcher, stop)


def _refuse_missing_devices(names: Sequence[str]) -> None:
    """See that devices are there which this run has no shard for: the next one would stop at them."""
    if names:
        from embedkit.models.device import pick_device

        for name in names:
            pick_device(name)


def _run(config: RunConfig, watcher: Callbacks, stop: threading.Event) -> Summary:
    """The same, of rows: what becomes of groups of them is not seen to here."""
    began = time.monotonic()
    share = config.share
    _tell_share(share, watcher)
    watcher.notice(f"reading {_told(config.input.inputs)}")
    table, spans = table_of(config)
    _refuse_second_reading(table, config)
    check_inputs_are_safe(config.output.output, config.output.format, table, spans)
    _tell_notes(config, table, watcher)
    destination = destination_of(config.output, share)
    stored = destination.open()
    request = find_model(config)
    planned = plan_input(table, spans, config, request, stored)
    _tell_notes(config, table, watcher)
    sharding = planned.sharding
    part = None if sharding.shards is None else shards_of(share, sharding.shards)
    if share.rank and not part:
        # Its fellows may be through already, so what is there is no matter to a rank without a shard.
        return _summary_of_part(config, Totals.of((), sharding.rows), began)
    watcher.notice(f"{_rows(sharding.rows)}; loading the model {as_text(request.folder.name)}")
    workers = 1 if part is None else max(1, min(config.workers, len(part)))
    _refuse_missing_devices(config.model.devices[workers:])
    if workers > 1:
        config = _pinned(config, request, watcher)
    with (
        WorkerPool(config, workers, watcher, stop)
        if workers > 1
        else InProcessEngine(config, table, request, watcher, stop)
    ) as engine:
        model = engine.load()
        for sentence in model.notices:
            watcher.notice(sentence)
        plan = planned.complete(model, config)
        if stored:
            plan = _adopted(stored, plan)
        elif config.pooling.precision == "int8":
            plan = replace(plan, int8_ranges=engine.calibrate())
        try:
            if destination.is_whole(make_sink(config.output.format, layout_of(plan)), input_digests(plan)):
                watcher.notice(f"{config.output.output} is whole already: made by this recipe from this input")
                return summary_of_finished(config, model, time.monotonic() - began)
            if not stored:
                plan = _adopted(destination.begin(plan), plan)
            return _carry_out(config, table, engine, model, plan, part, destination, watcher, began)
        except AlreadyCompleted:
            watcher.notice(f"another process has made {config.output.output} whole meanwhile")
            return summary_of_finished(config, model, time.monotonic() - began)


def _pinned(config: RunConfig, request: ModelSpec, watcher: Callbacks) -> RunConfig:
    """The same with the commit that a branch was found to be: no worker asks the hub, and all take the same."""
    if request.folder.notice:
        watcher.notice(request.folder.notice)
    if request.folder.revision is None:
        return config
    return replace(config, model=replace(config.model, revision=request.folder.revision))


def _foreseen(config: RunConfig, watcher: Callbacks, stop: threading.Event) -> tuple[Plan, ModelFacts]:
    """The plan that a run from the start would have, and the model that it would load; encodes nothing."""
    table, spans = table_of(config)
    _refuse_second_reading(table, config)
    request = find_model(config)
    planned = plan_input(table, spans, config, request, None)
    with InProcessEngine(config, table, request, watcher, stop) as engine:
        model = engine.load()
    return planned.complete(model, config), model


def _carry_out(
    config: RunConfig,
    table: Table,
    engine: InProcessEngine | WorkerPool,
    model: ModelFacts,
    plan: Plan,
    part: range | None,
    destination: Destination,
    watcher: Callbacks,
    began: float,
) -> Summary:
    """Do the shards of this part that are not done, and finish if that was all."""
    sink = make_sink(config.output.format, layout_of(plan))
    done = destination.committed()
    computing = time.monotonic()
    wanted = None if part is None else [index for index in part if index not in done]
    watcher.started(**_ahead(plan.sharding, part, done), device=model.device, dtype=model.recipe["dtype"])
    try:
        records = engine.run(plan, destination, sink, done, wanted)
    except Stopped:
        raise
    except EmbedkitError:
        destination.abandon()
        raise
    table.refuse_changes()
    if table.streaming:  # of files, the first pass has told
        _tell_notes(config, table, watcher)
    use = engine.device_stats
    computed: dict[str, Any] = {
        "computed_rows": engine.rows_computed,
        "computed_tokens": engine.tokens_computed,
        "device_use": use,
        "device_waiting": None if use is None else round(use.idle_fraction, 4),
    }
    if config.share.several:
        records = destination.committed()
    sharding = plan.sharding
    in_order = [records[index] for index in sorted(records)]
    totals = Totals.of(in_order, sharding.rows)
    if sharding.shards is not None and len(records) < sharding.shards:
        if not config.share.several:
            raise OutputError(
                f"{sharding.shards - len(records)} shards are gone that were committed",
                hint="leave the output alone while embedkit writes it; --on-exists resume makes them again",
            )
        return _summary_of_part(config, totals, began, model, time.monotonic() - computing, **computed)
    account_for_rows(in_order, plan)
    if (totals.unknown_share or 0) > _MANY_UNKNOWN:
        watcher.notice(
            f"{totals.unknown_share:.1%} of the tokens are unknown to the model's vocabulary: `embedkit plan` "
            "tells whether --lowercase changes that; else use a model for this language"
        )
    destination.finish(sink, Manifest.of(plan, in_order, totals))
    for sentence in destination.notices:
        watcher.notice(sentence)
    ended = time.monotonic()
    return Summary(
        **of_model(config, model),
        **totals.to_json(),
        **computed,
        seconds=ended - began,
        encoding_seconds=ended - computing,
    )


def _told(inputs: tuple[str, ...]) -> str:
    """The input, as a note calls it."""
    first = "stdin" if inputs[0] == "-" else as_text(inputs[0])
    return first if len(inputs) == 1 else f"{first} and {len(inputs) - 1:,} more"


def _tell_share(share: ShareConfig, watcher: Callbacks) -> None:
    """Say aloud that this process does a part of the work only, or that it does all of it all the same."""
    if share.source:
        watcher.notice(
            f"rank {share.rank} of {share.world_size}, as {share.source} say: this process does a part, and the "
            "output is complete when all ranks are done; --num-shards 1 would do all of it"
        )
    elif share.note:
        watcher.notice(share.note)


def _rows(rows: int | None) -> str:
    return "rows as they come" if rows is None else f"{rows:,} rows"


def _ahead(sharding: Sharding, part: range | None, done: Mapping[int, Any]) -> dict[str, Any]:
    """What a watcher is told of this process's part: its rows, those that are done, and the text of the rest."""
    ranges = sharding.ranges
    if ranges is None or part is None:
        return {"rows": None, "done": 0}
    rows = {index: stop - start for index, (start, stop) in ranges.items() if index in part}
    characters = sharding.characters
    return {
        "rows": sum(rows.values()),
        "done": sum(of for index, of in rows.items() if index in done),
        "characters": characters and {index: characters[index] for index in rows if index not in done},
    }


def _tell_notes(config: RunConfig, table: Table, watcher: Callbacks) -> None:
    for sentence in (*table.take_notes(), *non_finite_notes(config, table.non_finite)):
        watcher.notice(sentence)


def _adopted(stored: Plan, plan: Plan) -> Plan:
    """Returns this run's plan with what only the stored one can say, if they are equal in all else."""
    refuse_changes(stored, plan)
    return replace(
        plan,
        # Of equal content: the names that the plan, and all that repeats it, had first.
        input=stored.input,
        source=stored.source,
        int8_ranges=stored.int8_ranges,
        batch_tokens=plan.batch_tokens if stored.batch_tokens is None else stored.batch_tokens,
    )


_NO_MODEL = ModelFacts(
    recipe={}, fingerprint="", notices=(), device="", engine="", variants=(), max_length=0, source=ModelSource()
)


def _summary_of_part(
    config: RunConfig,
    totals: Totals,
    began: float,
    model: ModelFacts = _NO_MODEL,
    encoding_seconds: float = 0.0,
    **computed: Any,
) -> Summary:
    """What one rank has done, and not the last; counts are over the shards that are there."""
    return Summary(
        **of_model(config, model),
        **totals.to_json(),
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
