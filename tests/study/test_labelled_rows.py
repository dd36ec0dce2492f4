"""The one reader of labelled rows: what it takes for near-duplicates, test files, planted leaks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from embedkit.cli.options import run_config
from embedkit.config import InputConfig, LabelConfig
from embedkit.errors import UsageError
from embedkit.inference.model_spec import find_model
from embedkit.inference.tokenizer_setup import set_up_without_weights
from embedkit.study.labelled_rows import labelled_rows, read_rows
from tests.tiny_models import CORPUS

WORDS = " ".join(CORPUS).split()


def texts_of(count, length=30, seed=0):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, length)) for _ in range(count)]


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes rows to a JSON Lines file and returns its path."""

    def write(name, texts, **columns):
        rows = [
            {"text": text, **{column: values[row] for column, values in columns.items()}}
            for row, text in enumerate(texts)
        ]
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


def clusters_of(path, *, setups=(), **options):
    labels = LabelConfig("label", **options)
    rows = read_rows(InputConfig((path,)), labels, setups)
    return labelled_rows(rows, rows.has_text, labels)


def test_texts_that_differ_only_beyond_the_maximum_length_are_near_duplicates(write, bert):
    first, second, third = texts_of(3, length=60)
    tail = " ".join(texts_of(1, length=200, seed=1))
    path = write(
        "rows.jsonl", [f"{first} {tail}", f"{first} {second} {third}", f"{second} {tail}", third], label=[*"abab"]
    )
    spec = find_model(run_config([path], model=str(bert), max_length="20"))
    setup, _ = set_up_without_weights(spec)
    assert len(set(clusters_of(path).cluster.tolist())) == 4
    assert clusters_of(path, setups=[setup]).cluster.tolist() == [0, 0, 1, 2]
    rows = read_rows(InputConfig((path,)), LabelConfig("label"), [setup])
    assert rows.tokens == 4 * 20


def test_a_long_prompt_makes_short_texts_no_duplicates(write, bert):
    path = write("rows.jsonl", ["HTN", "WBC", "BP", "Jevity"], label=[*"abab"])
    spec = find_model(run_config([path], model=str(bert), prompt=texts_of(1)[0] + " "))
    setup, _ = set_up_without_weights(spec)
    assert len(set(clusters_of(path, setups=[setup]).cluster.tolist())) == 4


def test_emoji_unknown_to_the_model_are_equal_to_it_and_not_by_their_characters(write, bert):
    path = write("rows.jsonl", ["\U0001f600", "\U0001f44d", *texts_of(2)], label=[*"abab"])
    setup, _ = set_up_without_weights(find_model(run_config([path], model=str(bert))))
    assert len(set(clusters_of(path).cluster.tolist())) == 4
    assert clusters_of(path, setups=[setup]).cluster.tolist() == [0, 0, 1, 2]


def test_blank_texts_and_unreadable_rows_keep_their_place(write, tmp_path):
    path = write("rows.jsonl", ["one", " ", "two", "three"], label=[*"abab"])
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join([lines[0], "{broken", *lines[1:]]), encoding="utf-8")
    rows = read_rows(InputConfig((path,)), LabelConfig("label"))
    assert (len(rows), rows.has_text.tolist()) == (5, [True, False, False, True, True])
    assert rows.columns == {"label": ["a", None, "b", "a", "b"]}


def test_groups_and_copies_are_merged_for_dedupe(write):
    texts = texts_of(4)
    path = write("rows.jsonl", [*texts, texts[0]], label=[*"ababa"], patient=["p", "q", "q", "r", "s"])
    plain = clusters_of(path, group="patient")
    assert plain.groups.tolist() == [0, 1, 1, 2, 3]
    assert plain.warnings == ()
    assert clusters_of(path, group="patient", dedupe=True).groups.tolist() == [0, 1, 1, 2, 0]


# Test rows -------------------------------------------------------------------------------------------


def test_rows_of_test_files_are_test_rows(write):
    train, first, second = (
        write(f"{name}.jsonl", texts_of(count, seed=count), label=[*"abababab"[:count]])
        for name, count in (("train", 6), ("t1", 3), ("t2", 2))
    )
    labels = LabelConfig("label", test=(first, second))
    rows = read_rows(InputConfig((train,)), labels)
    found = labelled_rows(rows, rows.has_text, labels)
    assert found.labels.split.tolist() == [0] * 6 + [2] * 5


def test_a_planted_leak_is_told_with_counts_and_left_out_of_training_for_dedupe(write):
    texts = texts_of(8)
    parts = ["train"] * 6 + ["validation"] * 2 + ["test"] * 3
    patients = ["p1", "p2", "p3", "p4", "p5", "p6", "p7", "p1", "p2", "p2", "p9"]
    path = write(
        "rows.jsonl", [*texts, texts[1], texts[2], texts[6]], label=[*"abababababa"], part=parts, patient=patients
    )
    found = clusters_of(path, split_column="part", group="patient")
    # texts 1 and 2 in training, 6 in validation; p2 in training and test, p1 in training and validation
    copies, tested, validated = found.warnings
    assert "near-duplicate texts in both training and test rows: 3;" in copies
    assert "values of column 'patient' in both training and test rows: 1, with 2 test rows;" in tested
    assert "in both training and validation rows: 1, with 1 validation rows;" in validated
    clean = clusters_of(path, split_column="part", dedupe=True)
    assert clean.warnings == ()
    assert clean.labels.rows.tolist() == [0, 3, 4, 5, 7, 8, 9, 10]
    assert clean.labels.left_out == {"near-duplicate": 3}
    assert len(set(clean.cluster.tolist())) == 8


@pytest.mark.parametrize(
    ("limit", "names", "what"),
    [(3, ("t.jsonl",), "--limit counts rows"), (None, ("rows.jsonl",), "is also part of the input")],
)
def test_test_files_that_would_not_be_what_they_say_are_refused(write, tmp_path, limit, names, what):
    path = write("rows.jsonl", texts_of(4), label=[*"abab"])
    write("t.jsonl", texts_of(4), label=[*"abab"])
    labels = LabelConfig("label", test=tuple(str(tmp_path / name) for name in names))
    with pytest.raises(UsageError, match=what):
        read_rows(InputConfig((path,), limit=limit), labels)
