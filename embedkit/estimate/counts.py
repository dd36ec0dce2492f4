"""Counts of a table's texts, from token counts alone: no tokenizer and no text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedkit.types import Fault

#: Faults that are listed.
_LISTED = 20


@dataclass(frozen=True, slots=True)
class LengthBin:
    """The number of texts in a range of lengths."""

    low: int  # tokens
    high: int  # included
    texts: int
    is_over: bool  # longer than the limit


@dataclass(slots=True)
class InputCounts:
    """Counts over all rows; memory grows with the longest text only."""

    rows: int = 0  # read, unreadable ones included
    texts: int = 0  # with a token
    n_faults: int = 0  # unreadable rows
    faults: list[Fault] = field(default_factory=list)  # the first of them
    n_tokens: int = 0  # of all texts before any cut, special tokens included
    n_used: int = 0  # of n_tokens, those that go through the model, each counted once
    n_content: int = 0  # of n_tokens, those that are not special
    n_unknown: int | None = None  # of n_content; None if the vocabulary has no unknown token
    truncated: int = 0  # texts that lose tokens
    windows: int = 0  # that go through the model
    computed: int = 0  # tokens of all windows: overlaps counted twice, equal windows of a shard once
    squares: int = 0  # sum of these windows' squared lengths, for attention
    reused: int = 0  # texts that an earlier output has, which are not computed
    repeated: int = 0  # windows equal to another of their shard, which are computed once
    shards: int = 0
    #: [longest + 1] texts by their tokens.
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))

    def add_faults(self, faults: Sequence[Fault]) -> None:
        """Adds unreadable rows."""
        self.n_faults += len(faults)
        self.faults += faults[: _LISTED - len(self.faults)]

    def add_texts(self, n_tokens: NDArray[np.int32], n_used: NDArray[np.int32]) -> None:
        """Adds a shard's texts: [R] tokens of each, 0 if empty."""
        found = np.bincount(n_tokens[n_tokens > 0], minlength=len(self.lengths)).astype(np.int64)
        found[: len(self.lengths)] += self.lengths
        self.lengths = found
        self.texts += int((n_tokens > 0).sum())
        self.n_tokens += int(n_tokens.sum())
        self.n_used += int(n_used.sum())
        self.truncated += int((n_used < n_tokens).sum())

    def add_windows(self, lengths: NDArray[np.int64], duplicate_of: NDArray[np.int64]) -> None:
        """Adds a shard's windows.

        Args:
            lengths: [W] tokens of each.
            duplicate_of: [C] of those that are to be computed, the first window with the same tokens.
        """
        distinct = lengths[np.unique(duplicate_of)]
        self.shards += 1
        self.windows += len(lengths)
        self.repeated += len(duplicate_of) - len(distinct)
        self.computed += int(distinct.sum())
        self.squares += int((distinct.astype(np.int64) ** 2).sum())

    def quantile(self, share: float) -> int:
        """Returns the length in tokens that this share of the texts does not exceed."""
        if not self.texts:
            return 0
        return int(np.searchsorted(np.cumsum(self.lengths), share * self.texts))

    def histogram(self, limit: int) -> Iterator[LengthBin]:
        """Yields texts by length in ranges that double, with a boundary at the limit."""
        longest = len(self.lengths) - 1
        if not self.texts:
            return
        ends = {2**power for power in range(3, 40)} | {limit, longest}
        low = 1
        for end in sorted(end for end in ends if end <= longest):
            texts = int(self.lengths[low : end + 1].sum())
            if texts or low > 1:
                yield LengthBin(low, end, texts, is_over=low > limit)
            low = end + 1
