from __future__ import annotations

import numpy as np
import pytest

from embedkit.study.near_duplicates import clusters, pairs_across, text_signature

RANDOM = np.random.default_rng(0)
WORDS = [f"w{number}" for number in range(3000)]


def signatures(texts):
    return np.array([text_signature(text) for text in texts])


def text(length=80):
    return " ".join(RANDOM.choice(WORDS, length))


def test_a_note_copied_forward_is_found_and_another_is_not():
    first, second = text(), text()
    copied = first.replace(first.split()[40], "changed")  # 3 of 78 runs of three words: 75 / 81 = 0.93 in common
    half = " ".join([*first.split()[:40], *second.split()[:40]])  # 38 of 118: 0.32
    found = clusters(signatures([first, second, copied, half, first.upper() + "!", ""]))
    assert found[0] == found[2] == found[4]
    assert len(set(found.tolist())) == 4


@pytest.mark.parametrize(("a", "b"), [("a b", "b a"), ("one two three", "three two one"), ("", "x")])
def test_the_order_of_words_counts_in_short_texts_too(a, b):
    assert len(set(clusters(signatures([a, b])).tolist())) == 2


def test_many_copies_are_one_cluster_and_many_texts_none():
    texts = [text() for _ in range(300)]
    found = clusters(signatures([*texts, *[texts[0]] * 500]))
    assert len(set(found.tolist())) == 300
    assert (found[300:] == found[0]).all()


def test_pairs_across_folds_are_counted_without_listing_them():
    # cluster 0 has rows in folds 0, 0, 1: two pairs across; cluster 1 in 0, 1, 2: three; cluster 2 in 1, 1: none
    cluster = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    folds = np.array([0, 0, 1, 0, 1, 2, 1, 1])
    assert pairs_across(cluster, folds) == 5
