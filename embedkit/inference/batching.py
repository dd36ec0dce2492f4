"""Which texts go through the model together, and where their vectors belong afterwards.

Pure arithmetic on lengths: knows nothing about token ids, models or devices. A batch depends on
the lengths in its shard and on the budget alone, so the same shard is batched the same way in
every run, whoever computes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embedkit.types import Batch


def make_batches(
    lengths: Sequence[int] | NDArray[np.int64],
    *,
    max_tokens: int,
    max_rows: int | None = None,
    padded: bool,
    equal_lengths: bool = False,
) -> list[Batch]:
    """Cut a shard's texts into batches of similar length that keep to the budget.

    Texts are ordered by length (equal lengths in input order), so that a padded batch is nearly
    full and a packed one has few distinct lengths. Longest batches come first: memory peaks at
    the start of a shard, where running out of it costs least.

    Args:
        lengths: [N] tokens of each text, each at least 1.
        max_tokens: budget of a batch: cells of the rectangle if `padded`, else tokens. A text
            that is longer than the budget makes a batch of its own.
        max_rows: most texts in a batch; None for no such limit.
        padded: whether the batch will be a rectangle.
        equal_lengths: whether its texts must all have one length, so that the rectangle has no padding.

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
        raise ValueError("a text without tokens has no place in a batch")
    order = np.argsort(sizes, kind="stable")
    ordered = sizes[order].tolist()
    batches: list[Batch] = []
    stop = len(order)
    while stop > 0:
        # From the longest down: the rectangle's width is known as soon as a batch is opened.
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
