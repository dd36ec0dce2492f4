"""The engine that computes shards in this process; each worker process runs one, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Self

from embedkit.engines.base import EngineSetup, EngineStats, ShardJob
from embedkit.engines.ranks import device_for
from embedkit.inference.build import ModelFacts, ReadyModel, build
from embedkit.manifest.schema import Int8Ranges, ShardRecord
from embedkit.models.load_lock import LOAD_LOCK
from embedkit.tokenizer.vocabulary import COVERAGE_TEXTS, measure_coverage, suggest_other_casing
from embedkit.types import Record


class InProcessEngine:
    """Loads the model in this process and computes one shard after another; see Engine.

    Reading is up to `prefetch` shards ahead of the model, and writing as many behind.
    """

    def __init__(self, setup: EngineSetup, *, prefetch: int = 2) -> None:
        self.setup = setup
        self.stats = EngineStats()
        self._prefetch = prefetch
        self._model: ReadyModel | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """See Engine; nothing was started."""

    @property
    def model(self) -> ReadyModel:
        """The model, loaded at the first call."""
        if self._model is None:
            share, model = self.setup.config.share, self.setup.config.model
            device = model.devices[0]
            if share.place is not None and device in {"auto", "cuda"}:
                import torch

                device = device_for(device, share.place, torch.cuda.device_count())
            model = replace(model, device=device)
            spec = replace(self.setup.spec, config=replace(self.setup.spec.config, model=model))
            with LOAD_LOCK.loading(exclusive=model.dtype != "fp32"):
                self._model = build(spec, processes=share.on_device)
        return self._model

    def load(self) -> ModelFacts:
        """See Engine."""
        facts = self.model.facts
        casing = self._casing_notice()
        return replace(facts, notices=(*facts.notices, casing)) if casing else facts

    def calibrate(self) -> Int8Ranges:
        """See Engine."""
        from embedkit.engines.shard_loop import calibrate

        return calibrate(self.setup.table, self.model.embedder)

    def run(self, job: ShardJob) -> Mapping[int, ShardRecord]:
        """See Engine."""
        from embedkit.engines.shard_loop import ShardLoop

        notice = self.model.embedder.encoder.compile_if_worthwhile(job.plan.sharding.rows)
        if notice:
            self.setup.callbacks.notice(notice)
        return ShardLoop(self.setup, self.model.embedder, job, self.stats, self._prefetch).run()

    def _casing_notice(self) -> str | None:
        """Returns a notice if the first texts, lowercased, have far fewer unknown tokens."""
        tokenizer = self.model.embedder.tokenizer
        lowercased = self.model.facts.recipe["text"]["lowercase"]
        if self.setup.table.streaming or tokenizer.unknown_id is None or lowercased:
            return None
        read = (item.text for item in self.setup.table.records() if isinstance(item, Record))
        texts = list(islice((text for text in read if text), COVERAGE_TEXTS))
        lowered = [text.lower() for text in texts]
        return suggest_other_casing(
            measure_coverage(tokenizer, texts), measure_coverage(tokenizer, lowered), "--lowercase yes"
        )
