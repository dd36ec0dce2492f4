"""How a summary is made, from what the model settles and from what a finished output holds."""

from __future__ import annotations

from typing import Any

from embedkit.config import RunConfig
from embedkit.engines.summary import Summary
from embedkit.inference.build import ModelFacts
from embedkit.output.inspect import inspect_output

#: Of an output that was there already, its files do not tell this.
_UNTOLD: dict[str, Any] = {"n_content": 0, "n_unknown": None, "unknown_share": None}


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
