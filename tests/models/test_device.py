"""What a machine computes in, by what torch says of its card; no card is needed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from embedkit.models.device import disable_reduced_precision, pick_dtype

GPU = torch.device("cuda:1")


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16")])
def test_a_gpu_computes_in_16_bits_and_in_bf16_where_it_is_not_emulated(capability, expected, monkeypatch):
    cards = {torch.device("cuda:0"): (8, 0), GPU: capability}
    monkeypatch.setattr(torch.cuda, "get_device_capability", cards.__getitem__)
    # What it says of a T4, in which bf16 is emulated.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert pick_dtype("auto", GPU) == expected
    assert pick_dtype("fp32", GPU) == "fp32"
    assert pick_dtype("auto", torch.device("cpu")) == "fp32"


@pytest.fixture
def backends() -> Iterator[object]:
    """torch's switches, as they were before once the test is over."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    names = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    before = [getattr(products, name) for name in names], convolutions.allow_tf32, products.allow_tf32
    yield torch.backends
    for name, value in zip(names, before[0], strict=True):
        setattr(products, name, value)
    convolutions.allow_tf32, products.allow_tf32 = before[1:]


@pytest.mark.parametrize("tf32", [False, True])
def test_reduced_precision_is_off_on_a_gpu_but_the_users_tf32_setting_stays(tf32, backends):
    products = backends.cuda.matmul
    products.allow_bf16_reduced_precision_reduction = products.allow_fp16_reduced_precision_reduction = True
    products.allow_tf32 = tf32
    disable_reduced_precision(torch.device("cpu"))
    assert products.allow_bf16_reduced_precision_reduction
    disable_reduced_precision(GPU)
    assert not products.allow_bf16_reduced_precision_reduction
    assert not products.allow_fp16_reduced_precision_reduction
    assert not backends.cudnn.allow_tf32
    assert products.allow_tf32 == tf32
