"""How many tokens a batch may have: what a device has room for, and what is remembered when memory ran out.

Knows nothing of what a batch computes.
"""

from __future__ import annotations

import torch

from embedkit.types import Batch

#: Tokens of a batch on a GPU that has room for them, and the fewest that are tried on a small one.
_MOST, _FEWEST = 65_536, 1_024
#: Of a device's memory, what is left for the activations of a batch beside the weights: CUDA itself, kernels' own
#: memory, blocks of the wrong size, another process's.
_SHARE = 0.6
#: States as wide as the model that are alive at once: what goes into a layer, what is added to it, queries, keys,
#: values, what attention gives, and two in float32 for the pooling or a norm (which count twice).
_STATES = 6 + 2 * 2
#: Batches whose vectors are on their way back while the next one runs; and one that is being put together.
_GIVEN_BACK = 4
#: Bytes of vectors that a batch gives back at most: the host holds some of them, too, in memory that stays.
_MOST_BACK = 1 << 30
#: Copies of the scores of attention where they are made whole: as they are, with a bias or mask, as softmax.
_SCORES = 3


class TokenBudget:
    """Tokens that a batch may have; shrinks when memory runs out, and stays so for the rest of the run.

    What is batched together depends on the shard and on this alone, so where memory ran out, it also depends on
    what the process had computed before; the vectors then differ by rounding.

    Args:
        tokens: to begin with.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def shrink_below(self, tokens: int) -> None:
        """Remember that so many tokens did not fit."""
        self.tokens = max(1, min(self.tokens, tokens // 2))


def bytes_per_token(
    hidden_size: int,
    intermediate_size: int,
    n_heads: int,
    *,
    size: int,
    whole_scores: int | None,
    given_back: int = 0,
) -> int:
    """About the bytes that a forward pass without gradients needs for a token, at its widest.

    Args:
        hidden_size: dimensions of a state.
        intermediate_size: inner dimensions of the feed-forward part; before and behind its activation, and a gate.
        n_heads: of the attention.
        size: bytes of a number.
        whole_scores: tokens of the longest text, where attention keeps all scores of one; else None.
        given_back: values in the vectors of a token, where it is vectors of tokens that are wanted.
    """
    scores = 0 if whole_scores is None else _SCORES * n_heads * whole_scores
    return size * (_STATES * hidden_size + 3 * intermediate_size + scores) + 4 * _GIVEN_BACK * given_back


def device_memory(device: torch.device) -> tuple[int, int]:
    """Bytes that a CUDA device has, and those of the tensors that this process keeps there: the weights."""
    return torch.cuda.get_device_properties(device).total_memory, torch.cuda.memory_allocated(device)


def tokens_that_fit(memory: int, weights: int, per_token: int, processes: int = 1, given_back: int = 0) -> int:
    """Tokens for a batch, a power of two: 65,536 where they fit, fewer on a small card.

    It is settled by the card's whole memory and not by what is free of it now, so that the same job is cut into
    the same batches whenever it runs on such a card.

    Args:
        memory: bytes that the device has.
        weights: bytes of the model's.
        per_token: see `bytes_per_token`.
        processes: how many share the device, each with weights of its own.
        given_back: see `bytes_per_token`.
    """
    room = max(0.0, _SHARE * memory / processes - weights)
    fits = min(int(room // per_token), _MOST_BACK // max(1, 4 * given_back))
    return max(_FEWEST, min(_MOST, 1 << max(0, fits.bit_length() - 1)))


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether a fault says that memory ran out, on a CPU or a GPU."""
    # On a CPU, torch raises a RuntimeError of its allocator's; CUDA's libraries have words of their own.
    words = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(fault, MemoryError | torch.OutOfMemoryError) or (
        isinstance(fault, RuntimeError) and any(word in str(fault) for word in words)
    )


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Two batches of half the texts each, the longer texts first, as batches are ordered."""
    middle = len(batch.texts) // 2
    return (
        Batch(batch.texts[middle:], batch.lengths[middle:]),
        Batch(batch.texts[:middle], batch.lengths[:middle]),
    )
