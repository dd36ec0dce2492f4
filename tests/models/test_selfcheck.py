"""Models broken on purpose: the check at load detects it, takes a slower way, and gives one notice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AttentionInterface

from embedkit import Encoder
from embedkit.errors import ModelError
from embedkit.models.native.config_reader import NotNativeError
from embedkit.models.repository.architectures import ARCHITECTURES
from embedkit.models.transformers import load, packed_attention, transformers_encoder
from tests import tiny_models
from tests.oracle import Oracle, pool


@pytest.fixture(autouse=True)
def by_transformers(monkeypatch) -> None:
    """embedkit's own code for BERT has a check of its own."""

    def leave(*_):
        raise NotNativeError("transformers is to compute it")

    monkeypatch.setattr("embedkit.models.select_backend.open_native", leave)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_models.make("bert", tmp_path_factory.mktemp("bert")).folder


def way(loaded: Encoder) -> tuple[bool, bool, bool]:
    """Packed, in equal lengths, by forward hooks."""
    found = loaded._embedder.encoder
    return found.packed, found.equal_lengths, found._hooks is not None


def slower(loaded: Encoder) -> int:
    return sum("a slower one is used" in notice for notice in loaded.notices)


@pytest.fixture
def leaky(monkeypatch) -> None:
    """Packed texts that attend to each other."""

    def attend(module, query, key, value, attention_mask, *, scaling=None, **_others):
        seen = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling)
        return seen.transpose(1, 2), None

    packed_attention.register("groups")
    monkeypatch.setitem(AttentionInterface._global_mapping, packed_attention.register("groups"), attend)


@pytest.fixture
def late(monkeypatch) -> None:
    """Forward hooks that return the states of the layer after the one that was asked for."""
    plain = transformers_encoder._LayerHooks._before

    def before(self, module, args, kwargs):
        self.calls += self.calls == 0
        plain(self, module, args, kwargs)

    monkeypatch.setattr(transformers_encoder._LayerHooks, "_before", before)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("layers", ["1", "-1", "all"])
def test_attention_across_texts_is_detected_in_every_precision(folder, leaky, dtype, layers):
    loaded = Encoder(str(folder), pool="mean", dtype=dtype, layers=layers, layer_agg="mean")
    assert way(loaded) == (False, False, True)
    assert slower(loaded) == 1


def test_the_fallback_is_correct(folder, leaky):
    oracle = Oracle(folder, max_length=64)
    expected = np.stack([pool("mean", oracle.states(text).layers[-1]) for text in tiny_models.TEXTS])
    found = Encoder(str(folder), pool="mean").encode(tiny_models.TEXTS)
    assert np.abs(found - expected).max() <= 1e-5


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("layers", ["0", "1,2", "-2:"])
def test_hooks_that_are_a_layer_late_are_detected_and_replaced(folder, late, dtype, layers):
    loaded = Encoder(str(folder), pool="mean", dtype=dtype, layers=layers, layer_agg="mean")
    assert way(loaded) == (True, False, False)
    assert slower(loaded) == 1


def test_both_faults_at_once_give_one_notice(folder, leaky, late):
    loaded = Encoder(str(folder), pool="mean", layers="1")
    assert way(loaded) == (False, False, False)
    assert slower(loaded) == 1


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_dimension_of_huge_values_does_not_hide_it(tmp_path, leaky, dtype):
    """Real models have such dimensions: relative to the largest state, a difference would not be visible."""
    folder = tiny_models.make("bert", tmp_path / "bert").folder
    weights = load_file(folder / "model.safetensors")
    for name, values in weights.items():
        if name.endswith("output.LayerNorm.weight"):
            values[3] *= 3000
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = Encoder(str(folder), pool="mean", dtype=dtype)
    assert not way(loaded)[0]
    assert slower(loaded) == 1


def test_attention_to_padding_is_detected_and_lengths_are_not_mixed(tmp_path, monkeypatch):
    """A model of which the table would say too much: here FNet, whose Fourier transform runs over the padding."""
    from transformers import BertTokenizer, FNetConfig, FNetModel

    monkeypatch.setitem(ARCHITECTURES, "fnet", replace(ARCHITECTURES["fnet"], batches="padded"))
    vocab = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5, "cat": 6, "dog": 7}
    BertTokenizer(vocab=vocab).save_pretrained(tmp_path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 8}
    FNetModel(FNetConfig(**sizes, pad_token_id=0)).save_pretrained(tmp_path)
    loaded = Encoder(str(tmp_path), pool="mean")
    assert way(loaded)[:2] == (False, True)
    assert slower(loaded) == 1


def test_a_model_without_an_exact_way_of_batching_is_refused(folder, monkeypatch):
    monkeypatch.setattr(load, "matches_reference", lambda *_: False)
    with pytest.raises(ModelError, match="gives other vectors in a batch"):
        Encoder(str(folder), pool="mean")


def test_a_model_with_non_finite_states_is_refused_with_the_layer(tmp_path):
    folder = tiny_models.make("bert", tmp_path / "bert").folder
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"][0] = np.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"not finite .* from layer 2 on"):
        Encoder(str(folder), pool="mean", layers="all")


def test_a_model_that_fails_in_half_precision_is_refused_with_a_hint(tmp_path):
    folder = tiny_models.make("xlnet", tmp_path / "xlnet").folder
    with pytest.raises(ModelError, match="cannot be run on a plain text in bf16") as caught:
        Encoder(str(folder), pool="mean", dtype="bf16")
    assert "fp32" in caught.value.hint
