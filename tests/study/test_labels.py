from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.arrow_values import plain_values
from embedkit.config import LabelConfig
from embedkit.errors import EmbedkitError, InputError, UsageError
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
        (["1e307", "1"], "regression", UsageError, "not finite numbers"),
    ],
)
def test_useless_labels_are_refused_and_no_error_contains_one(cells, task, kind, what):
    with pytest.raises(kind, match=what) as refused:
        read_labels(of(cells), "label", task=task)
    assert "secret" not in refused.value.message + refused.value.hint


# Missing labels --------------------------------------------------------------------------------------

USUAL = ["", "NA", "N/A", "n/a", "<NA>", "#N/A", "#NA", "NaN", "nan", "-nan", "NULL", "null", "None", "1.#IND"]


def test_texts_that_pandas_reads_as_missing_are_missing_and_counted_by_spelling():
    others = ["none", "Na", "missing", "unknown", "nil", "N", "0", "-"]
    lines = "\n".join(["label", *(f'"{cell}"' for cell in [*USUAL, *others])])
    expected = pd.read_csv(io.StringIO(lines), skip_blank_lines=False)["label"]
    labels = read_labels(of([*USUAL, *others, *others, None, " NA "]))
    assert expected.isna().tolist() == [True] * len(USUAL) + [False] * len(others)
    assert labels.classes == tuple(sorted(others))
    assert labels.left_out == {"missing label": len(USUAL) + 2}
    assert "2 'NA'" in labels.notes[0]
    assert "1 blank" in labels.notes[0]
    assert "unknown" not in labels.notes[0]


@pytest.mark.parametrize(
    ("cells", "task", "classes"),
    [
        (["0", "1", "NA", "0", "1"], "classification", ("0", "1")),
        (["61.5", "null", "70", "58.25"], "regression", ()),
        ([1.0, float("nan"), 2.0, 1.0, 2.0, None], "classification", ("1", "2")),
    ],
)
def test_one_missing_label_changes_neither_the_task_nor_the_classes(cells, task, classes):
    labels = read_labels(of(cells))
    assert (labels.task, labels.classes) == (task, classes)


def test_a_class_that_is_called_none_can_be_kept():
    cells = ["None", "Former", "None", "", "Former", "?"]
    assert read_labels(of(cells * 2), missing_label=("",)).classes == ("?", "Former", "None")
    labels = read_labels(of(cells * 2), missing_label=("?",))
    assert (labels.classes, labels.left_out) == (("Former", "None"), {"missing label": 4})


# Numbers as classes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["1", "1.0", "01", "2", "1e0", "2.50", "2.5"], ("1", "2", "2.5")),
        (["01", "02", "10", "01"], ("01", "02", "10")),  # each in one way: codes keep their spelling
        (["1", "1.0", "A1", "01"] * 2, ("01", "1", "1.0", "A1")),  # not all are numbers
        (["9", "10", "-1", "10"], ("-1", "9", "10")),  # by size
        ([2, 1.0, "2", "1"], ("1", "2")),
        (["12345678901234567890123456789012", "12345678901234567890123456789013"] * 2, None),
        (["0.1", "0.10", "1e999"] * 2, ("0.1", "0.10", "1e999")),  # infinite as a float
    ],
)
def test_equal_numbers_are_one_class_if_all_labels_are_numbers(cells, classes):
    labels = module.read_labels({"label": cells}, LabelConfig("label", task="classification"))
    assert labels.classes == (classes or tuple(sorted(set(cells))))


@settings(deadline=None)
@given(st.lists(st.decimals(-999, 999, places=2), min_size=4, max_size=12), st.randoms())
def test_spellings_of_numbers_are_read_as_python_reads_them(numbers, random):
    cells = [
        random.choice([f"{number}", f"0{number}" if number >= 0 else f"{number}0", f" {number:e} "])
        for number in numbers * 2
    ]
    if len(set(numbers)) < 2:
        return
    labels = read_labels(of(cells), task="ordinal")
    assert [float(labels.classes[target]) for target in labels.targets] == [
        float(number) for number in numbers * 2
    ]
    assert (np.diff([float(name) for name in labels.classes]) > 0).all()


def test_ordinal_classes_have_the_order_of_their_numbers():
    labels = read_labels(of(["10", "2", "1", "2", "10"]), task="ordinal")
    assert (labels.classes, labels.targets.tolist()) == (("1", "2", "10"), [2, 1, 0, 1, 2])


# Several labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "options"),
    [
        ([["b", "a"], ["a"], [], ["b", "b", None], None, ["NA"]], {}),
        ([["b", "a"], "a", [], ["b"], "NA", None], {}),
        (["b; a", "a", ";", "b;b;", "", "NA"], {"label_delimiter": ";"}),
    ],
)
def test_lists_and_delimited_texts_are_sets_of_labels_and_an_empty_one_is_none_of_them(cells, options):
    labels = module.read_labels({"label": cells}, LabelConfig("label", **options))
    assert (labels.task, labels.classes, labels.rows.tolist()) == ("multilabel", ("a", "b"), [0, 1, 2, 3])
    assert labels.targets.tolist() == [[True, True], [True, False], [False, False], [False, True]]
    assert labels.counts.tolist() == [2, 2]
    assert labels.left_out == {"missing label": 2}


def test_lists_of_parquet_and_of_numbers_are_sets_of_labels():
    labels = read_labels(of(pa.array([[1, 2], [2], None, [10]], pa.list_(pa.int64()))))
    assert (labels.classes, labels.targets.sum(axis=1).tolist()) == (("1", "2", "10"), [2, 1, 1])


# The user's split, rare classes ----------------------------------------------------------------------


def test_a_column_of_parts_is_read_in_its_usual_spellings_and_other_rows_are_left_out():
    parts = ["train", "Training", " TRAIN ", "val", "dev", "Validation", "test", "holdout", "later", None, "NA"]
    labels = read_labels(of(["a", "b"] * 5 + ["a"], part=parts), split_column="part")
    assert labels.split.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert labels.left_out == {"no split": 3}
    assert "later" not in labels.notes[0]


def test_classes_of_test_rows_alone_are_told():
    table = of(["a", "b", "a", "b", "c"], part=["train"] * 4 + ["test"])
    assert "no probe predicts: 1" in read_labels(table, split_column="part").notes[0]


@pytest.mark.parametrize(
    ("cells", "options", "classes", "rows", "left"),
    [
        (["a", "a", "b", "c", "c"], {}, ("a", "c"), [0, 1, 3, 4], 1),
        (["1", "1", "2", "3", "3"], {"task": "ordinal"}, ("1", "3"), [0, 1, 3, 4], 1),
        ([["a", "b"], ["a"], ["b"], ["c", "d"], []], {}, ("a", "b"), [0, 1, 2, 4], 1),
    ],
)
def test_rare_classes_are_left_out_with_the_rows_that_have_no_other(cells, options, classes, rows, left):
    labels = module.read_labels({"label": cells}, LabelConfig("label", exclude_rare=2, **options))
    assert (labels.classes, labels.rows.tolist()) == (classes, rows)
    assert labels.left_out == {"rare class": left}
    assert labels.counts.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("cells", "options", "what"),
    [
        ([{"a": 1}, {"a": 2}], {}, "objects"),
        ([[["secret"]], ["b"]], {}, "lists in lists"),
        ([["secret"], ["b"]], {"task": "classification"}, "has lists"),
        (["secret", "b"], {"task": "ordinal"}, "not finite numbers"),
        ([0.5, 1.25, 3.5], {"exclude_rare": 2}, "--exclude-rare is for classes"),
        (["secret", "b"], {"exclude_rare": 2}, "fewer than 2 rows"),
        (["secret", "b"], {"split_column": "all"}, "training rows only"),
        (["secret", "b"], {"split_column": "none"}, "no row that is in training"),
    ],
)
def test_labels_that_are_not_of_the_task_are_refused_and_no_error_contains_one(cells, options, what):
    columns = {"label": cells, "all": ["train"] * len(cells), "none": ["secret"] * len(cells)}
    with pytest.raises(EmbedkitError, match=what) as refused:
        module.read_labels(columns, LabelConfig("label", **options))
    assert "secret" not in refused.value.message + refused.value.hint


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"group": "label"}, "--group and --label both name the column 'label'"),
        ({"split_column": "label"}, "--split-column and --label"),
        ({"split_column": "part", "test": ("t.csv",)}, "exclude each other"),
        ({"label_delimiter": ""}, "is empty"),
        ({"label_delimiter": ";", "task": "regression"}, "gives a row several labels"),
        ({"task": "ordinals"}, "--task cannot be 'ordinals'"),
        ({"exclude_rare": -1}, "--exclude-rare cannot be -1"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, what):
    with pytest.raises(UsageError, match=what):
        LabelConfig("label", **options)


def test_a_number_that_means_no_label_is_missing_in_json_and_in_texts_and_inside_a_cell_of_several():
    assert read_labels(of(["-9", "a", "b"] * 4), missing_label=("-9",)).classes == ("a", "b")
    found = read_labels(of([-9, 1.5, 2.5, -9.0]), missing_label=("-9",))
    assert (found.left_out, found.targets.tolist()) == ({"missing label": 2}, [1.5, 2.5])
    several = read_labels(of(["x;NA", "y", "NA"] * 3), label_delimiter=";")
    assert (several.classes, several.left_out) == (("x", "y"), {"missing label": 3})


def test_a_few_texts_among_numbers_that_make_classes_of_them_are_told_without_their_values():
    ages = [str(20 + row % 60) for row in range(300)]
    (note,) = read_labels(of([*ages, "unknown"])).notes
    assert "300 numbers and 1 other labels" in note
    assert "unknown" not in note
    assert read_labels(of([*ages, "unknown"]), missing_label=("unknown",)).task == "regression"
    assert read_labels(of([*ages, "NAN"])).task == "regression"
    assert not read_labels(of(["01", "A1", "02", "03"] * 9)).notes  # codes
