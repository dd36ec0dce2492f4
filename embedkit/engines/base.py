"""The contract between a run and the engine that computes its shards.

An engine loads the model, in this process or in others, and reads, computes and commits shards by their numbers.
The run plans before and completes the output afterwards; it knows engines by this protocol alone. To add one,
write a module with a class that implements it, and add that class to `encode_rows.ENGINES`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:  # the command line imports this before anything that takes time
    from embedkit.config import RunConfig
    from embedkit.engines.reuse import TextReuse
    from embedkit.inference.build import ModelFacts
    from embedkit.inference.model_spec import ModelSpec
    from embedkit.manifest.schema import Int8Ranges, Plan, ShardRecord
    from embedkit.output.destination import Destination
    from embedkit.sources import Table
    from embedkit.types import DeviceStats


@dataclass(frozen=True, slots=True)
class RunStart:
    """The work of a run when its model starts to run."""

    device: str
    dtype: str
    rows: int | None = None  # of this process's part of the input; None for a stream
    done: int = 0  # of these, rows that a former run committed
    characters: Mapping[int, int] | None = None  # of the shards that are left, by number; None if not counted


class Callbacks(Protocol):
    """Reports the progress of a run. Called from the thread that computes or from the one that writes."""

    def notice(self, sentence: str) -> None:
        """Tells the user something to know before using the numbers."""

    def started(self, start: RunStart) -> None:
        """Is called when the model starts to run."""

    def tokenized(self, shard: int, tokens: int) -> None:
        """Reports the tokens of a shard that will go through the model."""

    def batch(self, texts: int, tokens: int, cells: int) -> None:
        """Reports a computed batch: its texts, their tokens, and the tokens computed (padding included)."""

    def device(self, use: DeviceStats) -> None:
        """Reports the use of the device so far; called after each batch, if it is measured."""

    def shard_done(self, rows: int) -> None:
        """Reports that a shard of so many input rows is committed."""


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """The arguments of every engine."""

    config: RunConfig
    spec: ModelSpec  # can be pickled
    table: Table  # open in this process
    callbacks: Callbacks
    stop: threading.Event  # set from outside to end the run between two batches
    workers: int = 1  # processes to compute with
    reuse: TextReuse | None = None  # hashes and earlier outputs, open in this process; None if not asked for


@dataclass(frozen=True, slots=True)
class ShardJob:
    """Shards of a plan that an engine is to compute."""

    plan: Plan  # stored at the destination already
    destination: Destination
    done: Mapping[int, ShardRecord]  # shards that are committed already, by number
    shards: Iterable[int] | None  # ascending, possibly known one at a time; None: all of a stream
    on_commit: Callable[[ShardRecord], None] | None = None  # called for each shard once it is committed


@dataclass(slots=True)
class EngineStats:
    """The work that an engine has done so far."""

    rows: int = 0  # that went through the model
    tokens: int = 0
    device: DeviceStats | None = None  # None if not measured


class Engine(Protocol):
    """Computes the shards of a run. A context manager, which leaves no process behind.

    Every method raises Stopped once `EngineSetup.stop` is set, and the error of any worker that failed.
    """

    @property
    def stats(self) -> EngineStats:
        """The work done so far."""

    def __enter__(self) -> Self:
        """Starts the processes that the engine needs."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends them, at once if the run failed."""

    def load(self) -> ModelFacts:
        """Loads the model and returns what is known of it."""

    def calibrate(self) -> Int8Ranges:
        """Returns the ranges for int8, from the first texts of the input."""

    def run(self, job: ShardJob) -> Mapping[int, ShardRecord]:
        """Computes and commits shards.

        Returns:
            The records of these and of those that were done, by number.

        Raises:
            AlreadyCompleted: another process has completed the output.
        """
