"""What a TransformersEncoder says of a text whose numbers break."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from embedkit import Encoder
from embedkit.models.native.config_reader import NotNativeError
from tests import tiny_models

TEXTS = ["pain", "chest pain and fever", "pain in the left arm"]


def leave(*_: object) -> None:
    """Leave every model to transformers."""
    raise NotNativeError


def layer_of(model: Any, kind: str, layer: int) -> torch.nn.Module:
    stacks = {"bert": "encoder.layer", "mpnet": "encoder.layer", "xlnet": "layer", "gpt2": "h"}
    return model.get_submodule(f"{stacks[kind]}.{layer}")


# One for each way to run: packed, padded, with the states of all layers collected, and with a norm at the end.
@pytest.mark.parametrize("kind", ["bert", "mpnet", "xlnet", "gpt2"])
@pytest.mark.parametrize("layers", ["-1", "0,1", "2"])
def test_the_first_layer_that_is_not_finite_is_found_for_the_text_that_has_it(kind, layers, tmp_path, monkeypatch):
    monkeypatch.setattr("embedkit.models.select_backend.open_native", leave)
    embedder = Encoder(str(tiny_models.make(kind, tmp_path / kind).folder), layers=layers, pool="mean")._embedder
    encoder, tokens = embedder.encoder, embedder.tokenizer.tokenize(TEXTS).tokens
    deepest = max(encoder.layers)
    assert [encoder.first_non_finite_layer(tokens, text) for text in range(3)] == [None] * 3

    # A token that only the second text has: its embedding is infinite, so layer 0 is.
    words = encoder.model.get_input_embeddings().weight
    starts = tokens.lengths.cumsum() - tokens.lengths
    of_texts = [set(tokens.input_ids[start : start + n]) for start, n in zip(starts, tokens.lengths, strict=True)]
    only = int(min(of_texts[1] - of_texts[0] - of_texts[2]))
    kept = words[only].clone()
    words[only] = torch.inf
    assert [encoder.first_non_finite_layer(tokens, text) for text in range(3)] == [None, 0, None]
    words[only] = kept

    # NaN in the weights of the layer that makes hidden_states[2]: not seen where only 0 and 1 are wanted.
    if deepest >= 2:
        for weights in layer_of(encoder.model, kind, 1).parameters():
            weights.fill_(torch.nan)
        assert [encoder.first_non_finite_layer(tokens, text) for text in range(3)] == [2] * 3
