"""Labels, groups and near-duplicates of an input's rows, as numbers. No error holds a label."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedkit.arrow_values import array_of, number_in, plain_values
from embedkit.config import InputConfig, LabelConfig
from embedkit.errors import InputError, UsageError
from embedkit.output.formats.values import json_text
from embedkit.sources import Table, open_table
from embedkit.study.near_duplicates import signatures
from embedkit.types import Record

#: The parts of a user's split, in `Labels.split`.
TRAIN, VALIDATION, TEST = 0, 1, 2
#: Integers with at most this many different values are classes (grades, stages) unless `--task` is given.
_MOST_NUMBERED_CLASSES = 20


@dataclass(frozen=True, slots=True)
class InputRows:
    """Labels and signatures of the R rows of an input, without their texts."""

    table: Table  # to check at the end that its files are unchanged
    labels: pa.Table  # [R] columns of labels and groups; null for unreadable rows
    signatures: NDArray[np.uint32]  # [R, 64], to find near-duplicates
    has_text: NDArray[np.bool_]  # [R]


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of some rows of a table, as numbers."""

    task: str  # one of TASKS but auto
    rows: NDArray[np.int64]  # [N] positions of the rows with a label, and a group and a part where these are used
    #: int64 [N], numbers of `classes`, in order if ordinal; multilabel: bool [N, K]; regression: float64 [N].
    targets: NDArray[Any]
    classes: tuple[str, ...]  # [K] sorted by name, ordinal ones by number; () for regression
    groups: NDArray[np.int64] | None  # [N] numbers by first appearance; None without groups
    split: NDArray[np.int8] | None = None  # [N] the user's parts: TRAIN, VALIDATION or TEST; None without
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason, such as "missing label" -> rows
    notes: tuple[str, ...] = ()  # sentences for the user about rows that are left out


def read_rows(config: InputConfig, labels: LabelConfig) -> InputRows:
    """Reads the input and its columns of labels and splits once; each text is reduced to its signature.

    Raises:
        InputError: a file or a column is missing, or a file cannot be read.
    """
    columns = labels.columns
    table = open_table(replace(config, keep=columns))
    values: list[tuple[Any, ...]] = []
    has_text: list[bool] = []

    def texts() -> Iterator[str]:
        for item in table.records():
            record = item if isinstance(item, Record) else None
            values.append(record.kept if record else (None,) * len(columns))
            text = (record and record.text) or ""
            has_text.append(bool(text.strip()))
            yield text

    signed = signatures(texts())
    arrays = [column_array([of_row[place] for of_row in values], json_text) for place in range(len(columns))]
    return InputRows(
        table, pa.table(dict(zip(columns, arrays, strict=True))), signed, np.array(has_text, np.bool_)
    )


def column_array(values: Sequence[Any], to_text: Callable[[Any], str]) -> pa.Array:
    """Returns the values of a column as one Arrow type, or as text if their types are mixed."""
    try:
        return array_of(values)
    except (pa.ArrowException, TypeError, OverflowError):
        return pa.array([None if value is None else to_text(value) for value in plain_values(values)], pa.string())


def read_labels(table: pa.Table, config: LabelConfig) -> Labels:
    """Reads the labels of a table's rows; rows without a label or a group are left out.

    `auto` is regression if every label is a number, and one has a fraction or there are more than 20 different
    ones; otherwise classification.

    Args:
        table: kept columns of rows that have a vector: `out.table.filter(out.has_vector)`.
        config: the columns, and the task.

    Raises:
        UsageError: regression was requested and a label is not a number.
        InputError: fewer than two rows have a label, all labels are equal, or nearly every row has its own class.
    """
    label, group, task = str(config.label), config.group, config.task
    cells = [_cell(value) for value in plain_values(table[label])]
    members = None if group is None else [_cell(value) for value in plain_values(table[group])]
    rows = [
        row for row, cell in enumerate(cells) if cell is not None and (members is None or members[row] is not None)
    ]
    found = [cells[row] for row in rows]
    if len(found) < 2:
        raise InputError(
            f"column '{label}' has a label in {len(found)} of {len(cells)} rows",
            hint="name the column of labels with --label, and check that it is filled",
        )
    numbers = _numbers(found)
    if task == "regression" and numbers is None:
        raise UsageError(
            f"--task regression: column '{label}' has labels that are not finite numbers",
            hint="use --task classification, or fix the column",
        )
    if task == "auto":
        task = "classification" if numbers is None or _are_classes(numbers) else "regression"
    if task == "regression" and numbers is not None:
        targets: NDArray[Any] = numbers
        classes: tuple[str, ...] = ()
    else:
        names, targets = np.unique(np.array([_name(cell) for cell in found]), return_inverse=True)
        classes = tuple(names.tolist())
    _check_useful(label, task, len(found), len(np.unique(targets)))
    return Labels(
        task=task,
        rows=np.array(rows, np.int64),
        targets=targets,
        classes=classes,
        groups=None if members is None else _numbered([members[row] for row in rows]),
    )


def _cell(value: Any) -> Any:
    """Returns the value of a cell; None if it is null, blank or NaN."""
    if isinstance(value, str):
        return value.strip() or None
    return None if isinstance(value, float) and math.isnan(value) else value


def _numbers(cells: list[Any]) -> NDArray[np.float64] | None:
    """Returns the cells as finite numbers; None if one is not a finite number."""
    if any(isinstance(cell, bool) for cell in cells):
        return None
    try:
        # None for text that is not a number, such as `1_0`: a TypeError.
        parsed: list[Any] = [number_in(cell) if isinstance(cell, str) else cell for cell in cells]
        numbers = np.array([float(number) for number in parsed], np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if np.isfinite(numbers).all() else None


def _are_classes(numbers: NDArray[np.float64]) -> bool:
    return bool((numbers == np.rint(numbers)).all()) and len(np.unique(numbers)) <= _MOST_NUMBERED_CLASSES


def _name(cell: Any) -> str:
    """Returns a class's name: 1 and 1.0 are one class, true is not "True"."""
    if isinstance(cell, bool):
        return str(cell).lower()
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _numbered(members: list[Any]) -> NDArray[np.int64]:
    number: dict[str, int] = {}
    return np.array([number.setdefault(_name(member), len(number)) for member in members], np.int64)


def _check_useful(label: str, task: str, rows: int, different: int) -> None:
    if different < 2:
        raise InputError(
            f"column '{label}' has the same label in all {rows} rows that have one",
            hint="name another column with --label",
        )
    if task == "classification" and different > max(2, rows / 2):
        raise InputError(
            f"column '{label}' has {different} classes in {rows} rows: nearly every row has its own",
            hint="name a column of classes with --label, or use --task regression for numbers",
        )
