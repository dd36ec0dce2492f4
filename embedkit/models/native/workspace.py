"""Memory that each thread keeps for what compiled code writes and reads again before it returns.

In pages of 2 MiB where Linux gives them: in those of 4 KiB, matrix products of fp32 by tiles take 15 % longer,
since the rows that they read again and again have more pages than a processor remembers the places of.
"""

from __future__ import annotations

import mmap
import threading

import torch
from torch import Tensor

from embedkit.models.native.weight_memory import large_pages

#: More would be much for a thread to keep: the scores of very long texts.
_MOST_KEPT = 64 << 20
_WORD = 4
#: Numbers of a page: memory is taken in whole ones, so that somewhat longer texts need no other.
_PAGE_NUMBERS = (2 << 20) // _WORD


class _Kept(threading.local):
    def __init__(self) -> None:
        self.numbers: dict[str, Tensor] = {}  # by what it is for


_kept = _Kept()


def workspace(n_numbers: int, purpose: str = "work") -> Tensor:
    """Returns float32 [n_numbers], not initialised.

    The next caller in this thread who names this purpose gets the same memory.
    """
    if n_numbers * _WORD > _MOST_KEPT:
        # Explicit: torch's default is another while a thread loads a model in 16 bits.
        return torch.empty(n_numbers, dtype=torch.float32)
    kept = _kept.numbers.get(purpose)
    if kept is None or len(kept) < n_numbers:
        _kept.numbers.pop(purpose, None)  # freed before there is more
        del kept
        kept = _kept.numbers[purpose] = _allocated(n_numbers + -n_numbers % _PAGE_NUMBERS)
    return kept[:n_numbers]


def _allocated(n_numbers: int) -> Tensor:
    if n_numbers and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory, begin = large_pages(n_numbers * _WORD)
            return torch.frombuffer(memory, dtype=torch.float32, count=n_numbers, offset=begin)
        except OSError:  # there are no such pages, or there is no memory: torch says so better
            pass
    return torch.empty(n_numbers, dtype=torch.float32)
