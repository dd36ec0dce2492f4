"""Threads that each run some texts of a batch through the layers, on cores of their own.

torch would split each operation over all cores and synchronise them after it, some hundred times a layer. Here
they synchronise where a layer is wanted. That matters most if another process takes a core now and then, since all
would wait for the interrupted one.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import Any, TypeVar

import torch

from embedkit.types import LengthGroup

#: More threads would wait for Python's lock: a part takes less than a millisecond in Python, and 256 tokens take
#: 6 ms (MiniLM in int8 with AMX) to 200 ms (BERT-base in fp32) outside. Further cores share the matrix products
#: within a thread, each of which goes through Python.
_MOST_THREADS = 32
#: Fewer tokens are not worth a thread; more would leave threads without work at the end of a batch.
_FEWEST_TOKENS, _MOST_TOKENS = 128, 1024
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive texts of a packed batch."""

    texts: slice  # its texts in the batch
    tokens: slice  # their tokens
    groups: tuple[LengthGroup, ...]  # the texts; `start` of a group counts from the part's first token


class ThreadPool:
    """Threads, started when first needed."""

    def __init__(self) -> None:
        self.cores = torch.get_num_threads()
        self.size = min(self.cores, _MOST_THREADS)
        self._pool: ThreadPoolExecutor | None = None

    def parts(self, groups: Sequence[LengthGroup]) -> list[Part]:
        """Divides the texts of a batch into parts of similar size; an idle thread takes the next part."""
        n_tokens = sum(group.count * group.length for group in groups)
        at_once = max(1, min(self.size, n_tokens // _FEWEST_TOKENS))
        rounds = math.ceil(n_tokens / (at_once * _MOST_TOKENS))
        return list(_split(groups, n_tokens / (at_once * rounds)))

    def map(self, work: Callable[..., T], *inputs: Sequence[Any]) -> list[T]:
        """Runs `work` on the inputs of each part, in order; parts that are fewer than the cores share them all."""
        n_parts = len(inputs[0])
        if self.size == 1 or n_parts == 1:
            return list(map(work, *inputs))
        if self._pool is None:
            self._pool = self._start()
        cores = max(1, self.cores // min(n_parts, self.size))
        changed = threading.Event()

        @torch.inference_mode()
        def run(*of_part: Any) -> T:
            if torch.get_num_threads() != cores:
                torch.set_num_threads(cores)
                changed.set()
            return work(*of_part)

        try:
            return list(self._pool.map(run, *inputs))
        finally:
            if changed.is_set():
                # torch also takes the number that any thread sets as the default of all.
                torch.set_num_threads(self.cores)

    def _start(self) -> ThreadPoolExecutor:
        """Starts all threads at once, so that none is missing when a batch comes."""
        at_once = Barrier(self.size)
        # The first query makes a thread take the default, which would overwrite what is set before it.
        pool = ThreadPoolExecutor(self.size, "embedkit-forward", torch.get_num_threads)
        for started in [pool.submit(at_once.wait) for _ in range(self.size)]:
            started.result()
        return pool


def run_shares(work: Callable[[int], None], n_shares: int) -> None:
    """Runs work(0), ..., work(n_shares - 1) at once, the last of them in this thread."""
    others = [_helpers().submit(work, share) for share in range(n_shares - 1)]
    work(n_shares - 1)
    for other in others:
        other.result()


@functools.cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "embedkit-share")


def _split(groups: Sequence[LengthGroup], size: float) -> Iterator[Part]:
    """Yields parts that end after the text with which they reach their share of the tokens."""
    start = position = first = text = 0
    kept: list[LengthGroup] = []
    for group in groups:
        left = group.count
        while left:
            # As many texts as fill the part; at least one.
            share = (round(start / size) + 1) * size
            count = min(left, max(1, round((share - position) / group.length)))
            kept.append(LengthGroup(position - start, count, group.length))
            position += count * group.length
            text += count
            left -= count
            if position >= share - group.length / 2:
                yield Part(slice(first, text), slice(start, position), tuple(kept))
                start, first, kept = position, text, []
    if kept:
        yield Part(slice(first, text), slice(start, position), tuple(kept))
