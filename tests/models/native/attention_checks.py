"""What holds for attention in any type of numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from embedkit.models.native.kernels import Kernels
from embedkit.models.native.linear import Form, Products
from tests.models.native.test_kernels import attention, full, normal, texts_of

#: A number of queries, of keys or of values of one head of 32, and what it becomes.
COLUMNS = pytest.mark.parametrize("column", [3, 32 + 3, 64 + 3], ids=["query", "key", "value"])
NOT_FINITE = pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FC00000, 0xFFFFFFFF, 0x7F800001], ids=hex)


def assert_alike_in_any_company(kernels: Kernels, lengths: list[int]) -> None:
    """Computes texts together and each alone: no bit differs."""
    products, kind = normal(sum(lengths), 3 * 4 * 32), full(4)
    together = kernels.attend(Products(products), texts_of(lengths), kind, form=Form.FLOATS).states
    for of_text, found in zip(products.split(lengths), together.split(lengths), strict=True):
        alone = kernels.attend(Products(of_text.clone()), texts_of([len(of_text)]), kind, form=Form.FLOATS)
        assert torch.equal(alone.states, found)


def with_what_is_not_finite(kernels: Kernels, column: int, bits: int) -> tuple[Tensor, Tensor]:
    """Computes three texts, one of which has a number that is not finite: the others stay as they are.

    Returns:
        The result [T, 32] and torch's.
    """
    lengths, in_text = [3, 40, 5], slice(3, 43)
    products = normal(48, 96)
    sound = kernels.attend(Products(products.clone()), texts_of(lengths), full(1), form=Form.FLOATS).states
    products.view(torch.int32)[20, column] = torch.tensor(bits).to(torch.int32)
    found = kernels.attend(Products(products), texts_of(lengths), full(1), form=Form.FLOATS).states
    sound[in_text] = found[in_text]
    assert torch.equal(found.view(torch.int32), sound.view(torch.int32))
    return found, attention(products, lengths, 1, None)
