"""Sweeps of all kinds of labels and of the user's own splits: chance for coins, and planted leaks are told."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from tests.tiny_models import CORPUS

pytestmark = pytest.mark.usefixtures("pictures_in_words")

ROWS = 240
WORDS = " ".join(CORPUS).split()


@pytest.fixture(scope="module")
def rows():
    """Rows whose labels say nothing about their texts."""
    random = np.random.default_rng(2)
    return [
        {
            "id": f"r{row}",
            "text": " ".join(random.choice(WORDS, random.integers(5, 12))),
            "coin": random.choice(["HEAD", "TAIL"]),
            "tags": ";".join(np.array(["x", "y", "z"])[random.random(3) < 0.5]) or ";",
            "stage": str(random.integers(1, 5)),
            "value": repr(random.normal()),
            "part": ["train", "train", "DEV", "Test"][row % 4],
            "patient": f"PATIENT{row // 3}",
        }
        for row in range(ROWS)
    ]


@pytest.fixture
def sweep(embedkit_cli, bert, tmp_path):
    """Returns a function that runs a sweep of one candidate over rows; returns its result and its summary."""

    def sweep(rows, *options, code=0):
        with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        asked = ("sweep", tmp_path / "rows.csv", "-m", bert, "--layers=-1", "--pool=mean", "-o", tmp_path / "out")
        ran = embedkit_cli(*asked, "--on-exists", "overwrite", *options)
        assert ran.code == code, ran.err
        summary = tmp_path / "out/summary.json"
        return ran, json.loads(summary.read_text(encoding="utf-8")) if code == 0 else {}

    return sweep


@pytest.mark.parametrize(
    ("options", "estimate", "metric", "chance", "spread"),
    [
        # The standard error of a mean of 240 coins is 0.032, of 60 test rows 0.065; three of them.
        (("--label", "tags", "--label-delimiter", ";"), "nested", "auroc", 0.5, 0.1),
        (("--label", "stage", "--task", "ordinal", "--group", "patient"), "nested", "spearman", 0, 0.2),
        (("--label", "coin", "--split-column", "part"), "test", "accuracy", 0.5, 0.2),
        (("--label", "value", "--split-column", "part", "--dedupe"), "test", "spearman", 0, 0.4),
    ],
)
def test_labels_by_chance_are_predicted_by_chance(sweep, rows, options, estimate, metric, chance, spread):
    _, summary = sweep(rows, *options, "--metric", metric)
    assert abs(summary[estimate][metric]["mean"] - chance) < spread
    assert summary["rows"]["judged"] == ROWS
    assert (summary["left_out"], summary["warnings"]) == ({}, [])


def test_a_planted_leak_is_told_and_dedupe_takes_it_away(sweep, rows):
    # The test rows are copies of training rows, with their coins.
    tested = [{**row, "id": f"{row['id']}b", "part": "test"} for row in rows[:60]]
    leaking = [{**row, "part": "train"} for row in rows] + tested
    options = ("--label", "coin", "--split-column", "part", "--group", "patient")
    ran, told = sweep(leaking, *options)
    assert "near-duplicate texts in both training and test rows: 60;" in ran.err
    assert "values of column 'patient' in both training and test rows: 20, with 60 test rows" in ran.err
    assert "PATIENT" not in ran.err
    assert told["warnings"]
    assert told["test"]["accuracy"]["mean"] > 0.6
    ran, clean = sweep(leaking, *options, "--dedupe")
    assert "rows left out: 60 near-duplicates" in ran.err
    assert clean["left_out"] == {"near-duplicate": 60}
    assert abs(clean["test"]["accuracy"]["mean"] - 0.5) < 0.2


def test_rows_that_are_left_out_are_counted_by_reason_and_no_cell_is_shown(sweep, rows):
    odd = [
        {**row, "coin": ["NA", "None", " ", "SECRET"][place % 4] if place < 40 else row["coin"]}
        for place, row in enumerate(rows)
    ]
    ran, summary = sweep(odd, "--label", "coin", "--exclude-rare", "20")
    assert (
        "rows left out: 30 without a label in column 'coin' (10 'NA', 10 'None', 10 blank), 10 of classes"
        in ran.err
    )
    assert "SECRET" not in ran.err
    assert summary["left_out"] == {"missing label": 30, "rare class": 10}
    assert (summary["classes"], summary["rows"]["judged"]) == (2, ROWS - 40)


def test_classes_of_fewer_rows_than_folds_are_judged(sweep, rows):
    many = [{**row, "coin": f"class{place % 80}"} for place, row in enumerate(rows)]
    _, summary = sweep(many, "--label", "coin")
    assert (summary["classes"], summary["rows"]["judged"]) == (80, ROWS)


@pytest.mark.parametrize(
    ("options", "code", "what"),
    [
        (("--label", "coin", "--group", "coin"), 2, "--group and --label both name the column 'coin'"),
        (("--label", "coin", "--split-column", "patient"), 3, "has no row that is in training"),
        (("--label", "coin", "--task", "ordinal"), 2, "not finite numbers"),
        (("--label", "coin", "--test", "missing.csv"), 3, "missing.csv"),
        (("--label", "coin", "--test", "{input}"), 2, "is also part of the input"),
        (("--label", "value", "--exclude-rare", "3"), 2, "--exclude-rare is for classes"),
    ],
)
def test_what_cannot_be_split_is_refused_with_one_line_and_a_hint(sweep, rows, tmp_path, options, code, what):
    ran, _ = sweep(rows, *(word.format(input=tmp_path / "rows.csv") for word in options), code=code)
    error, hint = ran.told
    assert error.startswith("error: ")
    assert what in error
    assert hint.startswith("hint: ")
    assert not (tmp_path / "out").exists()
