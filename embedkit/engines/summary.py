"""What came of a run. The command line knows it before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from embedkit.types import DeviceStats


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts are over the whole output, seconds and `computed_*` are this process's.

    Attributes:
        path: of the output; `-` for stdout.
        input_rows: rows of the input.
        rows: rows of the output; fewer than `input_rows` if faulty ones were skipped.
        vectors: rows that have one.
        statuses: rows by what happened to their text.
        rejects: rows listed as rejects.
        n_tokens: tokens of all texts before any cut.
        n_used: of these, tokens that went through the model.
        n_content: of n_tokens, those that are not special.
        n_unknown: of n_content, those that the vocabulary has no entry for; None where it spells every character.
        unknown_share: n_unknown of n_content, 0 to 1.
        dims: dimensions of each variant.
        max_length: most tokens of a text.
        recipe: all that decided the numbers.
        fingerprint: SHA-256 of the recipe.
        seconds: from start to end.
        encoding_seconds: of these, since the model ran.
        computed_rows: rows computed now; the others were there from a former run.
        computed_tokens: tokens of these.
        device: where it ran.
        device_use: how that was used; None where it is not measured, as on a CPU.
        device_waiting: share of the time that it waited between two batches, 0 to 1; None likewise.
        rank, world_size: which process of how many this was.
        complete: whether the output is whole; else shards of other ranks are still to come.
    """

    path: str
    input_rows: int
    rows: int
    vectors: int
    statuses: dict[str, int]
    rejects: int
    n_tokens: int
    n_used: int
    n_content: int
    n_unknown: int | None
    unknown_share: float | None
    dims: dict[str, int]
    max_length: int
    recipe: dict[str, Any]
    fingerprint: str
    seconds: float
    encoding_seconds: float
    computed_rows: int
    computed_tokens: int
    device: str = ""
    device_use: DeviceStats | None = None
    device_waiting: float | None = None
    rank: int = 0
    world_size: int = 1
    complete: bool = True
