"""The kernels for packed attention: their arguments, and the fallback where one is not installed.

There is no GPU here. The kernels' own signatures are tested by calls on tensors without content; attention by its
definition, one text and one head at a time in float32, takes the place of what they compute.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.attention import varlen as torchs
from torch.utils._python_dispatch import TorchDispatchMode

from embedkit.config import ModelConfig
from embedkit.models import varlen_attention
from embedkit.models.base import LayerEncoder, tensors
from embedkit.models.repository.resolve import resolve_model
from embedkit.models.transformers import load, packed_attention
from embedkit.models.varlen_attention import BACKENDS, AttentionRules, Packing, groups, usable
from embedkit.types import Batch, Tokens

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = np.array([1, 3, 3, 9, 17, 40])
GPU = torch.device("cuda:0")


def packing(lengths: np.ndarray = LENGTHS) -> Packing:
    batch = Batch(np.arange(len(lengths)), lengths)
    return Packing.of(batch, torch.from_numpy(varlen_attention.cu_seqlens(batch)))


def one_by_one(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float | None, window: tuple[int, int]
) -> Tensor:
    """Attention by its definition: for each text and head, softmax of the scores that the window lets be seen."""
    out = torch.zeros(q.shape, dtype=torch.float32)
    left, right = window
    scale = q.shape[2] ** -0.5 if scale is None else scale
    for start, stop in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        for head in range(q.shape[1]):
            of_key = head * k.shape[1] // q.shape[1]
            a, b, c = q[start:stop, head].float(), k[start:stop, of_key].float(), v[start:stop, of_key].float()
            scores = a @ b.T * scale
            earlier = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
            hidden = ((earlier > left) & (left >= 0)) | ((-earlier > right) & (right >= 0))
            scores[hidden] = -torch.inf
            out[start:stop, head] = scores.softmax(dim=-1) @ c
    return out.to(q.dtype)


class Kernel:
    """Stands in for a package's kernel: takes what its signature takes, keeps it, and computes it."""

    def __init__(self, like: Callable[..., Any], *, pairs: bool = False) -> None:
        self.__signature__ = inspect.signature(like)
        self.pairs = pairs
        self.given: list[dict[str, Any]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.__signature__.bind(*args, **kwargs)
        self.given.append(dict(bound.arguments))
        bound.apply_defaults()
        a = bound.arguments
        q, k, v, at = (next(a[name] for name in names if name in a) for names in NAMES)
        window = a.get("window_size", (-1, -1))
        if a.get("is_causal") or a.get("causal"):
            window = (window[0], 0)
        seen = one_by_one(q, k, v, at, a.get("scale", a.get("softmax_scale")), window)
        return (seen, None) if self.pairs else seen


NAMES = (("query", "q"), ("key", "k"), ("value", "v"), ("cu_seq_q", "cu_seqlens_q"))


# Signatures of releases that are not installed here, by their documentation.
def torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None): ...
def torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
): ...
def flash_2(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
    causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
    return_attn_probs=False, block_table=None,
): ...  # fmt: skip
def flash_3(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
    softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
    window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
    sm_margin=0, return_attn_probs=False,
): ...  # fmt: skip


KERNELS = {
    "torch here": ("torch_varlen", torchs.varlen_attn),
    "torch 2.10": ("torch_varlen", torch_2_10),
    "torch 2.11": ("torch_varlen", torch_2_11),
    "flash 2": ("fa2", flash_2),
    "flash 3": ("fa3", flash_3),
}
#: What torch 2.10 cannot do.
LATER = {"window", "scale"}


@pytest.fixture
def kernel(monkeypatch) -> Callable[..., Kernel]:
    """Puts a kernel where the package of a backend would be."""

    def put(backend: str, like: Callable[..., Any], *, pairs: bool = False) -> Kernel:
        stand_in = Kernel(like, pairs=pairs)
        if backend == "torch_varlen":
            monkeypatch.setattr(torchs, "varlen_attn", stand_in)
            return stand_in
        name = {"fa2": "flash_attn", "fa3": "flash_attn_interface"}[backend]
        module = ModuleType(name)
        module.flash_attn_varlen_func = stand_in
        monkeypatch.setitem(sys.modules, name, module)
        return stand_in

    return put


def states(*, key_heads: int = 4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key and value of LENGTHS: [T, 4, 16] and [T, key_heads, 16], not contiguous, as models give them."""
    torch.manual_seed(0)
    fused = torch.randn(int(LENGTHS.sum()), 4 + 2 * key_heads, 16).to(dtype)
    return [*fused.split([4, key_heads, key_heads], dim=1)]


WANTED = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": 4},
    "causal window": {"window": 4, "causal": True},
    "scale": {"scale": 0.7},
    "grouped": {"key_heads": 2, "causal": True},
}
#: (left, right) as the kernels count them.
SEEN = {"causal": (-1, 0), "window": (3, 3), "causal window": (3, 0), "grouped": (-1, 0)}


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_groups_of_one_length_match_the_definition_of_attention(wanted, dtype):
    asked = dict(WANTED[wanted])
    q, k, v = states(key_heads=asked.pop("key_heads", 4), dtype=dtype)
    expected = one_by_one(q, k, v, packing().cu_seqlens, asked.get("scale"), SEEN.get(wanted, (-1, -1)))
    found = groups(q, k, v, packing(), AttentionRules(**asked))
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=0)
    assert torch.equal(found, groups(q, k, v, packing(), AttentionRules(**asked)))


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("which", KERNELS)
def test_a_kernel_gets_the_arguments_of_its_signature_and_the_rules_of_the_layer(which, wanted, kernel):
    backend, like = KERNELS[which]
    stand_in = kernel(backend, like)
    asked = dict(WANTED[wanted])
    q, k, v = states(key_heads=asked.pop("key_heads", 4))
    if which == "torch 2.10" and LATER & asked.keys():
        with pytest.raises(ValueError, match="this torch's varlen_attn"):
            BACKENDS[backend](q, k, v, packing(), AttentionRules(**asked))
        return
    rules = AttentionRules(**asked)
    torch.testing.assert_close(BACKENDS[backend](q, k, v, packing(), rules), groups(q, k, v, packing(), rules))
    (given,) = stand_in.given
    at = given.get("cu_seq_q", given.get("cu_seqlens_q"))
    assert at.dtype == torch.int32
    assert at.tolist() == [0, 1, 4, 7, 16, 33, 73]
    for name in ("max_q", "max_k", "max_seqlen_q", "max_seqlen_k"):
        assert type(given.get(name, 40)) is int
        assert given.get(name, 40) == 40
    if which == "flash 3":
        assert given["num_splits"] == 1
    assert "dropout_p" not in given


def test_torch_2_10_accepts_its_default_scale(kernel):
    kernel("torch_varlen", torch_2_10)
    q, k, v = states()
    torch.testing.assert_close(
        BACKENDS["torch_varlen"](q, k, v, packing(), AttentionRules(scale=16**-0.5)), groups(q, k, v, packing())
    )


def test_pairs_of_the_first_releases_of_flash_attention_3_are_accepted(kernel):
    kernel("fa3", flash_3, pairs=True)
    q, k, v = states()
    torch.testing.assert_close(BACKENDS["fa3"](q, k, v, packing()), groups(q, k, v, packing()))


@pytest.mark.parametrize(("active", "splits"), [(None, None), ("FA2", None), ("FA3", 1)])
def test_another_kernel_activated_in_torch_does_not_split_by_the_longest_text(active, splits, kernel, monkeypatch):
    stand_in = kernel("torch_varlen", torchs.varlen_attn)
    monkeypatch.setattr(torch.nn.attention, "current_flash_attention_impl", lambda: active)
    BACKENDS["torch_varlen"](*states(), packing())
    assert stand_in.given[0].get("num_splits") == splits


@pytest.mark.parametrize("wanted", WANTED)
def test_torchs_own_kernel_takes_the_call(wanted):
    """Its checks and the shape that it gives, on tensors without content."""
    asked = dict(WANTED[wanted])
    q, k, v = (part.to("meta", torch.bfloat16) for part in states(key_heads=asked.pop("key_heads", 4)))
    at = Packing(packing().groups, packing().cu_seqlens.to("meta"), packing().max_length)
    found = BACKENDS["torch_varlen"](q, k, v, at, AttentionRules(**asked))
    assert (found.shape, found.dtype, found.device.type) == (q.shape, torch.bfloat16, "meta")


# --- which one is used -------------------------------------------------------------------------------------


@pytest.fixture
def card(monkeypatch) -> Callable[..., None]:
    """Returns a CUDA device of this capability, and these packages."""

    def put(capability: tuple[int, int], *packages: str) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: capability)
        there = {"torch.nn.attention.varlen", *packages}
        monkeypatch.setattr(
            varlen_attention, "find_spec", lambda name: SimpleNamespace() if name in there else None
        )

    return put


@pytest.mark.parametrize(
    ("capability", "packages", "expected"),
    [
        ((9, 0), ("flash_attn_interface", "flash_attn"), ("fa3", "torch_varlen", "fa2", "groups")),
        ((10, 0), ("flash_attn_interface", "flash_attn"), ("torch_varlen", "fa2", "groups")),
        ((8, 6), (), ("torch_varlen", "groups")),
        ((7, 5), ("flash_attn",), ("groups",)),
    ],
)
def test_the_gpu_and_the_packages_decide_which_kernels_are_tried(capability, packages, expected, card):
    card(capability, *packages)
    assert usable(GPU, torch.bfloat16, 64) == expected
    assert usable(GPU, torch.float16, None) == expected
    for other in ((GPU, torch.float32, 64), (GPU, torch.bfloat16, 12), (GPU, torch.bfloat16, 264)):
        assert usable(*other) == ("groups",)
    assert usable(torch.device("cpu"), torch.bfloat16, 64) == ("groups",)


SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 80,
}
#: Full and causal attention, a window, heads that share keys, and a scale of the model's own.
MODELS: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "modernbert": {**SIZES, "num_hidden_layers": 4, "local_attention": 8, "pad_token_id": 0},
    "gpt2": {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 80},
    "mistral": {**SIZES, "num_key_value_heads": 1, "sliding_window": 5},
    "granite": {**SIZES, "num_key_value_heads": 1, "attention_multiplier": 0.5},
}


def tokens() -> Tokens:
    rng = np.random.default_rng(1)
    return Tokens(rng.integers(3, 60, LENGTHS.sum()).astype(np.int32), None, LENGTHS, 0, 0)


def loaded(kind: str, folder: Any) -> load.TransformersModel:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **MODELS[kind])
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    asked = ModelConfig(str(folder))
    return load.load_model(resolve_model(asked), asked)


def last_states(encoder: LayerEncoder, batch: Batch) -> Tensor:
    kept: list[Tensor] = []
    encoder.run(tokens(), batch, lambda _, found: kept.append(found[0].clone()))
    return kept[-1]


@pytest.mark.parametrize("kind", MODELS)
def test_a_transformers_model_with_the_kernel_gives_the_states_of_texts_alone(kind, kernel, monkeypatch, tmp_path):
    stand_in = kernel("torch_varlen", torchs.varlen_attn)
    monkeypatch.setattr(load, "usable", lambda *_: ("torch_varlen", "groups"))
    model = loaded(kind, tmp_path)
    encoder, notice = model.make_encoder((model.n_layers,), tokens(), for_pooler=False)
    assert (encoder.packed, notice) == (True, None)
    stand_in.given.clear()
    found = last_states(encoder, Batch(np.arange(6), LENGTHS))
    assert len(stand_in.given) == model.n_layers
    # Worked out once for the batch: every layer has the very same tensor.
    assert len({id(given["cu_seq_q"]) for given in stand_in.given}) == 1

    plain = transformers.AutoModel.from_pretrained(tmp_path).eval()
    stops = np.cumsum(LENGTHS)
    with torch.no_grad():
        for stop, length in zip(stops, LENGTHS, strict=True):
            ids = torch.from_numpy(tokens().input_ids[stop - length : stop].astype(np.int64))[None]
            expected = plain(ids).last_hidden_state[0]
            torch.testing.assert_close(found[stop - length : stop], expected, atol=1e-5, rtol=0)
    assert torch.equal(found, last_states(encoder, Batch(np.arange(6), LENGTHS)))


class Waits(TorchDispatchMode):
    """Keeps the operations for whose result a host would wait for its device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operation, _, args=(), kwargs=None):
        name = operation.name().split("::")[1].split(".")[0]
        if name in {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2"}:
            self.found.append(name)
        return operation(*args, **(kwargs or {}))


def waits(encoder: LayerEncoder) -> list[str]:
    """In a forward pass of all texts, once they are on the device."""
    batch = Batch(np.arange(6), LENGTHS)
    inputs = tensors(encoder.prepare(tokens(), batch), encoder.device)
    with Waits() as found:
        encoder.forward(inputs, batch, lambda *_: None)
    return found.found


@pytest.mark.parametrize("kind", MODELS)
def test_a_packed_forward_pass_does_not_wait_for_the_device(kind, tmp_path):
    model = loaded(kind, tmp_path)
    encoder, _ = model.make_encoder((model.n_layers,), tokens(), for_pooler=False)
    assert encoder.packed
    assert waits(encoder) == []
    with Waits() as found:
        assert torch.ones(1).item() == 1
    assert found.found == ["_local_scalar_dense"]


def leaks(query: Tensor, key: Tensor, value: Tensor, packing: Packing, *_: Any) -> Tensor:
    seen = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (query, key, value)))
    return seen.transpose(0, 1)


def fails(*_: Any, **__: Any) -> Tensor:
    raise RuntimeError("no kernel image is available for execution on the device")


def is_broken(*_: Any, **__: Any) -> Tensor:
    raise ImportError("undefined symbol")


@pytest.mark.parametrize("fault", [leaks, fails, is_broken])
def test_a_kernel_that_fails_or_is_wrong_is_replaced_by_the_next_with_a_notice(fault, monkeypatch, tmp_path):
    monkeypatch.setitem(BACKENDS, "broken", fault)
    monkeypatch.setattr(load, "usable", lambda *_: ("broken", "groups"))
    packed_attention.register.cache_clear()
    model = loaded("bert", tmp_path)
    encoder, notice = model.make_encoder((2,), tokens(), for_pooler=False)
    assert encoder.packed
    assert model.model.config._attn_implementation == packed_attention.register("groups")
    assert "a slower one is used" in notice
