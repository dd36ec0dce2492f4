"""Time and memory of a run, each with its basis."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from embedkit.estimate.counts import InputCounts
from embedkit.models.repository.config_facts import ConfigFacts

_TRIAL_SECONDS = 0.3
_MIB = 2**20
#: Python, torch and transformers while a model runs: measured with MiniLM on a CPU.
_LIBRARIES = 600 * _MIB
#: float32 values held at once for a token, in hidden sizes: states, queries, keys, values, attention output, two
#: residuals.
_HELD = 7
#: Shards of vectors that are queued, written and computed.
_SHARDS_HELD = 4


@dataclass(frozen=True, slots=True)
class Duration:
    """Time that the model runs."""

    seconds: float | None  # None if unknown
    products_only: bool  # counts matrix products only
    basis: str  # of the estimate, in words; or why it is unknown


def duration(counts: InputCounts, facts: ConfigFacts, deepest: int, rate: float | None, device: str) -> Duration:
    """Estimates the time that the model runs over all windows.

    Args:
        counts: the windows to compute.
        facts: sizes of the model.
        deepest: number of the last layer that runs.
        rate: tokens a second, if the user knows it.
        device: as `--device`.
    """
    if rate is not None:
        return Duration(counts.computed / rate, False, f"at --rate {rate:,.0f} tokens/s")
    if not device.startswith(("cpu", "auto")):
        return Duration(
            None, False, "the device is not measured; encode a few shards and give the tokens/s as --rate"
        )
    if facts.layer_weights is None:
        return Duration(None, False, "config.json does not give the size of a layer; give --rate TOKENS/S")
    work, flops = operations(counts, facts, deepest), _measured_flops(facts)
    basis = f"{work / 1e12:,.2f} TFLOP at the {flops / 1e9:,.0f} GFLOP/s that numpy just did on this CPU"
    return Duration(work / flops, True, basis)


def operations(counts: InputCounts, facts: ConfigFacts, deepest: int) -> float:
    """Returns the floating-point operations of the matrix products: 2 a weight and token, and 4 n² D in attention.

    The counts are those of Kaplan et al. 2020 (arXiv 2001.08361, table 1).
    """
    weights = 2.0 * counts.computed * (facts.layer_weights or 0)
    attention = 4.0 * counts.squares * facts.hidden_size
    return deepest * (weights + attention)


def memory(
    facts: ConfigFacts, weights: int, batch_tokens: int, shard_rows: int, row_bytes: int, shard_bytes: int
) -> int:
    """Estimates the bytes that a run holds on a CPU: libraries, weights, a batch's activations, shards of vectors.

    Args:
        facts: sizes of the model.
        weights: bytes of its weights.
        batch_tokens: tokens in a batch.
        shard_rows: most rows in a shard.
        row_bytes: bytes of a row's vectors in float32.
        shard_bytes: bytes of a shard's texts and tokens.
    """
    wide = max(facts.intermediate_size or 0, 4 * facts.hidden_size)
    activations = 4 * batch_tokens * (_HELD * facts.hidden_size + 2 * wide)
    return _LIBRARIES + weights + activations + _SHARDS_HELD * shard_rows * row_bytes + 3 * shard_bytes


def _measured_flops(facts: ConfigFacts) -> float:
    """Measures the best rate, in operations a second, of numpy's products of the model's shapes."""
    rows, inner = 1024, facts.hidden_size
    a = np.ones((rows, inner), np.float32)
    b = np.ones((inner, 4 * inner), np.float32)
    out = np.empty((rows, 4 * inner), np.float32)
    np.matmul(a, b, out=out)
    best, began = float("inf"), time.perf_counter()
    while (before := time.perf_counter()) - began < _TRIAL_SECONDS:
        np.matmul(a, b, out=out)
        best = min(best, time.perf_counter() - before)
    return 2.0 * rows * inner * 4 * inner / best
