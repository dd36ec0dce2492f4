"""The check that a row's products depend on that row alone, for the tests of each type of numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from embedkit.models.native import packed_products
from embedkit.models.native.packed_products import PackedWeights


def multiply_in_any_company(weights: PackedWeights, rows: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Returns the products, and checks that those of a row alone and by three threads have the same bits."""
    together = weights.multiply(rows)
    assert torch.equal(weights.multiply(rows[77:78].clone()), together[77:78])
    monkeypatch.setattr(packed_products, "_FEWEST_PRODUCTS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(weights.multiply(rows), together)
    return together
