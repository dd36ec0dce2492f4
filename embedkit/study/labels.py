"""Labels, groups and parts of an input's rows, as numbers. No error and no note holds a value of a row."""

from __future__ import annotations

import decimal
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.arrow_values import number_in
from embedkit.config import LabelConfig
from embedkit.errors import InputError, UsageError
from embedkit.pooling.heads import VALUE_TASKS

#: The parts of a user's split, in `Labels.split`, and the words for them in its column.
TRAIN, VALIDATION, TEST = 0, 1, 2
_PARTS = {
    **dict.fromkeys(("train", "training", "trn", "tr"), TRAIN),
    **dict.fromkeys(("validation", "validate", "valid", "val", "development", "develop", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "tst", "te", "holdout", "hold-out", "hold_out", "held-out"), TEST),
}
#: Texts that mean a missing value, as pandas reads them in files, and other cases of them.
MISSING = (
    *("NA", "N/A", "n/a", "<NA>", "#N/A", "#N/A N/A", "#NA", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None"),
    *("Nan", "NAN", "Null"),
    *("1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
)
#: Integers with at most this many different values are classes (grades, stages) unless `--task` is given.
_MOST_NUMBERED_CLASSES = 20
#: Larger numbers are no labels: the error of a prediction may be a hundred times as large, and is a float64, too.
_LARGEST = 1e306
#: If more of the rows than this share have a class of their own, the column is one of names or texts.
_MOST_ALONE = 0.8


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of some rows of a table, as numbers."""

    task: str  # one of TASKS but auto
    rows: NDArray[np.int64]  # [N] positions of the rows with a label, and a group and a part where these are used
    #: int64 [N], numbers of `classes`, in order if ordinal; multilabel: bool [N, K]; regression: float64 [N].
    targets: NDArray[Any]
    classes: tuple[str, ...]  # [K] sorted, numbers by size; () for regression
    groups: NDArray[np.int64] | None  # [N] numbers by first appearance; None without groups
    split: NDArray[np.int8] | None = None  # [N] the user's parts: TRAIN, VALIDATION or TEST; None without
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason, such as "missing label" -> rows
    notes: tuple[str, ...] = ()  # sentences for the user about rows that are left out

    @property
    def counts(self) -> NDArray[np.int64]:
        """The rows of each class, int64 [K]."""
        if self.targets.ndim == 2:
            return np.asarray(self.targets.sum(axis=0, dtype=np.int64))
        return np.bincount(self.targets, minlength=len(self.classes)) if self.classes else np.zeros(0, np.int64)

    @property
    def n_outputs(self) -> int:
        """The columns of predictions: one for each class, or one for values and for ranks."""
        return len(self.classes) if self.has_probabilities else 1

    @property
    def has_probabilities(self) -> bool:
        """True if predictions are probabilities of classes, and not values or ranks."""
        return self.task not in VALUE_TASKS

    def take(self, rows: NDArray[Any]) -> Labels:
        """Returns the labels of some of the N rows: their positions, or bool [N]."""
        return replace(
            self,
            rows=self.rows[rows],
            targets=self.targets[rows],
            groups=None if self.groups is None else self.groups[rows],
            split=None if self.split is None else self.split[rows],
        )

    def without(self, rows: NDArray[np.bool_], reason: str) -> Labels:
        """Returns the labels without some of the N rows, which are counted under `reason`."""
        return replace(self.take(~rows), left_out={**self.left_out, reason: int(rows.sum())})


def read_labels(
    columns: Mapping[str, Sequence[Any]], config: LabelConfig, *, in_test_file: Sequence[bool] | None = None
) -> Labels:
    """Reads the labels of R rows; rows without a label, a group or a part are left out.

    `--task auto` is multilabel if there are lists or `--label-delimiter`; regression if every label is a number,
    and one has a fraction or there are more than 20 different ones; otherwise classification. If every label is a
    number, equal numbers are one class, however they are spelled.

    Args:
        columns: the columns of `config`, [R] values each, in the form of `plain_values`.
        config: the columns and the task.
        in_test_file: [R], true for the rows of `--test FILE`; None without such files.

    Raises:
        UsageError: the labels are not of the task.
        InputError: fewer than two rows have a label, labels are objects, all labels are equal, nearly every row
            has its own class, or no row is in training.
    """
    kept, left_out, missing = _usable(columns, config, in_test_file)
    found = [kept.cells[row] for row in kept.rows]
    if len(found) < 2:
        raise InputError(
            f"column '{config.label}' has a label in {len(found)} of {len(kept.cells)} rows"
            + " that have a group and a part" * (config.group is not None or kept.parts is not None),
            hint="name the column of labels with --label, and check that it is filled",
        )
    task, targets, classes = _targets(found, config)
    groups = None if kept.members is None else _numbered([kept.members[row] for row in kept.rows])
    split = None if kept.parts is None else np.array([kept.parts[row] for row in kept.rows], np.int8)
    labels = Labels(task, np.array(kept.rows, np.int64), targets, classes, groups, split, left_out)
    labels = _without_rare(labels, config)
    _check_useful(labels, config)
    notes = [*_notes(labels, config, missing), *_mixed(found, task, config)]
    return replace(labels, notes=tuple(notes))


@dataclass(frozen=True, slots=True)
class _Usable:
    """Values of R rows, and which of them are used."""

    cells: list[Any]  # labels; None if missing
    members: list[Any] | None  # groups
    parts: Sequence[int | None] | None  # of the user's split
    rows: list[int]  # with all of these


def _usable(
    columns: Mapping[str, Sequence[Any]], config: LabelConfig, in_test_file: Sequence[bool] | None
) -> tuple[_Usable, dict[str, int], Counter[str]]:
    """Returns the values, the rows left out by reason, and the missing labels by spelling."""
    spellings = frozenset(MISSING if config.missing_label is None else config.missing_label)
    missing: Counter[str] = Counter()
    cells = [
        _cell(_items(value, config.label_delimiter), spellings, missing) for value in columns[str(config.label)]
    ]
    members: list[Any] | None = None
    parts: Sequence[int | None] | None = None
    if config.group is not None:
        members = [_cell(value, spellings, Counter()) for value in columns[config.group]]
    if config.split_column is not None:
        parts = [_PARTS.get(str(value).strip().lower()) for value in columns[config.split_column]]
        _check_parts(config.split_column, parts)
    elif in_test_file is not None:
        parts = [TEST if is_test else TRAIN for is_test in in_test_file]
    left_out = dict.fromkeys(("missing label", "missing group", "no split"), 0)
    rows: list[int] = []
    for row, cell in enumerate(cells):
        if cell is None:
            left_out["missing label"] += 1
        elif members is not None and members[row] is None:
            left_out["missing group"] += 1
        elif parts is not None and parts[row] is None:
            left_out["no split"] += 1
        else:
            rows.append(row)
    return _Usable(cells, members, parts, rows), {name: n for name, n in left_out.items() if n}, missing


def _check_parts(column: str, parts: Sequence[int | None]) -> None:
    found = set(parts) - {None}
    if TRAIN not in found or len(found) < 2:
        what = "no row that is in training" if TRAIN not in found else "training rows only"
        raise InputError(
            f"--split-column: column '{column}' has {what}",
            hint="write train, validation or test into it; or leave --split-column out",
        )


def _cell(value: Any, spellings: frozenset[str], missing: Counter[str]) -> Any:
    """Returns the value of a cell, a list without its missing items; None if it is missing."""
    if isinstance(value, list):
        items = [_cell(item, spellings, missing if len(value) == 1 else Counter()) for item in value]
        present = [item for item in items if item is not None]
        # An empty list says that no label applies.
        return present if present or not value else None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    name = value.strip() if isinstance(value, str) else _name(value)
    if not name or name in spellings:
        missing[name] += 1
        return None
    return name if isinstance(value, str) else value


def _mixed(cells: list[Any], task: str, config: LabelConfig) -> list[str]:
    """Returns a sentence if a few texts among numbers, such as `unknown`, make classes of them all."""
    if config.task != "auto" or task != "classification":
        return []
    numbers = [number for cell in cells if (number := _number(cell)) is not None]
    texts = len(cells) - len(numbers)
    if texts >= len(numbers) or _are_classes(numbers):
        return []
    found = f"column '{config.label}' has {len(numbers):,} numbers and {texts:,} other labels"
    return [f"{found}, so each number is a class; --missing-label leaves out texts that mean no label"]


def _items(value: Any, delimiter: str | None) -> Any:
    """Returns the labels in a text that a delimiter separates, as a list; other values unchanged."""
    if delimiter is None or not isinstance(value, str) or not value.strip():
        return value
    return [part for item in value.split(delimiter) if (part := item.strip())]


def _targets(cells: list[Any], config: LabelConfig) -> tuple[str, NDArray[Any], tuple[str, ...]]:
    """Returns the task, the targets and the names of the classes.

    Raises:
        UsageError: the labels are not of the task.
        InputError: a label is an object.
    """
    label, task = config.label, config.task
    has_lists = any(isinstance(cell, list) for cell in cells)
    if task == "auto" and (has_lists or config.label_delimiter is not None):
        task = "multilabel"
    items = [cell if task == "multilabel" and isinstance(cell, list) else [cell] for cell in cells]
    flat = [item for of_row in items for item in of_row]
    if any(isinstance(item, dict) or (isinstance(item, list) and task == "multilabel") for item in flat):
        raise InputError(
            f"column '{label}' has labels that are objects, or lists in lists",
            hint="name a column of texts, of numbers, or of lists of them",
        )
    if has_lists and task != "multilabel":
        raise UsageError(
            f"--task {task}: column '{label}' has lists, so several labels for a row",
            hint="use --task multilabel, or name another column",
        )
    numbers = _numbers(flat)
    if task in {"regression", "ordinal"} and numbers is None:
        raise UsageError(
            f"--task {task}: column '{label}' has labels that are not finite numbers",
            hint="number the classes in their order"
            if task == "ordinal"
            else "use --task classification, or name texts that mean no label with --missing-label",
        )
    if task == "auto":
        task = "classification" if numbers is None or _are_classes(numbers) else "regression"
    if task == "regression" and numbers is not None:
        return task, np.array([float(number) for number in numbers], np.float64), ()
    names = [_name(item) for item in flat] if numbers is None else _numbered_names(flat, numbers)
    order = sorted(set(names)) if numbers is None else list(dict.fromkeys(_by_number(names, numbers)))
    place = {name: number for number, name in enumerate(order)}
    if task != "multilabel":
        return task, np.array([place[name] for name in names], np.int64), tuple(order)
    targets = np.zeros((len(items), len(order)), np.bool_)
    rows = np.repeat(np.arange(len(items)), [len(of_row) for of_row in items])
    targets[rows, [place[name] for name in names]] = True
    return task, targets, tuple(order)


def _numbers(cells: list[Any]) -> list[decimal.Decimal] | None:
    """Returns the cells as exact numbers; None if one is not a number, or not below 1e306."""
    numbers = []
    for cell in cells:
        number = _number(cell)
        if number is None:
            return None
        numbers.append(number)
    return numbers


def _number(cell: Any) -> decimal.Decimal | None:
    """Returns a cell as an exact number; None if it is not a number, or not below 1e306."""
    number: decimal.Decimal | None = None
    if isinstance(cell, str):
        number = number_in(cell)  # None for text that is not a number, such as `1_0`
    elif isinstance(cell, int | float) and not isinstance(cell, bool):
        number = decimal.Decimal(repr(cell))
    return number if number is not None and abs(float(number)) < _LARGEST else None


def _are_classes(numbers: list[decimal.Decimal]) -> bool:
    different = set(numbers)
    return len(different) <= _MOST_NUMBERED_CLASSES and all(float(number).is_integer() for number in different)


def _name(cell: Any) -> str:
    """Returns a class's name: 1 and 1.0 are one class, true is not "True"."""
    if isinstance(cell, bool):
        return str(cell).lower()
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _numbered_names(cells: list[Any], numbers: list[decimal.Decimal]) -> list[str]:
    """Returns the names of classes that are numbers: as spelled, if each number is spelled in one way."""
    spellings: dict[decimal.Decimal, set[str]] = {}
    for cell, number in zip(cells, numbers, strict=True):
        spellings.setdefault(number, set()).add(_name(cell))
    if all(len(of_number) == 1 for of_number in spellings.values()):
        return [_name(cell) for cell in cells]
    names = {number: _shortest(number) for number in spellings}
    return [names[number] for number in numbers]


def _shortest(number: decimal.Decimal) -> str:
    """Returns all digits of a number, without zeros that do not change it."""
    text = format(number, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text if number else "0"


def _by_number(names: list[str], numbers: list[decimal.Decimal]) -> list[str]:
    return [name for _, name in sorted(zip(numbers, names, strict=True))]


def _numbered(members: list[Any]) -> NDArray[np.int64]:
    number: dict[str, int] = {}
    return np.array([number.setdefault(_name(member), len(number)) for member in members], np.int64)


def _without_rare(labels: Labels, config: LabelConfig) -> Labels:
    """Leaves out classes with fewer rows than `--exclude-rare`, and the rows that have no other."""
    if not config.exclude_rare:
        return labels
    if not labels.classes:
        raise UsageError(
            "--exclude-rare is for classes, and these labels are values",
            hint="leave it out, or use --task classification",
        )
    frequent = labels.counts >= config.exclude_rare
    if frequent.all():
        return labels
    classes = tuple(name for name, stays in zip(labels.classes, frequent, strict=True) if stays)
    if labels.targets.ndim == 2:
        rare = labels.targets.any(axis=1) & ~labels.targets[:, frequent].any(axis=1)
        renumbered = labels.targets[:, frequent]
    else:
        rare = ~frequent[labels.targets]
        renumbered = (np.cumsum(frequent) - 1)[labels.targets]
    return replace(labels, targets=renumbered, classes=classes).without(np.asarray(rare), "rare class")


def _check_useful(labels: Labels, config: LabelConfig) -> None:
    label = config.label
    used = np.ones(len(labels.rows), np.bool_) if labels.split is None else labels.split != TEST
    rows, different = int(used.sum()), len(np.unique(labels.targets[used], axis=0))
    if labels.split is not None and not (labels.split == TRAIN).any():
        raise InputError(
            f"no training row has a label in column '{label}'", hint="check --label and the split of the rows"
        )
    if not rows:
        raise InputError(
            f"every class of column '{label}' has fewer than {config.exclude_rare} rows",
            hint="use a smaller --exclude-rare",
        )
    if different < 2:
        raise InputError(
            f"column '{label}' has the same label in all {rows} rows"
            f"{' of training' * (labels.split is not None)} that have one",
            hint="name another column with --label",
        )
    alone = int((labels.counts == 1).sum()) if labels.task == "classification" else 0
    if different > 2 and alone > _MOST_ALONE * rows:
        raise InputError(
            f"column '{label}' has {different} classes in {rows} rows: nearly every row has its own",
            hint="name a column of classes; or use --exclude-rare 2, or --task regression for numbers",
        )


def _notes(labels: Labels, config: LabelConfig, missing: Counter[str]) -> list[str]:
    """Returns sentences about rows that are left out; the spellings in them are ours, or typed by the user."""
    notes, reasons = [], []
    names = {
        "missing label": f"without a label in column '{config.label}'",
        "missing group": f"without a value in column '{config.group}'",
        "no split": f"neither train, validation nor test by column '{config.split_column}'",
        "rare class": f"of classes with fewer than {config.exclude_rare} rows",
    }
    for reason, count in labels.left_out.items():
        spelled = [f"{n:,} {text!r}" if text else f"{n:,} blank" for text, n in missing.most_common()]
        shown = f" ({', '.join(spelled)})" if reason == "missing label" and spelled else ""
        reasons.append(f"{count:,} {names[reason]}{shown}")
    if reasons:
        kept = "; --missing-label '' would keep these texts as classes"
        is_usual = any(missing) and config.missing_label is None
        notes.append(f"rows left out: {', '.join(reasons)}{kept * is_usual}")
    if labels.split is not None and labels.classes:
        unseen = int((replace(labels, targets=labels.targets[labels.split == TRAIN]).counts == 0).sum())
        if unseen:
            notes.append(f"classes without a training row, which no probe predicts: {unseen}")
    return notes
