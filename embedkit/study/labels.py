"""Labels and groups of the rows that have a vector: from kept columns to class numbers or values.

Knows nothing of models and folds. No error holds a label: it may be a patient's diagnosis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedkit.arrow_values import number_in, plain_values
from embedkit.errors import InputError, UsageError

TASKS = ("auto", "classification", "regression")
#: Whole numbers with no more different values than this are classes (grades, stages), unless `--task` says else.
_MOST_NUMBERED_CLASSES = 20


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of some rows of a table, as numbers.

    Attributes:
        task: classification or regression.
        rows: int64 [N], the rows of the table that have a label (and a group, where groups are asked for).
        targets: int64 [N] numbers of `classes`, or float64 [N] values.
        classes: the classes' names, sorted; () for regression.
        groups: int64 [N], numbers of the groups by first appearance; None where none are asked for.
    """

    task: str
    rows: NDArray[np.int64]
    targets: NDArray[np.int64] | NDArray[np.float64]
    classes: tuple[str, ...]
    groups: NDArray[np.int64] | None


def read_labels(table: pa.Table, label: str, *, group: str | None = None, task: str = "auto") -> Labels:
    """Labels of a table's rows; those without a label, or without a group, are left out.

    `auto` is regression where every label is a number and they are no few whole ones: one has a fraction, or
    there are more than 20 different. All else is classification.

    Args:
        table: kept columns of rows that have a vector: `out.table.filter(out.has_vector)`.
        label: name of the column of labels.
        group: name of a column whose rows with one value stay together when rows are split.
        task: one of TASKS.

    Raises:
        UsageError: regression is asked for, and a label is no number.
        InputError: fewer than two rows have a label, all have the same one, or nearly each has its own class.
    """
    cells = [_cell(value) for value in plain_values(table[label])]
    members = None if group is None else [_cell(value) for value in plain_values(table[group])]
    rows = [
        row for row, cell in enumerate(cells) if cell is not None and (members is None or members[row] is not None)
    ]
    found = [cells[row] for row in rows]
    if len(found) < 2:
        raise InputError(
            f"column '{label}' has a label in {len(found)} of {len(cells)} rows",
            hint="name the column that holds the labels with --label, and see that it is filled",
        )
    numbers = _numbers(found)
    if task == "regression" and numbers is None:
        raise UsageError(
            f"--task regression: column '{label}' holds labels that are no finite numbers",
            hint="use --task classification, or mend the column",
        )
    if task == "auto":
        task = "classification" if numbers is None or _are_classes(numbers) else "regression"
    if task == "regression" and numbers is not None:
        targets: NDArray[Any] = numbers
        classes: tuple[str, ...] = ()
    else:
        names, targets = np.unique(np.array([_name(cell) for cell in found]), return_inverse=True)
        classes = tuple(names.tolist())
    _refuse_useless(label, task, len(found), len(np.unique(targets)))
    return Labels(
        task=task,
        rows=np.array(rows, np.int64),
        targets=targets,
        classes=classes,
        groups=None if members is None else _numbered([members[row] for row in rows]),
    )


def _cell(value: Any) -> Any:
    """The value of a cell; None where it is null, blank or NaN."""
    if isinstance(value, str):
        return value.strip() or None
    return None if isinstance(value, float) and math.isnan(value) else value


def _numbers(cells: list[Any]) -> NDArray[np.float64] | None:
    """The cells as finite numbers, or None where one is none."""
    if any(isinstance(cell, bool) for cell in cells):
        return None
    try:
        numbers = np.array([_number(cell) for cell in cells], np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if np.isfinite(numbers).all() else None


def _number(cell: Any) -> float:
    """The number that a cell is or spells; `1_0` spells none."""
    found = number_in(cell) if isinstance(cell, str) else cell
    if found is None:
        raise ValueError("not a number")
    return float(found)


def _are_classes(numbers: NDArray[np.float64]) -> bool:
    return bool((numbers == np.rint(numbers)).all()) and len(np.unique(numbers)) <= _MOST_NUMBERED_CLASSES


def _name(cell: Any) -> str:
    """A class's name: 1 and 1.0 are one class, true is not "True"."""
    if isinstance(cell, bool):
        return str(cell).lower()
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _numbered(members: list[Any]) -> NDArray[np.int64]:
    number: dict[str, int] = {}
    return np.array([number.setdefault(_name(member), len(number)) for member in members], np.int64)


def _refuse_useless(label: str, task: str, rows: int, different: int) -> None:
    if different < 2:
        raise InputError(
            f"column '{label}' has the same label in all {rows} rows that have one",
            hint="there is nothing to tell apart; name another column with --label",
        )
    if task == "classification" and different > max(2, rows / 2):
        raise InputError(
            f"column '{label}' has {different} classes in {rows} rows: nearly each row has its own",
            hint="name a column of classes with --label, or use --task regression for numbers",
        )
