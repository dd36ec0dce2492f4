"""Cuts the texts of a shard into batches, within a budget of tokens that follows from the device's memory.

Batches depend on the lengths in the shard and on the budget alone: a shard is batched the same way in every run.
Only after memory ran out do they also depend on what the process had computed before; vectors then differ by
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from embedkit.types import Batch

#: Tokens of a batch on a GPU: most, and fewest.
_MOST, _FEWEST = 65_536, 1_024
#: Share of a device's memory for weights and activations; the rest is for CUDA itself, workspaces of kernels,
#: fragmentation and other processes.
_SHARE = 0.6
#: States as wide as the model that are alive at once: a layer's input, its residual, queries, keys, values, the
#: output of attention, and two in float32 (which count twice) for pooling or a norm.
_STATES = 6 + 2 * 2
#: Batches whose vectors are in memory at once: on their way back, and being assembled.
_BATCHES_RETURNING = 4
#: Most bytes of vectors that a batch may return: the host keeps some of them in pinned memory.
_MOST_RETURNED = 1 << 30
#: Copies of the attention scores where they are not computed in tiles: raw, with bias or mask, after softmax.
_SCORES = 3


class TokenBudget:
    """The tokens that a batch may have. Shrinks when memory runs out, for the rest of the run."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def shrink_below(self, tokens: int) -> None:
        """Halves the budget below a batch that did not fit."""
        self.tokens = max(1, min(self.tokens, tokens // 2))


def make_batches(
    lengths: Sequence[int] | NDArray[np.int64],
    *,
    max_tokens: int,
    max_rows: int | None = None,
    padded: bool,
    equal_lengths: bool = False,
) -> list[Batch]:
    """Cuts texts into batches of similar length within a budget.

    Texts are sorted by length (ties in input order): a padded batch is nearly full, and a packed one has few
    distinct lengths. The longest come first: memory peaks at the start of a shard, where running out costs least.

    Args:
        lengths: [N] tokens of each text, each at least 1.
        max_tokens: budget of a batch, padding included if `padded`. A longer text makes a batch of its own.
        max_rows: most texts in a batch; None: no limit.
        padded: the texts of a batch are padded to the longest.
        equal_lengths: all texts of a batch must have the same length.

    Returns:
        Batches that hold every text exactly once.

    Raises:
        ValueError: a length or a limit is below 1.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    limit = len(sizes) if max_rows is None else max_rows
    if max_tokens < 1 or (max_rows is not None and max_rows < 1):
        raise ValueError(f"a batch needs room for one token and one text: {max_tokens=}, {max_rows=}")
    if len(sizes) and sizes.min() < 1:
        raise ValueError("a text without tokens cannot be in a batch")
    order = np.argsort(sizes, kind="stable")
    ordered = sizes[order].tolist()
    batches: list[Batch] = []
    stop = len(order)
    while stop > 0:
        # From the longest down: the padded width is known as soon as a batch is opened.
        width, start, total = ordered[stop - 1], stop - 1, ordered[stop - 1]
        while start > 0 and stop - start < limit:
            if equal_lengths and ordered[start - 1] != width:
                break
            grown = width * (stop - start + 1) if padded else total + ordered[start - 1]
            if grown > max_tokens:
                break
            start -= 1
            total = grown
        batches.append(Batch(order[start:stop], sizes[order[start:stop]]))
        stop = start
    return batches


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Splits a batch into two with half of the texts each, the longer texts first."""
    middle = len(batch.texts) // 2
    return (
        Batch(batch.texts[middle:], batch.lengths[middle:]),
        Batch(batch.texts[:middle], batch.lengths[:middle]),
    )


def bytes_per_token(
    hidden_size: int,
    intermediate_size: int,
    n_heads: int,
    *,
    size: int,
    longest_scores: int | None,
    returned: int = 0,
) -> int:
    """Estimates the peak bytes per token of a forward pass without gradients.

    Args:
        hidden_size: dimensions of a state.
        intermediate_size: inner dimensions of the feed-forward part; counted before and after its activation, and
            for a gate.
        n_heads: attention heads.
        size: bytes of a number.
        longest_scores: tokens of the longest text, if attention keeps all scores of a text; else None.
        returned: values in the vectors of a token, if token vectors are returned.
    """
    scores = 0 if longest_scores is None else _SCORES * n_heads * longest_scores
    return size * (_STATES * hidden_size + 3 * intermediate_size + scores) + 4 * _BATCHES_RETURNING * returned


def device_memory(device: torch.device) -> tuple[int, int]:
    """Returns the bytes of a CUDA device, and those allocated by this process: the weights."""
    return torch.cuda.get_device_properties(device).total_memory, torch.cuda.memory_allocated(device)


def tokens_that_fit(memory: int, weights: int, per_token: int, processes: int = 1, returned: int = 0) -> int:
    """Returns the tokens of a batch on a GPU, a power of two: 65,536 where they fit, fewer on a small card.

    It follows from all of the card's memory, not from what is free now, so that batches are the same in every run
    on such a card.

    Args:
        memory: bytes of the device.
        weights: bytes of the model.
        per_token: see `bytes_per_token`.
        processes: number of processes that share the device, each with its own weights.
        returned: see `bytes_per_token`.
    """
    room = max(0.0, _SHARE * memory / processes - weights)
    fits = min(int(room // per_token), _MOST_RETURNED // max(1, 4 * returned))
    return max(_FEWEST, min(_MOST, 1 << max(0, fits.bit_length() - 1)))


def is_out_of_memory(fault: BaseException) -> bool:
    """Returns True for the exceptions of a CPU or GPU that ran out of memory."""
    # On a CPU, torch's allocator raises a RuntimeError; CUDA's libraries have messages of their own.
    words = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(fault, MemoryError | torch.OutOfMemoryError) or (
        isinstance(fault, RuntimeError) and any(word in str(fault) for word in words)
    )
