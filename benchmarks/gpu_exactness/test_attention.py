"""Every way to compute attention here, against softmax written out, a text and a head at a time, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedkit.models.varlen_attention import BACKENDS, AttentionRules, Packing, cu_seqlens, usable
from embedkit.types import Batch

LENGTHS = np.array([1, 2, 2, 7, 7, 7, 64, 65, 130, 200])
#: As above: of the root mean square.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def written_out(query, key, value, *, causal, window, scale):
    """Returns attention by its definition: [T, heads, D]."""
    out = torch.empty(query.shape, dtype=torch.float64)
    stops = np.cumsum(LENGTHS)
    share = query.shape[1] // key.shape[1]
    for start, stop in zip(stops - LENGTHS, stops, strict=True):
        place = torch.arange(stop - start)
        distance = place[:, None] - place[None]
        unseen = torch.zeros(distance.shape, dtype=torch.bool)
        if causal:
            unseen |= distance < 0
        if window is not None:
            unseen |= distance.abs() >= window
        for head in range(query.shape[1]):
            q, k, v = query[start:stop, head], key[start:stop, head // share], value[start:stop, head // share]
            scores = (q @ k.T * scale).masked_fill(unseen, float("-inf"))
            out[start:stop, head] = scores.softmax(-1) @ v
    return out


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("window", [None, 8, 64])
@pytest.mark.parametrize("causal", [False, True])
def test_every_backend_here_does_what_attention_is(causal, window, key_heads, dtype, device):
    head_dim, place = 64, torch.device(device)
    generator = torch.Generator().manual_seed(0)
    heads = (4, key_heads, key_heads)
    states = [torch.randn(LENGTHS.sum(), n, head_dim, generator=generator).to(dtype) for n in heads]
    batch = Batch(np.arange(len(LENGTHS)), LENGTHS)
    packing = Packing.of(batch, torch.from_numpy(cu_seqlens(batch)).to(place))
    expected = written_out(*(of.double() for of in states), causal=causal, window=window, scale=0.2)
    names = usable(place, dtype, head_dim)
    assert names[-1] == "groups"
    for name in names:
        on_device = [of.to(place) for of in states]
        asked = {"causal": causal, "window": window, "scale": 0.2}
        found = BACKENDS[name](*on_device, packing, AttentionRules(**asked))
        difference = found.double().cpu() - expected
        assert float(difference.square().mean().sqrt()) < TOLERANCE[dtype] * float(
            expected.square().mean().sqrt()
        ), name
        assert torch.equal(BACKENDS[name](*on_device, packing, AttentionRules(**asked)), found), (
            f"{name}: other bits"
        )
