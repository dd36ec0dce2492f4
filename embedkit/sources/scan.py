"""What a pass over a table, or over a part of it, finds; and where a row is, so that reading can begin there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from embedkit.types import Fault

#: Most faults that a scan lists.
FAULTS_LISTED = 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row is in a table."""

    file: int  # number of the file
    #: Its first byte in a file that can be read from any byte on, else its number among the rows of the file.
    offset: int
    #: Rows of one file with an equal number are best read by one process, in order: those of a row group, or of a
    #: file that can only be read forward. None where reading may begin at any row.
    stretch: int | None


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows of a table: those of files, or of a piece of one file."""

    first: int  # numbers of the files, [first, stop)
    stop: int
    piece: tuple[int, int] | None = None  # bytes [first, stop) of the only file; a row is where it begins


@dataclass(frozen=True, slots=True)
class Scan:
    """Result of a full pass over the input."""

    rows: int  # records and faults
    faults: tuple[Fault, ...]  # the first `FAULTS_LISTED`
    n_faults: int
    kept_types: dict[str, str]  # by name of the column; see `kept_types.py`


@dataclass(frozen=True, slots=True)
class FoundTypes:
    """What the values of kept columns say of their types; see `KeptTypes`."""

    seen: tuple[tuple[str, ...], ...]  # for each column, the types of its values
    unfit: tuple[bool, ...]  # for each column, True if a value does not fit the common type
    non_finite: Mapping[str, int]  # for each column that has any, rows with NaN or an infinity


@dataclass(frozen=True, slots=True)
class PartScan:
    """Result of a pass over a part; rows are numbered from its first one."""

    rows: int
    faults: tuple[Fault, ...]  # the first `FAULTS_LISTED`
    n_faults: int
    found: FoundTypes
    first_rows: tuple[int, ...]  # number of the first row of each file
    stray: Mapping[str, tuple[int, int]]  # by file: rows with stray quotes, and the first of them
    places: tuple[Place, ...]  # of the rows that were asked for
