"""Every number against plain transformers, one text at a time, for every kind of model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pytest

from embedkit import Encoder
from embedkit.errors import ModelError
from embedkit.inference.batching import TokenBudget
from tests import tiny_models
from tests.oracle import Oracle, States, pool

POOLINGS = ("mean", "max", "min", "mean_sqrt_len", "weightedmean", "lasttoken")
#: Models whose tokenizer puts a [CLS] or <s> in front; XLNet has it at the end, T5 and GPT-2 have none.
WITH_CLS = tuple(kind for kind in tiny_models.MODEL_TYPES if kind not in {"t5", "gpt2"})

#: Tokens that are read of a text by a model that states no limit, as XLNet: without one its texts have hundreds.
LIMIT = 96


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tiny_models.TinyModel]]:
    root = tmp_path_factory.mktemp("models")
    yield {kind: tiny_models.make(kind, root / kind) for kind in tiny_models.MODEL_TYPES}
    _states.cache_clear()


@cache
def _states(folder: Path, max_length: int | None) -> tuple[States, ...]:
    oracle = Oracle(folder, max_length=max_length)
    return tuple(oracle.states(text) for text in tiny_models.TEXTS)


def of_oracle(model: tiny_models.TinyModel) -> tuple[States, ...]:
    return _states(model.folder, model.max_length or LIMIT)


def encoder_of(model: tiny_models.TinyModel, **options: object) -> Encoder:
    """Returns an encoder that reads as many tokens of a text as the oracle."""
    return Encoder(str(model.folder), max_length=None if model.max_length else LIMIT, **options)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """1e-5 on vectors of unit scale; sums of large states are held to the same share of their size."""
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    scale = max(1.0, float(np.abs(expected).max()))
    assert np.abs(found - expected).max() <= 1e-5 * scale


@pytest.mark.parametrize("kind", tiny_models.MODEL_TYPES)
def test_every_layer_and_pooling_is_what_transformers_gives_for_the_text_alone(folders, kind):
    model = folders[kind]
    names = (*POOLINGS, "cls") if kind in WITH_CLS else POOLINGS
    encoder = encoder_of(model, layers="all", layer_agg="separate", pool=",".join(names))
    vectors = encoder.encode_variants(tiny_models.TEXTS)
    assert len(vectors) == model.n_layers + 1
    for layer in range(model.n_layers + 1):
        found = vectors[f"L{layer:02d}_{'_'.join(names)}"]
        expected = np.stack(
            [
                np.concatenate(
                    [
                        # XLNet's [CLS] closes the text.
                        pool("lasttoken" if (kind, name) == ("xlnet", "cls") else name, states.layers[layer])
                        for name in names
                    ]
                )
                for states in of_oracle(model)
            ]
        )
        assert_close(found, expected)


def test_a_model_that_states_no_limit_reads_512_tokens(folders):
    assert Encoder(str(folders["xlnet"].folder)).recipe["text"]["max_length"] == 512


@pytest.mark.parametrize("kind", tiny_models.MODEL_TYPES)
def test_order_and_budget_change_nothing(folders, kind):
    model = folders[kind]
    encoder = encoder_of(model, pool="mean,max")
    expected = np.stack(
        [
            np.concatenate([pool("mean", states.layers[-1]), pool("max", states.layers[-1])])
            for states in of_oracle(model)
        ]
    )
    random = Random(0)
    for batch_tokens, batch_size in ((1, None), (70, None), (300, 3), (10_000, None), (10_000, 1)):
        encoder._embedder = replace(encoder._embedder, budget=TokenBudget(batch_tokens), batch_size=batch_size)
        order = random.sample(range(len(tiny_models.TEXTS)), len(tiny_models.TEXTS))
        assert_close(encoder.encode([tiny_models.TEXTS[i] for i in order]), expected[order])


@pytest.mark.parametrize("kind", tiny_models.MODEL_TYPES)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_shallow_layer_alone_is_the_same_as_among_all(folders, kind, layer):
    model = folders[kind]
    found = encoder_of(model, layers=str(layer), pool="mean").encode(tiny_models.TEXTS)
    assert_close(found, np.stack([pool("mean", states.layers[layer]) for states in of_oracle(model)]))


@pytest.mark.parametrize("kind", ["bert", "modernbert", "t5", "xlnet"])
@pytest.mark.parametrize("aggregation", ["mean", "sum", "max", "concat"])
def test_layers_are_aggregated_before_pooling(folders, kind, aggregation):
    model = folders[kind]
    encoder = encoder_of(model, layers="-1,1,-2", layer_agg=aggregation, pool="max,mean")
    together = {
        "mean": lambda states: np.mean(states, axis=0),
        "sum": lambda states: np.sum(states, axis=0),
        "max": lambda states: np.max(states, axis=0),
        "concat": lambda states: np.concatenate(states, axis=-1),
    }[aggregation]
    expected = []
    for states in of_oracle(model):
        tokens = together([states.layers[-1], states.layers[1], states.layers[-2]])
        expected.append(np.concatenate([pool("max", tokens), pool("mean", tokens)]))
    assert_close(encoder.encode(tiny_models.TEXTS), np.stack(expected))


def test_concatenation_has_poolings_outside_and_layers_inside(folders):
    model = folders["bert"]
    found = encoder_of(model, layers="-1,-2", pool="cls,mean").encode(tiny_models.TEXTS[:3])
    for row, states in zip(found, of_oracle(model), strict=False):
        last, before = states.layers[-1], states.layers[-2]
        expected = [pool("cls", last), pool("cls", before), pool("mean", last), pool("mean", before)]
        assert_close(row, np.concatenate(expected))


@pytest.mark.parametrize("kind", tiny_models.MODEL_TYPES)
def test_special_tokens_can_be_left_out_of_the_pooling(folders, kind):
    model = folders[kind]
    found = encoder_of(model, pool="mean,min", exclude_special=True).encode(tiny_models.TEXTS)
    expected = []
    for states in of_oracle(model):
        # The mask may mark a [PAD] that the text itself spells, too; only the ends are the tokenizer's own.
        content = np.flatnonzero(~states.special)
        inside = states.layers[-1][content[0] : content[-1] + 1] if len(content) else None
        expected.append(inside)
    for row, inside in zip(found, expected, strict=True):
        if inside is not None:
            assert_close(row, np.concatenate([pool("mean", inside), pool("min", inside)]))


@pytest.mark.parametrize("kind", ["bert", "roberta", "albert", "xlm-roberta", "camembert", "mpnet"])
def test_the_pooler_is_the_models_own(folders, kind):
    model = folders[kind]
    found = encoder_of(model, pool="pooler,mean").encode(tiny_models.TEXTS)
    expected = [np.concatenate([s.pooler, pool("mean", s.layers[-1])]) for s in of_oracle(model)]
    assert_close(found, np.stack(expected))


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "gpt2"])
def test_token_vectors_are_the_hidden_states(folders, kind):
    model = folders[kind]
    found = encoder_of(model, layers="-1,1", pool="none").encode_tokens(tiny_models.TEXTS)
    for tokens, states in zip(found, of_oracle(model), strict=True):
        assert_close(tokens, np.concatenate([states.layers[-1], states.layers[1]], axis=-1))


def test_an_empty_text_has_no_vector(folders):
    found = Encoder(str(folders["bert"].folder), pool="mean").encode(["", "pain", " \n\t", "\u200b"])
    assert np.isnan(found[[0, 2, 3]]).all()
    assert np.isfinite(found[1]).all()


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_position_0_of_a_model_without_cls_is_not_called_cls(folders, kind):
    with pytest.raises(ModelError, match="no \\[CLS\\] or <s>"):
        Encoder(str(folders[kind].folder), pool="cls")


#: The last three by embedkit's own code alone.
PACKED = (
    *("bert", "roberta", "distilbert", "albert", "electra", "xlm-roberta", "camembert", "modernbert", "gpt2"),
    *("deberta-v2", "mpnet", "t5"),
)


@pytest.mark.parametrize("kind", tiny_models.MODEL_TYPES)
def test_models_that_can_be_packed_are_and_nothing_falls_back(folders, kind):
    encoder = Encoder(str(folders[kind].folder), pool="mean")
    assert encoder._embedder.encoder.packed == (kind in PACKED)
    assert not any("slower" in notice for notice in encoder.notices)
