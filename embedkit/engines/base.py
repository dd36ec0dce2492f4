"""The contract between a run and the engine that computes its shards.

An engine loads the model, in this process or in others, and reads, computes and commits shards by their numbers.
The run plans before and completes the output afterwards; it knows engines by this protocol alone. To add one,
write a module with such a class and name it in `encode_rows.ENGINES`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:  # the command line imports this before anything that takes time
    from embedkit.config import RunConfig
    from embedkit.inference.build import ModelFacts
    from embedkit.inference.model_spec import ModelSpec
    from embedkit.manifest.schema import Int8Ranges, Plan, ShardRecord
    from embedkit.output.destination import Destination
    from embedkit.sources import Table
    from embedkit.types import DeviceStats


class Callbacks(Protocol):
    """Reports the progress of a run. Called from the thread that computes or from the one that writes."""

    def notice(self, sentence: str) -> None:
        """Something that the user should know before using the numbers."""

    def started(
        self,
        *,
        rows: int | None,
        done: int,
        device: str,
        dtype: str,
        characters: Mapping[int, int] | None = None,
    ) -> None:
        """The model starts to run.

        Args:
            rows: of this process's part of the input; None for a stream.
            done: rows of these that a former run committed.
            device: where the model runs.
            dtype: what it computes in.
            characters: of the shards that are left, by number; None if they were not counted.
        """

    def tokenized(self, shard: int, tokens: int) -> None:
        """A shard was tokenized: the number of its tokens that will go through the model."""

    def batch(self, texts: int, tokens: int, cells: int) -> None:
        """A batch was computed: its texts, their tokens, and the tokens computed (padding included)."""

    def device(self, use: DeviceStats) -> None:
        """How the device was used so far; after each batch, if it is measured."""

    def shard_done(self, rows: int) -> None:
        """A shard of so many input rows is committed."""


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """What every engine is made from.

    Attributes:
        config: what the user asked for.
        spec: the model, found; can be pickled.
        table: the input, open in this process.
        callbacks: reports progress.
        stop: set from outside to end the run between two batches.
        workers: processes to compute with.
    """

    config: RunConfig
    spec: ModelSpec
    table: Table
    callbacks: Callbacks
    stop: threading.Event
    workers: int = 1


@dataclass(frozen=True, slots=True)
class ShardJob:
    """Shards of a plan that an engine is to compute.

    Attributes:
        plan: of the run; it is stored at the destination already.
        destination: where shards are committed.
        done: records of the shards that are committed already, by number.
        shards: numbers of the shards to compute, ascending, possibly known only one at a time; None = all of a
            stream.
    """

    plan: Plan
    destination: Destination
    done: Mapping[int, ShardRecord]
    shards: Iterable[int] | None


@dataclass(slots=True)
class EngineStats:
    """What an engine has computed so far.

    Attributes:
        rows, tokens: that went through the model.
        device: how the device was used; None if it is not measured.
    """

    rows: int = 0
    tokens: int = 0
    device: DeviceStats | None = None


class Engine(Protocol):
    """Computes the shards of a run. A context manager, which leaves no process behind.

    Every method raises Stopped once `EngineSetup.stop` is set, and the error of any worker that failed.
    """

    @property
    def stats(self) -> EngineStats:
        """What was computed so far."""

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
