"""How a summary is made, from what the model settles and from what a finished output holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from embedkit.config import RunConfig
from embedkit.engines.summary import Summary
from embedkit.inference.build import ModelFacts
from embedkit.output.inspect import inspect_output


def of_model(config: RunConfig, model: ModelFacts) -> dict[str, Any]:
    """What a summary says of the run whatever came of it."""
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


def summary_of_whole(config: RunConfig, model: ModelFacts, seconds: float) -> Summary:
    """Of an output that a former run, or another process, has finished: counted anew from its files."""
    totals = inspect_output(config.output.output).totals
    return Summary(
        **of_model(config, model),
        **replace(totals, input_rows=totals.rows, rejects=0, n_content=0, n_unknown=None).to_json(),
        seconds=seconds,
        encoding_seconds=0.0,
        computed_rows=0,
        computed_tokens=0,
    )
