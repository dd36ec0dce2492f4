"""The memory of packed weights."""

from __future__ import annotations

import mmap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from embedkit.models.native import weight_memory
from embedkit.models.native.weight_memory import empty_words


def test_parts_begin_at_lines_of_the_caches_and_share_no_memory():
    sizes = [1, 15, 17, 4096, (weight_memory._CHUNK >> 2) + 5, 3] * 4
    with ThreadPoolExecutor(4) as threads:
        parts = list(threads.map(empty_words, sizes))
    for number, part in enumerate(parts):
        part.fill_(number)
    for number, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        assert part.shape == (size,)
        assert part.data_ptr() % 64 == 0
        assert bool((part == number).all())


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no pages of 2 MiB to ask for")
def test_where_the_kernel_has_no_such_pages_memory_is_ordinary(monkeypatch):
    class Refusing(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Refusing)
    monkeypatch.setattr(weight_memory, "_chunks", weight_memory._Chunks())
    assert torch.equal(empty_words(7).fill_(1), torch.ones(7, dtype=torch.int32))
