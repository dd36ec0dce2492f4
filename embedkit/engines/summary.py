"""What came of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from embedkit.config import RunConfig
from embedkit.device_use import DeviceUse
from embedkit.engines.planning import ModelFacts
from embedkit.inspection import inspect_output

#: Of an output that was there already, its files do not tell this.
_UNTOLD: dict[str, Any] = {"n_content": 0, "n_unknown": None, "unknown_share": None}


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
    device_use: DeviceUse | None = None
    device_waiting: float | None = None
    rank: int = 0
    world_size: int = 1
    complete: bool = True


def of_model(config: RunConfig, model: ModelFacts) -> dict[str, Any]:
    """What a summary says of the run whatever came of it."""
    return {
        "path": config.output.output,
        "dims": {variant.name: variant.dims for variant in model.variants},
        "max_length": model.max_length,
        "recipe": model.recipe,
        "fingerprint": model.fingerprint,
        "device": model.device,
        "rank": config.share.rank,
        "world_size": config.share.world_size,
    }


def summary_of_whole(config: RunConfig, model: ModelFacts, seconds: float) -> Summary:
    """Of an output that a former run, or another process, has finished: counted anew from its files."""
    receipts = inspect_output(config.output.output).receipts
    return Summary(
        **of_model(config, model),
        input_rows=receipts.rows,
        rows=receipts.rows,
        vectors=receipts.vectors,
        statuses=dict(receipts.status),
        rejects=0,
        n_tokens=receipts.n_tokens,
        n_used=receipts.n_used,
        **_UNTOLD,
        seconds=seconds,
        encoding_seconds=0.0,
        computed_rows=0,
        computed_tokens=0,
    )
