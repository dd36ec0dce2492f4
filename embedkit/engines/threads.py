"""Threads connected by bounded queues: a prefetching reader and a background worker.

An exception in one thread is raised in the thread that uses its results, and a stopped thread stops its
neighbours.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

#: Seconds between two checks of a blocked thread for a stopped neighbour.
_POLL_SECONDS = 0.1
#: Seconds that a stopped reader may take to end.
_LEAVE_SECONDS = 2.0


class _Done:
    """Marks the end of a queue, with the failure that caused it, if any."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.failure = failure


class Prefetcher(Generic[T]):
    """Iterator over the items that another thread makes."""

    def __init__(self, queue_: queue.Queue[T | _Done], check: Callable[[], None]) -> None:
        self._queue = queue_
        self._check = check

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        while True:
            try:
                item = self._queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                self._check()
                continue
            if not isinstance(item, _Done):
                return item
            # Further calls end as well.
            self._queue.put_nowait(_Done())
            raise item.failure or StopIteration

    def is_ready(self) -> bool:
        """Checks whether the next item, or the end, is available without waiting."""
        return not self._queue.empty()


@contextlib.contextmanager
def prefetched(
    items: Iterable[T], depth: int, name: str, check: Callable[[], None]
) -> Generator[Prefetcher[T], None, None]:
    """Iterates over items in a thread, at most `depth` items ahead; `check` is called while waiting for an item.

    Exceptions of `items` and of `check` are raised where the items are used. Leaving the block stops the thread; a
    thread blocked in a read of a pipe is abandoned as a daemon.
    """
    queue_: queue.Queue[T | _Done] = queue.Queue(depth)
    stop = threading.Event()

    def feed() -> None:
        done = _Done()
        try:
            for item in items:
                if not _put(queue_, item, stop):
                    return
        except BaseException as failure:  # noqa: BLE001 - raised in the thread that waits for it
            done = _Done(failure)
        _put(queue_, done, stop)

    thread = threading.Thread(target=feed, name=name, daemon=True)
    thread.start()
    try:
        yield Prefetcher(queue_, check)
    finally:
        stop.set()
        thread.join(timeout=_LEAVE_SECONDS)


class BackgroundWorker(Generic[T]):
    """Calls `handle` with items in a thread, in order, at most `depth` of them waiting. A context manager.

    Leaving it normally waits until all items are handled; an exception drops the waiting ones. A failure of
    `handle` is raised at the next `put` or `raise_failure`, or on leaving.
    """

    def __init__(self, handle: Callable[[T], None], depth: int, name: str) -> None:
        self._handle = handle
        self._queue: queue.Queue[T | _Done] = queue.Queue(depth)
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def put(self, item: T) -> None:
        """Adds an item; blocks while `depth` items wait."""
        if not _put(self._queue, item, self._stop):
            self.raise_failure()

    def raise_failure(self) -> None:
        """Raises the failure of the handler, if any."""
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> BackgroundWorker[T]:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._stop.set()
        _put(self._queue, _Done(), self._stop)
        self._thread.join()
        if kind is None:
            self.raise_failure()

    def _work(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if self._stop.is_set():
                    return
                continue
            if isinstance(item, _Done) or self._stop.is_set():
                return
            try:
                self._handle(item)
            except BaseException as failure:  # noqa: BLE001 - raised in the thread that puts items
                self._failure = failure
                self._stop.set()
                return


def _put(queue_: queue.Queue[T | _Done], item: T | _Done, stop: threading.Event) -> bool:
    """Puts an item into a queue; returns False if the other side has stopped."""
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            queue_.put(item, timeout=_POLL_SECONDS)
            return True
    return False
