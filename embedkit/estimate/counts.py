"""What a table's texts come to, counted as they stream by. Pure: knows token counts, no tokenizer and no text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedkit.types import Fault

#: Faults named one by one.
_NAMED = 20


@dataclass(frozen=True, slots=True)
class Bar:
    """Texts of a range of lengths.

    Attributes:
        low, high: tokens, both ends included.
        texts: how many.
        cut: whether they are longer than the limit.
    """

    low: int
    high: int
    texts: int
    cut: bool


@dataclass(slots=True)
class Tally:
    """Counts over all rows; memory grows with the longest text alone.

    Attributes:
        rows: read, faulty ones among them.
        texts: that have a token.
        n_faults: rows that cannot be read.
        faults: the first of them.
        n_tokens: of all texts before any cut, special tokens included.
        n_used: of these, tokens that go through the model, each counted once.
        n_content: of n_tokens, those that are not special.
        n_unknown: of n_content, those that the vocabulary has no entry for; None where it has one for everything.
        truncated: texts that lose tokens.
        windows: that go through the model.
        computed: tokens that go through it: overlaps counted twice, equal windows of a shard once.
        squares: of the lengths of these windows, summed, for attention.
        repeated: windows that have the tokens of another one of their shard, and are computed with it.
        shards: so many.
        lengths: int64 [longest + 1], texts by their tokens.
    """

    rows: int = 0
    texts: int = 0
    n_faults: int = 0
    faults: list[Fault] = field(default_factory=list)
    n_tokens: int = 0
    n_used: int = 0
    n_content: int = 0
    n_unknown: int | None = None
    truncated: int = 0
    windows: int = 0
    computed: int = 0
    squares: int = 0
    repeated: int = 0
    shards: int = 0
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))

    def add_faults(self, faults: Sequence[Fault]) -> None:
        """Count rows that cannot be read."""
        self.n_faults += len(faults)
        self.faults += faults[: _NAMED - len(self.faults)]

    def add_texts(self, n_tokens: NDArray[np.int32], n_used: NDArray[np.int32]) -> None:
        """Count the receipts of a shard's texts: [R] tokens of each, 0 where empty."""
        found = np.bincount(n_tokens[n_tokens > 0], minlength=len(self.lengths)).astype(np.int64)
        found[: len(self.lengths)] += self.lengths
        self.lengths = found
        self.texts += int((n_tokens > 0).sum())
        self.n_tokens += int(n_tokens.sum())
        self.n_used += int(n_used.sum())
        self.truncated += int((n_used < n_tokens).sum())

    def add_windows(self, lengths: NDArray[np.int64], alike: NDArray[np.int64]) -> None:
        """Count a shard's windows: [W] tokens of each, and the first window with the same tokens."""
        distinct = lengths[np.unique(alike)]
        self.shards += 1
        self.windows += len(lengths)
        self.repeated += len(lengths) - len(distinct)
        self.computed += int(distinct.sum())
        self.squares += int((distinct.astype(np.int64) ** 2).sum())

    def at(self, share: float) -> int:
        """The length that this share of the texts does not exceed, in tokens."""
        if not self.texts:
            return 0
        return int(np.searchsorted(np.cumsum(self.lengths), share * self.texts))

    def bars(self, limit: int) -> Iterator[Bar]:
        """Texts by length, in ranges that double, from the shortest to the longest, parted at the limit."""
        longest = len(self.lengths) - 1
        if not self.texts:
            return
        ends = {2**power for power in range(3, 40)} | {limit, longest}
        low = 1
        for end in sorted(end for end in ends if end <= longest):
            texts = int(self.lengths[low : end + 1].sum())
            # A limit such as 250 leaves a sliver up to 256.
            if texts or low > 1:
                yield Bar(low, end, texts, cut=low > limit)
            low = end + 1
