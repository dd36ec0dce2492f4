"""Normalising, truncating and storing vectors, against arithmetic in the tests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from embedkit.pooling.postprocess import Int8Range, finish, store

VECTORS = np.array([[3, 4, 12], [0, 0, 0]], np.float32)


def test_a_vector_is_normalised_before_it_is_truncated():
    # |(3, 4, 12)| = 13
    found = finish(VECTORS, normalize=True, truncate_dim=2)
    assert found.tolist() == [pytest.approx([3 / 13, 4 / 13]), [0, 0]]
    assert found.flags["C_CONTIGUOUS"]


def test_without_options_vectors_are_unchanged():
    assert finish(VECTORS, normalize=False, truncate_dim=None).tolist() == VECTORS.tolist()


def test_binary_is_a_bit_a_dimension_set_where_positive():
    # 0.5 -> 1, 0 -> 0, -1 -> 0, 2 -> 1, then nine more zeros: 1001 0000 | 0000 0...
    vectors = np.array([[0.5, 0, -1, 2, *[0] * 9]], np.float32)
    assert store(vectors, "binary", None).tolist() == [[0b10010000, 0]]


@given(arrays(np.float32, (7, 5), elements=st.floats(-100, 100, width=32)))
def test_int8_is_read_back_to_half_a_step(vectors):
    ranges = Int8Range.of(vectors)
    stored = store(vectors, "int8", ranges).astype(np.float64)
    step = (ranges.maximum.astype(np.float64) - ranges.minimum) / 255
    back = ranges.minimum + (stored + 128) * step
    assert (np.abs(back - vectors) <= step * 0.51 + 1e-5).all()


def test_int8_outside_the_calibrated_range_is_clipped():
    ranges = Int8Range(np.array([-1], np.float32), np.array([1], np.float32))
    assert store(np.array([[-5], [-1], [1], [9]], np.float32), "int8", ranges)[:, 0].tolist() == [
        -128,
        -128,
        127,
        127,
    ]
