"""Options of labels and splits, which `sweep` and `fit` share."""

from __future__ import annotations

from dataclasses import dataclass

from embedkit.config.checks import MOST_SEED, at_least, one_of
from embedkit.config.remote_inputs import check_no_secret
from embedkit.errors import UsageError

TASKS = ("auto", "classification", "multilabel", "ordinal", "regression")


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """The columns of labels, groups and splits, and the rows that are left out."""

    label: str | None = None  # column; None only for what is fitted without labels
    group: str | None = None  # column; rows with one value are never on both sides of a split
    task: str = "auto"  # one of TASKS
    label_delimiter: str | None = None  # separates the labels of a row; None: a text is one label
    missing_label: tuple[str, ...] | None = None  # texts that mean no label; None: the usual ones, such as NA
    split_column: str | None = None  # column of train, validation and test
    test: tuple[str, ...] = ()  # files of test rows
    exclude_rare: int = 0  # classes with fewer rows are left out
    dedupe: bool = False  # near-duplicate texts are never on both sides of a split
    seed: int = 0  # of the splits

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read, each one once."""
        names = (self.label, self.group, self.split_column)
        return tuple(dict.fromkeys(name for name in names if name is not None))

    def __post_init__(self) -> None:
        for file in self.test:
            check_no_secret("--test", file)
        one_of("--task", self.task, TASKS)
        at_least("--exclude-rare", self.exclude_rare, 0)
        at_least("--seed", self.seed, 0, most=MOST_SEED)
        if self.label_delimiter == "":
            raise UsageError("--label-delimiter is empty", hint="give the text between two labels, such as ';'")
        if self.label_delimiter is not None and self.task not in {"auto", "multilabel"}:
            raise UsageError(
                f"--label-delimiter gives a row several labels, and --task is {self.task}",
                hint="use --task multilabel, or leave --label-delimiter out",
            )
        if self.split_column is not None and self.test:
            raise UsageError(
                "--split-column and --test FILE exclude each other: both name the test rows",
                hint="leave out one of the two",
            )
        for option, name in (("--group", self.group), ("--split-column", self.split_column)):
            if name is not None and name == self.label:
                raise UsageError(
                    f"{option} and --label both name the column '{name}': no class would be on both sides of a "
                    "split",
                    hint=f"leave out {option}, or name another column",
                )
