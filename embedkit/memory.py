"""When memory runs out: the batch that did not fit is halved, and the budget remembered.

Knows nothing of what a batch computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from embedkit.records import Batch


class TokenBudget:
    """Tokens that a batch may have; shrinks when memory runs out, and stays so for the rest of the run.

    Args:
        tokens: to begin with.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def shrink_below(self, tokens: int) -> None:
        """Remember that so many tokens did not fit."""
        self.tokens = max(1, min(self.tokens, tokens // 2))


def compute_halving(
    batches: Sequence[Batch],
    compute: Callable[[Batch], None],
    cost: Callable[[Batch], int],
    budget: TokenBudget,
) -> list[int]:
    """Compute all batches, in order, halving those that do not fit into memory.

    Args:
        batches: what there is to do.
        compute: does one; may be called again with parts of a batch that it failed on.
        cost: tokens of a batch, as the budget counts them.
        budget: shrinks where memory runs out.

    Returns:
        Numbers of the texts that do not fit even alone.
    """
    waiting = list(reversed(batches))
    unfit: list[int] = []
    while waiting:
        batch = waiting.pop()
        if cost(batch) > budget.tokens and len(batch.texts) > 1:
            waiting += reversed(_halves(batch))
        elif not _fits(batch, compute):
            # Only here, outside the `except`, is the failed pass's memory free: its frames are gone.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            budget.shrink_below(cost(batch))
            if len(batch.texts) > 1:
                waiting += reversed(_halves(batch))
            else:
                unfit.append(int(batch.texts[0]))
    return unfit


def _fits(batch: Batch, compute: Callable[[Batch], None]) -> bool:
    try:
        compute(batch)
    except (RuntimeError, MemoryError) as fault:
        if not _is_out_of_memory(fault):
            raise
        return False
    return True


def _is_out_of_memory(fault: Exception) -> bool:
    # On a CPU, torch raises a RuntimeError of its allocator's.
    return isinstance(fault, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(fault)


def _halves(batch: Batch) -> tuple[Batch, Batch]:
    middle = len(batch.texts) // 2
    return (
        Batch(batch.texts[middle:], batch.lengths[middle:]),
        Batch(batch.texts[:middle], batch.lengths[:middle]),
    )
