"""What a check finds, and says: paths and what is wrong, no content of any row."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it was written.

    Attributes:
        path: of the file, in the output.
        what: is wrong; no content of any row.
    """

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass(slots=True)
class Verification:
    """What `embedkit verify` found.

    Attributes:
        problems: what is wrong, in the order of the files.
        notes: what is no fault of the output, yet should be known.
        way_out: what to do about the problems.
        rows, vectors: stored and looked at.
        files, bytes: read.
    """

    way_out: str
    problems: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    rows: int = 0
    vectors: int = 0
    files: int = 0
    bytes: int = 0
