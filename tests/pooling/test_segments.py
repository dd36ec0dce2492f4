"""Pooling in one call gives the vectors of pooling one length after another, in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from embedkit.pooling.functions import POOLINGS
from embedkit.pooling.pooling_spec import PoolingSpec
from embedkit.pooling.token_layout import TokenLayout
from embedkit.types import Batch

ODD = [0.0, 1e6, -1e6, 3e38, float("inf"), float("-inf"), float("nan")]


def pooled(spec, states, lengths, before, after, *, by_segments, packed=True):
    """Vectors of texts with these states [T, D]; those of each layer are the states times its number."""
    sizes = np.array(lengths)
    layout = TokenLayout(Batch(np.arange(len(sizes)), sizes), packed, before, after, by_segments)
    given_arrays = {name: torch.from_numpy(array) for name, array in layout.arrays(spec, None).items()}
    pooler = layout.pooler(spec, given_arrays, torch.device("cpu"))
    if packed:
        rows = states[None]
    else:
        mask = torch.arange(int(sizes[-1])) < torch.from_numpy(sizes)[:, None]
        rows = torch.full((*mask.shape, states.shape[1]), torch.nan, dtype=states.dtype)
        rows[mask] = states
    for layer in sorted(spec.layers):
        pooler.take(layer, rows * layer)
    return pooler


@example([3, 3, 4], 5, 4, False, 1, [], 0, "float32")
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12).map(sorted),
    st.integers(0, 5),
    st.integers(0, 4),
    st.booleans(),
    st.integers(0, 2**31 - 1),
    st.lists(st.tuples(st.integers(0, 10_000), st.sampled_from(ODD)), max_size=4),
    st.integers(0, 3),
    st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_segments_match_groups(lengths, before, after, cls_is_last, seed, odd, skipped, dtype):
    states = torch.randn(sum(lengths), 3, generator=torch.Generator().manual_seed(seed))
    for place, value in odd:
        states[place % len(states), place % 3] = value
    states = states.to(getattr(torch, dtype))
    # Beside the prompt that is skipped, the special tokens before it are.
    before = max(before, skipped)
    spec = PoolingSpec((1, 2), "concat", tuple(POOLINGS), cls_is_last=cls_is_last, skipped=skipped)
    groups, segments = (
        pooled(spec, states, lengths, before, after, by_segments=of).vectors()[""] for of in (False, True)
    )
    size = states.float().abs().nan_to_num(0, 0, 0).clamp_max(1e7).max()
    assert segments.dtype == torch.float32
    assert np.allclose(segments, groups, rtol=1e-6, atol=1e-6 * max(1.0, float(size)), equal_nan=True)


@pytest.mark.parametrize("name", list(POOLINGS))
def test_a_non_finite_text_does_not_change_its_neighbours(name):
    states = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    spec, lengths = PoolingSpec((1,), "concat", (name,)), [3, 4, 5]
    expected = pooled(spec, states, lengths, 0, 0, by_segments=True).vectors()[""]
    broken = states.clone()
    broken[3:7] = torch.nan
    found = pooled(spec, broken, lengths, 0, 0, by_segments=True).vectors()[""]
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    assert found[1].isnan().all()


def test_the_number_of_calls_does_not_depend_on_the_number_of_lengths():
    spec = PoolingSpec((1,), "concat", tuple(POOLINGS))

    def calls(lengths):
        states = torch.randn(sum(lengths), 2)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            pooled(spec, states, lengths, 1, 1, by_segments=True).vectors()
        names = [event.name for event in profile.events()]
        assert not {"aten::item", "aten::nonzero", "aten::masked_select"} & set(names)
        return len(names)

    assert calls(list(range(3, 60))) == calls([4, 5])


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("cut", [(0, 0), (1, 1), (3, 0)])
def test_token_vectors_are_the_packed_tokens_that_take_part(packed, cut):
    lengths, (before, after) = [2, 2, 5], cut
    states = torch.arange(18.0).view(9, 2)
    spec = PoolingSpec((2, 1), "concat", ())
    found = pooled(spec, states, lengths, before, after, by_segments=False, packed=packed).token_vectors()[""]
    starts = [0, 2, 4]
    kept = [
        states[start + place]
        for start, length in zip(starts, lengths, strict=True)
        for place in range(before, length - after)
    ]
    expected = torch.stack(kept) if kept else torch.zeros(0, 2)
    assert torch.equal(found, torch.cat([expected * 2, expected], dim=1))
