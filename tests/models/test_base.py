"""A backend of one's own: an encoder that implements the base class alone runs through the embedder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from embedkit import Encoder
from embedkit.inference.embedder import embed
from embedkit.models.base import Arrays, Inputs, LayerEncoder, TakeLayer
from embedkit.models.selfcheck import matches_reference, states_alone
from embedkit.pooling.pooling_spec import PoolingSpec
from embedkit.types import Batch, Tokens
from tests.tiny_models import TEXTS

pytestmark = pytest.mark.usefixtures("one_thread")


class IdEncoder(LayerEncoder):
    """The state of a token with id i in layer k is [i * (k + 1), k]; what pads a text is NaN."""

    backend = "ids"
    device = torch.device("cpu")
    n_layers = 2
    hidden_size = 2
    equal_lengths = False

    def __init__(self, layers: tuple[int, ...], *, packed: bool) -> None:
        self.layers, self.packed = layers, packed
        self.broken: int | None = None

    def prepare(self, tokens: Tokens, batch: Batch) -> Arrays:
        ids = tokens.input_ids[tokens.indices_of(batch.texts)[0]].astype(np.float32)
        if self.packed:
            return {"ids": ids[None]}
        mask = np.arange(batch.lengths[-1]) < batch.lengths[:, None]
        padded = np.full(mask.shape, np.nan, np.float32)
        padded[mask] = ids
        return {"ids": padded}

    def _forward(self, inputs: Inputs, batch: Batch, take: TakeLayer, wanted: frozenset[int]) -> Tensor | None:
        ids = inputs["ids"]
        for layer in sorted(wanted):
            states = torch.stack([ids * (layer + 1), torch.full_like(ids, layer)], dim=-1)
            take(layer, states * torch.nan if layer == self.broken else states)
        return None


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_another_encoder_works_in_the_embedder_and_the_check_at_load(packed, bert):
    encoder = IdEncoder((0, 2), packed=packed)
    spec = PoolingSpec(encoder.layers, "concat", ("mean",))
    embedder = replace(Encoder(str(bert), pool="mean")._embedder, encoder=encoder, pooling=spec)
    tokenized = embedder.tokenizer.tokenize(TEXTS)
    tokens = tokenized.tokens
    of_texts = np.split(tokens.input_ids, np.cumsum(tokens.lengths)[:-1])
    # [mean of i, layer 0, mean of 3 i, layer 2]
    expected = [[ids.mean(), 0, 3 * ids.mean(), 2] for ids in of_texts]
    found = embed(tokenized, embedder, lambda *_: None).vectors[""]
    np.testing.assert_allclose(found, expected, rtol=1e-6)

    assert matches_reference(encoder, states_alone(encoder, tokens, "fp32"), tokens)
    assert not matches_reference(
        encoder, states_alone(IdEncoder((0, 2), packed=True), tokens, "fp32")[::-1], tokens
    )
    assert encoder.compile_if_worthwhile(10**12) is None
    assert encoder.first_non_finite_layer(tokens, 0) is None
    encoder.broken = 1
    assert encoder.first_non_finite_layer(tokens, 0) == 1
