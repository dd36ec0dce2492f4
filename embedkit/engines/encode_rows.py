"""One encode of rows, from the open input to the complete output.

Checks everything that can be checked before a model is loaded, plans, has an engine compute the shards, and
completes the output when every shard is committed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from embedkit.config import RunConfig, ShareConfig
from embedkit.engines.accounting import account_for_rows
from embedkit.engines.base import Callbacks, Engine, EngineSetup, RunStart, ShardJob
from embedkit.engines.in_process import InProcessEngine
from embedkit.engines.open_input import table_of
from embedkit.engines.planning import (
    InputDigests,
    InputPlan,
    check_inputs_are_safe,
    non_finite_notes,
    plan_input,
)
from embedkit.engines.ranks import shards_of
from embedkit.engines.ray import RayEngine
from embedkit.engines.ray_scan import ray_scanner_of
from embedkit.engines.reuse import check_not_output, open_reuse
from embedkit.engines.scan_pool import scanner_of
from embedkit.engines.scanning import Shared
from embedkit.engines.summary import Summary, summarize, summary_of_finished
from embedkit.engines.worker_pool import WorkerPool
from embedkit.errors import EmbedkitError, OutputError, Stopped, UsageError
from embedkit.inference.build import ModelFacts
from embedkit.inference.model_spec import ModelSpec, find_model
from embedkit.manifest.identity import check_same_plan
from embedkit.manifest.recipe import as_text
from embedkit.manifest.schema import Manifest, ModelSource, Plan, Sharding, Totals
from embedkit.output.destination import AlreadyCompleted, Destination, destination_of
from embedkit.output.formats import layout_of, make_sink
from embedkit.percent import percent
from embedkit.sources import SpanBook, Table

#: Engines by name; see base.py.
ENGINES: dict[str, Callable[[EngineSetup], Engine]] = {
    "in_process": InProcessEngine,
    "worker_pool": WorkerPool,
    "ray": RayEngine,
}
#: Share of unknown tokens above which a notice is given.
_MANY_UNKNOWN = 0.05
_NO_MODEL = ModelFacts(
    recipe={}, fingerprint="", notices=(), device="", engine="", variants=(), max_length=0, source=ModelSource()
)


def encode_rows(
    config: RunConfig, callbacks: Callbacks, stop: threading.Event, spec: ModelSpec | None = None
) -> Summary:
    """Carries out one encode of rows; see `run`."""
    began = time.monotonic()
    share = config.share
    _report_share(share, callbacks)
    first = "stdin" if config.input.inputs[0] == "-" else as_text(config.input.shown_inputs[0])
    more = f" and {len(config.input.inputs) - 1:,} more" if len(config.input.inputs) > 1 else ""
    callbacks.notice(f"reading {first}{more}")
    table, spans = _open_input(config)
    check_inputs_are_safe(config.output.output, config.output.format, table, spans)
    _report_notes(config, table, callbacks)
    check_not_output(config)
    destination = destination_of(config.output, share)
    stored = destination.open()
    reuse = open_reuse(config, stored)
    spec = spec or find_model(config)
    folder = None if stored else destination.scans()
    shared = None if folder is None else Shared(folder, share)
    is_ray = config.engine.is_ray
    scanner = ray_scanner_of(config, stop, callbacks.notice) if is_ray else scanner_of(config.workers, stop)
    planned = plan_input(table, spans, config, spec, stored, scanner=scanner, shared=shared, stop=stop)
    _report_notes(config, table, callbacks)
    sharding = planned.sharding
    part = None if sharding.shards is None else shards_of(share, sharding)
    if share.rank and not part:
        # Other ranks may already have finished: existing output is not an error here.
        return summarize(config, _NO_MODEL, Totals.of((), sharding.rows), began, complete=False)
    rows = "rows as they come" if sharding.rows is None else f"{sharding.rows:,} rows"
    callbacks.notice(f"{rows}; loading the model {as_text(spec.folder.name)}")
    wanted = config.engine.most_workers if is_ray else config.workers
    workers = 1 if part is None else max(1, min(wanted or len(part), len(part)))
    if unused := config.model.devices[workers:]:
        # A missing device without a shard in this run would stop the next one.
        from embedkit.models.device import pick_device

        for name in unused:
            pick_device(name)
    setup = EngineSetup(config, spec, table, callbacks, stop, workers, reuse)
    name = "ray" if is_ray else "worker_pool" if workers > 1 else "in_process"
    with ENGINES[name](setup) as engine:
        model = engine.load()
        for sentence in model.notices:
            callbacks.notice(sentence)
        plan = _plan(planned, model, setup, stored, engine)
        try:
            sink = make_sink(config.output.format, layout_of(plan))
            if destination.is_complete(sink, InputDigests(plan, table)):
                callbacks.notice(
                    f"{config.output.output} is already complete: made by this recipe from this input"
                )
                return summary_of_finished(config, model, began)
            if not stored:
                if plan.hash_key and reuse:
                    plan = replace(plan, hash_key=reuse.store_key())
                plan = _adopted(destination.begin(plan), plan)
            return _PlannedRun(setup, model, plan, part, destination, began).carry_out(engine)
        except AlreadyCompleted:
            callbacks.notice(f"another process has completed {config.output.output}")
            return summary_of_finished(config, model, began)


def _plan(planned: InputPlan, model: ModelFacts, setup: EngineSetup, stored: Plan | None, engine: Engine) -> Plan:
    """Returns the plan of a run, or its stored one if that is the same.

    Raises:
        OutputError: the stored plan is another one, or an earlier output has vectors that are not this run's.
    """
    config, reuse = setup.config, setup.reuse
    plan = planned.complete(model, config, reuse)
    if reuse:
        for sentence in reuse.check_recipe(plan.recipe, plan.scores, backend=plan.engine):
            setup.callbacks.notice(sentence)
    if stored:
        if reuse and reuse.takes_from(config.output.output):
            # The earlier output may have been replaced by this run, which was killed just after that.
            plan = replace(plan, update=stored.update, versions=(*plan.versions[:1], *stored.versions[1:]))
        return _adopted(stored, plan)
    if config.pooling.precision == "int8":
        ranges = reuse.int8_ranges() if reuse else None
        plan = replace(plan, int8_ranges=ranges or engine.calibrate())
    return plan


def plan_rows(
    config: RunConfig, callbacks: Callbacks, stop: threading.Event, spec: ModelSpec
) -> tuple[Plan, ModelFacts]:
    """Returns the plan of a run from the start, and the facts of its model; encodes nothing."""
    table, spans = _open_input(config)
    planned = plan_input(table, spans, config, spec, None)
    with ENGINES["in_process"](EngineSetup(config, spec, table, callbacks, stop)) as engine:
        model = engine.load()
    return planned.complete(model, config), model


@dataclass(frozen=True, slots=True)
class _PlannedRun:
    """A run whose plan is stored."""

    setup: EngineSetup
    model: ModelFacts
    plan: Plan
    part: range | None  # shards of this process; None for a stream
    destination: Destination
    began: float  # time at the start of the run

    def carry_out(self, engine: Engine) -> Summary:
        """Has the shards of this part computed, and completes the output if no shard is missing."""
        config, callbacks, table = self.setup.config, self.setup.callbacks, self.setup.table
        sharding, destination = self.plan.sharding, self.destination
        done = destination.committed()
        left = None if self.part is None else [index for index in self.part if index not in done]
        computing = time.monotonic()
        callbacks.started(_start(self.model, sharding, self.part, done))
        try:
            records = engine.run(ShardJob(self.plan, destination, done, left))
        except Stopped:
            raise
        except EmbedkitError:
            destination.abandon()
            raise
        table.check_unchanged()
        if table.streaming:  # for files, planning has reported them
            _report_notes(config, table, callbacks)
        stats = engine.stats
        computed: dict[str, Any] = {
            "computed_rows": stats.rows,
            "computed_tokens": stats.tokens,
            "device_use": stats.device,
            "device_waiting": None if stats.device is None else round(stats.device.idle_fraction, 4),
        }
        if config.share.several:
            records = destination.committed()
        in_order = [records[index] for index in sorted(records)]
        totals = Totals.of(in_order, sharding.rows)
        if sharding.shards is not None and len(records) < sharding.shards:
            if not config.share.several:
                raise OutputError(
                    f"{sharding.shards - len(records)} committed shards were removed",
                    hint="leave the output alone while embedkit writes it; --on-exists resume computes them again",
                )
            computed["encoding_seconds"] = time.monotonic() - computing
            return summarize(config, self.model, totals, self.began, **computed, complete=False)
        account_for_rows(in_order, self.plan)
        if totals.unknown_share is not None and totals.unknown_share > _MANY_UNKNOWN:
            callbacks.notice(
                f"{percent(totals.unknown_share)} of the tokens are unknown to the model's vocabulary: "
                "`embedkit plan` tells whether --lowercase changes that; else use a model for this language"
            )
        sink = make_sink(config.output.format, layout_of(self.plan))
        destination.finish(sink, Manifest.of(self.plan, in_order, totals))
        for sentence in destination.notices:
            callbacks.notice(sentence)
        computed["encoding_seconds"] = time.monotonic() - computing
        return summarize(config, self.model, totals, self.began, **computed)


def _open_input(config: RunConfig) -> tuple[Table, SpanBook | None]:
    """Opens the input; see table_of.

    Raises:
        UsageError: it is stdin, which can be read only once, and would have to be read twice.
    """
    table, spans = table_of(config)
    if table.streaming and config.pooling.precision == "int8":
        raise UsageError(
            "--precision int8 reads the first rows twice, and stdin can be read only once",
            hint="give a file, or use --precision float16",
        )
    if table.streaming and config.output.on_exists == "resume":
        raise UsageError(
            "a run that reads stdin cannot be resumed: it can be read only once",
            hint="write the rows to a file and encode that",
        )
    return table, spans


def _report_share(share: ShareConfig, callbacks: Callbacks) -> None:
    """Reports that this process does a part of the work, or all of it although the environment names ranks."""
    if share.source:
        callbacks.notice(
            f"rank {share.rank} of {share.world_size}, as {share.source} say: this process computes a part, "
            "and the output is complete when all ranks are done; --num-shards 1 would compute all of it"
        )
    elif share.note:
        callbacks.notice(share.note)


def _report_notes(config: RunConfig, table: Table, callbacks: Callbacks) -> None:
    for sentence in (*table.take_notes(), *non_finite_notes(config, table.non_finite)):
        callbacks.notice(sentence)


def _start(model: ModelFacts, sharding: Sharding, part: range | None, done: Mapping[int, Any]) -> RunStart:
    ranges, dtype = sharding.ranges, model.recipe["dtype"]
    if ranges is None or part is None:
        return RunStart(model.device, dtype)
    rows = {index: stop - start for index, (start, stop) in ranges.items() if index in part}
    characters = sharding.characters
    return RunStart(
        model.device,
        dtype,
        rows=sum(rows.values()),
        done=sum(count for index, count in rows.items() if index in done),
        characters=None if characters is None else {n: characters[n] for n in rows if n not in done},
    )


def _adopted(stored: Plan, plan: Plan) -> Plan:
    """Returns this run's plan with the fields that only the stored one has; all others must be equal."""
    check_same_plan(stored, plan)
    return replace(
        plan,
        # Equal content may have other names now: keep those that the output already has.
        input=stored.input,
        source=stored.source,
        versions=stored.versions,
        int8_ranges=stored.int8_ranges,
        batch_tokens=plan.batch_tokens if stored.batch_tokens is None else stored.batch_tokens,
    )
