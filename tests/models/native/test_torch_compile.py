"""Compiling the norms of the forward pass for GPUs, with a compiler that changes nothing.

What Triton makes of it on a GPU is not tested here. torch's own compiler for CPUs takes minutes on two cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedkit.config import ModelConfig
from embedkit.models.base import LayerEncoder
from embedkit.models.native import gpu_encoder, torch_compile
from embedkit.models.native.gpu_encoder import GpuEncoder
from embedkit.models.native.norm import Norm
from embedkit.models.native.torch_compile import add_norm, compiled_add_norm, keep_kernels, pays
from embedkit.models.repository.resolve import resolve_model
from embedkit.models.select_backend import load_model
from embedkit.types import Batch, Tokens
from tests.conftest import NOTES
from tests.models.native.test_cpu_encoder import assert_same, by_transformers, save, states, tokens_with_pads
from tests.models.native.test_gpu_encoder import opened

pytestmark = pytest.mark.usefixtures("one_thread")

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")


@pytest.mark.parametrize(
    ("rows", "device", "has_triton", "expected"),
    [
        (100_000_000, GPU, True, True),
        (10_000_000_000, GPU, True, True),
        (99_999_999, GPU, True, False),
        (None, GPU, True, False),
        (10_000_000_000, GPU, False, False),
        (10_000_000_000, CPU, True, False),
    ],
)
def test_only_the_longest_runs_on_a_gpu_are_compiled_for(rows, device, has_triton, expected):
    assert pays(rows, device, has_triton=has_triton) is expected


class Compiler:
    """A backend of torch.compile that leaves the graph as it is, and counts."""

    def __init__(self, spoil: Callable[[torch.Tensor], torch.Tensor] = lambda found: found) -> None:
        self.graphs = 0
        self.spoil = spoil

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        self.graphs += 1
        return lambda *given: tuple(self.spoil(found) for found in graph(*given))


@pytest.fixture
def pretend(monkeypatch, tmp_path) -> Callable[..., None]:
    """Compiling pays, and is done by this backend."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    torch._dynamo.reset()

    def put(backend: Any) -> None:
        monkeypatch.setattr(gpu_encoder, "pays", lambda rows, _, **__: rows == 5)
        monkeypatch.setattr(gpu_encoder, "compiled_add_norm", partial(compiled_add_norm, backend=backend))

    return put


def norm(dtype: torch.dtype) -> Norm:
    torch.manual_seed(1)
    return Norm(torch.randn(48).to(dtype), torch.randn(48).to(dtype), 1e-12)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_kernel_serves_any_number_of_rows(dtype, pretend):
    compiler = Compiler()
    fused = compiled_add_norm(norm(dtype), compiler)
    for rows in (2, 33, 64, 1000):
        update, residual = torch.randn(2, rows, 48).to(dtype)
        before = update.clone()
        found = fused(update, residual, norm(dtype))
        assert torch.equal(update, before)
        torch.testing.assert_close(found, add_norm(update, residual, norm(dtype)))
    assert compiler.graphs == 1


def test_a_model_runs_through_it_and_gives_the_same_states(pretend, tmp_path):
    pretend(Compiler())
    folder, tokens = save("bert", tmp_path), tokens_with_pads(types=False)
    encoder = GpuEncoder(opened(folder, "fp32"), (0, 1, 2), for_pooler=True)
    assert encoder.compile_if_worthwhile(4) is None
    assert encoder.add_norm is add_norm
    assert encoder.compile_if_worthwhile(5) is None
    assert encoder.add_norm is not add_norm
    for max_tokens in (1, 200, 10_000):
        assert_same(states(encoder, tokens, max_tokens), by_transformers(folder, tokens))


def does_not_build(*_: Any) -> Any:
    raise FileNotFoundError("cc")


@pytest.mark.parametrize(
    "backend",
    [does_not_build, Compiler(lambda found: found * 1.1), Compiler(lambda found: found * torch.nan)],
    ids=["fails", "is off", "is no number"],
)
def test_a_compiler_that_fails_or_is_wrong_changes_nothing_but_gives_a_notice(backend, pretend, tmp_path):
    pretend(backend)
    encoder = GpuEncoder(opened(save("bert", tmp_path), "bf16"), (2,), for_pooler=False)
    notice = encoder.compile_if_worthwhile(5)
    assert "torch.compile does not work here" in notice
    assert encoder.add_norm is add_norm
    tokens = Tokens(np.arange(9, dtype=np.int32), None, np.array([9]), 1, 1)
    encoder.run(tokens, Batch(np.array([0]), np.array([9])), lambda *_: None)


def test_there_is_nothing_to_compile_without_layers_or_for_another_encoder(pretend, tmp_path):
    pretend(does_not_build)
    folder = save("bert", tmp_path)
    assert GpuEncoder(opened(folder, "fp32"), (0,), for_pooler=False).compile_if_worthwhile(5) is None
    config = ModelConfig(str(folder), device="cpu")
    loaded = load_model(resolve_model(config), config)
    on_cpu, _ = loaded.make_encoder((1,), tokens_with_pads(types=False), for_pooler=False)
    assert on_cpu.compile_if_worthwhile(5) is None


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"XDG_CACHE_HOME": "/caches"}, "/caches/embedkit/kernels"),
        ({"HOME": "/home/who"}, "/home/who/.cache/embedkit/kernels"),
        ({"HOME": "/home/who", "TORCHINDUCTOR_CACHE_DIR": "/mine"}, "/mine"),
    ],
)
def test_kernels_are_kept_in_the_users_cache_folder(variables, expected, monkeypatch):
    for name in ("XDG_CACHE_HOME", "HOME", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # So that what is set here does not outlast the test.
    monkeypatch.setattr(torch_compile.os, "environ", dict(os.environ))
    keep_kernels()
    assert Path(torch_compile.os.environ["TORCHINDUCTOR_CACHE_DIR"]) == Path(expected)


def test_a_run_passes_its_rows_to_the_encoder_and_prints_the_notice(embedkit_cli, tmp_path, monkeypatch):
    passed: list[int | None] = []
    monkeypatch.setattr(
        LayerEncoder, "compile_if_worthwhile", lambda _, rows: passed.append(rows) or "nothing was compiled"
    )
    ran = embedkit_cli("encode", NOTES, "--pool", "mean", "--limit", "3", "-o", tmp_path / "out")
    assert ran.code == 0
    assert passed == [3]
    assert ran.err.count("nothing was compiled") == 1
