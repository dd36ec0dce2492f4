"""Stages in threads: order kept, bounds kept, every failure seen, never a hang."""

from __future__ import annotations

import threading
import time

import pytest

from embedkit.engines.threads import BackgroundWorker, prefetched

pytestmark = pytest.mark.timeout(20)


def nothing() -> None:
    """Nobody asks to stop."""


def test_items_keep_their_order_and_prefetching_is_bounded():
    made = []

    def items():
        for number in range(10):
            made.append(number)
            yield number

    with prefetched(items(), 2, "reader", nothing) as taken:
        assert next(taken) == 0
        time.sleep(0.3)
        # One was taken, two wait, one is in the reader's hand.
        assert len(made) <= 4
        assert list(taken) == list(range(1, 10))


def test_a_failing_reader_raises_where_its_items_are_taken():
    def items():
        yield 1
        raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"), prefetched(items(), 2, "reader", nothing) as taken:
        assert list(taken) == [1]


def test_leaving_early_stops_the_reader():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    generator = items()
    with prefetched(generator, 1, "reader", nothing) as taken:
        next(taken)
    generator.close()
    assert closed.wait(5)


def test_a_request_to_stop_is_heard_while_the_reader_sits_in_a_read():
    def items():
        yield 1
        time.sleep(60)

    def stop() -> None:
        raise InterruptedError

    began = time.monotonic()
    with pytest.raises(InterruptedError), prefetched(items(), 1, "reader", stop) as taken:
        list(taken)
    assert time.monotonic() - began < 10


def test_a_worker_handles_all_in_order_before_it_is_left():
    handled = []
    with BackgroundWorker(lambda item: (time.sleep(0.01), handled.append(item)), 2, "writer") as worker:
        for number in range(20):
            worker.put(number)
    assert handled == list(range(20))


def test_a_failing_worker_raises_and_blocks_nobody():
    def handle(item: int) -> None:
        raise OSError(f"disk full at {item}")

    with pytest.raises(OSError, match="disk full at 0"), BackgroundWorker(handle, 1, "writer") as worker:
        for number in range(100):
            worker.put(number)


def test_a_failure_at_the_last_item_is_not_lost():
    def handle(item: int) -> None:
        time.sleep(0.1)
        raise OSError("late")

    with pytest.raises(OSError, match="late"), BackgroundWorker(handle, 5, "writer") as worker:
        worker.put(1)


def test_an_exception_in_the_block_wins_and_waiting_items_are_dropped():
    handled = []

    def handle(item: int) -> None:
        time.sleep(0.2)
        handled.append(item)

    with pytest.raises(LookupError), BackgroundWorker(handle, 5, "writer") as worker:
        for number in range(5):
            worker.put(number)
        raise LookupError
    assert len(handled) <= 2


def test_a_failure_is_seen_without_handing_anything_in():
    def handle(item: int) -> None:
        raise OSError(f"disk full at {item}")

    def look_until_it_failed() -> None:
        with BackgroundWorker(handle, 5, "writer") as worker:
            worker.raise_failure()
            worker.put(1)
            while True:
                worker.raise_failure()
                time.sleep(0.01)

    with pytest.raises(OSError, match="disk full at 1"):
        look_until_it_failed()
