"""What a report is asked for, as a frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedkit.config import value_hint
from embedkit.errors import UsageError

#: What may become of a page that is there.
_WAYS = ("error", "overwrite")


@dataclass(frozen=True, slots=True)
class ReportConfig:
    """What `embedkit report` is told.

    Attributes:
        paths: outputs of encode and folders of sweep, in the order of the page.
        page: the file to write.
        on_exists: error or overwrite.
        variant: name of the column of vectors; None takes the first.
        color: kept column that colours the map; None takes the first with few values.
        show: kept columns that are told where the mouse is, and beside neighbours.
        neighbours: ids whose nearest rows are listed; () takes five rows by the seed.
        sample: most rows of the map.
        seed: decides which rows these are.
        title: of the page.

    Raises:
        UsageError: a value cannot be used.
    """

    paths: tuple[Path, ...]
    page: Path
    on_exists: str = "error"
    variant: str | None = None
    color: str | None = None
    show: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    sample: int = 20_000
    seed: int = 0
    title: str = "embedkit report"

    def __post_init__(self) -> None:
        if self.on_exists not in _WAYS:
            raise UsageError(
                f"--on-exists cannot be {self.on_exists!r} ({', '.join(_WAYS)})",
                hint=value_hint("--on-exists", self.on_exists, _WAYS),
            )
        if self.sample < 1:
            raise UsageError(
                f"--sample {self.sample}: the map needs at least one row", hint="the default is 20000"
            )
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}: a seed is 0 or more", hint="the default is 0")
