"""DeBERTa and T5, whose scores depend on the distance of two tokens: random settings, and files as published.

The oracle is plain transformers, one text at a time, in every layer.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForTextEncoding, DebertaV2ForMaskedLM, T5ForConditionalGeneration
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from embedkit.config import ModelConfig
from embedkit.models.native.config import read_config
from embedkit.models.native.config_reader import NotNativeError
from embedkit.models.native.native_model import NativeModel, open_native
from embedkit.models.native.relative import DistanceTable, deberta_rows, t5_buckets
from embedkit.models.repository.resolve import resolve_model
from tests import tiny_models
from tests.models.kinds import CONFIGS
from tests.models.native.test_cpu_encoder import assert_same, by_transformers, lean_encoder, loaded, states
from tests.models.native.test_families import check, check_random_sizes, edit, random_tokens, save

pytestmark = pytest.mark.usefixtures("one_thread")

#: As microsoft/deberta-v3-base is published, but for its sizes.
DEBERTA_V3 = {
    "model_type": "deberta-v2",
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "relative_attention": True,
    "position_buckets": 32,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "type_vocab_size": 0,
    "vocab_size": 99,
}
#: As google/flan-t5-base is published, but for its sizes.
FLAN_T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "classifier_dropout": 0.0,
    "d_ff": 64,
    "d_kv": 8,
    "d_model": 32,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "n_positions": 512,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "num_layers": 3,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "task_specific_params": {"summarization": {"max_length": 200}},
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": 99,
}
LENGTHS = st.lists(st.one_of(st.integers(1, 80), st.sampled_from((9, 9, 33))), min_size=2, max_size=5)


def rewritten(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def opened(folder: Path) -> NativeModel:
    return open_native(resolve_model(ModelConfig(str(folder))), "fp32", torch.device("cpu"))


# --- distances ------------------------------------------------------------------------------------------------


@given(n_buckets=st.sampled_from((8, 16, 32, 64)), farthest=st.integers(20, 300))
@settings(deadline=None, max_examples=20)
def test_t5s_buckets_are_those_of_transformers_at_every_distance(n_buckets, farthest):
    distances = torch.arange(-600, 601)
    of_t5 = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
    theirs = of_t5(distances, num_buckets=n_buckets, max_distance=farthest)
    assert torch.equal(t5_buckets(distances, n_buckets, farthest), theirs)
    of_mpnet = transformers.models.mpnet.modeling_mpnet.MPNetEncoder.relative_position_bucket
    assert torch.equal(t5_buckets(distances), of_mpnet(distances))


@given(n_buckets=st.sampled_from((4, 8, 32, 256)), farthest=st.integers(131, 600))
@settings(deadline=None, max_examples=20)
def test_debertas_rows_are_those_of_transformers_at_every_distance(n_buckets, farthest):
    distances = torch.arange(-800, 801)
    # Theirs count from the query's position.
    theirs = make_log_bucket_position(-distances, n_buckets, farthest).long() + n_buckets
    assert torch.equal(deberta_rows(distances, n_buckets, farthest), theirs.clamp(0, 2 * n_buckets - 1))
    plain = (farthest - distances).clamp(0, 2 * farthest - 1)
    assert torch.equal(deberta_rows(distances, 0, farthest), plain)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=5))
@settings(deadline=None, max_examples=20)
def test_a_table_has_the_row_of_every_distance_whatever_was_asked_before(lengths):
    rows = torch.randn(2, 40)
    table = DistanceTable(rows, lambda distances: (distances + 20).clamp(0, 39))
    for length in lengths:
        position = torch.arange(length)
        distances = position[None] - position[:, None]
        expected = rows[:, (distances + 20).clamp(0, 39)]
        assert torch.equal(table.of_pairs(length), expected)
        laid_out = table.reaching(length)
        center = (laid_out.shape[1] - 1) // 2
        assert torch.equal(laid_out[:, center + distances], expected)


# --- settings -------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None, phases=[Phase.generate], derandomize=True)
@given(data=st.data())
def test_debertas_layers_are_those_of_transformers_for_any_settings(data):
    draw = data.draw
    n_heads, width = draw(st.integers(1, 3)), draw(st.sampled_from((8, 10, 16)))
    buckets = draw(st.sampled_from((-1, 4, 8, 32)))
    changed = {
        **CONFIGS["deberta-v2"],
        "num_attention_heads": n_heads,
        "hidden_size": n_heads * width,
        "intermediate_size": draw(st.sampled_from((16, 23, 48))),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "pos_att_type": draw(st.sampled_from((["c2p"], ["p2c"], ["c2p", "p2c"], "p2c|c2p"))),
        "position_buckets": buckets,
        "max_relative_positions": draw(st.sampled_from((-1, 40, 100) if buckets > 0 else (-1, 5, 40, 100))),
        "share_att_key": draw(st.booleans()),
        "norm_rel_ebd": draw(st.sampled_from(("none", "layer_norm"))),
        "position_biased_input": draw(st.booleans()),
        "type_vocab_size": draw(st.sampled_from((0, 2))),
    }
    if draw(st.booleans()):
        changed["embedding_size"] = 24
    if draw(st.booleans()):
        # Longer than some of the texts.
        changed["conv_kernel_size"] = draw(st.sampled_from((1, 3, 7)))
        changed["conv_act"] = draw(st.sampled_from(("gelu", "relu")))
    with tempfile.TemporaryDirectory() as folder:
        check_random_sizes(save("deberta-v2", Path(folder), **changed), random_tokens(tuple(draw(LENGTHS))))


@settings(max_examples=10, deadline=None, phases=[Phase.generate], derandomize=True)
@given(data=st.data())
def test_t5s_layers_are_those_of_transformers_for_any_settings(data):
    draw = data.draw
    changed = {
        "num_heads": draw(st.integers(1, 3)),
        "d_kv": draw(st.sampled_from((8, 10, 16))),
        "d_model": draw(st.sampled_from((32, 40, 25))),
        "d_ff": draw(st.sampled_from((16, 23, 48))),
        "num_layers": draw(st.integers(1, 3)),
        "feed_forward_proj": draw(st.sampled_from(("relu", "gelu", "gated-gelu", "gated-silu"))),
        "relative_attention_num_buckets": draw(st.sampled_from((8, 32))),
        "relative_attention_max_distance": draw(st.sampled_from((20, 128))),
    }
    kind = draw(st.sampled_from(("mt5", "t5", "umt5")))
    with tempfile.TemporaryDirectory() as folder:
        check_random_sizes(save(kind, Path(folder), **changed), random_tokens(tuple(draw(LENGTHS))))


# --- files as they are published ------------------------------------------------------------------------------


def test_deberta_v3_is_read_as_it_is_published(tmp_path):
    model = DebertaV2ForMaskedLM(AutoConfig.for_model(**DEBERTA_V3))
    tiny_models._randomise(model, seed=1)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(DEBERTA_V3))
    more = {
        "deberta.embeddings.position_embeddings.weight": torch.randn(80, 32),
        "deberta.embeddings.position_ids": torch.arange(80)[None],
        "lm_predictions.lm_head.dense.weight": torch.randn(32, 32),
        "mask_predictions.classifier.weight": torch.randn(1, 32),
    }
    rewritten(tmp_path, lambda weights: {**weights, **more})
    check(tmp_path, random_tokens((1, 9, 33, 80)))


@pytest.mark.parametrize("words", ["shared", "both", "encoder"])
def test_flan_t5_is_read_as_it_is_published_and_under_any_name_of_its_embeddings(words, tmp_path):
    model = T5ForConditionalGeneration(AutoConfig.for_model(**FLAN_T5))
    tiny_models._randomise(model, seed=1)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(FLAN_T5))

    def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        copy = {"encoder.embed_tokens.weight": weights["shared.weight"].clone()}
        kept = {name: tensor for name, tensor in weights.items() if words != "encoder" or name != "shared.weight"}
        return kept if words == "shared" else {**kept, **copy}

    rewritten(tmp_path, renamed)
    tokens = random_tokens((1, 9, 33, 200))
    model = loaded(tmp_path)
    # Positions are relative: no text is too long.
    assert model.max_positions is None
    check(tmp_path, tokens)


def test_a_t5_with_two_different_embeddings_is_left_to_transformers(tmp_path):
    folder = save("t5", tmp_path)
    rewritten(folder, lambda weights: {**weights, "encoder.embed_tokens.weight": torch.randn(99, 32)})
    with pytest.raises(NotNativeError, match="differs"):
        opened(folder)


def test_the_encoder_of_a_sentence_t5_is_read(tmp_path):
    config = AutoConfig.for_model("t5", **CONFIGS["t5"])
    model = AutoModelForTextEncoding.from_config(config)
    tiny_models._randomise(model, seed=1)
    model.save_pretrained(tmp_path)
    assert not any(name.startswith("decoder") for name in load_file(tmp_path / "model.safetensors"))
    check(tmp_path, random_tokens((5, 9)))


@pytest.mark.parametrize("kind", ["deberta-v2 convolution", "umt5"])
def test_the_deepest_layer_wanted_is_the_last_one_read(kind, tmp_path):
    folder, tokens = save(kind, tmp_path), random_tokens((5, 9, 70))
    expected = by_transformers(folder, tokens)
    encoder = lean_encoder(folder, tokens, layers=(1, 2))
    assert len(encoder._stack) == 2
    found = states(encoder, tokens, 100)
    assert_same(found, [type(one)(one.layers[1:3], None) for one in expected])


# --- what is left to transformers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        (DEBERTA_V3, {"conv_kernel_size": 3}),  # with tanh
        (DEBERTA_V3, {"conv_kernel_size": 4, "conv_act": "gelu"}),
        (DEBERTA_V3, {"conv_kernel_size": 3, "conv_act": "gelu", "conv_groups": 2}),
        (DEBERTA_V3, {"relative_attention": False}),
        (DEBERTA_V3, {"relative_attention": ...}),
        (DEBERTA_V3, {"pos_att_type": None}),
        (DEBERTA_V3, {"pos_att_type": "c2p|p2p"}),
        (DEBERTA_V3, {"pos_att_type": [["c2p"]]}),
        (DEBERTA_V3, {"attention_head_size": 16}),
        (DEBERTA_V3, {"norm_rel_ebd": "batch_norm"}),
        (DEBERTA_V3, {"position_buckets": 200}),
        (DEBERTA_V3, {"position_buckets": "32"}),
        (DEBERTA_V3, {"share_att_key": 1}),
        (FLAN_T5, {"feed_forward_proj": "gated-gelu-x"}),
        (FLAN_T5, {"feed_forward_proj": "gated-tanh"}),
        (FLAN_T5, {"feed_forward_proj": None}),
        (FLAN_T5, {"dense_act_fn": "relu"}),
        (FLAN_T5, {"is_gated_act": False}),
        (FLAN_T5, {"is_decoder": True}),
        (FLAN_T5, {"relative_attention_num_buckets": 30}),
        (FLAN_T5, {"relative_attention_max_distance": 8}),
    ],
    ids=str,
)
def test_unsupported_settings_are_rejected(config, changed):
    assert read_config(config).n_layers == 3
    with pytest.raises(NotNativeError):
        read_config({key: value for key, value in {**config, **changed}.items() if value is not ...})


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu"}),
        ("deberta-v2 convolution", {"conv_kernel_size": 0}),
        ("deberta-v2 convolution", {"conv_kernel_size": 5}),
        ("t5", {"d_kv": 16, "num_layers": 2}),
        ("t5", {"feed_forward_proj": "gated-gelu"}),
    ],
)
def test_a_checkpoint_that_is_not_what_config_json_says_is_left_to_transformers(kind, changed, tmp_path):
    folder = save(kind, tmp_path)
    edit(folder, **changed)
    with pytest.raises(NotNativeError):
        opened(folder)
