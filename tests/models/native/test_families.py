"""Families whose layers are not BERT's: random sizes, checkpoints and config.json as they are published.

The oracle is plain transformers, one text at a time, in every layer.
"""

from __future__ import annotations

import json
import mmap
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModel, GteForMaskedLM, LlamaForCausalLM

from embedkit.models.native.compile_kernels import find_compiler
from embedkit.models.native.config import read_config
from embedkit.models.native.config_reader import NotNativeError
from embedkit.models.native.families import FAMILIES
from embedkit.models.native.native_model import NativeModel
from embedkit.types import Batch, Tokens
from tests import tiny_models
from tests.models.kinds import CONFIGS
from tests.models.native.test_cpu_encoder import (
    ENGINE,
    Expected,
    assert_near,
    assert_same,
    by_transformers,
    lean_encoder,
    loaded,
    needs_int8,
    states,
)
from tests.tokenizer.test_built_tokenizer import gemma_tokenizer, qwen_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

#: Those of kinds.py that embedkit computes itself, besides BERT's kin.
KINDS = [
    *(
        "eurobert",
        "gemma3_text",
        "gemma3_text both ways",
        "gte",
        "llama",
        "longformer",
        "megatron-bert",
        "mistral",
        "modernbert",
    ),
    *("nomic_bert", "qwen2", "qwen2 sliding", "qwen3"),
]
#: More of them, whose settings are those of test_relative.py.
RELATIVE = ["deberta-v2", "deberta-v2 convolution", "mt5", "t5", "umt5"]
#: Of BERT and its kin, whose layers are tested in test_cpu_encoder.py.
KIN = ["bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta"]


def save(kind: str, folder: Path, **changed: Any) -> Path:
    config = AutoConfig.for_model(kind.split(maxsplit=1)[0], **{**CONFIGS[kind], **changed})
    model = AutoModel.from_config(config)
    tiny_models._randomise(model, seed=1)
    model.save_pretrained(folder)
    return folder


def random_tokens(lengths: tuple[int, ...], seed: int = 3) -> Tokens:
    ids = np.random.default_rng(seed).integers(0, 99, sum(lengths)).astype(np.int32)
    return Tokens(ids, None, np.array(lengths), 1, 1)


def edit(folder: Path, **changed: Any) -> None:
    """Changes config.json; a value of ... removes the key."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def check(folder: Path, tokens: Tokens) -> None:
    assert_same(*found_and_expected(folder, tokens))


def check_random_sizes(folder: Path, tokens: Tokens) -> None:
    """Compares every layer and the pooler of a model that may amplify rounding.

    Norms of a few random numbers do: a layer may also differ by the most that float64 shows transformers to be off
    for any of the texts. A pooler may differ by 1e-5 of the largest value before its tanh, which enlarges nothing.
    """
    found, expected = found_and_expected(folder, tokens)
    exact = by_transformers(folder, tokens, torch.float64)
    rounding = max(
        float(np.abs(a - b).max())
        for theirs, true in zip(expected, exact, strict=True)
        for a, b in zip(theirs.layers, true.layers, strict=True)
    )
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours.layers, theirs.layers, strict=True):
            assert_near(a, b, largest=float(np.abs(b).max()), rounding=rounding)
        assert (ours.pooler is None) == (theirs.pooler is None)
        if ours.pooler is not None:
            before = float(np.arctanh(np.abs(theirs.pooler).max().clip(max=1 - 1e-7)))
            assert_near(ours.pooler, theirs.pooler, largest=before, rounding=rounding)


def found_and_expected(folder: Path, tokens: Tokens) -> tuple[list[Expected], list[Expected]]:
    model = loaded(folder)
    assert isinstance(model, NativeModel)
    encoder, _ = model.make_encoder(tuple(range(model.n_layers + 1)), tokens, for_pooler=model.has_pooler)
    return states(encoder, tokens, 10_000), by_transformers(folder, tokens)


# --- sizes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=4, deadline=None, phases=[Phase.generate], derandomize=True)
@given(data=st.data())
def test_every_layer_is_that_of_transformers_for_any_sizes(kind, data):
    draw = data.draw
    n_key_heads, served = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    # Widths that fill vector registers go through compiled kernels. Narrower ones would be ill-conditioned: an RMS
    # norm of a few numbers is nearly their sign.
    n_heads, width = n_key_heads * served, draw(st.sampled_from((8, 10, 16)))
    n_layers = draw(st.integers(1, 4))
    changed: dict[str, Any] = {
        "num_attention_heads": n_heads,
        "hidden_size": n_heads * width,
        "intermediate_size": draw(st.sampled_from((16, 23, 48))),
        "num_hidden_layers": n_layers,
    }
    grouped = "num_key_value_heads" in CONFIGS[kind]
    if grouped:
        changed["num_key_value_heads"] = n_key_heads
    if "head_dim" in CONFIGS[kind]:
        # The heads together may be wider or narrower than the states.
        changed["head_dim"] = draw(st.sampled_from((2, 6, 8, 16)))
    if kind in {"gemma3_text", "gemma3_text both ways", "mistral", "qwen2 sliding"}:
        changed["sliding_window"] = draw(st.integers(2, 20))
    if "layer_types" in CONFIGS[kind]:
        types = st.sampled_from(["full_attention", "sliding_attention"])
        changed["layer_types"] = draw(st.lists(types, min_size=n_layers, max_size=n_layers))
    if kind == "longformer":
        # transformers needs windows of which each divides the largest, and more than 2 tokens.
        windows = st.lists(st.sampled_from((4, 8, 16, 32)), min_size=n_layers, max_size=n_layers)
        changed["attention_window"] = draw(windows)
    if kind == "modernbert":
        changed["local_attention"] = draw(st.integers(1, 20))
        changed |= {key: draw(st.booleans()) for key in ("norm_bias", "mlp_bias", "attention_bias")}
    if kind in {"llama", "qwen3", "gemma3_text"}:
        changed["attention_bias"] = draw(st.booleans())
    # Of one length and of several, shorter and longer than the window, up to all positions.
    lengths = draw(st.lists(st.one_of(st.integers(1, 80), st.sampled_from((9, 9, 33))), min_size=2, max_size=6))
    with tempfile.TemporaryDirectory() as folder:
        check_random_sizes(save(kind, Path(folder), **changed), random_tokens(tuple(lengths)))


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("int8", marks=needs_int8)])
@pytest.mark.parametrize("kind", [*KIN, *KINDS, *RELATIVE])
def test_ten_random_batchings_give_the_same_states(kind, dtype, tmp_path):
    tokens = random_tokens((1, 3, 9, 9, 9, 17, 40, 66, 66, 80))
    encoder = lean_encoder(save(kind, tmp_path), tokens, dtype=dtype)
    alone = states(encoder, tokens, 1)
    random = np.random.default_rng(0)
    for _ in range(10):
        found: dict[int, Expected] = {}
        order = random.permutation(len(tokens.lengths))
        for texts in np.array_split(order, random.integers(1, 5)):
            by_length = texts[np.argsort(tokens.lengths[texts], kind="stable")]
            batch, layers = Batch(by_length, tokens.lengths[by_length]), []
            encoder.run(tokens, batch, lambda _, state, layers=layers: layers.append(state[0].numpy()))
            for text, stop in zip(batch.texts, np.cumsum(batch.lengths), strict=True):
                own = [layer[stop - tokens.lengths[text] : stop] for layer in layers]
                found[int(text)] = Expected(own, None)
        if encoder.backend != "lean":
            assert all(all(map(np.array_equal, found[text].layers, one.layers)) for text, one in enumerate(alone))
        assert_same([found[text] for text in range(len(alone))], [Expected(one.layers, None) for one in alone])


@pytest.mark.parametrize("length", [257, 700])
@pytest.mark.parametrize(
    ("kind", "window"),
    [("modernbert", 12), ("mistral", 300), ("gemma3_text both ways", 100), ("longformer", 256)],
)
def test_a_text_of_several_blocks_has_the_states_of_transformers(kind, window, length, tmp_path):
    keys = {"modernbert": "local_attention", "longformer": "attention_window"}
    key = keys.get(kind, "sliding_window")
    folder = save(kind, tmp_path, max_position_embeddings=1000, **{key: window})
    check(folder, random_tokens((length, 5)))


def test_a_text_of_8192_tokens_has_the_states_of_transformers_and_no_square_of_its_length_in_memory(tmp_path):
    sizes = {"num_hidden_layers": 2, "attention_window": [64, 32], "max_position_embeddings": 8194}
    folder, tokens = save("longformer", tmp_path, **sizes), random_tokens((8192, 5))
    expected = by_transformers(folder, tokens)
    encoder = lean_encoder(folder, tokens)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        found = states(encoder, tokens, 10_000)
    assert_same(found, expected)
    # Queries, keys and values of a layer are 3 MiB; scores of all pairs, even of one head, would be 256.
    assert max(event.self_cpu_memory_usage for event in profiled.events()) <= 16 << 20


def test_the_deepest_layer_wanted_is_the_last_one_read_and_only_the_last_has_the_final_norm(tmp_path):
    folder, tokens = save("qwen3", tmp_path), random_tokens((5, 9))
    expected = by_transformers(folder, tokens)
    encoder = lean_encoder(folder, tokens, layers=(1, 2))
    assert len(encoder._stack) == 2
    assert encoder._final_norm is None
    assert_same(states(encoder, tokens, 100), [Expected(one.layers[1:3], None) for one in expected])


# --- rotary positions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}),
        ("llama", {"rope_parameters": ..., "rope_theta": 300.0, "rope_scaling": None}),
        ("llama", {"rope_parameters": ..., "rope_scaling": {"type": "linear", "factor": 2.0}}),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 100.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 40,
                }
            },
        ),
        ("qwen3", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0}}),
        (
            "qwen3",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "rope_theta": 100.0,
                    "original_max_position_embeddings": 20,
                    "attention_factor": 1.3,
                    "beta_fast": 8.0,
                    "beta_slow": 0.5,
                    "truncate": False,
                }
            },
        ),
        (
            "gemma3_text both ways",
            {
                "rope_parameters": ...,
                "rope_theta": 200.0,
                "rope_local_base_freq": 50.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
        ("modernbert", {"rope_parameters": ..., "global_rope_theta": 100.0, "local_rope_theta": 20.0}),
    ],
    ids=str,
)
def test_rotary_positions_are_scaled_as_config_json_says(kind, changed, tmp_path):
    folder = save(kind, tmp_path)
    plain = read_config(json.loads((folder / "config.json").read_text()))
    edit(folder, **changed)
    assert read_config(json.loads((folder / "config.json").read_text())).attention != plain.attention
    check(folder, random_tokens((1, 9, 33, 80)))


# --- files as they are published ------------------------------------------------------------------------------


def test_the_published_config_of_modernbert_is_read(tmp_path):
    folder = save("modernbert", tmp_path)
    edit(
        folder,
        layer_types=...,
        rope_parameters=...,
        global_rope_theta=160000.0,
        local_rope_theta=10000.0,
        layer_norm_eps=1e-05,
        position_embedding_type="absolute",
        repad_logits_with_grad=False,
        gradient_checkpointing=False,
        reference_compile=None,
        torch_dtype="float32",
    )
    check(folder, random_tokens((9, 40, 80)))


#: nomic-ai/nomic-embed-text-v1.5, whose names of sizes transformers' class does not read.
NOMIC = {
    "activation_function": "swiglu",
    "architectures": ["NomicBertModel"],
    "attn_pdrop": 0.0,
    "causal": False,
    "auto_map": {"AutoModel": "code.py--X"},
    "bos_token_id": None,
    "dense_seq_output": True,
    "embd_pdrop": 0.0,
    "eos_token_id": None,
    "fused_bias_fc": True,
    "fused_dropout_add_ln": True,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-12,
    "max_trained_positions": 2048,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "model_type": "nomic_bert",
    "n_embd": 768,
    "n_head": 12,
    "n_inner": 3072,
    "n_layer": 12,
    "n_positions": 8192,
    "pad_vocab_size_multiple": 64,
    "parallel_block": False,
    "prenorm": False,
    "parallel_block_tied_norm": False,
    "qkv_proj_bias": False,
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.0,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.0,
    "torch_dtype": "float32",
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "vocab_size": 30528,
    "transformers_version": "4.37.2",
    "type_vocab_size": 2,
    "use_cache": True,
    "use_flash_attn": True,
    "use_rms_norm": False,
    "use_xentropy": True,
}


def test_the_published_config_of_nomic_has_the_sizes_of_transformers_class():
    theirs = AutoConfig.for_model("nomic_bert")
    ours = read_config(NOMIC)
    assert (ours.hidden_size, ours.n_layers, ours.n_heads) == (
        theirs.hidden_size,
        theirs.num_hidden_layers,
        theirs.num_attention_heads,
    )
    assert (ours.intermediate_size, ours.max_position_embeddings) == (
        theirs.intermediate_size,
        theirs.max_position_embeddings,
    )
    assert ours.attention[0].rotation.base == theirs.rope_parameters["rope_theta"]
    with pytest.raises(NotNativeError, match="prenorm"):
        read_config({**NOMIC, "prenorm": True})


@pytest.mark.parametrize("kind", ["gte", "nomic_bert"])
def test_both_names_of_tensors_are_read(kind, tmp_path):
    """save_pretrained writes the published names; the others are those of transformers' class."""
    folder, tokens = save(kind, tmp_path), random_tokens((5, 9))
    expected = by_transformers(folder, tokens)
    state = AutoModel.from_pretrained(folder).state_dict()
    assert state.keys() != load_file(folder / "model.safetensors").keys()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same(states(lean_encoder(folder, tokens), tokens, 100), expected)


@pytest.mark.parametrize(
    ("kind", "head"), [("llama", LlamaForCausalLM), ("gte", GteForMaskedLM)], ids=["llama", "gte"]
)
def test_a_checkpoint_with_a_head_is_read(kind, head, tmp_path):
    model = head(AutoConfig.for_model(kind, **CONFIGS[kind]))
    tiny_models._randomise(model, seed=1)
    model.save_pretrained(tmp_path)
    check(tmp_path, random_tokens((5, 9)))


def test_gte_without_token_types_is_read(tmp_path):
    check(save("gte", tmp_path, type_vocab_size=0), random_tokens((5, 9)))


# --- a run ----------------------------------------------------------------------------------------------------


#: The tiny model whose tokenizer each family has here; for the others, its own type's.
TOKENIZERS = {
    **dict.fromkeys(("eurobert", "gte", "llama", "megatron-bert", "mistral", "nomic_bert", "umt5"), "modernbert"),
    "longformer": "roberta",
    "mt5": "t5",
}


def test_no_family_imports_transformers_if_it_has_a_tokenizer_that_needs_none(tmp_path):
    own = {"gemma3_text": gemma_tokenizer, "qwen2": qwen_tokenizer, "qwen3": qwen_tokenizer}
    # CamemBERT's tokenizer is that of transformers.
    kinds = sorted(FAMILIES.keys() - {"camembert"})
    for kind in kinds:
        folder = save(kind, tmp_path / kind, vocab_size=500)
        if kind in own:
            own[kind]().save_pretrained(folder)
            continue
        made = tiny_models.make(TOKENIZERS.get(kind, kind), tmp_path / "tokenizers" / kind, n_layers=1).folder
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(made / name, folder)
    code = (
        "import sys, embedkit\n"
        "from embedkit.models.native.weight_memory import _chunks\n"
        "prepared, prepare = [], _chunks.prepare\n"
        "_chunks.prepare = lambda size: (prepared.append(size), prepare(size))\n"
        "for model in sys.argv[1:]:\n"
        "    found = embedkit.Encoder(model, pool='mean', device='cpu')\n"
        "    found.encode(['The patient is stable.', 'fever'])\n"
        "    print(found._embedder.encoder.backend, 'transformers' in sys.modules, len(prepared))"
    )
    # Memory is prepared while torch is imported: for the first model alone.
    prepared = int(find_compiler() is not None and hasattr(mmap, "MADV_HUGEPAGE"))
    folders = [str(tmp_path / kind) for kind in kinds]
    printed = subprocess.check_output([sys.executable, "-c", code, *folders], text=True)
    assert dict(zip(kinds, printed.splitlines(), strict=True)) == dict.fromkeys(
        kinds, f"{ENGINE} False {prepared}"
    )


# --- what is left to transformers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": "2"}}),
        ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
        ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
        ("llama", {"partial_rotary_factor": 0.5}),
        ("llama", {"is_causal": False}),
        ("llama", {"num_key_value_heads": 3}),
        ("llama", {"attention_bias": "yes"}),
        ("mistral", {"layer_types": ["full_attention"] * 3}),
        ("mistral", {"sliding_window": 0}),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
        ("qwen3", {"layer_types": ["full_attention"]}),
        ("qwen3", {"layer_types": ["chunked_attention"] * 3}),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}),
        ("gemma3_text", {"query_pre_attn_scalar": 0}),
        ("gemma3_text", {"rope_parameters": {"rope_type": "default"}}),
        ("longformer", {"attention_window": 7}),
        ("longformer", {"attention_window": [8, 8]}),
        ("longformer", {"attention_mode": "tvm"}),
        ("modernbert", {"norm_bias": 1}),
        ("modernbert", {"global_attn_every_n_layers": 0}),
        ("nomic_bert", {"rotary_emb_interleaved": True}),
        ("megatron-bert", {"position_embedding_type": "relative_key"}),
    ],
    ids=str,
)
def test_unsupported_settings_are_rejected(kind, changed, tmp_path):
    folder = save(kind, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert read_config(config).n_layers == config["num_hidden_layers"]
    with pytest.raises(NotNativeError):
        read_config({**config, **changed})


def test_every_family_is_tested():
    assert {kind.split(maxsplit=1)[0] for kind in [*KIN, *KINDS, *RELATIVE]} == FAMILIES.keys()
