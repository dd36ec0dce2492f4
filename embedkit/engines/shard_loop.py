"""The shards of one run on one device: reading, computing and writing side by side.

A reader thread reads and tokenizes the next shards, the caller's thread runs the model, a writer thread
finishes the vectors of the last ones and commits them. Each stage is at most two shards ahead of the next, so
memory does not grow with the input.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from embedkit.config import RunConfig
from embedkit.engines.accounting import unreadable_rows
from embedkit.engines.callbacks import Callbacks
from embedkit.engines.threads import Worker, prefetched
from embedkit.errors import InputError, Stopped
from embedkit.inference.embedder import Embedder, EmbeddingTask, embed, embed_all
from embedkit.inference.pipeline import (
    ReadShard,
    embedding_task,
    finish_shard,
    int8_ranges,
    non_finite_layers,
    tokenize_shard,
)
from embedkit.manifest.schema import Int8Ranges, Plan, Sharding, ShardRecord
from embedkit.manifest.shards import ShardCutter
from embedkit.output.destination import Destination
from embedkit.output.formats import Sink
from embedkit.pooling.postprocess import Int8Range
from embedkit.sources import Table, Wanted, every
from embedkit.types import EncodedShard, Fault, Record

_CALIBRATION_TEXTS, _CALIBRATION_CHARACTERS = 1000, 200_000


class Job:
    """Computes and commits shards, one after another.

    Args:
        config: what the user asked for.
        table: where the rows come from.
        embedder: what computes the vectors.
        sink: what writes them.
        destination: where they are committed.
        plan: rows and shards; `rows` and `starts` are None for a stream.
        watcher: is told how it goes.
        stop: set from outside to end the run between two batches.
        wanted: numbers of the shards to do, ascending; may be told one at a time. None = all.
        records: of the shards that are done already, by number.
        ahead: how many shards a stage may be ahead of the next.
    """

    def __init__(
        self,
        config: RunConfig,
        table: Table,
        embedder: Embedder,
        sink: Sink,
        destination: Destination,
        plan: Plan,
        watcher: Callbacks,
        stop: threading.Event,
        wanted: Iterable[int] | None,
        records: Mapping[int, ShardRecord],
        ahead: int = 2,
    ) -> None:
        self.config = config
        self.table = table
        self.embedder = embedder
        self.sink = sink
        self.destination = destination
        self.plan = plan
        self.watcher = watcher
        self.stop = stop
        self.wanted = wanted
        self.ahead = ahead
        self.records = dict(records)
        self.rows_computed = self.tokens_computed = 0
        self._look: Callable[[], None] = lambda: None

    def run(self) -> dict[int, ShardRecord]:
        """Do them.

        Returns:
            Their records and those of the shards that were done, by number.

        Raises:
            Stopped: a signal came.
            AlreadyCompleted: another process has finished the output.
            EmbedkitError: whatever ended a stage.
        """
        with (
            Worker[Callable[[], EncodedShard]](self._write, self.ahead, "embedkit-writer") as writer,
            prefetched(self._embeddings(), self.ahead, "embedkit-reader", self._raise_if_stopped) as coming,
        ):
            self._look = writer.look
            for embedding in embed_all(self._unless_stopped(coming), self.embedder, coming.is_ready):
                shard, raw = embedding.source, embedding.vectors()
                layers = non_finite_layers(shard, raw, self.embedder)
                finished = partial(
                    finish_shard,
                    shard,
                    raw,
                    self.embedder,
                    layers,
                    keep=self.config.input.keep,
                    on_bad_row=self.config.output.on_bad_row,
                    list_nulls=self.config.output.format == "npy",
                )
                # A GPU would wait for what is done to the vectors, unless another thread does it.
                writer.put(finished)
                self.rows_computed += len(shard.read.records)
        return self.records

    def _embeddings(self) -> Iterator[EmbeddingTask]:
        for read in read_shards(self.table, self.plan.sharding, self.config.output.on_bad_row, self.wanted):
            shard = tokenize_shard(read, self.embedder, on_bad_row=self.config.output.on_bad_row)
            embedding = embedding_task(shard, self.embedder, self._on_batch)
            self.watcher.tokenized(read.index, embedding.tokens)
            yield embedding

    def _unless_stopped(self, coming: Iterable[EmbeddingTask]) -> Iterator[EmbeddingTask]:
        for embedding in coming:
            self._raise_if_stopped()
            yield embedding

    def _write(self, finished: Callable[[], EncodedShard]) -> None:
        shard = finished()
        self.records[shard.index] = self.destination.write(shard, self.sink)
        self.watcher.shard_done(shard.stop - shard.start)

    def _on_batch(self, texts: int, tokens: int, cells: int) -> None:
        self.tokens_computed += tokens
        self.watcher.batch(texts, tokens, cells)
        use = self.embedder.transfer.stats()
        if use is not None:
            self.watcher.device(use)
        # A shard takes minutes on a CPU: what failed behind it is told before that.
        self._look()
        self._raise_if_stopped()

    def _raise_if_stopped(self) -> None:
        if self.stop.is_set():
            if self.config.output.is_stdout:
                raise Stopped("stopped by a signal", hint="what went to stdout is not whole: run it again")
            raise Stopped(
                f"stopped by a signal; {len(self.records)} shards are committed",
                hint="the same command with --on-exists resume goes on from there",
            )


def read_shards(
    table: Table, sharding: Sharding, on_bad_row: str, wanted: Iterable[int] | None = None
) -> Iterator[ReadShard]:
    """Rows of a table, cut into shards as planned; a stream is cut as it comes.

    Args:
        table: the rows; read no further than the last shard that is wanted.
        sharding: where they are cut.
        on_bad_row: fail, null or skip.
        wanted: numbers of the shards that are wanted, ascending; None = all. The next one is asked for when one
            has been read.

    Raises:
        InputError: a row cannot be read and `on_bad_row` is fail, or there are not as many rows as planned.
    """
    cutter = ShardCutter(sharding.shard_rows, sharding.shard_characters)
    starts = None if sharding.starts is None else set(sharding.starts)
    coming = iter(itertools.count() if wanted is None else wanted)
    next_wanted = next(coming, None)
    if next_wanted is None:
        return
    index, start, row = -1, 0, 0
    records: list[Record] = []
    faults: list[Fault] = []
    rows = table.records(_wanted_rows(sharding, lambda: next_wanted))
    for row, item in enumerate(rows):
        text = item.text if isinstance(item, Record) else None
        opens = cutter.opens_shard(len(text or "")) if starts is None else row in starts
        if opens:
            if index == next_wanted:
                yield ReadShard(index, start, row, records, faults)
                next_wanted = next(coming, None)
                if next_wanted is None:
                    return
            index, start, records, faults = index + 1, row, [], []
        if index == next_wanted:
            kept = _kept(item, on_bad_row, len(table.columns.keep), faults)
            records += [kept] if kept else []
    found = row + 1 if index >= 0 else 0
    if sharding.rows is not None and found != sharding.rows:
        raise InputError(
            f"the input has {found} rows now and had {sharding.rows} when the run was planned",
            hint="keep the input as it is while embedkit reads it; start again with --on-exists overwrite",
        )
    if index == next_wanted:
        yield ReadShard(index, start, row + 1, records, faults)


def _wanted_rows(sharding: Sharding, next_wanted: Callable[[], int | None]) -> Wanted:
    """Whether rows are of the shard that is wanted next; of a stream, all may be."""
    ranges = sharding.ranges
    if ranges is None:
        return every

    def is_wanted(first: int, stop: int) -> bool:
        number = next_wanted()
        if number is None:
            return True
        start, end = ranges[number]
        # The row behind the shard is read, too: which shard is wanted next is asked for when that has come.
        return start < stop and first <= end

    return is_wanted


def _kept(item: Record | Fault, on_bad_row: str, n_keep: int, faults: list[Fault]) -> Record | None:
    """The record that stands for a row; a faulty one is added to `faults`."""
    if isinstance(item, Record):
        return item
    if on_bad_row == "fail":
        raise unreadable_rows([item], 1)
    faults.append(item)
    return Record(item.row, None, None, (None,) * n_keep) if on_bad_row == "null" else None


def calibrate(table: Table, embedder: Embedder) -> Int8Ranges:
    """Ranges for int8 from the first 1,000 texts that have any content, as they go into the plan.

    They come from the first rows of the input alone, so they are the same for every shard and every resume. Of
    texts with a vector a word or a token, those in the first 200,000 characters are enough.
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
    return {name: of.to_json() for name, of in int8_ranges(raw, embedder).items()}


def with_int8_ranges(embedder: Embedder, stored: Int8Ranges | None) -> Embedder:
    """The embedder, storing vectors with the ranges that the plan has; as it is where the plan has none."""
    if stored is None:
        return embedder
    return replace(embedder, int8_ranges={name: Int8Range.from_json(of) for name, of in stored.items()})
