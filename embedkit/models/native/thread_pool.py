"""Threads that each take some texts of a batch through the layers, each on cores of its own.

torch would split every single operation over the cores, and have them wait for each other behind each: some
hundred times a layer. Here they meet where a layer is wanted. That counts most where another process takes a core
now and then, because then all wait for the one that was put aside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from embedkit.types import LengthGroup

T = TypeVar("T")

#: More threads than this would wait for Python's lock: of a part's layer, 0.08 ms are Python's, and a millisecond
#: or more is not. Cores beyond it work together within a thread's matrix products.
_MOST_THREADS = 16
#: Fewer tokens than this are not worth a thread; more are more than its caches hold.
_FEWEST_TOKENS, _MOST_TOKENS = 128, 512


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive texts of a packed batch.

    Attributes:
        start, stop: tokens of the batch that it covers.
        runs: its texts, by their place in the part.
    """

    start: int
    stop: int
    runs: tuple[LengthGroup, ...]


class ThreadPool:
    """Threads, started when first needed."""

    def __init__(self) -> None:
        self.cores = torch.get_num_threads()
        self.size = min(self.cores, _MOST_THREADS)
        self._pool: ThreadPoolExecutor | None = None

    def parts(self, runs: Sequence[LengthGroup]) -> list[Part]:
        """The texts of a batch in parts of like size: a thread takes the next one when it is through with one."""
        n_tokens = sum(run.count * run.length for run in runs)
        at_once = max(1, min(self.size, n_tokens // _FEWEST_TOKENS))
        rounds = math.ceil(n_tokens / (at_once * _MOST_TOKENS))
        wanted = at_once * rounds
        return list(_cut(runs, n_tokens / wanted))

    def map(self, work: Callable[[T, Part], Tensor], given: Sequence[T], parts: Sequence[Part]) -> list[Tensor]:
        """`work` on what is given for each part, in order; a single part has all cores to itself."""
        if self.size == 1 or len(parts) == 1:
            return list(map(work, given, parts))
        if self._pool is None:
            self._pool = self._started()
        return list(self._pool.map(torch.inference_mode()(work), given, parts))

    def _started(self) -> ThreadPoolExecutor:
        """The threads, all of them at work once, so that each has set how many cores it takes."""
        at_once = Barrier(self.size)

        def begin() -> None:
            # Asked first: a thread takes the default when it first looks, and would lose what it had been told.
            torch.get_num_threads()
            torch.set_num_threads(max(1, self.cores // self.size))

        pool = ThreadPoolExecutor(self.size, "embedkit-forward", begin)
        for one in [pool.submit(at_once.wait) for _ in range(self.size)]:
            one.result()
        # torch takes the number for that of this thread and for a default, too, whoever sets it.
        torch.set_num_threads(self.cores)
        return pool


def _cut(runs: Sequence[LengthGroup], size: float) -> Iterator[Part]:
    """Parts that end behind the text with which they reach their share of the tokens."""
    start = place = 0
    kept: list[LengthGroup] = []
    for run in runs:
        left = run.count
        while left:
            # So many more texts until the part is full; one at least.
            share = (round(start / size) + 1) * size
            count = min(left, max(1, round((share - place) / run.length)))
            kept.append(LengthGroup(place - start, count, run.length))
            place += count * run.length
            left -= count
            if place >= share - run.length / 2:
                yield Part(start, place, tuple(kept))
                start, kept = place, []
    if kept:
        yield Part(start, place, tuple(kept))
