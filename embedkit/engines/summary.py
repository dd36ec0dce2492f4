"""The summary of a run. The command line imports it before anything heavy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from embedkit.config import RunConfig
from embedkit.types import DeviceStats

if TYPE_CHECKING:
    from embedkit.inference.build import ModelFacts


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of the whole output; seconds and `computed_*` of this process.

    Attributes:
        path: of the output; `-` for stdout.
        input_rows: rows of the input.
        rows: rows of the output; fewer than `input_rows` if faulty ones were skipped.
        vectors: rows that have one.
        statuses: status → texts.
        rejects: rows listed as rejects.
        n_tokens: tokens of all texts before any cut.
        n_used: of these, tokens that went through the model.
        n_content: of n_tokens, those that are not special.
        n_unknown: of n_content, those that the vocabulary has no entry for; None if it covers every character.
        unknown_share: n_unknown / n_content, 0 to 1.
        dims: dimensions of each variant.
        max_length: most tokens of a text.
        recipe: all that decided the numbers.
        fingerprint: SHA-256 of the recipe.
        seconds: from start to end.
        encoding_seconds: of these, since the model was loaded.
        computed_rows: rows computed now; the others are from a former run.
        computed_tokens: tokens of these.
        device: where it ran.
        device_use: how that was used; None if not measured, as on a CPU.
        device_waiting: share of the time that it waited between batches, 0 to 1; None likewise.
        rank, world_size: this process's number, and how many processes share the run.
        complete: True if the output is complete; else shards of other ranks are missing.
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


def of_model(config: RunConfig, model: ModelFacts) -> dict[str, Any]:
    """Returns the part of a summary that does not depend on the run's result."""
    return {
        "path": config.output.output,
        "dims": {variant.name: variant.dims for variant in model.variants},
        "max_length": model.max_length,
        "recipe": dict(model.recipe),
        "fingerprint": model.fingerprint,
        "device": model.device,
        "rank": config.share.rank,
        "world_size": config.share.world_size,
    }


def summary_of_finished(config: RunConfig, model: ModelFacts, seconds: float) -> Summary:
    """Returns the summary of an output that a former run, or another process, has finished, by its files."""
    from embedkit.output.inspect import inspect_output

    totals = inspect_output(config.output.output).totals
    return Summary(
        **of_model(config, model),
        **replace(totals, input_rows=totals.rows, rejects=0, n_content=0, n_unknown=None).to_json(),
        seconds=seconds,
        encoding_seconds=0.0,
        computed_rows=0,
        computed_tokens=0,
    )
