"""The model and the shards in this process; also what each of several workers is."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Self

from embedkit.config import ModelConfig, RunConfig
from embedkit.engines.callbacks import Callbacks
from embedkit.engines.ranks import device_for
from embedkit.inference.build import ModelFacts, ReadyModel, build
from embedkit.inference.model_spec import ModelSpec
from embedkit.manifest.schema import Int8Ranges, Plan, ShardRecord
from embedkit.models.load_lock import TURNS
from embedkit.output.destination import Destination
from embedkit.output.formats import Sink
from embedkit.sources import Table
from embedkit.tokenizer.vocabulary import COVERAGE_TEXTS, measure_coverage, suggest_other_casing
from embedkit.types import DeviceStats, Record

if TYPE_CHECKING:
    from embedkit.engines.shard_loop import Job


class InProcessEngine:
    """Loads the model here, and does shards one after another.

    Args:
        config: what the user asked for.
        table: where the rows come from.
        spec: the model, found.
        watcher: is told how it goes.
        stop: set from outside to end the run between two batches.
    """

    def __init__(
        self, config: RunConfig, table: Table, spec: ModelSpec, watcher: Callbacks, stop: threading.Event
    ) -> None:
        self.config = config
        self.table = table
        self.spec = spec
        self.watcher = watcher
        self.stop = stop
        self._ready: ReadyModel | None = None
        self._job: Job | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Nothing was started."""

    @property
    def ready(self) -> ReadyModel:
        """The model, loaded at the first call."""
        if self._ready is None:
            share = self.config.share
            model = _placed(self.config.model, share.place)
            spec = replace(self.spec, config=replace(self.spec.config, model=model))
            with TURNS.loading(alone=model.dtype != "fp32"):
                self._ready = build(spec, processes=share.on_device)
        return self._ready

    @property
    def device_stats(self) -> DeviceStats | None:
        """How the device was used; None where that is not measured."""
        return self._job.embedder.transfer.stats() if self._job else None

    @property
    def rows_computed(self) -> int:
        """Rows that went through the model here."""
        return self._job.rows_computed if self._job else 0

    @property
    def tokens_computed(self) -> int:
        """Tokens of these."""
        return self._job.tokens_computed if self._job else 0

    def load(self) -> ModelFacts:
        """Load the model, and say what it settles."""
        facts = self.ready.facts
        casing = self._casing()
        return replace(facts, notices=(*facts.notices, casing)) if casing else facts

    def _casing(self) -> str | None:
        """What the user is told if the first texts, lowercased, have far fewer unknown tokens."""
        tokenizer = self.ready.embedder.tokenizer
        lowercased = self.ready.facts.recipe["text"]["lowercase"]
        if self.table.streaming or tokenizer.unknown_id is None or lowercased:
            return None
        of_rows = (item.text for item in self.table.records() if isinstance(item, Record))
        texts = list(islice((text for text in of_rows if text), COVERAGE_TEXTS))
        lowered = [text.lower() for text in texts]
        return suggest_other_casing(
            measure_coverage(tokenizer, texts), measure_coverage(tokenizer, lowered), "--lowercase yes"
        )

    def calibrate(self) -> Int8Ranges:
        """Ranges for int8, for the plan."""
        from embedkit.engines.shard_loop import calibrate

        return calibrate(self.table, self.ready.embedder)

    def run(
        self,
        plan: Plan,
        destination: Destination,
        sink: Sink,
        records: Mapping[int, ShardRecord],
        wanted: Iterable[int] | None,
        *,
        ahead: int = 2,
    ) -> dict[int, ShardRecord]:
        """Do the shards that are wanted; see Job.

        Returns:
            The records of these and of those that were done, by number.
        """
        from embedkit.engines.shard_loop import Job, with_int8_ranges
        from embedkit.inference.batching import TokenBudget

        notice = self.ready.embedder.encoder.compile_if_worthwhile(plan.sharding.rows)
        if notice:
            self.watcher.notice(notice)
        embedder = with_int8_ranges(self.ready.embedder, plan.int8_ranges)
        if plan.batch_tokens is not None and self.config.batch.batch_tokens is None:
            embedder = replace(embedder, budget=TokenBudget(plan.batch_tokens))
        self._job = Job(
            *(self.config, self.table, embedder, sink, destination, plan, self.watcher, self.stop),
            wanted=wanted,
            records=records,
            ahead=ahead,
        )
        return self._job.run()


def _placed(model: ModelConfig, place: int | None) -> ModelConfig:
    """The model's configuration with the one device that is this process's."""
    name = model.devices[0]
    if place is None or name not in {"auto", "cuda"}:
        return replace(model, device=name)
    import torch

    return replace(model, device=device_for(name, place, torch.cuda.device_count()))
