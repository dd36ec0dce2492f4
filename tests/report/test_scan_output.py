"""One pass over the rows, compared with all rows in memory."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from embedkit.output.vector_norms import NormCounter
from embedkit.report import scan_output as module
from embedkit.report.scan_output import Block, scan_output
from embedkit.types import Variant


def rows(count, dims=4, seed=0):
    """`count` rows of which every fifth has no vector, and the vectors of some are repeated."""
    vectors = np.random.default_rng(seed).standard_normal((count, dims), np.float32)
    vectors[10::50] = vectors[3]
    vectors[11::100] = vectors[4]
    has_vector = np.arange(count) % 5 != 0
    facts = pa.table(
        {
            "id": [f"id{row}" for row in range(count)],
            "kind": [row % 3 for row in range(count)],
            "n_tokens": [row % 7 for row in range(count)],
            "n_used": [min(row % 7, 5) for row in range(count)],
            "n_chunks": has_vector.astype(int),
            "status": ["ok" if has else "empty" for has in has_vector],
        }
    )
    return facts, has_vector, vectors


@pytest.fixture
def scanned(monkeypatch):
    """Scans rows in blocks of some size."""

    def ran(count, step, **asked):
        facts, has_vector, vectors = rows(count)

        def blocks(*_):
            for start in range(0, count, step):
                here = slice(start, start + step)
                held = np.ascontiguousarray(vectors[here][has_vector[here]])
                yield Block(facts.slice(start, step), start, has_vector[here], held)

        monkeypatch.setattr(module, "blocks", blocks)
        return scan_output(None, Variant("", 4), **({"size": 50, "seed": 7, "ids": ()} | asked))

    return ran


def test_the_sample_depends_on_the_seed_and_not_on_the_blocks(scanned):
    whole, parts, other = scanned(1000, 1000), scanned(1000, 13), scanned(1000, 13, seed=8)
    assert len(whole.sample.rows) == 50
    assert whole.sample.rows.tolist() == parts.sample.rows.tolist() == sorted(set(parts.sample.rows.tolist()))
    assert (whole.sample.vectors == parts.sample.vectors).all()
    assert set(whole.sample.rows) != set(other.sample.rows)
    _, has_vector, vectors = rows(1000)
    for row, identity, vector, kind in zip(
        parts.sample.rows, parts.sample.ids, parts.sample.vectors, parts.sample.kept["kind"], strict=True
    ):
        assert has_vector[row]
        assert identity == f"id{row}"
        assert kind == row % 3
        assert (vector == vectors[row]).all()


def test_a_sample_as_large_as_the_output_has_all_rows(scanned):
    found = scanned(60, 7, size=48)
    assert found.sample.rows.tolist() == [row for row in range(60) if row % 5]


def test_each_row_is_as_likely_as_another(scanned):
    counts = Counter(row for seed in range(80) for row in scanned(100, 30, size=20, seed=seed).sample.rows)
    # 80 rows have a vector; 80 x 20 / 80 = 20 times each, and one deviation is 3.9.
    assert len(counts) == 80
    assert all(0 < count < 40 for count in counts.values())


def test_counts_are_over_all_rows(scanned):
    found = scanned(1000, 64, ids={"id7", "id5", "nobody"})
    assert (found.rows, found.vectors) == (1000, 800)
    assert found.status == {"ok": 800, "empty": 200}
    assert found.lengths == Counter(row % 7 for row in range(1000))
    assert found.n_used == sum(min(row % 7, 5) for row in range(1000))
    assert found.norms.count == 800
    assert set(found.by_id) == {"id7"}  # id5 has no vector
    assert found.by_id["id7"][0] == 7


def test_repeated_vectors_are_found_with_their_first_rows(scanned):
    repeats = scanned(1000, 64).duplicates
    # Rows 10, 60, 110, … are multiples of 5 and have no vector; 11, 111, … have that of row 4.
    assert (repeats.groups, repeats.rows, repeats.one_in) == (1, 11, 1)
    assert repeats.largest == [([4, 11, 111, 211, 311], 11)]


def test_with_too_many_vectors_the_count_of_repeated_ones_is_an_estimate(scanned, monkeypatch):
    monkeypatch.setattr(module, "_HASHES", 128)
    repeats = scanned(1000, 64).duplicates
    assert repeats.one_in in {8, 16, 32}
    # Either the one repeated vector is among those looked at, and stands for so many, or it is not.
    assert (repeats.groups, repeats.rows) in {(repeats.one_in, 11 * repeats.one_in), (0, 0)}


def test_norms_are_counted_in_their_bin_within_rounding():
    norms = np.random.default_rng(0).gamma(4, 2, 5000).astype(np.float32)
    tally = NormCounter()
    for part in np.array_split(norms, 9):
        tally.add(np.stack([part, np.zeros_like(part)], axis=1))
    counts, edges = tally.histogram(20)
    assert (edges[0], edges[-1]) == pytest.approx((norms.min(), norms.max()), rel=1e-6)
    expected, _ = np.histogram(norms, edges)
    assert counts.sum() == 5000
    assert np.abs(counts - expected).max() <= 5  # those within 0.03 % of an edge
