"""Keeps the next batches queued on the device while the current one runs, across the border of two tasks.

Each batch is prepared in a thread before its turn, started in its turn, and collected when one or two later
batches have been started. A batch that does not fit into memory is halved, and the budget shrinks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from embedkit.inference.batching import TokenBudget, halves, is_out_of_memory
from embedkit.types import Batch


class Task(Protocol):
    """Work that is done in batches, such as a shard."""

    def batches(self) -> list[Batch]:
        """Returns the batches; called once."""

    def cost(self, batch: Batch) -> int:
        """Returns the tokens of a batch, as the budget counts them."""

    def prepare(self, batch: Batch) -> Any:
        """Does what can be done before a batch's turn; called in a thread of its own if there is one."""

    def start(self, batch: Batch, prepared: Any) -> Any:
        """Starts a batch without waiting for it. If memory runs out, it is called again for the halves."""

    def collect(self, batch: Batch, started: Any) -> None:
        """Waits for a batch and keeps its results."""

    def mark_oom(self, text: int) -> None:
        """Notes that a text does not fit into memory even alone."""

    def discard(self, prepared: Any) -> None:
        """Releases a prepared batch that is not started or has failed."""

    def drop(self, started: Any) -> None:
        """Releases a started batch that is not collected."""


T = TypeVar("T", bound=Task)


@dataclass(eq=False)
class _Active(Generic[T]):
    """A task in progress, and the number of its batches that are not collected."""

    task: T
    left: int


@dataclass(eq=False)
class _Step(Generic[T]):
    """A batch that waits for its turn."""

    active: _Active[T]
    batch: Batch
    prepared: Future[Any] | None = None


class BatchScheduler(Generic[T]):
    """Runs the batches of tasks; used once.

    Args:
        budget: tokens of a batch; shrinks when memory runs out.
        prefetch: batches prepared before their turn; 0 = each in its turn, in the caller's thread.
        in_flight: batches that may be started before the first is collected; 0 = each is collected at once.
        free_memory: called when memory ran out and all started batches are collected.
    """

    def __init__(
        self, budget: TokenBudget, *, prefetch: int, in_flight: int, free_memory: Callable[[], None]
    ) -> None:
        self._budget = budget
        self._prefetch = prefetch
        self._in_flight = in_flight
        self._free_memory = free_memory
        self._active: deque[_Active[T]] = deque()
        self._waiting: deque[_Step[T]] = deque()
        self._started: deque[tuple[_Step[T], Any]] = deque()
        self._thread = ThreadPoolExecutor(1, "embedkit-prefetch") if prefetch else None

    def finished(self, tasks: Iterable[T], is_ready: Callable[[], bool]) -> Iterator[T]:
        """Runs all tasks, in order.

        Args:
            tasks: asked for the next one when the batches of the last run short.
            is_ready: whether the next task would come without waiting; if not, started batches are finished first.

        Yields:
            Each task when all of its batches are collected.
        """
        tasks = iter(tasks)
        has_more = True
        try:
            while True:
                while has_more and len(self._waiting) <= self._prefetch and (not self._active or is_ready()):
                    task = next(tasks, None)
                    has_more = task is not None
                    if task is not None:
                        self._begin(task)
                if self._waiting:
                    self._start_next()
                    yield from self._collected(self._in_flight)
                else:
                    # Afterwards another task may be ready.
                    yield from self._collected(0)
                    if not has_more:
                        return
        finally:
            self._close()

    def _begin(self, task: T) -> None:
        batches = task.batches()
        active = _Active(task, len(batches))
        self._active.append(active)
        self._waiting += [_Step(active, batch) for batch in batches]

    def _start_next(self) -> None:
        """Starts the next batch, or the half of it that fits."""
        step = self._waiting.popleft()
        task, batch = step.active.task, step.batch
        if task.cost(batch) > self._budget.tokens and len(batch.texts) > 1:
            self._halve(step)
            return
        if self._thread is not None:
            for other in (step, *list(self._waiting)[: self._prefetch]):
                other.prepared = other.prepared or self._thread.submit(other.active.task.prepare, other.batch)
        started = _start(step)
        step.prepared = None
        if started is not _OOM:
            self._started.append((step, started))
            return
        # Only here, outside the `except`, is the failed pass's memory free: its frames are gone.
        while self._started:
            self._collect()
        self._free_memory()
        self._budget.shrink_below(task.cost(batch))
        if len(batch.texts) > 1:
            self._halve(step)
        else:
            task.mark_oom(int(batch.texts[0]))
            step.active.left -= 1

    def _halve(self, step: _Step[T]) -> None:
        # Batches that are prepared already would hold the buffers that the halves need.
        for other in (step, *self._waiting):
            self._discard(other)
        step.active.left += 1
        self._waiting.extendleft(_Step(step.active, half) for half in reversed(halves(step.batch)))

    def _collected(self, in_flight: int) -> Iterator[T]:
        """Collects all but the last few batches; yields the tasks that this finishes."""
        while len(self._started) > in_flight:
            self._collect()
            yield from self._done()
        yield from self._done()

    def _collect(self) -> None:
        step, started = self._started.popleft()
        step.active.task.collect(step.batch, started)
        step.active.left -= 1

    def _done(self) -> Iterator[T]:
        while self._active and not self._active[0].left:
            yield self._active.popleft().task

    def _discard(self, step: _Step[T]) -> None:
        if step.prepared is not None and not step.prepared.cancel() and step.prepared.exception() is None:
            step.active.task.discard(step.prepared.result())
        step.prepared = None

    def _close(self) -> None:
        for step in self._waiting:
            self._discard(step)
        for step, started in self._started:
            step.active.task.drop(started)
        if self._thread is not None:
            self._thread.shutdown(wait=True)


#: Returned by `_start` for a batch that does not fit into memory.
_OOM = object()


def _start(step: _Step[Any]) -> Any:
    task = step.active.task
    try:
        prepared = task.prepare(step.batch) if step.prepared is None else step.prepared.result()
    except (RuntimeError, MemoryError) as fault:
        if not is_out_of_memory(fault):
            raise
        return _OOM
    try:
        return task.start(step.batch, prepared)
    except BaseException as fault:
        task.discard(prepared)
        if not is_out_of_memory(fault):
            raise
        return _OOM
