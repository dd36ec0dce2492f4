from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from embedkit.arrow_values import plain_values
from embedkit.config import LabelConfig
from embedkit.errors import InputError, UsageError
from embedkit.study import labels as module


def read_labels(table, label="label", **options):
    columns = {name: plain_values(table[name]) for name in table.column_names}
    return module.read_labels(columns, LabelConfig(label, **options))


def of(label, **columns):
    return pa.table({"label": label, **columns})


def test_classes_are_sorted_by_name_and_rows_without_a_label_are_left_out():
    labels = read_labels(of(["b", None, "a", " b ", "", "a", "b"]), "label")
    assert (labels.task, labels.classes) == ("classification", ("a", "b"))
    assert labels.rows.tolist() == [0, 2, 3, 5, 6]
    assert labels.targets.tolist() == [1, 0, 1, 0, 1]
    assert labels.groups is None


def test_groups_are_numbered_as_they_come_and_a_row_without_one_is_left_out():
    table = of(["a", "b", "a", "b"], patient=["p9", None, "p1", "p9"])
    labels = read_labels(table, group="patient")
    assert labels.rows.tolist() == [0, 2, 3]
    assert labels.groups.tolist() == [0, 1, 0]


def test_large_numbers_name_groups_and_classes_to_the_last_digit():
    numbers = [1_234_567.0, 1_234_568.0, 1e22, float("inf")] * 2
    labels = read_labels(of(["a", "b"] * 4, patient=numbers), "label", group="patient")
    assert labels.groups.tolist() == [0, 1, 2, 3] * 2
    assert read_labels(of(numbers), "label").classes == ("10000000000000000000000", "1234567", "1234568", "inf")


def test_times_outside_pythons_range_are_classes_by_their_text():
    far = pa.array([253_402_300_800, 0] * 2, pa.timestamp("s"))
    assert read_labels(of(far), "label").classes == ("+10000-01-01T00:00:00", "1970-01-01T00:00:00")


def test_digits_with_underscores_are_not_a_number():
    assert read_labels(of(["1_0", "10"] * 2), "label").classes == ("10", "1_0")


@pytest.mark.parametrize(
    ("cells", "task"),
    [
        (["1", "2", "1", "2"], "classification"),  # text of CSV; few whole numbers
        ([1.0, 2.0, 1.0, 2.0], "classification"),
        ([0.5, 1.5, 0.5, 1.5], "regression"),
        ([str(number % 21) for number in range(42)], "regression"),  # 21 different
        ([number % 20 for number in range(40)], "classification"),  # 20 different
        ([True, False, True, False], "classification"),
        (["1", "x", "1", "x"], "classification"),
        (["1", "inf", "1", "inf"], "classification"),
    ],
)
def test_the_task_is_chosen_by_the_labels(cells, task):
    labels = read_labels(of(cells), "label")
    assert labels.task == task
    assert len(labels.targets) == len(cells)
    assert (labels.classes == ()) == (task == "regression")


def test_numbers_are_values_or_classes_as_the_task_says():
    cells = ["3", "1.0", "3.0", "1", "2"]
    assert read_labels(of(cells), "label", task="regression").targets.tolist() == [3, 1, 3, 1, 2]
    assert read_labels(of([1, 2, 1, 2]), "label", task="classification").classes == ("1", "2")
    assert read_labels(of([1.0, 2.0, 1.5, 1.0, 2.0, 1.5]), "label", task="classification").classes == (
        "1",
        "1.5",
        "2",
    )
    assert read_labels(of([True, False] * 2), "label").classes == ("false", "true")


@pytest.mark.parametrize(
    ("cells", "task", "kind", "what"),
    [
        (["secret", "", None], "auto", InputError, "in 1 of 3 rows"),
        (["secret", "secret"], "auto", InputError, "the same label in all 2 rows"),
        ([f"secret{n}" for n in range(9)], "auto", InputError, "9 classes in 9 rows"),
        (["secret", "1"], "regression", UsageError, "not finite numbers"),
        ([np.inf, 1.0], "regression", UsageError, "not finite numbers"),
    ],
)
def test_useless_labels_are_refused_and_no_error_contains_one(cells, task, kind, what):
    with pytest.raises(kind, match=what) as refused:
        read_labels(of(cells), "label", task=task)
    assert "secret" not in refused.value.message + refused.value.hint
