"""Compares the compiled kernels with torch whenever they are loaded: a compiler may have faults too."""

from __future__ import annotations

from itertools import starmap
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from embedkit.models.native.attention import Attention, SelfAttention, Texts
from embedkit.models.native.disentangled import DisentangledAttention
from embedkit.models.native.layer import ACTIVATIONS, Norms
from embedkit.models.native.linear import Form, Products, Rows
from embedkit.models.native.norm import Norm, RmsNorm
from embedkit.models.native.relative import DistanceTable
from embedkit.models.native.rotary import frequencies
from embedkit.models.native.rotation import Rotation
from embedkit.models.varlen_attention import AttentionRules
from embedkit.types import LengthGroup

if TYPE_CHECKING:
    from embedkit.models.native.kernels import Kernels


def are_correct(kernels: Kernels) -> bool:
    """Compares all but the layer finished in one call with torch."""
    random = torch.Generator().manual_seed(0)
    # Of short texts and of long ones, whose keys are more than one block.
    groups = (LengthGroup(0, 1, 1), LengthGroup(1, 1, 5), LengthGroup(6, 1, 17), LengthGroup(23, 1, 150))
    width = 2 * kernels.lanes
    products = torch.randn(173, 4 * 2 * width, generator=random)
    rows, residual = products[:, :width].contiguous(), products[:, width : 2 * width].contiguous()
    norms = [kind(products[0, :width], products[1, :width], 1e-5) for kind in (Norm, RmsNorm)]
    rotation = Rotation("default", 100.0, width)
    steps = frequencies(rotation, products.device)
    positions = torch.cat([torch.arange(group.length) for group in groups])
    texts = Texts(groups, {rotation: steps.angles(positions)})
    # Large scores would be rounded by more than is allowed, here and by torch.
    tables = [width**-0.5 * torch.randn(*shape, 23, generator=random) for shape in ((2,), (2, width), (2, width))]
    bias, keys, queries = (
        DistanceTable(table, lambda distances: (distances + 11).clamp(0, 22)) for table in tables
    )
    expected, found = [], []
    attentions: dict[int, tuple[Attention, ...]] = {
        6: (
            SelfAttention(2, 2, AttentionRules(), bias=bias),
            SelfAttention(2, 2, AttentionRules(window=3)),
            DisentangledAttention(2, keys, queries),
        ),
        8: (SelfAttention(4, 2, AttentionRules(causal=True, window=6), norms[1], norms[1], rotation),),
    }
    for n_heads, of_so_many in attentions.items():
        of_heads = products[:, : n_heads * width].contiguous()
        expected += [attention(of_heads.clone(), texts) for attention in of_so_many]
        found += [attention.fused(kernels, Products(of_heads), texts, form=Form.BYTES) for attention in of_so_many]
    for norm in norms:
        total = rows.double() + residual.double()
        expected.append(norm(total.float()))
        around = Norms(before=None, inner=None, after=norm)
        found.append(kernels.join(Products(rows.clone()), residual, around, None, form=Form.BYTES)[1])
    for name, function in ACTIVATIONS.items():
        for gated in (False, True):
            activated = function(rows.double())
            expected.append(activated * residual if gated else activated)
            of_both = torch.cat([rows, residual], dim=1) if gated else rows.clone()
            found.append(kernels.activate(Products(of_both), name, gated=gated, form=Form.BYTES))
    halves = kernels.rows(products, form=Form.BF16).inputs
    rounds = halves is not None and torch.equal(halves, products.to(torch.bfloat16))
    return rounds and all(starmap(_is_close, zip(found, expected, strict=True)))


def attends_nearly(kernels: Kernels, exact: Kernels) -> bool:
    """Compares attention in bf16 with that in fp32: in several blocks, and of each kind."""
    random = torch.Generator().manual_seed(0)
    groups, width = (LengthGroup(0, 1, 5), LengthGroup(5, 1, 290)), 32
    products = torch.randn(295, 8 * width, generator=random)
    products[:, : 4 * width] *= width**-0.5
    rotation = Rotation("default", 100.0, width)
    positions = torch.cat([torch.arange(group.length) for group in groups])
    texts = Texts(groups, {rotation: frequencies(rotation, products.device).angles(positions)})
    norm = RmsNorm(torch.full((width,), width**-0.25), None, 1e-5)
    bias = DistanceTable(torch.randn(2, 23, generator=random), lambda distances: (distances + 11).clamp(0, 22))
    attentions = {
        6: (SelfAttention(2, 2, AttentionRules(), bias=bias), SelfAttention(2, 2, AttentionRules(window=3))),
        8: (SelfAttention(4, 2, AttentionRules(causal=True, window=6), norm, norm, rotation),),
    }
    for n_heads, of_so_many in attentions.items():
        of_heads = Products(products[:, : n_heads * width].contiguous())
        for attention in of_so_many:
            found, expected = (
                attention.fused(of, of_heads, texts, form=Form.FLOATS).states for of in (kernels, exact)
            )
            if not torch.allclose(found, expected, rtol=0, atol=0.05):
                return False
    return True


def _is_close(rows: Rows, expected: Tensor) -> bool:
    if rows.inputs is None or rows.steps is None:
        return False
    steps = rows.steps[:, None]
    quantised = ((rows.inputs.float() - 128) * steps - rows.states).abs() <= 0.51 * steps
    return bool(quantised.all()) and torch.allclose(rows.states.double(), expected.double(), rtol=1e-5, atol=1e-5)
