"""Computes the shards of one run on one device: reads, computes and writes in parallel.

A reader thread reads and tokenizes the next shards, the caller's thread runs the model, and a writer thread
finishes the vectors of the last ones and commits them. Each stage is at most `prefetch` shards ahead of the next,
so memory does not grow with the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from embedkit.config import RunConfig
from embedkit.engines.base import EngineSetup, EngineStats, ShardJob
from embedkit.engines.planning import trust_planned_files
from embedkit.engines.read_shards import read_shards
from embedkit.engines.threads import BackgroundWorker, prefetched
from embedkit.errors import Stopped
from embedkit.inference.batching import TokenBudget
from embedkit.inference.embedder import Embedder, EmbeddingTask, embed, embed_all, non_finite_layers
from embedkit.inference.pipeline import (
    ReadShard,
    TokenizedShard,
    finish_shard,
    int8_ranges,
    tokenize_shard,
)
from embedkit.manifest.schema import Int8Ranges, Plan, ShardRecord
from embedkit.output.formats import layout_of, make_sink
from embedkit.pooling.postprocess import Int8Range
from embedkit.sources import Table
from embedkit.types import EncodedShard, Record

_CALIBRATION_TEXTS, _CALIBRATION_CHARACTERS = 1000, 200_000


class ShardLoop:
    """Computes and commits the shards of a job, and counts in `stats`; see the module."""

    def __init__(
        self, setup: EngineSetup, embedder: Embedder, job: ShardJob, stats: EngineStats, prefetch: int
    ) -> None:
        self.setup = setup
        self.embedder = _planned_embedder(setup.config, embedder, job.plan)
        self.job = job
        self.stats = stats
        self.prefetch = prefetch
        self.records = dict(job.done)
        trust_planned_files(setup.table, job.plan.input)
        self.sink = make_sink(job.plan.format, layout_of(job.plan))
        self._raise_writer_failure: Callable[[], None] = lambda: None

    def run(self) -> dict[int, ShardRecord]:
        """See Engine.run."""
        output = self.setup.config.output
        with (
            BackgroundWorker[Callable[[], EncodedShard]](self._write, self.prefetch, "embedkit-writer") as writer,
            prefetched(self._tasks(), self.prefetch, "embedkit-reader", self._raise_if_stopped) as tasks,
        ):
            self._raise_writer_failure = writer.raise_failure
            for task in embed_all(self._unless_stopped(tasks), self.embedder, tasks.is_ready):
                shard, raw = task.source, task.vectors()
                finished = partial(
                    self._finish,
                    shard,
                    raw,
                    self.embedder,
                    non_finite_layers(shard, raw, self.embedder),
                    keep=self.setup.config.input.keep,
                    on_bad_row=output.on_bad_row,
                    list_nulls=output.format == "npy",
                )
                # In the writer's thread: a GPU would be idle meanwhile.
                writer.put(finished)
                self.stats.rows += len(shard.read.records) - (len(shard.known.records) if shard.known else 0)
        return self.records

    def _tasks(self) -> Iterator[EmbeddingTask]:
        on_bad_row = self.setup.config.output.on_bad_row
        for read in read_shards(self.setup.table, self.job.plan.sharding, on_bad_row, self.job.shards):
            known = None if self.setup.reuse is None else self.setup.reuse.find(read.records)
            shard = tokenize_shard(read, self.embedder, on_bad_row=on_bad_row, known=known)
            task = EmbeddingTask(shard.texts, self.embedder, self._on_batch, shard.units, source=shard)
            self.setup.callbacks.tokenized(read.index, task.tokens)
            yield task

    def _unless_stopped(self, tasks: Iterable[EmbeddingTask]) -> Iterator[EmbeddingTask]:
        for task in tasks:
            self._raise_if_stopped()
            yield task

    def _finish(self, shard: TokenizedShard, *arguments: Any, **options: Any) -> EncodedShard:
        """Makes the rows of a shard, with those that earlier outputs have; see `finish_shard`."""
        reuse, plan = self.setup.reuse, self.job.plan
        reused = reuse.rows(shard.known, plan) if reuse and shard.known else ()
        return finish_shard(shard, *arguments, **options, reused=reused, keep_hashes=plan.hash_key is not None)

    def _write(self, finished: Callable[[], EncodedShard]) -> None:
        shard = finished()
        self.records[shard.index] = record = self.job.destination.write(shard, self.sink)
        if self.job.on_commit is not None:
            self.job.on_commit(record)
        self.setup.callbacks.shard_done(shard.stop - shard.start)

    def _on_batch(self, texts: int, tokens: int, cells: int) -> None:
        self.stats.tokens += tokens
        self.setup.callbacks.batch(texts, tokens, cells)
        self.stats.device = self.embedder.transfer.stats()
        if self.stats.device is not None:
            self.setup.callbacks.device(self.stats.device)
        # A shard takes minutes on a CPU: a failure of the writer ends the run before that.
        self._raise_writer_failure()
        self._raise_if_stopped()

    def _raise_if_stopped(self) -> None:
        if self.setup.stop.is_set():
            if self.setup.config.output.is_stdout:
                raise Stopped("stopped by a signal", hint="the output on stdout is incomplete: run it again")
            raise Stopped(
                f"stopped by a signal; {len(self.records)} shards are committed",
                hint="the same command with --on-exists resume continues from there",
            )


def _planned_embedder(config: RunConfig, embedder: Embedder, plan: Plan) -> Embedder:
    """Returns the embedder with the batch size and the int8 ranges of the plan."""
    if plan.batch_tokens is not None and config.batch.batch_tokens is None:
        embedder = replace(embedder, budget=TokenBudget(plan.batch_tokens))
    if plan.int8_ranges is None:
        return embedder
    ranges = {name: Int8Range.from_json(ends) for name, ends in plan.int8_ranges.items()}
    return replace(embedder, int8_ranges=ranges)


def calibrate(table: Table, embedder: Embedder) -> Int8Ranges:
    """Returns the ranges for int8, from the first 1,000 texts with any content.

    The first rows of the input give the same ranges for every shard and every resumed run. For vectors of words or
    tokens, the texts in the first 200,000 characters are enough.
    """
    records: list[Record] = []
    room = _CALIBRATION_CHARACTERS if embedder.unit_poolings else math.inf
    for record in table.records():
        if isinstance(record, Record) and record.text and record.text.strip():
            records.append(record)
            room -= len(record.text)
        if len(records) == _CALIBRATION_TEXTS or room <= 0:
            break
    shard = tokenize_shard(ReadShard(0, 0, len(records), records, ()), replace(embedder, on_long="truncate"))
    raw = embed(shard.texts, embedder, lambda *_: None, shard.units).vectors
    return {name: ends.to_json() for name, ends in int8_ranges(raw, embedder).items()}
