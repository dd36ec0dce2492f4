"""CANINE and Funnel from the text on: characters as ids, layers with fewer states than tokens, short texts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import transformers

from embedkit import Encoder
from embedkit.errors import UsageError
from tests import tiny_models
from tests.models.kinds import CANINE, FEWEST, FUNNEL
from tests.oracle import pool

TEXTS = [*tiny_models.TEXTS[:6], "a", "ab", "Grüße, 患者 😀", "x" * 200]


@pytest.fixture(scope="module", autouse=True)
def _characters_counted_once() -> Iterator[None]:
    """Each tokenizer of CANINE lists the 1.1 million characters of Unicode again and again, half a second each."""
    characters = {chr(number): number for number in range(sys.maxunicode + 1)}

    def get_vocab(tokenizer: transformers.CanineTokenizer) -> dict[str, int]:
        assert tokenizer.vocab_size == len(characters)
        return {**characters, **tokenizer.added_tokens_encoder}

    with mock.patch.object(transformers.CanineTokenizer, "get_vocab", get_vocab):
        yield


@pytest.fixture(scope="module", params=["canine", "funnel"])
def model(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    if request.param == "canine":
        # A tokenizer of Python code alone, without a vocabulary: an id is the number of a character.
        transformers.CanineTokenizer(model_max_length=64).save_pretrained(folder)
        transformers.CanineModel(transformers.CanineConfig(**CANINE)).eval().save_pretrained(folder)
        return request.param, folder
    words = sorted({word for text in TEXTS for word in text.lower().split()})
    vocab = {word: number for number, word in enumerate(["<pad>", "<unk>", "<cls>", "<sep>", "<mask>", *words])}
    transformers.FunnelTokenizer(vocab=vocab, model_max_length=64).save_pretrained(folder)
    config = transformers.FunnelConfig(**FUNNEL | {"vocab_size": len(vocab), "pad_token_id": 0})
    transformers.FunnelModel(config).save_pretrained(folder)
    return request.param, folder


@cache
def plain(folder: Path) -> tuple[transformers.PreTrainedTokenizerBase, transformers.PreTrainedModel]:
    return transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoModel.from_pretrained(
        folder
    ).eval()


@torch.no_grad()
def by_hand(kind: str, folder: Path, text: str, layer: int) -> np.ndarray:
    """States of a text alone; one too short for the model's own code is padded by its tokenizer, as users do."""
    tokenizer, model = plain(folder)
    encoded = tokenizer(text, truncation=True, max_length=64)
    n = len(encoded["input_ids"])
    if n < FEWEST[kind]:
        encoded = tokenizer(text, padding="max_length", max_length=FEWEST[kind])
    inputs = {name: torch.tensor([values]) for name, values in encoded.items()}
    output = model(**inputs, output_hidden_states=True)
    states = [*output.hidden_states[:-1], output.last_hidden_state][layer]
    return states[0, :n].numpy()


@pytest.mark.parametrize("layer", [1, -1])
def test_vectors_are_those_of_the_text_alone_however_short(model, layer):
    kind, folder = model
    loaded = Encoder(str(folder), layers=str(layer), pool="cls,mean,max,lasttoken")
    assert not any("slower" in notice for notice in loaded.notices)
    found = loaded.encode(TEXTS)
    for row, text in zip(found, TEXTS, strict=True):
        states = by_hand(kind, folder, text, layer)
        if len(states) <= 2:  # nothing but special tokens: an empty text
            assert np.isnan(row).all()
            continue
        expected = np.concatenate([pool(name, states) for name in ("cls", "mean", "max", "lasttoken")])
        assert np.abs(row - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def test_all_layers_are_refused_with_the_available_ones_named(model):
    kind, folder = model
    with pytest.raises(UsageError, match="has fewer states than the text has tokens") as caught:
        Encoder(str(folder), layers="all", pool="mean")
    assert caught.value.hint.endswith({"canine": ": 0, 1, 6, 7", "funnel": ": 0, 1, 2, 6, 7, 8"}[kind])
