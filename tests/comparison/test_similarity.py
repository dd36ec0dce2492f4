"""Linear CKA and shared neighbours against the published formula and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from embedkit.comparison import similarity
from embedkit.comparison.similarity import cosines, linear_cka, neighbour_overlap


def space(rows, dims, seed):
    return (np.random.default_rng(seed).standard_normal((rows, dims)) * np.arange(1, dims + 1) + 3).astype(
        np.float32
    )


def direct_cka(x, y):
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of linear kernels K and L, with the centring matrix written out."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    centring = np.eye(len(x)) - 1 / len(x)
    kernels = [of @ of.T for of in (x, y)]
    hsic = [[np.trace(a @ centring @ b @ centring) for a in kernels] for b in kernels]
    return hsic[0][1] / np.sqrt(hsic[0][0] * hsic[1][1])


@pytest.mark.parametrize(("rows", "dims"), [(90, (12, 5)), (30, (40, 70)), (2, (3, 3))])
def test_cka_is_that_of_the_published_formula_however_it_is_computed(rows, dims, monkeypatch):
    monkeypatch.setattr(similarity, "_BLOCK", 16)
    x = space(rows, dims[0], 1)
    y = np.concatenate([x, space(rows, dims[1], 2)], axis=1)[:, -dims[1] - 2 :]
    expected = direct_cka(x, y)
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-6)
    for way in (similarity._by_rows, similarity._by_dimensions):
        across, within_x, within_y = way(x, y)
        assert across / np.sqrt(within_x * within_y) == pytest.approx(expected, rel=1e-6)


def test_cka_ignores_rotations_and_scales_and_tells_unrelated_spaces_apart():
    x = space(3000, 8, 1)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))
    assert linear_cka(x, (7 * x @ rotation).astype(np.float32)) == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, space(3000, 8, 2)) < 0.02
    assert linear_cka(x, np.ones((3000, 4), np.float32)) is None
    assert linear_cka(x[:0], x[:0]) is None


@pytest.mark.parametrize("k", [1, 5, 10])
def test_shared_neighbours_are_those_of_scikit_learn(k, monkeypatch):
    neighbors = pytest.importorskip("sklearn.neighbors", reason="in the dev extra")
    monkeypatch.setattr(similarity, "_BLOCK", 7)
    x = space(80, 6, 1)
    y = np.concatenate([x, space(80, 3, 2)], axis=1)
    found = [
        neighbors.NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(of).kneighbors()[1]
        for of in (x, y)
    ]
    expected = np.mean([len({*a} & {*b}) / k for a, b in zip(*found, strict=True)])
    assert 0.1 < expected < 1
    assert neighbour_overlap(x, y, k=k, seed=0) == pytest.approx(expected)


def test_fewer_rows_than_neighbours():
    assert neighbour_overlap(space(3, 4, 1), space(3, 9, 2), k=10, seed=0) == 1
    assert neighbour_overlap(space(1, 4, 1), space(1, 9, 2), k=10, seed=0) is None


def test_cosines_are_those_of_scipy():
    distance = pytest.importorskip("scipy.spatial.distance", reason="in the dev extra")
    x, y = space(20, 6, 1), space(20, 6, 2)
    assert cosines(x, y) == pytest.approx([1 - distance.cosine(a, b) for a, b in zip(x, y, strict=True)], abs=1e-6)
    assert cosines(np.zeros((2, 3), np.float32), np.eye(2, 3, dtype=np.float32)).tolist() == [0, 0]
    assert cosines(np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32)).tolist() == [1]
