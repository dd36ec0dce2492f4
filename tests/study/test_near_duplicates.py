from __future__ import annotations

import numpy as np
import pytest

from embedkit.study.near_duplicates import clusters, pairs_across, text_signature, token_signature

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


def written(letters, length=300):
    return "".join(RANDOM.choice(list(letters), length))


def letters(first, last):
    return [chr(code) for code in range(ord(first), ord(last) + 1)]


@pytest.mark.parametrize(
    "script",
    [
        letters("一", "鿿"),
        letters("ぁ", "ん") + letters("ァ", "ヶ") + letters("一", "亿"),
        letters("ก", "ฮ") + letters("ะ", "ู"),
        letters("က", "အ"),
        letters("ក", "អ"),
        list("ACDEFGHIKLMNPQRSTVWY"),  # a protein: one word of 300 letters
        letters("\U0001f600", "\U0001f64f"),
    ],
    ids=["Chinese", "Japanese", "Thai", "Burmese", "Khmer", "protein", "emoji"],
)
def test_copies_are_found_in_scripts_without_spaces_and_other_texts_are_not(script):
    first, second = written(script), written(script)
    copied = f"{first[:150]}{script[0]}{first[151:]}"
    found = clusters(signatures([first, second, copied, second[:150] + first[150:]]))
    assert found[0] == found[2]
    assert len(set(found.tolist())) == 3


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("😀 😀", "👍"),
        ("?!", "..."),
        ("नमस्ते दुनिया", "नमस्ता दुनियी"),  # the vowels are marks
        ("été", "ètè"),
        ("今日は", "明日は"),
    ],
)
def test_texts_of_emoji_punctuation_or_marks_are_not_all_equal(a, b):
    assert len(set(clusters(signatures([a, b])).tolist())) == 2
    assert len(set(clusters(signatures([a, f" {a} "])).tolist())) == 1


def test_tokens_of_texts_that_were_cut_are_compared_in_runs_that_fit_the_vocabulary():
    def signed(vocabulary, *texts, is_cut=True):
        return np.array([token_signature(ids, vocabulary, is_cut=is_cut) for ids in texts])

    # Unrelated sequences of four letters: all 64 runs of three letters are in both, of ten hardly any.
    assert clusters(signed(30, *RANDOM.integers(0, 4, (2, 800), np.int32))).tolist() == [0, 1]
    ids = RANDOM.integers(0, 30_000, 500, np.int32)
    changed = np.where(np.arange(500) % 50 == 0, 1, ids)  # 30 of 498 runs: 468 / 528 = 0.89
    assert clusters(signed(30_000, ids, changed, ids[::-1])).tolist() == [0, 0, 1]
    assert clusters(signed(30_000, ids, changed, ids, ids[:499], is_cut=False)).tolist() == [0, 1, 0, 2]
    # Near in one kind of signature is near.
    assert clusters(signatures(["a", "b", "c"]), signed(30_000, ids, changed, ids[::-1])).tolist() == [0, 0, 1]


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
