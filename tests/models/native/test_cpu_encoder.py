"""embedkit's own forward pass on a CPU, compared with plain transformers for every way to load a model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

from embedkit import Encoder
from embedkit.config import ModelConfig
from embedkit.errors import ModelError, OutputError
from embedkit.inference.batching import make_batches
from embedkit.models.base import tensors
from embedkit.models.native.attention import Texts
from embedkit.models.native.compile_kernels import find_compiler
from embedkit.models.native.config import read_config
from embedkit.models.native.config_reader import NotNativeError
from embedkit.models.native.cpu_encoder import CpuEncoder
from embedkit.models.native.families import FAMILIES
from embedkit.models.native.kernels import kernels_for, load_kernels, why_no_kernels
from embedkit.models.native.linear import int8_instructions
from embedkit.models.native.native_model import NativeModel
from embedkit.models.native.thread_pool import ThreadPool
from embedkit.models.repository.resolve import resolve_model
from embedkit.models.select_backend import load_model
from embedkit.types import Batch, Tokens
from tests import tiny_models

pytestmark = pytest.mark.usefixtures("one_thread")
#: What runs a model of BERT's kin here.
ENGINE = "fused" if find_compiler() else "lean"
needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler is here")
needs_int8 = pytest.mark.skipif(int8_instructions() is None, reason="nothing multiplies bytes here")
needs_bf16 = pytest.mark.skipif(
    find_compiler() is None or not torch.cpu._is_avx512_bf16_supported(),
    reason="this processor has no AVX512-BF16, or no C++ compiler is here",
)

SIZES = {
    "vocab_size": 120,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 80,
    "max_position_embeddings": 180,
}
DISTILBERT = dict(zip(("vocab_size", "dim", "n_layers", "n_heads", "hidden_dim"), SIZES.values(), strict=False))
T5 = dict(zip(("vocab_size", "d_model", "num_layers", "num_heads", "d_ff"), SIZES.values(), strict=False))
# Its scores are not divided by the width of a head: of 64 numbers, they are ill-conditioned.
T5["d_kv"] = 16
#: What other families need besides; windows are far smaller than the texts.
MORE = {
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 32,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "conv_kernel_size": 3,
        "conv_act": "gelu",
    },
    "eurobert": {"num_key_value_heads": 1, "pad_token_id": 0},
    "gemma3_text": {
        "head_dim": 16,
        "num_key_value_heads": 1,
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mistral": {"num_key_value_heads": 1, "sliding_window": 12},
    "modernbert": {
        "local_attention": 12,
        "global_attn_every_n_layers": 2,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "cls_token_id", "eos_token_id", "sep_token_id"), 0),
    },
    "qwen2": {"num_key_value_heads": 3},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 16},
}
#: Texts around the borders: MPNet's buckets at 8 and 128, a run of several texts, more rows than one block.
LENGTHS = (2, 3, 3, 9, 9, 9, 17, 130, 150, 150, 150)


@dataclass(frozen=True)
class Expected:
    """The result of transformers for a text alone: layers [n_layers + 1][T, D], and the pooling head's [D]."""

    layers: list[np.ndarray]
    pooler: np.ndarray | None


def save(kind: str, folder: Path, **settings: object) -> Path:
    """A random model of this type and these settings; every weight matters, see tests/tiny_models.py."""
    sizes = T5 if "t5" in kind else SIZES
    sizes = {**DISTILBERT, "max_position_embeddings": 180} if kind == "distilbert" else sizes
    config = AutoConfig.for_model(kind, **{**sizes, **MORE.get(kind, {}), **settings})
    model = AutoModel.from_config(config)
    tiny_models._randomise(model, seed=1)
    model.save_pretrained(folder)
    return folder


def tokens_with_pads(*, types: bool) -> Tokens:
    """Random texts; the pads' ids 0 and 1 are among their content."""
    rng = np.random.default_rng(3)
    n = sum(LENGTHS)
    ids = rng.integers(2, 120, n)
    ids[rng.random(n) < 0.1] = 1
    ids[rng.random(n) < 0.1] = 0
    token_types = rng.integers(0, 2, n).astype(np.int32) if types else None
    return Tokens(ids.astype(np.int32), token_types, np.array(LENGTHS), 1, 1)


@torch.no_grad()
def by_transformers(folder: Path, tokens: Tokens, dtype: torch.dtype = torch.float32) -> list[Expected]:
    transformers.logging.set_verbosity_error()
    # Of T5, the encoder alone.
    loader = AutoModelForTextEncoding if "t5" in AutoConfig.from_pretrained(folder).model_type else AutoModel
    model = loader.from_pretrained(folder, dtype=dtype).eval()
    expected = []
    for text in range(len(tokens.lengths)):
        places, _ = tokens.indices_of(np.array([text]))
        inputs = {"input_ids": torch.from_numpy(tokens.input_ids[places].astype(np.int64))[None]}
        if tokens.token_type_ids is not None:
            inputs["token_type_ids"] = torch.from_numpy(tokens.token_type_ids[places].astype(np.int64))[None]
        output = model(**inputs, output_hidden_states=True)
        pooler = getattr(output, "pooler_output", None)
        expected.append(
            Expected([s[0].numpy() for s in output.hidden_states], None if pooler is None else pooler[0].numpy())
        )
    return expected


def loaded(folder: Path, **settings: str) -> Any:
    config = ModelConfig(str(folder), **settings)
    return load_model(resolve_model(config), config)


def lean_encoder(folder: Path, tokens: Tokens, layers: tuple[int, ...] | None = None, **settings: str):
    model = loaded(folder, **settings)
    assert isinstance(model, NativeModel)
    wanted = tuple(range(model.n_layers + 1)) if layers is None else layers
    encoder, notice = model.make_encoder(wanted, tokens, for_pooler=model.has_pooler)
    assert isinstance(encoder, CpuEncoder)
    assert notice == (why_no_kernels() if encoder.backend == "lean" else None)
    return encoder


def states(encoder: CpuEncoder, tokens: Tokens, max_tokens: int) -> list[Expected]:
    """The encoder's states of each text, batched by this budget."""
    found: dict[int, Expected] = {}
    for batch in make_batches(tokens.lengths, max_tokens=max_tokens, padded=False):
        layers: list[np.ndarray] = []
        pooled = encoder.run(tokens, batch, lambda _, state, layers=layers: layers.append(state[0].numpy()))
        stops = np.cumsum(batch.lengths)
        for place, (text, stop, length) in enumerate(zip(batch.texts, stops, batch.lengths, strict=True)):
            pooler = None if pooled is None else pooled[place].numpy()
            found[int(text)] = Expected([layer[stop - length : stop] for layer in layers], pooler)
    return [found[text] for text in range(len(tokens.lengths))]


def assert_same(found: list[Expected], expected: list[Expected], exact: list[Expected] | None = None) -> None:
    """Allows besides 1e-5 what `expected` itself differs from `exact`, which is in float64."""
    for ours, theirs, true in zip(found, expected, exact or expected, strict=True):
        assert len(ours.layers) == len(theirs.layers)
        for a, b, c in zip(ours.layers, theirs.layers, true.layers, strict=True):
            assert_near(a, b, largest=float(np.abs(b).max()), rounding=float(np.abs(b - c).max()))
        assert (ours.pooler is None) == (theirs.pooler is None)
        if ours.pooler is not None:
            rounding = float(np.abs(theirs.pooler - true.pooler).max())
            assert_near(ours.pooler, theirs.pooler, largest=1.0, rounding=rounding)


def assert_near(ours: np.ndarray, theirs: np.ndarray, *, largest: float, rounding: float = 0.0) -> None:
    """Allows a difference of 1e-5, or of 1e-5 of the largest value, and besides that `rounding`."""
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * max(1.0, largest) + rounding


# --- the numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch alone"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_layer_and_the_pooler_are_those_of_transformers_whatever_the_batch(
    kind, compiled, tmp_path, monkeypatch
):
    if not compiled:
        for name in ("cpu_encoder.kernels_for", "kernels.load_kernels", "linear.load_fp32_products"):
            monkeypatch.setattr(f"embedkit.models.native.{name}", lambda *_: None)
    folder = save(kind, tmp_path)
    tokens = tokens_with_pads(types=kind in {"bert", "electra"})
    expected, exact = (by_transformers(folder, tokens, dtype) for dtype in (torch.float32, torch.float64))
    encoder = lean_encoder(folder, tokens)
    assert encoder.backend == ("fused" if compiled and find_compiler() else "lean")
    for max_tokens in (1, 200, 10_000):
        assert_same(states(encoder, tokens, max_tokens), expected, exact)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *(("bert", {"hidden_act": name}) for name in ("gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish")),
        ("bert", {"layer_norm_eps": 0.3}),
        ("bert", {"type_vocab_size": 1}),
        ("bert", {"pad_token_id": 7}),
        ("bert", {"tie_word_embeddings": False, "output_hidden_states": True}),
        ("roberta", {"pad_token_id": 0, "layer_norm_eps": 1e-5}),
        ("mpnet", {"pad_token_id": 5}),
        ("electra", {"embedding_size": 24}),
        ("distilbert", {"activation": "relu"}),
        ("distilbert", {"sinusoidal_pos_embds": True}),
    ],
    ids=str,
)
def test_settings_that_change_the_numbers_are_followed(kind, settings, tmp_path):
    folder = save(kind, tmp_path, **settings)
    tokens = tokens_with_pads(types=False)
    assert_same(states(lean_encoder(folder, tokens), tokens, 10_000), by_transformers(folder, tokens))


def test_the_real_model_gives_what_transformers_gives():
    folder = resolve_model(ModelConfig("minilm")).folder
    rng = np.random.default_rng(0)
    lengths = np.array([5, 40, 40, 97])
    tokens = Tokens(rng.integers(1000, 30000, lengths.sum()).astype(np.int32), None, lengths, 1, 1)
    assert_same(states(lean_encoder(folder, tokens), tokens, 4096), by_transformers(folder, tokens))


def test_only_the_layers_that_are_wanted_are_read_and_run(tmp_path):
    tokens = tokens_with_pads(types=False)
    encoder = lean_encoder(save("bert", tmp_path), tokens, layers=(1,))
    assert len(encoder._stack) == 1
    seen: list[int] = []
    encoder.run(
        tokens, next(iter(make_batches(tokens.lengths, max_tokens=50, padded=False))), lambda k, _: seen.append(k)
    )
    assert seen == [1]


def test_a_long_text_goes_through_attention_whose_memory_does_not_grow_with_the_square(tmp_path):
    folder = save("bert", tmp_path, max_position_embeddings=1100)
    ids = np.random.default_rng(0).integers(0, 120, 1100 + 4).astype(np.int32)
    tokens = Tokens(ids, None, np.array([1100, 4]), 1, 1)
    assert_same(states(lean_encoder(folder, tokens), tokens, 10_000), by_transformers(folder, tokens))


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_that_share_a_batch_change_nothing(threads, tmp_path):
    folder = save("mpnet", tmp_path)
    tokens = tokens_with_pads(types=False)
    alone, shared = (lean_encoder(folder, tokens) for _ in range(2))
    shared._threads.size = threads
    assert_same(states(shared, tokens, 10_000), states(alone, tokens, 10_000))
    assert shared._threads._pool is not None
    assert alone._threads._pool is None


@pytest.mark.parametrize("threads", [1, 3])
def test_parts_of_a_batch_have_the_states_of_the_whole(threads, tmp_path, monkeypatch):
    monkeypatch.setattr("embedkit.models.native.thread_pool._MOST_TOKENS", 400)
    tokens = tokens_with_pads(types=False)
    encoder = lean_encoder(save("mpnet", tmp_path), tokens)
    encoder._threads.size = threads
    (batch,) = make_batches(tokens.lengths, max_tokens=10_000, padded=False)
    inputs = tensors(encoder.prepare(tokens, batch), encoder.device)
    whole: dict[int, torch.Tensor] = {}
    parts: list[tuple[slice, dict[int, torch.Tensor]]] = []

    def take_part(texts: slice):
        of_part: dict[int, torch.Tensor] = {}
        parts.append((texts, of_part))
        # The states of a layer may overwrite those of the one before.
        return lambda layer, states: of_part.update({layer: states.clone()})

    encoder.forward(inputs, batch, whole.__setitem__)
    encoder.forward_parts(inputs, batch, take_part)
    assert len(parts) > 1
    assert [text for texts, _ in parts for text in range(len(tokens.lengths))[texts]] == [
        *range(len(tokens.lengths))
    ]
    assert all(of_part.keys() == whole.keys() == {*encoder.layers} for _, of_part in parts)
    assert all(torch.equal(torch.cat([of[layer] for _, of in parts], dim=1), whole[layer]) for layer in whole)


def test_parts_that_are_fewer_than_the_cores_share_them():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        team = ThreadPool()
        for n_parts, cores in ((4, 1), (2, 2), (3, 1)):
            assert team.map(lambda _: torch.get_num_threads(), range(n_parts)) == [cores] * n_parts
            assert torch.get_num_threads() == team.cores
    finally:
        torch.set_num_threads(before)


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 9)), min_size=1, unique_by=lambda run: run[0]),
    st.integers(1, 8),
)
def test_a_batch_is_cut_into_parts_between_its_texts(runs, threads):
    team = ThreadPool()
    team.size = threads
    lengths = sorted(length for length, count in runs for _ in range(count))
    batch = Batch(np.arange(len(lengths)), np.array(lengths))
    parts = team.parts(tuple(batch.length_groups()))
    # As many as there are threads, or a multiple of that; texts are longer than the smallest part.
    assert 1 <= len(parts) <= max(1, -(-sum(lengths) // 1024)) * threads
    sizes = [part.tokens.stop - part.tokens.start for part in parts]
    assert max(sizes) <= 1024 + 2 * max(lengths)
    assert [length for part in parts for run in part.groups for length in [run.length] * run.count] == lengths
    for cut in ([part.tokens for part in parts], [part.texts for part in parts]):
        assert [part.start for part in cut] == [0, *(part.stop for part in cut[:-1])]
    for part, size in zip(parts, sizes, strict=True):
        assert sum(run.count for run in part.groups) == part.texts.stop - part.texts.start
        ends = [run.start + run.count * run.length for run in part.groups]
        assert [run.start for run in part.groups] == [0, *ends[:-1]]
        assert ends[-1] == size


# --- ways in which a model can lie in its folder ------------------------------------------------------------


def rewritten(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def with_prefix(folder: Path) -> None:
    rewritten(
        folder,
        lambda weights: (
            {f"bert.{name}": tensor for name, tensor in weights.items()}
            | {"cls.predictions.bias": torch.zeros(120)}
        ),
    )


def with_old_names(folder: Path) -> None:
    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    rewritten(folder, lambda weights: {old(name): tensor for name, tensor in weights.items()})


def in_half(folder: Path) -> None:
    rewritten(folder, lambda weights: {name: tensor.half() for name, tensor in weights.items()})


def in_bf16(folder: Path) -> None:
    rewritten(folder, lambda weights: {name: tensor.bfloat16() for name, tensor in weights.items()})


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def in_parts(folder: Path) -> None:
    AutoModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def with_weights_that_nobody_needs(folder: Path) -> None:
    extra = {"embeddings.position_ids": torch.arange(180)[None], "classifier.weight": torch.zeros(2, 48)}
    rewritten(folder, lambda weights: weights | extra)


@pytest.mark.parametrize(
    "change", [with_prefix, with_old_names, in_half, in_bf16, pickled, in_parts, with_weights_that_nobody_needs]
)
def test_a_checkpoint_is_read_as_transformers_reads_it(change, tmp_path):
    folder = save("bert", tmp_path)
    change(folder)
    tokens = tokens_with_pads(types=False)
    expected, exact = (by_transformers(folder, tokens, dtype) for dtype in (torch.float32, torch.float64))
    assert_same(states(lean_encoder(folder, tokens), tokens, 10_000), expected, exact)


def test_without_a_trained_pooling_head_there_is_none(tmp_path):
    folder = save("bert", tmp_path)
    rewritten(folder, lambda weights: {k: v for k, v in weights.items() if k != "pooler.dense.bias"})
    assert loaded(folder).has_pooler is False


# --- what is left to transformers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("albert", {}),
        ("bert", {"position_embedding_type": "relative_key"}),
        ("bert", {"is_decoder": True}),
        ("bert", {"add_cross_attention": True}),
        ("bert", {"hidden_act": "gelu_10"}),
        ("bert", {"pruned_heads": {"0": [1]}}),
        ("bert", {"quantization_config": {}}),
        ("bert", {"auto_map": {}}),
        ("bert", {"layer_norm_eps": 0}),
        ("bert", {"num_hidden_layers": True}),
        ("bert", {"num_attention_heads": 5}),
        ("bert", {"vocab_size": None}),
        ("bert", {"dim": 48}),
        ("roberta", {"pad_token_id": None}),
        ("roberta", {"pad_token_id": 179}),
        ("mpnet", {"relative_attention_num_buckets": 16}),
        ("mpnet", {"type_vocab_size": 2}),
        ("distilbert", {"hidden_size": 48}),
        ("distilbert", {"layer_norm_eps": 1e-5}),
    ],
    ids=str,
)
def test_unsupported_settings_are_rejected(kind, setting):
    sizes = {**DISTILBERT, "max_position_embeddings": 180} if kind == "distilbert" else SIZES
    if kind != "albert":
        assert read_config({"model_type": kind, **sizes}).n_layers == 2
    with pytest.raises(NotNativeError):
        read_config({"model_type": kind, **sizes, **setting})


def test_a_model_with_an_unsupported_setting_runs_in_transformers(tmp_path):
    folder = save("bert", tmp_path)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "a_setting_of_next_year": 1}))
    model = loaded(folder)
    assert not isinstance(model, NativeModel)
    encoder, _ = model.make_encoder((2,), tokens_with_pads(types=False), for_pooler=False)
    assert encoder.backend == "transformers"


def test_weights_of_another_framework_are_loaded_by_transformers(tmp_path):
    other = save("bert", tmp_path / "b")
    save_file(load_file(other / "model.safetensors"), other / "model.safetensors", metadata={"format": "mlx"})
    with pytest.raises(ModelError, match=r"int8: .* not of torch"):
        loaded(other, dtype="int8")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (
            lambda w: {k: v for k, v in w.items() if "layer.1.output.dense.bias" not in k},
            "lacks .*output.dense.bias",
        ),
        (lambda w: w | {"embeddings.LayerNorm.bias": torch.zeros(47)}, "other shapes"),
    ],
    ids=["missing", "misshapen"],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_transformers(change, word, tmp_path):
    folder = save("bert", tmp_path)
    rewritten(folder, change)
    with pytest.raises(ModelError, match=word):
        loaded(folder)


def test_a_model_with_nan_weights_is_refused(tmp_path):
    folder = save("bert", tmp_path)
    rewritten(folder, lambda weights: {name: tensor * float("nan") for name, tensor in weights.items()})
    tokens = tokens_with_pads(types=False)
    with pytest.raises(ModelError, match=r"not finite .* from layer 2 on"):
        loaded(folder).make_encoder((2,), tokens, for_pooler=False)


def test_the_first_layer_that_is_not_finite_is_found_for_the_text_that_has_it(tmp_path):
    tokens = Tokens(np.array([5, 6, 7, 5, 8, 9, 9], np.int32), None, np.array([3, 2, 2]), 0, 0)
    encoder = lean_encoder(save("bert", tmp_path), tokens, layers=(0, 2))
    assert [encoder.first_non_finite_layer(tokens, text) for text in range(3)] == [None, None, None]
    with torch.inference_mode():
        encoder._words[8] = torch.inf
    assert [encoder.first_non_finite_layer(tokens, text) for text in range(3)] == [None, 0, None]
    with torch.inference_mode():
        encoder._stack[1].attention_norms.after.weight[3] = torch.nan
    assert [encoder.first_non_finite_layer(tokens, text) for text in range(3)] == [2, 0, 2]


# --- int8 and bf16 ----------------------------------------------------------------------------------------------


#: The smallest cosine to fp32. Random weights are the hard case: their columns have no structure that rounding
#: could spare.
COSINES = [pytest.param("int8", 0.98, marks=needs_int8), pytest.param("bf16", 0.9995, marks=needs_bf16)]


@pytest.mark.parametrize(("dtype", "least"), COSINES)
@pytest.mark.parametrize("kind", FAMILIES)
def test_vectors_are_close_to_fp32_and_independent_of_the_batch(kind, dtype, least, tmp_path):
    folder = save(kind, tmp_path)
    tokens = tokens_with_pads(types=False)
    exact = by_transformers(folder, tokens)
    encoder = lean_encoder(folder, tokens, dtype=dtype)
    alone, together = states(encoder, tokens, 1), states(encoder, tokens, 10_000)
    assert_same(together, alone)
    for ours, theirs in zip(together, exact, strict=True):
        a, b = ours.layers[-1].mean(axis=0), theirs.layers[-1].mean(axis=0)
        assert least < a @ b / np.linalg.norm(a) / np.linalg.norm(b) < 1


@pytest.mark.parametrize(
    ("dtype", "compiled"),
    [
        pytest.param("fp32", True, marks=needs_compiler),
        pytest.param("bf16", True, marks=needs_bf16),
        pytest.param("bf16", False, marks=needs_bf16),
        pytest.param("int8", True, marks=needs_int8),
    ],
    ids=["fp32", "bf16", "bf16 by torch alone", "int8"],
)
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_states_are_the_same_to_the_bit_in_ten_random_batchings(kind, dtype, compiled, tmp_path, monkeypatch):
    if not compiled:
        monkeypatch.setattr("embedkit.models.native.cpu_encoder.kernels_for", lambda _: None)
    tokens = tokens_with_pads(types=False)
    model = loaded(save(kind, tmp_path), dtype=dtype)
    encoder, _ = model.make_encoder(tuple(range(model.n_layers + 1)), tokens, for_pooler=False)
    alone = states(encoder, tokens, 1)
    random = np.random.default_rng(0)
    for _ in range(10):
        texts = random.permutation(len(tokens.lengths))
        for drawn in np.split(texts, np.sort(random.integers(1, len(texts), 2))):
            in_order = drawn[np.argsort(tokens.lengths[drawn], kind="stable")]
            stops = np.cumsum(tokens.lengths[in_order])

            def compare(layer: int, state: torch.Tensor, in_order=in_order, stops=stops) -> None:
                for text, found in zip(in_order, np.split(state[0].numpy(), stops[:-1]), strict=True):
                    assert np.array_equal(found, alone[text].layers[layer])

            if len(in_order):
                encoder.run(tokens, Batch(in_order, tokens.lengths[in_order]), compare)


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param("fp32", marks=needs_compiler),
        pytest.param("bf16", marks=needs_bf16),
        pytest.param("int8", marks=[needs_compiler, needs_int8]),
    ],
)
@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "gemma3_text", "modernbert", "t5"])
def test_layers_in_one_call_have_the_states_of_one_after_another_to_the_bit(kind, dtype, tmp_path):
    folder, tokens = save(kind, tmp_path), tokens_with_pads(types=False)
    for layers in ((0, 1, 2), (2,)):
        encoder = loaded(folder, dtype=dtype).make_encoder(layers, tokens, for_pooler=False)[0]
        at_once = states(encoder, tokens, 200)
        assert encoder._compiled is not None
        encoder._compiled = None
        for found, expected in zip(at_once, states(encoder, tokens, 200), strict=True):
            assert len(found.layers) == len(layers)
            assert all(map(np.array_equal, found.layers, expected.layers))


@needs_compiler
def test_only_layers_with_work_for_several_cores_share_it(tmp_path, monkeypatch):
    encoder = lean_encoder(save("bert", tmp_path), tokens_with_pads(types=False))
    # 48 x (3 x 48 + 48 + 2 x 80) weights of a layer, 16,896, for each of 150 tokens.
    short, long = torch.zeros(15, 48), torch.zeros(150, 48)
    monkeypatch.setattr("embedkit.models.native.compiled_layers._FEWEST_PRODUCTS", 16_896 * 150)
    assert encoder._compiled is not None
    assert [encoder._compiled.may_share(len(rows)) for rows in (short, long[:-1], long)] == [False, False, True]
    monkeypatch.setattr(encoder, "_apply_each", lambda *_: iter(["shared"]))
    monkeypatch.setattr(encoder._compiled, "run", lambda *_, **__: iter(["in one call"]))
    for cores, of_short, of_long in ((1, "in one call", "in one call"), (2, "in one call", "shared")):
        monkeypatch.setattr(torch, "get_num_threads", lambda cores=cores: cores)
        found = [next(encoder._apply(rows, Texts((), {}), (0, 1))) for rows in (short, long)]
        assert found == [of_short, of_long]


@pytest.mark.parametrize("token", [-1, 120])
def test_a_token_without_an_embedding_is_refused(token, tmp_path):
    tokens = tokens_with_pads(types=False)
    encoder = lean_encoder(save("bert", tmp_path), tokens)
    tokens.input_ids[5] = token
    with pytest.raises(IndexError, match="embeddings of 120"):
        states(encoder, tokens, 10_000)


def test_without_its_instruction_bf16_is_left_to_transformers(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    folder = save("bert", tmp_path)
    assert not isinstance(loaded(folder, dtype="bf16"), NativeModel)
    assert isinstance(loaded(folder, dtype="fp32"), NativeModel)


@needs_int8
def test_int8_is_in_the_recipe_and_a_model_of_another_kind_is_refused_by_name(tmp_path, bert):
    quantised, plain = (Encoder(str(bert), pool="mean", dtype=dtype) for dtype in ("int8", "auto"))
    assert (quantised.recipe["dtype"], plain.recipe["dtype"]) == ("int8", "fp32")
    assert quantised.fingerprint != plain.fingerprint
    found, exact = quantised.encode(tiny_models.TEXTS[:4]), plain.encode(tiny_models.TEXTS[:4])
    assert 1e-4 < np.abs(found - exact).max() < 0.5
    other = tiny_models.make("albert", tmp_path).folder
    with pytest.raises(ModelError, match="its type is 'albert'") as caught:
        Encoder(str(other), pool="mean", dtype="int8")
    assert "distilbert" in caught.value.hint


# --- a run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=needs_bf16)])
def test_a_run_is_not_resumed_by_the_other_engine(dtype, tmp_path, encode, monkeypatch):
    out = tmp_path / "out"
    assert encode("tests/data/notes.csv", "-o", out, "--dtype", dtype).code == 0
    (out / "manifest.json").unlink()
    (out / "commits/00000.json").unlink()

    def leave(*_: object) -> None:
        raise NotNativeError

    monkeypatch.setattr("embedkit.models.select_backend.open_native", leave)
    ran = encode("tests/data/notes.csv", "-o", out, "--dtype", dtype, "--on-exists", "resume")
    assert ran.code == OutputError.exit_code
    engine = ENGINE
    if dtype == "bf16" and kernels_for(dtype).bf16_attention is not None:
        engine = "fused-bf16-attention"
    assert f"engine was '{engine}' when the run was planned and is 'transformers' now" in ran.err
    assert "resume in the same installation on a processor of the same kind" in ran.err


@needs_int8
@pytest.mark.parametrize("kind", ["bert", "deberta-v2"])
def test_a_run_with_attention_in_bf16_has_a_backend_of_its_own(kind, tmp_path, monkeypatch):
    tokens = tokens_with_pads(types=False)
    folder = save(kind, tmp_path)

    def backend(dtype: str) -> str:
        return loaded(folder, dtype=dtype).make_encoder((1,), tokens, for_pooler=False)[0].backend

    attention_is_fast = find_compiler() is not None and kernels_for("int8").bf16_attention is not None
    # DeBERTa's attention stays in fp32.
    rounds = attention_is_fast and kind == "bert"
    assert (backend("int8"), backend("fp32")) == ("fused-bf16-attention" if rounds else ENGINE, ENGINE)
    monkeypatch.setattr("embedkit.models.native.cpu_encoder.kernels_for", lambda _: load_kernels())
    assert backend("int8") == ENGINE


def test_a_forward_pass_that_batches_wrongly_is_replaced_by_transformers_with_one_notice(bert, monkeypatch):
    right = Encoder(bert, pool="mean")
    run = CpuEncoder.run

    def wrong(self, tokens, batch, take):
        """Swaps the states of the texts in a batch of several."""
        shift = 1 if len(batch.texts) > 1 else 0
        return run(self, tokens, batch, lambda layer, states: take(layer, states.roll(shift, dims=1)))

    monkeypatch.setattr(CpuEncoder, "run", wrong)
    found = Encoder(bert, pool="mean")
    assert (right._embedder.encoder.backend, found._embedder.encoder.backend) == (ENGINE, "transformers")
    assert [notice for notice in found.notices if "fast path" in notice and notice not in right.notices] != []
    assert len(found.notices) == len(right.notices) + 1
    texts = list(tiny_models.TEXTS)
    assert np.abs(found.encode(texts) - right.encode(texts)).max() > 0  # `right` is wrong by now
    alone = np.concatenate([right.encode([text]) for text in texts])
    assert np.abs(found.encode(texts) - alone).max() <= 1e-5


def test_neither_transformers_nor_the_hub_is_imported_for_a_model_that_needs_neither():
    code = (
        "import sys, embedkit; embedkit.Encoder('minilm').encode(['a line']); "
        "print(sorted({'transformers', 'huggingface_hub'} & sys.modules.keys()))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
