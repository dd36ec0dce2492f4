"""Each pooling against arithmetic in the tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedkit.config.poolings import POOLING_NAMES
from embedkit.pooling.functions import POOLINGS, Rectangle, pool

# Three tokens of two dimensions: (1, -8), (2, 4), (6, -2). What the mask leaves out is 1e6 or infinite, so that
# a leak cannot hide.
TOKENS = [[1.0, -8.0], [2.0, 4.0], [6.0, -2.0]]
EXPECTED = {
    "cls": [1.0, -8.0],
    "lasttoken": [6.0, -2.0],
    "mean": [3.0, -2.0],  # (1+2+6)/3, (-8+4-2)/3
    "mean_sqrt_len": [9 / math.sqrt(3), -6 / math.sqrt(3)],  # sum / sqrt(3)
    "weightedmean": [23 / 6, -6 / 6],  # (1*1 + 2*2 + 3*6)/6, (1*-8 + 2*4 + 3*-2)/6
    "max": [6.0, 4.0],
    "min": [1.0, -8.0],
}
PADS = {
    "none": [0, 1, 2],
    "right": [0, 1, 2, None, None],
    "left": [None, None, 0, 1, 2],
    "middle": [0, None, 1, None, None, 2],
}


def pooled(name: str, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return pool(name, Rectangle(states, mask))


def padded(places: list[int | None], junk: float) -> tuple[torch.Tensor, torch.Tensor]:
    states = [[junk, -junk] if place is None else TOKENS[place] for place in places]
    return torch.tensor([states]), torch.tensor([[place is not None for place in places]])


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("where", PADS)
@pytest.mark.parametrize("junk", [1e6, math.inf, math.nan])
def test_masked_tokens_have_no_influence(name, where, junk):
    states, mask = padded(PADS[where], junk)
    assert pooled(name, states, mask)[0].tolist() == pytest.approx(EXPECTED[name], abs=1e-6)


@pytest.mark.parametrize("name", POOLINGS)
def test_no_mask_means_that_all_tokens_take_part(name):
    states = torch.tensor([TOKENS, TOKENS[::-1]])
    everything = torch.ones(2, 3, dtype=torch.bool)
    assert torch.allclose(pooled(name, states, None), pooled(name, states, everything), atol=1e-6)
    assert pooled(name, states, None)[0].tolist() == pytest.approx(EXPECTED[name], abs=1e-6)


@pytest.mark.parametrize("name", POOLINGS)
def test_a_fully_masked_row_is_nan_and_leaves_its_neighbours_alone(name):
    states = torch.tensor([TOKENS, TOKENS])
    mask = torch.tensor([[False] * 3, [True] * 3])
    vectors = pooled(name, states, mask)
    assert torch.isnan(vectors[0]).all()
    assert vectors[1].tolist() == pytest.approx(EXPECTED[name], abs=1e-6)


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_are_pooled_in_float32(name, dtype):
    # 2,049 tokens of value 1: a sum kept in half precision stops growing at 256 (bf16) or 2,048 (fp16).
    states = torch.ones(1, 2049, 4, dtype=dtype)
    mask = torch.ones(1, 2049, dtype=torch.bool)
    expected = 2049 / math.sqrt(2049) if name == "mean_sqrt_len" else 1.0
    for vectors in (pooled(name, states, mask), pooled(name, states, None)):
        assert vectors.dtype == torch.float32
        assert vectors[0].tolist() == pytest.approx([expected] * 4, rel=1e-5)


@given(
    st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4),
    st.integers(0, 2**31 - 1),
    st.sampled_from(sorted(EXPECTED)),
)
def test_any_mask_gives_the_pooling_of_the_chosen_tokens(masks, seed, name):
    states = torch.randn(len(masks), 5, 3, generator=torch.Generator().manual_seed(seed))
    vectors = pooled(name, states, torch.tensor(masks))
    for row, chosen in enumerate(masks):
        kept = states[row][torch.tensor(chosen)]
        if len(kept):
            alone = pooled(name, kept[None], None)[0]
            assert np.allclose(vectors[row], alone, atol=1e-6)


def test_every_pooling_has_a_name_and_every_name_a_pooling():
    assert {*POOLINGS, "pooler"} == set(POOLING_NAMES)
