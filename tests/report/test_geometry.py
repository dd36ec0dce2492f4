"""Directions, pairs and neighbours against NumPy's own decompositions and all cosines at once."""

from __future__ import annotations

import numpy as np
import pytest

from embedkit.comparison.similarity import unit
from embedkit.report import geometry
from embedkit.report.geometry import THRESHOLDS, Nearest, near_pairs, principal_map

SPREAD = np.array([9.0, 5.0] + [1.0] * 30, np.float32)


def cloud(rows, dims=32, seed=1):
    return np.random.default_rng(seed).standard_normal((rows, dims), np.float32) * SPREAD[:dims] + 3


@pytest.mark.parametrize(("rows", "dims"), [(400, 32), (40, 32), (3, 32), (400, 2), (400, 1)])
def test_the_map_is_the_first_two_principal_components(rows, dims):
    vectors = cloud(rows, dims)
    drawn = principal_map(vectors)
    left, values, directions = np.linalg.svd((vectors - vectors.mean(axis=0)).astype(np.float64), False)
    expected = np.zeros((rows, 2))
    for number in range(min(2, dims)):
        sign = np.sign(directions[number][np.abs(directions[number]).argmax()])
        expected[:, number] = sign * left[:, number] * values[number]
    assert np.abs(drawn.points - expected).max() < 1e-3
    shares = np.append(values**2 / (values**2).sum(), 0)[:2]
    assert drawn.shares == pytest.approx(shares, abs=1e-4)


@pytest.mark.parametrize("vectors", [np.empty((0, 4)), np.ones((1, 4)), np.ones((9, 4)), np.empty((3, 0))])
def test_vectors_without_variance_are_at_the_origin(vectors):
    drawn = principal_map(vectors.astype(np.float32))
    assert (drawn.points == np.zeros((len(vectors), 2))).all()
    assert drawn.shares == (0, 0)


def test_near_pairs_are_those_of_all_cosines_at_once():
    base = cloud(700)
    vectors = np.concatenate([base, base[:40] + 0.05 * cloud(40, seed=2), base[:9], np.zeros((1, 32), np.float32)])
    found = near_pairs(vectors, seed=0)
    different = np.unique(vectors, axis=0)
    cosines = np.triu((unit(different).astype(np.float64) @ unit(different).T), 1)
    assert found.among == len(different) == 741
    for threshold, pairs, rows in zip(THRESHOLDS, found.pairs, found.rows, strict=True):
        near = cosines >= threshold
        assert pairs == near.sum()
        assert rows == len(set(np.argwhere(near).ravel()))
    assert found.pairs[0] > 30
    assert [cosine for cosine, *_ in found.closest] == pytest.approx(
        np.sort(cosines.ravel())[-10:][::-1], abs=1e-6
    )
    for cosine, one, other in found.closest:
        assert one != other
        assert cosine == pytest.approx(unit(vectors[one]) @ unit(vectors[other]), abs=1e-6)


def test_equal_vectors_are_no_near_pair_and_many_near_ones_are_counted():
    assert near_pairs(np.ones((600, 8), np.float32), 0).pairs == (0, 0, 0)
    nearly = 100 + np.random.default_rng(0).random((600, 8), np.float32)
    assert near_pairs(nearly, 0).pairs == (600 * 599 // 2,) * 3


def test_of_too_many_vectors_a_seeded_sample_is_compared(monkeypatch):
    monkeypatch.setattr(geometry, "_MULTIPLICATIONS", 50**2 * 32)
    vectors = cloud(400)
    assert near_pairs(vectors, 0).among == 50
    assert near_pairs(vectors, 0) == near_pairs(vectors, 0)


def test_neighbours_are_the_nearest_of_all_rows_whatever_the_blocks():
    vectors = cloud(300)
    vectors[17] = vectors[250] * 2  # one direction: cosine 1
    nearest = Nearest(unit(vectors[[17, 40]]), [17, 40], 10)
    for start in range(0, 300, 7):
        nearest.add(vectors[start : start + 7], np.arange(start, min(300, start + 7)))
    cosines = unit(vectors) @ unit(vectors).T
    np.fill_diagonal(cosines, -2)
    for row, found in zip([17, 40], nearest.found, strict=True):
        assert [near for _, near in found] == np.argsort(-cosines[row], kind="stable")[:10].tolist()
    assert nearest.found[0][0] == (pytest.approx(1, abs=1e-6), 250)
