"""embedkit's own forward pass for GPUs, run on a CPU and compared with plain transformers.

Only the attention kernel is specific to GPUs: one that computes attention by its definition takes its place.
"""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from embedkit import Encoder
from embedkit.config import ModelConfig
from embedkit.errors import ModelError
from embedkit.inference.batching import make_batches
from embedkit.models import select_backend
from embedkit.models.base import NotExactError
from embedkit.models.native import native_model
from embedkit.models.native.families import FAMILIES
from embedkit.models.native.gpu_encoder import GpuEncoder
from embedkit.models.native.native_model import NativeModel, open_native
from embedkit.models.native.norm import Norm
from embedkit.models.repository.resolve import resolve_model
from embedkit.models.select_backend import load_model
from embedkit.models.varlen_attention import BACKENDS, FULL, AttentionRules, Packing, usable
from embedkit.types import Batch, Tokens
from tests import tiny_models
from tests.models.native.test_cpu_encoder import (
    LENGTHS,
    assert_same,
    by_transformers,
    rewritten,
    save,
    states,
    tokens_with_pads,
)
from tests.models.test_varlen_attention import is_broken, leaks, one_by_one, waits

pytestmark = pytest.mark.usefixtures("one_thread")

#: Those whose scores depend on the distance of two tokens.
RELATIVE = ("deberta-v2", "mpnet", "mt5", "t5", "umt5")
KINDS = tuple(kind for kind in FAMILIES if kind not in RELATIVE)
GPU = torch.device("cuda:0")
CPU = torch.device("cpu")


def kernel(query: Tensor, key: Tensor, value: Tensor, packing: Packing, rules: AttentionRules = FULL) -> Tensor:
    return one_by_one(query, key, value, packing.cu_seqlens, rules.scale, rules.reach)


@pytest.fixture
def backends(monkeypatch) -> pytest.MonkeyPatch:
    """Kernels as on a GPU, with `kernel` in the place of torch's."""
    monkeypatch.setitem(BACKENDS, "torch_varlen", kernel)
    monkeypatch.setattr(native_model, "usable", lambda *_: ("torch_varlen", "groups"))
    return monkeypatch


def opened(folder: Path, dtype: str) -> NativeModel:
    """A model as `load_model` opens it for a GPU, to be put on the CPU."""
    return open_native(resolve_model(ModelConfig(str(folder))), dtype, CPU)


def checked_encoder(folder: Path, tokens: Tokens, dtype: str = "fp32") -> tuple[GpuEncoder, str | None]:
    model = opened(folder, dtype)
    layers = tuple(range(model.n_layers + 1))
    return model._on_device(layers, tokens, for_pooler=model.has_pooler)


@pytest.mark.parametrize("kind", KINDS)
def test_in_fp32_every_layer_and_the_pooler_are_those_of_transformers_whatever_the_batch(kind, backends, tmp_path):
    folder = save(kind, tmp_path)
    tokens = tokens_with_pads(types=kind in {"bert", "electra"})
    encoder, notice = checked_encoder(folder, tokens)
    assert (encoder.backend, encoder.attention, notice) == ("lean", "torch_varlen", None)
    expected = by_transformers(folder, tokens)
    for max_tokens in (1, 200, 10_000):
        assert_same(states(encoder, tokens, max_tokens), expected)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bert", {"hidden_act": "gelu_new"}),
        ("bert", {"layer_norm_eps": 0.3}),
        ("roberta", {"pad_token_id": 0}),
        ("electra", {"embedding_size": 24}),
        ("distilbert", {"activation": "relu"}),
    ],
    ids=str,
)
def test_settings_that_change_the_numbers_are_followed(kind, settings, backends, tmp_path):
    folder = save(kind, tmp_path, **settings)
    tokens = tokens_with_pads(types=False)
    assert_same(states(checked_encoder(folder, tokens)[0], tokens, 10_000), by_transformers(folder, tokens))


def vectors(encoder: GpuEncoder, tokens: Tokens, max_tokens: int) -> np.ndarray:
    """The mean of each text's last states, [N, D]."""
    out = np.zeros((len(tokens.lengths), encoder.hidden_size), np.float32)
    for batch in make_batches(tokens.lengths, max_tokens=max_tokens, padded=False):
        kept: dict[int, Tensor] = {}
        encoder.run(tokens, batch, kept.__setitem__)
        last = kept[encoder.n_layers][0]
        assert last.dtype == encoder.dtype
        for text, of_text in zip(batch.texts, last.float().split(batch.lengths.tolist()), strict=True):
            out[text] = of_text.mean(dim=0).numpy()
    return out


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_in_16_bits_a_vector_stays_near_to_transformers_in_fp32_and_to_itself_alone(
    kind, dtype, backends, tmp_path
):
    folder = save(kind, tmp_path)
    tokens = tokens_with_pads(types=False)
    encoder, notice = checked_encoder(folder, tokens, dtype)
    assert (encoder.attention, notice) == ("torch_varlen", None)
    exact = np.array([text.layers[-1].mean(axis=0) for text in by_transformers(folder, tokens)])
    together, alone = vectors(encoder, tokens, 10_000), vectors(encoder, tokens, 1)
    assert cosines(together, exact).min() >= 0.999
    assert cosines(together, alone).min() >= 0.999
    assert np.array_equal(together, vectors(encoder, tokens, 10_000))
    encoder.attention = "groups"
    assert cosines(vectors(encoder, tokens, 10_000), together).min() >= 0.999


def test_the_norms_take_mean_and_variance_in_fp32():
    """torch's layer norm of 16-bit states, as a layer calls it: rows of 2,048 values, 1,000 + noise of 1."""
    torch.manual_seed(0)
    rows = (1000 + torch.randn(4, 2048)).half()
    norm = Norm(torch.ones(2048).half(), torch.zeros(2048).half(), 1e-12)
    exact = functional.layer_norm(rows.double(), (2048,), eps=1e-12)
    assert (norm(rows).double() - exact).abs().max() <= 5e-3  # half's step at 4 is 0.002 or 0.004
    assert rows.mean(dtype=torch.float64) > 999


def test_cu_seqlens_are_computed_once_a_batch_for_all_layers(backends, tmp_path):
    seen: list[Packing] = []

    def keep(query: Tensor, key: Tensor, value: Tensor, packing: Packing, *_: Any) -> Tensor:
        seen.append(packing)
        assert query.shape == (sum(LENGTHS), 3, 16)
        return kernel(query, key, value, packing)

    tokens = tokens_with_pads(types=False)
    encoder, _ = checked_encoder(save("bert", tmp_path), tokens)
    backends.setitem(BACKENDS, "torch_varlen", keep)
    encoder.run(tokens, Batch(np.arange(len(LENGTHS)), np.array(LENGTHS)), lambda *_: None)
    assert len(seen) == 2
    assert seen[0] is seen[1]
    assert seen[0].cu_seqlens.dtype == torch.int32
    assert seen[0].cu_seqlens.tolist() == [0, *np.cumsum(LENGTHS).tolist()]
    assert seen[0].max_length == 150


def test_a_forward_pass_does_not_wait_for_the_device(tmp_path):
    encoder = GpuEncoder(opened(save("roberta", tmp_path), "bf16"), (0, 1, 2), for_pooler=True)
    assert waits(encoder) == []


def test_the_weights_are_kept_once_in_the_dtype_of_the_run_and_no_more_layers_than_wanted(tmp_path):
    encoder = GpuEncoder(opened(save("bert", tmp_path), "bf16"), (1,), for_pooler=False)
    gc.collect()
    (layer,) = encoder._stack
    held = [
        encoder._words,
        encoder._positions,
        encoder._types,
        *(getattr(encoder._norm, n) for n in ("weight", "bias")),
    ]
    held += [
        getattr(part, name)
        for part in (
            *(layer.qkv, layer.attention_out, layer.attention_norms.after),
            *(layer.up, layer.down, layer.ffn_norms.after),
        )
        for name in ("weight", "bias")
    ]
    assert {tensor.dtype for tensor in held} == {torch.bfloat16}
    assert encoder._pooler is None


def test_a_file_that_is_written_to_does_not_change_the_weights(tmp_path):
    folder = save("bert", tmp_path)
    tokens = tokens_with_pads(types=False)
    encoder = GpuEncoder(opened(folder, "fp32"), (2,), for_pooler=False)
    before = vectors(encoder, tokens, 10_000)
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(path.stat().st_size // 2))
    assert np.array_equal(vectors(encoder, tokens, 10_000), before)


# --- which one is used --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [leaks, is_broken])
def test_a_kernel_that_is_wrong_or_fails_is_replaced_by_the_next_with_a_notice(fault, backends, tmp_path):
    backends.setitem(BACKENDS, "torch_varlen", fault)
    folder, tokens = save("bert", tmp_path), tokens_with_pads(types=False)
    encoder, notice = checked_encoder(folder, tokens, "bf16")
    assert encoder.attention == "groups"
    assert "'torch_varlen' does not work here" in notice
    assert_same(states(checked_encoder(folder, tokens)[0], tokens, 10_000), by_transformers(folder, tokens))


def test_without_an_exact_kernel_the_weights_are_freed_for_transformers(backends, tmp_path):
    # Each text alone goes through `groups` first, for what is right; then the batch does.
    plain = BACKENDS["groups"]

    def wrong(query: Tensor, key: Tensor, value: Tensor, packing: Packing, *_: Any) -> Tensor:
        alone = len(packing.cu_seqlens) == 2
        return plain(query, key, value, packing) if alone else leaks(query, key, value, packing)

    backends.setitem(BACKENDS, "torch_varlen", leaks)
    backends.setitem(BACKENDS, "groups", wrong)
    made: list[weakref.ref[GpuEncoder]] = []
    backends.setattr(
        GpuEncoder, "prepare", lambda self, *args: made.append(weakref.ref(self)) or prepare(self, *args)
    )
    with pytest.raises(NotExactError) as caught:
        checked_encoder(save("bert", tmp_path), tokens_with_pads(types=False))
    gc.collect()
    assert made
    assert {of() for of in made} == {None}, caught


prepare = GpuEncoder.prepare


def test_states_that_overflow_in_fp16_are_refused_with_a_hint(backends, tmp_path):
    folder = save("bert", tmp_path)
    rewritten(
        folder, lambda weights: {n: t * 3e4 if "1.output.LayerNorm.w" in n else t for n, t in weights.items()}
    )
    tokens = tokens_with_pads(types=False)
    with pytest.raises(ModelError, match=r"not finite .* from layer 2 on") as caught:
        checked_encoder(folder, tokens, "fp16")
    assert "--dtype fp32" in caught.value.hint
    assert checked_encoder(folder, tokens, "bf16")[1] is None


@pytest.mark.parametrize("dtype", ["auto", "fp32", "fp16"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_on_a_gpu_all_families_without_relative_positions_run_natively(kind, dtype, monkeypatch, tmp_path):
    asked: list[torch.device] = []
    monkeypatch.setattr(select_backend, "pick_device", lambda _: GPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (9, 0))
    monkeypatch.setattr(native_model, "disable_reduced_precision", asked.append)
    monkeypatch.setattr("embedkit.models.transformers.load.load_model", lambda *_, **__: "transformers")
    config = ModelConfig(str(save(kind, tmp_path)), dtype=dtype)
    found = load_model(resolve_model(config), config)
    if kind in RELATIVE:
        assert found == "transformers"
        return
    assert isinstance(found, NativeModel)
    assert (found.device, found.dtype) == (GPU, {"auto": "bf16"}.get(dtype, dtype))
    assert asked == [GPU]
    # Its weights would be put there.
    monkeypatch.setattr(native_model, "GpuEncoder", lambda model, *_, **__: pytest.fail(str(model.device)))
    with pytest.raises(pytest.fail.Exception, match="cuda:0"):
        found.make_encoder((2,), tokens_with_pads(types=False), for_pooler=False)
    assert usable(GPU, torch.bfloat16, 16)[-1] == "groups"


def test_vectors_of_texts_come_out_in_fp32_pooled_from_states_in_bf16(monkeypatch, tmp_path):
    folder = tiny_models.make("bert", tmp_path / "bert").folder
    exact = Encoder(str(folder), pool="mean", device="cpu").encode(tiny_models.TEXTS)
    monkeypatch.setattr(select_backend, "open_native", lambda *_: opened(folder, "bf16"))
    monkeypatch.setattr(native_model, "CpuEncoder", GpuEncoder)
    loaded = Encoder(str(folder), pool="mean", device="cpu")
    found = loaded.encode(tiny_models.TEXTS)
    assert isinstance(loaded._embedder.encoder, GpuEncoder)
    assert found.dtype == np.float32
    assert loaded.recipe["dtype"] == "bf16"
    assert cosines(found, exact).min() >= 0.999
    # Numbers of bf16 have 8 bits; means of several do not.
    assert not torch.equal(torch.from_numpy(found).bfloat16().float(), torch.from_numpy(found))
