"""Batches ahead of their turn and collected late: what is done in which order, and when memory runs out."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedkit.inference.batching import TokenBudget, make_batches
from embedkit.inference.scheduler import BatchScheduler

KINDS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried 9"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
]


class FaultError(Exception):
    """What a device says, or somebody who wants to stop."""


class Texts:
    """Texts of some lengths on a device that has room for so many tokens; notes all that it is asked for."""

    def __init__(self, number, sizes, room, budget, *, kind=KINDS[0], prepares=True, log=None):
        self.number, self.sizes, self.room, self.budget = number, sizes, room, budget
        self.kind, self.prepares = kind, prepares
        self.log = [] if log is None else log
        self.kept, self.unfit, self.failed, self.held, self.late = [], [], 0, set(), 0
        self.most_held = self.most_late = 0
        self.lock = threading.Lock()

    def batches(self):
        return make_batches(self.sizes, max_tokens=self.budget.tokens, padded=False)

    def cost(self, batch):
        return batch.tokens

    def prepare(self, batch):
        if not self.prepares and batch.tokens > self.room:
            raise self.kind
        with self.lock:
            self.held.add(id(batch))
            self.most_held = max(self.most_held, len(self.held))
        return batch

    def start(self, batch, prepared):
        assert prepared is batch
        if batch.tokens > self.room:
            self.failed += 1
            raise self.kind
        self.discard(prepared)
        self.late += 1
        self.most_late = max(self.most_late, self.late)
        self.log.append(("start", self.number, tuple(batch.texts.tolist())))
        return batch

    def collect(self, batch, started):
        assert started is batch
        self.late -= 1
        self.log.append(("collect", self.number, tuple(batch.texts.tolist())))
        self.kept += batch.texts.tolist()

    def mark_oom(self, text):
        self.unfit.append(text)

    def discard(self, prepared):
        with self.lock:
            self.held.remove(id(prepared))

    def drop(self, started):
        self.late -= 1


def flow_of(budget, ahead, late, made_room=lambda: None):
    return BatchScheduler(budget, prefetch=ahead, in_flight=late, free_memory=made_room)


@given(
    sizes=st.lists(st.lists(st.integers(1, 50), max_size=25), min_size=1, max_size=3),
    asked=st.integers(1, 400),
    room=st.integers(1, 400),
    kind=st.sampled_from(KINDS),
    prepares=st.booleans(),
    depth=st.sampled_from([(0, 0), (2, 2), (1, 3)]),
    ready=st.booleans(),
)
def test_every_text_that_fits_alone_is_computed_once_and_the_budget_shrinks(
    sizes, asked, room, kind, prepares, depth, ready
):
    ahead, late = depth
    budget = TokenBudget(asked)
    works = [Texts(n, of, room, budget, kind=kind, prepares=prepares) for n, of in enumerate(sizes)]
    done = list(flow_of(budget, ahead, late).finished(works, lambda: ready))
    assert done == works
    for work in works:
        assert sorted(work.kept + work.unfit) == list(range(len(work.sizes)))
        assert all(work.sizes[text] > room for text in work.unfit)
        assert all(work.sizes[text] <= room for text in work.kept)
        assert (work.held, work.late) == (set(), 0)
        assert work.most_held <= ahead + 2
        assert work.most_late <= late + 1
    assert budget.tokens <= asked
    if prepares:
        # Each failure that is not a single text's halves the budget: there are few, however many batches.
        failed = sum(work.failed - len(work.unfit) for work in works)
        assert failed <= np.log2(max(asked, *(size for of in sizes for size in of), 1)) + 1


def test_the_next_work_is_started_before_the_last_one_is_collected_and_that_is_finished_first():
    log, budget = [], TokenBudget(10)
    works = [Texts(number, [10] * 3, 10, budget, log=log) for number in range(2)]
    finished = []
    for work in flow_of(budget, 2, 2).finished(works, lambda: True):
        finished.append(work.number)
        log.append(("finished", work.number))
    assert finished == [0, 1]
    started = [number for what, number, *_ in log if what == "start"]
    assert started == [0, 0, 0, 1, 1, 1]
    # Two batches of the second work run while the last one of the first is looked at.
    assert log.index(("finished", 0)) > [place for place, of in enumerate(log) if of[:2] == ("start", 1)][1]
    assert [of[1:] for of in log if of[0] == "start"] == [of[1:] for of in log if of[0] == "collect"]


def test_what_is_under_way_is_finished_before_a_slow_reader_is_waited_for():
    log, budget = [], TokenBudget(10)
    works = [Texts(number, [10] * 2, 10, budget, log=log) for number in range(2)]

    def slowly():
        for work in works:
            log.append(("read", work.number))
            yield work

    flow = flow_of(budget, 2, 2)
    log.extend(("finished", work.number) for work in flow.finished(slowly(), lambda: False))
    assert log.index(("finished", 0)) < log.index(("read", 1))


def test_without_a_device_each_batch_is_prepared_started_and_collected_before_the_next():
    log, budget, here = [], TokenBudget(10), set()
    work = Texts(0, [10, 9, 8], 10, budget, log=log)
    prepare = work.prepare
    work.prepare = lambda batch: (here.add(threading.current_thread()), prepare(batch))[1]
    assert list(flow_of(budget, 0, 0).finished([work], lambda: True)) == [work]
    assert [what for what, *_ in log] == ["start", "collect"] * 3
    assert (here, work.most_held) == ({threading.current_thread()}, 1)


def test_started_batches_are_collected_before_memory_is_freed_and_a_failed_one_never_is():
    log, budget = [], TokenBudget(20)
    # The fourth batch, of shorter texts, does not fit: somebody else has taken memory.
    work = Texts(0, [20, 20, 20, 5, 5, 5, 5], 20, budget, log=log)
    start = work.start

    def smaller(batch, prepared):
        if len(batch.texts) == 4:
            raise KINDS[1]
        return start(batch, prepared)

    work.start = smaller
    flow = flow_of(budget, 2, 2, lambda: log.append(("room", 0)))
    assert list(flow.finished([work], lambda: True)) == [work]
    before = log[: log.index(("room", 0))]
    assert [what for what, *_ in before].count("collect") == 3
    assert all(len(of[2]) < 4 for of in log if of[0] == "collect")
    assert (sorted(work.kept), budget.tokens) == (list(range(7)), 10)


@pytest.mark.parametrize("where", ["prepare", "start", "collect", "reader"])
def test_a_fault_ends_it_and_leaves_no_buffer_taken_and_no_thread(where):
    budget = TokenBudget(10)
    work = Texts(0, [10] * 9, 10, budget)
    real, calls = getattr(work, where, None), []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            if where == "start":
                raise RuntimeError("shapes differ")
            # A collected batch is given back, whatever comes of it.
            work.late -= where == "collect"
            raise FaultError
        return real(*arguments)

    def reader():
        yield work
        raise FaultError

    setattr(work, where, failing if real else None)
    stream = flow_of(budget, 2, 2).finished(reader(), lambda: True)

    with pytest.raises((FaultError, RuntimeError)):
        list(stream)
    stream.close()
    assert (work.held, work.late) == (set(), 0)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("embedkit-prefetch")]
