"""The summary of a run. The command line imports it before anything heavy."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from embedkit.config import RunConfig

if TYPE_CHECKING:
    from embedkit.types import DeviceStats

if TYPE_CHECKING:
    from embedkit.inference.build import ModelFacts
    from embedkit.manifest.schema import Totals


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of the whole output; seconds and `computed_*` of this process."""

    path: str  # of the output; - for stdout
    input_rows: int
    rows: int  # of the output; fewer than `input_rows` if faulty ones were skipped
    vectors: int  # rows that have one
    statuses: dict[str, int]  # status → texts
    rejects: int  # rows listed as rejects
    n_tokens: int  # of all texts, before any cut
    n_used: int  # of these, those that went through the model
    n_content: int  # of n_tokens, those that are not special
    n_unknown: int | None  # of n_content, those that the vocabulary lacks; None if it covers every character
    unknown_share: float | None  # n_unknown / n_content, 0 to 1
    dims: dict[str, int]  # of each variant
    max_length: int  # most tokens of a text
    recipe: dict[str, Any]  # all that decided the numbers
    fingerprint: str  # SHA-256 of the recipe
    seconds: float  # from start to end
    encoding_seconds: float = 0.0  # of these, since the model was loaded
    computed_rows: int = 0  # now; the others are from a former run
    computed_tokens: int = 0  # of these rows
    reused: int = 0  # rows whose vectors are from earlier outputs
    device: str = ""
    device_use: DeviceStats | None = None  # None if not measured, as on a CPU
    device_waiting: float | None = None  # share of the time that it waited between batches, 0 to 1
    rank: int = 0
    world_size: int = 1
    complete: bool = True  # else shards of other ranks are missing


def summarize(config: RunConfig, model: ModelFacts, totals: Totals, began: float, **computed: Any) -> Summary:
    """Returns the summary of a run that began at a time of the monotonic clock."""
    return Summary(
        path=config.output.output,
        **totals.to_json(),
        dims={variant.name: variant.dims for variant in model.variants},
        max_length=model.max_length,
        recipe=dict(model.recipe),
        fingerprint=model.fingerprint,
        seconds=time.monotonic() - began,
        device=model.device,
        rank=config.share.rank,
        world_size=config.share.world_size,
        **computed,
    )


def summary_of_finished(config: RunConfig, model: ModelFacts, began: float) -> Summary:
    """Returns the summary of an output that a former run, or another process, has finished, by its files."""
    from embedkit.output.inspect import inspect_output

    totals = inspect_output(config.output.output).totals
    totals = replace(totals, input_rows=totals.rows, rejects=0, n_content=0, n_unknown=None)
    return summarize(config, model, totals, began)
