"""The forward for GPUs on a real one: the kernel it settles on, what it holds, what torch.compile makes of it."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embedkit.config import ModelConfig
from embedkit.inference.batching import make_batches
from embedkit.models.native import gpu_encoder
from embedkit.models.native.gpu_encoder import GpuEncoder
from embedkit.models.native.torch_compile import add_norm
from embedkit.models.repository.resolve import resolve_model
from embedkit.models.select_backend import load_model
from embedkit.models.varlen_attention import usable
from embedkit.types import Tokens
from tests.models.test_architectures import random_tokens, saved


def made(folder, device: torch.device, dtype: str = "auto") -> tuple[GpuEncoder, Tokens]:
    config = ModelConfig(str(folder), device=str(device), dtype=dtype)
    loaded = load_model(resolve_model(config), config)
    tokens = random_tokens(pad_id=0, seed=1)
    encoder, notice = loaded.make_encoder((loaded.n_layers,), tokens, for_pooler=False)
    assert notice is None
    assert isinstance(encoder, GpuEncoder)
    return encoder, tokens


def states(encoder: GpuEncoder, tokens: Tokens) -> torch.Tensor:
    """Returns the last layer's states [T, D], computed in a few batches of different size."""
    kept: list[torch.Tensor] = []
    for batch in make_batches(tokens.lengths, max_tokens=200, padded=False):
        encoder.run(tokens, batch, lambda _, found: kept.append(found[0].float().cpu()))
    return torch.cat(kept)


def test_the_fastest_kernel_for_this_card_is_settled_on(cuda, tmp_path):
    encoder, tokens = made(saved("bert", tmp_path), cuda)
    names = usable(encoder.device, encoder.dtype, encoder.head_dim)
    assert encoder.attention == names[0]
    if torch.cuda.get_device_capability(cuda) >= (8, 0):
        assert encoder.attention != "groups"
        assert encoder.dtype == torch.bfloat16
    first = states(encoder, tokens)
    for encoder.attention in names:
        again = states(encoder, tokens)
        assert torch.equal(states(encoder, tokens), again), f"{encoder.attention}: other bits"
        assert float((again - first).square().mean().sqrt()) < 0.1 * float(first.square().mean().sqrt())


def test_the_weights_are_on_the_card_once_in_16_bits(cuda, tmp_path):
    # The first one brings cuBLAS's workspaces with it, which stay.
    made(saved("bert", tmp_path), cuda)
    gc.collect()
    before = torch.cuda.memory_allocated(cuda)
    encoder, _ = made(tmp_path, cuda)
    gc.collect()
    held = torch.cuda.memory_allocated(cuda) - before
    n_weights = sum(weights.numel() for weights in load_file(tmp_path / "model.safetensors").values())
    # torch gives memory in blocks of 512 bytes; there are 40 weights. In fp32 it would be 4 bytes each.
    assert 0 < held <= 2 * n_weights + 512 * 64 < 4 * n_weights
    assert encoder.dtype.itemsize == 2


@pytest.mark.parametrize("dtype", ["fp32", "auto"])
def test_compiled_norms_give_the_same_states_at_any_number_of_tokens(dtype, cuda, tmp_path, monkeypatch):
    pytest.importorskip("triton", reason="torch.compile needs Triton")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(gpu_encoder, "pays", lambda *_, **__: True)
    encoder, tokens = made(saved("bert", tmp_path / "model"), cuda, dtype)
    plain = states(encoder, tokens)
    assert encoder.compile_if_worthwhile(1) is None
    assert encoder.add_norm is not add_norm
    compiled = states(encoder, tokens)
    size = float(plain.square().mean().sqrt())
    allowed = {torch.float32: 5e-6, torch.bfloat16: 0.1, torch.float16: 1.5e-2}[encoder.dtype]
    assert float((compiled - plain).square().mean().sqrt()) < allowed * size
    assert torch.equal(states(encoder, tokens), compiled)
    assert any((tmp_path / "kernels").rglob("*"))
    assert len(np.unique(tokens.lengths)) > 3
