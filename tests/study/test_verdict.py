from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from embedkit.study.verdict import corrected_interval


def test_the_interval_is_nadeau_and_bengios():
    found = corrected_interval([0.70, 0.72, 0.74, 0.69, 0.75], test_share=0.25)
    # mean 0.72; s² = (0.02² + 0 + 0.02² + 0.03² + 0.03²) / 4 = 0.00065; (1/5 + 1/4) s² = 0.0002925
    assert found.mean == pytest.approx(0.72)
    assert found.half == pytest.approx(2.7764451 * 0.0002925**0.5, rel=1e-6)  # t of 4 degrees, two-sided 95 %


def test_of_folds_taken_for_independent_it_is_scipys():
    scores = np.random.default_rng(0).normal(0.7, 0.02, 8)
    low, high = stats.t.interval(0.95, 7, loc=scores.mean(), scale=stats.sem(scores))
    found = corrected_interval(scores.tolist(), test_share=0.0)
    assert (found.low, found.high) == pytest.approx((low, high))
    # The correction for folds that share their training rows makes it wider: sqrt(1 + 8/7).
    corrected = corrected_interval(scores.tolist(), test_share=1 / 7)
    assert corrected.half / found.half == pytest.approx((15 / 7) ** 0.5)
