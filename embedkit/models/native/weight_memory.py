"""Memory for packed weights, in pages of 2 MiB where Linux gives them.

A batch reads all weights of a model. In pages of 4 KiB those of BERT-base have more pages than a processor
remembers the places of, and reading them from its third cache takes more than twice as long.
"""

from __future__ import annotations

import mmap
from threading import Lock

import torch
from torch import Tensor

_PAGE = 2 << 20
#: Bytes that are reserved at once: layers share pages. What is not written takes no memory.
_CHUNK = 32 << 20
#: Weights begin where a line of the caches does.
_LINE = 64
_WORD = 4


class _Chunks:
    """Gives out memory, one part after another."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._memory: mmap.mmap
        self._next = self._end = 0

    def take(self, n_words: int) -> Tensor:
        """Returns int32 [n_words], not initialised; its memory is freed with the last tensor of its chunk."""
        size = n_words * _WORD
        with self._lock:
            if self._end - self._next < size:
                self._reserve(size)
            words = torch.frombuffer(self._memory, dtype=torch.int32, count=n_words, offset=self._next)
            self._next += size + -size % _LINE
        return words

    def _reserve(self, size: int) -> None:
        size = max(_CHUNK, size + -size % _PAGE)
        # A page more, to begin where one does.
        self._memory = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.madvise(mmap.MADV_HUGEPAGE)
        address = torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr()
        self._next = -address % _PAGE
        self._end = self._next + size


_chunks = _Chunks()


def empty_words(n_words: int) -> Tensor:
    """Returns int32 [n_words], not initialised, for weights that are written once and read often."""
    if not hasattr(mmap, "MADV_HUGEPAGE") or not n_words:
        return torch.empty(n_words, dtype=torch.int32)
    try:
        return _chunks.take(n_words)
    except OSError:  # the kernel was built without such pages, or there is no memory: torch says so better
        return torch.empty(n_words, dtype=torch.int32)
