"""What a run takes: time and memory, each with what it rests on. Never a number without a basis."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from embedkit.estimate.counts import Tally
from embedkit.models.repository.config_facts import ConfigFacts

_TRIED_SECONDS = 0.3
_MIB = 2**20
#: Python, torch and transformers, once a model of any size runs: measured with MiniLM on a CPU.
_LIBRARIES = 600 * _MIB
#: float32 values that are alive at once for a token, in hidden sizes: states, queries, keys, values, what
#: attention gives, two residuals.
_ALIVE = 7
#: Shards of vectors that wait for the writer, are written, and are computed.
_SHARDS_HELD = 4


@dataclass(frozen=True, slots=True)
class Duration:
    """How long the model runs.

    Attributes:
        seconds: None where nothing is known to tell it from.
        products_only: whether it counts matrix products alone.
        basis: what it rests on, in words.
    """

    seconds: float | None
    products_only: bool
    basis: str


def duration(tally: Tally, shape: ConfigFacts, deepest: int, rate: float | None, device: str) -> Duration:
    """How long the model runs over all windows.

    Args:
        tally: what there is to compute.
        shape: of the model.
        deepest: the last layer that runs.
        rate: tokens a second, if the user knows it.
        device: as `--device`.
    """
    if rate is not None:
        return Duration(tally.computed / rate, products_only=False, basis=f"at --rate {rate:,.0f} tokens/s")
    if not device.startswith(("cpu", "auto")):
        return Duration(
            None,
            products_only=False,
            basis="the device is not tried out; encode a few shards and give its tokens/s as --rate",
        )
    if shape.layer_weights is None:
        return Duration(
            None, products_only=False, basis="config.json does not tell the size of a layer; give --rate TOKENS/S"
        )
    work = operations(tally, shape, deepest)
    pace = _pace(shape)
    return Duration(
        work / pace,
        products_only=True,
        basis=f"{work / 1e12:,.2f} TFLOP at the {pace / 1e9:,.0f} GFLOP/s that numpy just did on this CPU",
    )


def operations(tally: Tally, shape: ConfigFacts, deepest: int) -> float:
    """Floating-point operations of the matrix products: two a weight and token, and attention's 4 n² D a layer.

    Kaplan et al. 2020 (arXiv 2001.08361, table 1) count the same, a text of n tokens at a time.
    """
    weights = 2.0 * tally.computed * (shape.layer_weights or 0)
    attention = 4.0 * tally.squares * shape.hidden_size
    return deepest * (weights + attention)


def memory(
    shape: ConfigFacts, weights: int, batch_tokens: int, shard_rows: int, row_bytes: int, shard_bytes: int
) -> int:
    """About the bytes that a run holds on a CPU: libraries, weights, a batch's activations, shards of vectors.

    Args:
        shape: of the model.
        weights: bytes of its weights as they are computed with.
        batch_tokens: in a batch.
        shard_rows: most rows in a shard.
        row_bytes: of the vectors of a row in float32.
        shard_bytes: of the texts and tokens of a shard.
    """
    wide = max(shape.intermediate_size or 0, 4 * shape.hidden_size)
    activations = 4 * batch_tokens * (_ALIVE * shape.hidden_size + 2 * wide)
    return _LIBRARIES + weights + activations + _SHARDS_HELD * shard_rows * row_bytes + 3 * shard_bytes


def _pace(shape: ConfigFacts) -> float:
    """Operations a second in the best of some products of the model's shapes, as numpy does them here."""
    rows, inner = 1024, shape.hidden_size
    a = np.ones((rows, inner), np.float32)
    b = np.ones((inner, 4 * inner), np.float32)
    out = np.empty((rows, 4 * inner), np.float32)
    np.matmul(a, b, out=out)
    best, began = float("inf"), time.perf_counter()
    while (before := time.perf_counter()) - began < _TRIED_SECONDS:
        np.matmul(a, b, out=out)
        best = min(best, time.perf_counter() - before)
    return 2.0 * rows * inner * 4 * inner / best
