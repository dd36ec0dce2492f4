"""The configuration of a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedkit.config import value_hint
from embedkit.errors import UsageError

#: The values of --on-exists.
_ON_EXISTS = ("error", "overwrite")


@dataclass(frozen=True, slots=True)
class ReportConfig:
    """The options of `embedkit report`.

    Attributes:
        paths: outputs of encode and folders of sweep, in the order of the page.
        page: the file to write.
        on_exists: error or overwrite.
        variant: name of the column of vectors; None takes the first.
        color: kept column that colours the map; None takes the first with few values.
        show: kept columns shown for points of the map and for neighbours.
        neighbours: ids whose nearest rows are listed; () takes five random rows.
        sample: most rows of the map.
        seed: of the sample.
        title: of the page.

    Raises:
        UsageError: a value is not allowed.
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
        if self.on_exists not in _ON_EXISTS:
            raise UsageError(
                f"--on-exists cannot be {self.on_exists!r} ({', '.join(_ON_EXISTS)})",
                hint=value_hint("--on-exists", self.on_exists, _ON_EXISTS),
            )
        if self.sample < 1:
            raise UsageError(
                f"--sample {self.sample}: the map needs at least one row", hint="the default is 20000"
            )
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}: a seed is 0 or more", hint="the default is 0")
