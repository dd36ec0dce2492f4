"""Batches of one piece of work after another, so that the device has the next one before it is through with this.

Each batch is prepared ahead of its turn in a thread, started in its turn, and collected when one or two others
have been started behind it: also across the border between two pieces of work. A batch that does not fit into
memory is halved, and the budget remembered. Knows nothing of what a batch computes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from embedkit.inference.memory import TokenBudget, halves, is_out_of_memory
from embedkit.types import Batch


class Task(Protocol):
    """What has batches: a shard."""

    def batches(self) -> list[Batch]:
        """What there is to compute; asked once, when its turn comes near."""

    def cost(self, batch: Batch) -> int:
        """Tokens of a batch, as the budget counts them."""

    def prepare(self, batch: Batch) -> Any:
        """What can be done before a batch's turn; called in a thread of its own if there is one."""

    def start(self, batch: Batch, prepared: Any) -> Any:
        """Start a batch, and do not wait for it. May run out of memory, and is then called for its halves."""

    def collect(self, batch: Batch, started: Any) -> None:
        """Wait for a batch, and keep what it gave."""

    def lose(self, text: int) -> None:
        """A text does not fit into memory even alone."""

    def discard(self, prepared: Any) -> None:
        """A batch that was prepared is not started, or it failed."""

    def drop(self, started: Any) -> None:
        """Nobody wants what a batch gave."""


W = TypeVar("W", bound=Task)


@dataclass(eq=False)
class _Open(Generic[W]):
    """A piece of work that is under way, and how many of its batches are not collected."""

    work: W
    left: int


@dataclass(eq=False)
class _Step(Generic[W]):
    """A batch that waits for its turn."""

    of: _Open[W]
    batch: Batch
    prepared: Future[Any] | None = None


class BatchScheduler(Generic[W]):
    """Puts batches through; used once.

    Args:
        budget: tokens of a batch; shrinks where memory runs out.
        ahead: batches that are prepared before their turn; 0 = each in its turn, in the caller's thread.
        late: batches that may be started before the first of them is collected; 0 = each is collected at once.
        make_room: called when memory ran out, and all that had been started is collected.
    """

    def __init__(self, budget: TokenBudget, *, ahead: int, late: int, make_room: Callable[[], None]) -> None:
        self._budget = budget
        self._ahead = ahead
        self._late = late
        self._make_room = make_room
        self._open: deque[_Open[W]] = deque()
        self._waiting: deque[_Step[W]] = deque()
        self._started: deque[tuple[_Step[W], Any]] = deque()
        self._thread = ThreadPoolExecutor(1, "embedkit-ahead") if ahead else None

    def finished(self, works: Iterable[W], is_ready: Callable[[], bool]) -> Iterator[W]:
        """Do all works, in order.

        Args:
            works: what there is to do; asked for the next one when the batches of the last run short.
            is_ready: whether the next one would come at once; else what is under way is finished first.

        Yields:
            Each work when all of its batches are collected.
        """
        coming, more = iter(works), True
        try:
            while True:
                while more and len(self._waiting) <= self._ahead and (not self._open or is_ready()):
                    work = next(coming, None)
                    more = work is not None
                    if work is not None:
                        self._begin(work)
                if self._waiting:
                    self._go()
                    yield from self._collected(self._late)
                else:
                    # Afterwards there may be more to start.
                    yield from self._collected(0)
                    if not more:
                        return
        finally:
            self._leave()

    def _begin(self, work: W) -> None:
        batches = work.batches()
        opened = _Open(work, len(batches))
        self._open.append(opened)
        self._waiting += [_Step(opened, batch) for batch in batches]

    def _go(self) -> None:
        """Start the next batch, or the part of it that fits."""
        step = self._waiting.popleft()
        if step.of.work.cost(step.batch) > self._budget.tokens and len(step.batch.texts) > 1:
            self._halve(step)
            return
        if self._thread is not None:
            for of in (step, *list(self._waiting)[: self._ahead]):
                of.prepared = of.prepared or self._thread.submit(of.of.work.prepare, of.batch)
        started = _attempt(step)
        step.prepared = None
        if started is not _UNFIT:
            self._started.append((step, started))
            return
        # Only here, outside the `except`, is the failed pass's memory free: its frames are gone.
        self._collect_all()
        self._make_room()
        self._budget.shrink_below(step.of.work.cost(step.batch))
        if len(step.batch.texts) > 1:
            self._halve(step)
        else:
            step.of.work.lose(int(step.batch.texts[0]))
            step.of.left -= 1

    def _halve(self, step: _Step[W]) -> None:
        # What is prepared behind it would hold the buffers that its halves need.
        for of in (step, *self._waiting):
            self._forget(of)
        step.of.left += 1
        self._waiting.extendleft(_Step(step.of, half) for half in reversed(halves(step.batch)))

    def _collected(self, late: int) -> Iterator[W]:
        """Collect all but the last few batches; yields the works that this finishes."""
        while len(self._started) > late:
            self._collect()
            yield from self._done()
        yield from self._done()

    def _collect_all(self) -> None:
        while self._started:
            self._collect()

    def _collect(self) -> None:
        step, started = self._started.popleft()
        step.of.work.collect(step.batch, started)
        step.of.left -= 1

    def _done(self) -> Iterator[W]:
        while self._open and not self._open[0].left:
            yield self._open.popleft().work

    def _forget(self, step: _Step[W]) -> None:
        """Give back what was prepared for a batch that will not be started."""
        if step.prepared is not None and not step.prepared.cancel() and step.prepared.exception() is None:
            step.of.work.discard(step.prepared.result())
        step.prepared = None

    def _leave(self) -> None:
        for step in self._waiting:
            self._forget(step)
        for step, started in self._started:
            step.of.work.drop(started)
        if self._thread is not None:
            self._thread.shutdown(wait=True)


#: What `_attempt` gives for a batch that does not fit into memory.
_UNFIT = object()


def _attempt(step: _Step[Any]) -> Any:
    work = step.of.work
    try:
        prepared = work.prepare(step.batch) if step.prepared is None else step.prepared.result()
    except (RuntimeError, MemoryError) as fault:
        if not is_out_of_memory(fault):
            raise
        return _UNFIT
    try:
        return work.start(step.batch, prepared)
    except BaseException as fault:
        work.discard(prepared)
        if not is_out_of_memory(fault):
            raise
        return _UNFIT
