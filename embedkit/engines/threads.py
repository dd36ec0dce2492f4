"""Stages side by side: a bounded queue between threads, and no failure that goes unseen.

An exception in any stage ends the run with that exception. A stage whose neighbour has stopped stops too.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

#: How long a blocked stage waits before it looks whether its neighbour is still there.
_LOOK_SECONDS = 0.1
#: How long a stopped reader may take to notice.
_LEAVE_SECONDS = 2.0


class _Done:
    """The end of a stream, or the failure that ended it."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.failure = failure


class Prefetcher(Generic[T]):
    """Items that another thread makes, in order: an iterator."""

    def __init__(self, lane: queue.Queue[T | _Done], look: Callable[[], None]) -> None:
        self._lane = lane
        self._look = look

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        while True:
            try:
                item = self._lane.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                self._look()
                continue
            if not isinstance(item, _Done):
                return item
            # The end stays the end, however often it is asked for.
            self._lane.put_nowait(_Done())
            raise item.failure or StopIteration

    def is_ready(self) -> bool:
        """Whether the next one, or the end, is there without waiting."""
        return not self._lane.empty()


@contextlib.contextmanager
def prefetched(
    items: Iterable[T], depth: int, name: str, look: Callable[[], None]
) -> Generator[Prefetcher[T], None, None]:
    """Run an iterable in a thread of its own, at most `depth` items ahead.

    Args:
        items: iterated in the thread; its exception is raised where the items are taken.
        depth: items that may wait.
        name: of the thread.
        look: called while an item is waited for; what it raises ends the waiting.

    Yields:
        The items, in order. Leaving the block stops the thread; one that sits in a read of a pipe is left
        behind, as a daemon.
    """
    lane: queue.Queue[T | _Done] = queue.Queue(depth)
    stop = threading.Event()

    def feed() -> None:
        done = _Done()
        try:
            for item in items:
                if not _put(lane, item, stop):
                    return
        except BaseException as failure:  # noqa: BLE001 - carried over to the thread that waits for it
            done = _Done(failure)
        _put(lane, done, stop)

    thread = threading.Thread(target=feed, name=name, daemon=True)
    thread.start()
    try:
        yield Prefetcher(lane, look)
    finally:
        stop.set()
        thread.join(timeout=_LEAVE_SECONDS)


class Worker(Generic[T]):
    """Handles items in a thread of its own, in order, at most `depth` of them waiting.

    Used as a context: leaving it normally waits until all is handled; leaving it by an exception drops
    what still waits. A failure of the handler is raised at the next `put` or `look`, or on leaving.

    Args:
        handle: called in the thread with each item.
        depth: items that may wait.
        name: of the thread.
    """

    def __init__(self, handle: Callable[[T], None], depth: int, name: str) -> None:
        self._handle = handle
        self._lane: queue.Queue[T | _Done] = queue.Queue(depth)
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def put(self, item: T) -> None:
        """Hand an item over; waits while `depth` of them wait."""
        if not _put(self._lane, item, self._stop):
            self.look()

    def look(self) -> None:
        """Raise what the handler failed with, if it did."""
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Worker[T]:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._stop.set()
        _put(self._lane, _Done(), self._stop)
        self._thread.join()
        if kind is None:
            self.look()

    def _work(self) -> None:
        while True:
            try:
                item = self._lane.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                if self._stop.is_set():
                    return
                continue
            if isinstance(item, _Done) or self._stop.is_set():
                return
            try:
                self._handle(item)
            except BaseException as failure:  # noqa: BLE001 - carried over to the thread that hands items in
                self._failure = failure
                self._stop.set()
                return


def _put(lane: queue.Queue[T | _Done], item: T | _Done, stop: threading.Event) -> bool:
    """Put an item into a lane; False if the other side stopped."""
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            lane.put(item, timeout=_LOOK_SECONDS)
            return True
    return False
