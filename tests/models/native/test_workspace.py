"""The memory that threads keep for compiled code."""

from __future__ import annotations

import mmap
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from embedkit.models.native import workspace as module
from embedkit.models.native.workspace import workspace
from tests.models.native.refused_pages import refuse_large_pages


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(module, "_kept", module._Kept())


def test_threads_have_memory_of_their_own_that_they_keep():
    together = Barrier(3)

    def work(number: int) -> tuple[bool, bool]:
        memory = workspace(5000 * number)
        memory.fill_(number)
        together.wait()
        again = workspace(5000)
        return bool((memory == number).all()), again.data_ptr() == memory.data_ptr()

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(work, (1, 2, 3))) == [(True, True)] * 3


def test_more_is_had_where_more_is_wanted():
    for size in (0, 7, 600_000, 20):
        memory = workspace(size)
        assert memory.shape == (size,)
        assert memory.dtype == torch.float32
        assert memory.data_ptr() % 64 == 0
        memory.fill_(1)


def test_a_little_more_has_the_same_memory():
    assert workspace(5000).data_ptr() == workspace(6000).data_ptr()


def test_each_purpose_has_memory_of_its_own():
    work, states = workspace(1024), workspace(1024, "states")
    work.fill_(1)
    states.fill_(2)
    assert bool((work == 1).all())
    assert workspace(1024, "states").data_ptr() == states.data_ptr()


def test_very_much_is_not_kept(monkeypatch):
    monkeypatch.setattr(module, "_MOST_KEPT", 4096)
    kept, much = workspace(1024), workspace(1025)
    much.fill_(1)
    kept.fill_(2)
    assert bool((much == 1).all())
    assert module._kept.numbers["work"].data_ptr() == kept.data_ptr()


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no pages of 2 MiB to ask for")
def test_where_the_kernel_has_no_such_pages_memory_is_ordinary(monkeypatch):
    refuse_large_pages(monkeypatch)
    assert torch.equal(workspace(7).fill_(1), torch.ones(7))
