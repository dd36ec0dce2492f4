"""The memory of packed weights."""

from __future__ import annotations

import json
import mmap
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from embedkit.models.native import weight_memory
from embedkit.models.native.compile_kernels import find_compiler
from embedkit.models.native.config import read_config
from embedkit.models.native.linear import int8_instructions
from embedkit.models.native.weight_memory import empty_words, prepare_memory
from tests.models.native.refused_pages import refuse_large_pages
from tests.models.native.test_cpu_encoder import loaded, save, tokens_with_pads


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
    refuse_large_pages(monkeypatch)
    monkeypatch.setattr(weight_memory, "_chunks", weight_memory._Chunks())
    assert torch.equal(empty_words(7).fill_(1), torch.ones(7, dtype=torch.int32))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_has_memory_though_a_thread_of_its_parent_was_preparing_some():
    with weight_memory._chunks._lock:
        child = os.fork()
        if not child:
            signal.alarm(20)  # ends it if it waits for the lock
            os._exit(len(empty_words(7)) - 7)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(find_compiler() is None, reason="only packed weights are kept there")
@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no pages of 2 MiB to ask for")
@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("bert", {}),
        ("modernbert", {}),
        ("qwen3", {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 96}),
    ],
)
def test_what_is_prepared_is_enough_for_a_model_and_little_more(kind, changed, dtype, tmp_path, monkeypatch):
    if dtype == "int8" and int8_instructions() is None:
        pytest.skip("nothing multiplies bytes here")
    reserved: list[int] = []

    class Counting(weight_memory._Chunks):
        def _reserve(self, size: int) -> None:
            reserved.append(size)
            super()._reserve(size)

    chunks = Counting()
    monkeypatch.setattr(weight_memory, "_chunks", chunks)
    monkeypatch.setattr(weight_memory, "_CHUNK", 1)
    # 4.3 MB and more of packed weights in bytes, where 2 MiB are added for checks.
    sizes = {"hidden_size": 768, "intermediate_size": 1536, "num_hidden_layers": 3}
    folder = save(kind, tmp_path, **sizes, **changed)
    config = read_config(json.loads((folder / "config.json").read_text()))
    prepare_memory(config, 2, dtype)
    loaded(folder, dtype=dtype).make_encoder((2,), tokens_with_pads(types=False), for_pooler=False)
    assert len(reserved) == 1
    left = chunks._end - chunks._next
    assert left <= 2 * weight_memory._PAGE
