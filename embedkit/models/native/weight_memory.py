"""Memory for packed weights, in pages of 2 MiB where Linux gives them.

A batch reads all weights of a model. In pages of 4 KiB those of BERT-base have more pages than a processor
remembers the places of, and reading them from its third cache takes more than twice as long.

Imports torch only to make tensors, so that memory can be prepared while others import it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from threading import Lock
from typing import TYPE_CHECKING

from embedkit.models.native.compile_kernels import library
from embedkit.models.native.config import NativeConfig

if TYPE_CHECKING:
    from torch import Tensor

_PAGE = 2 << 20
#: Bytes that are reserved at once: layers share pages. What is not written takes no memory.
_CHUNK = 32 << 20
#: Weights begin where a line of the caches does.
_LINE = 64
_WORD = 4
#: Most bytes that are prepared: it goes on while torch is imported, and a model may turn out to be left to
#: transformers.
_MOST_PREPARED = 512 << 20


class _Chunks:
    """Gives out memory, one part after another."""

    def __init__(self) -> None:
        self._memory: mmap.mmap
        self.begin()

    def begin(self) -> None:
        """Begins with no memory; in a forked child, where a thread that held the lock does not exist."""
        self._lock = Lock()
        self._next = self._end = 0

    def take(self, n_words: int) -> Tensor:
        """Returns int32 [n_words], not initialised; its memory is freed with the last tensor of its chunk."""
        import torch

        size = n_words * _WORD
        with self._lock:
            if self._end - self._next < size:
                self._reserve(size)
            words = torch.frombuffer(self._memory, dtype=torch.int32, count=n_words, offset=self._next)
            self._next += size + -size % _LINE
        return words

    def prepare(self, size: int) -> None:
        """Reserves so many bytes and has the system give their pages; whoever takes memory waits for that."""
        with self._lock:
            self._reserve(size)
            # Touched one by one: a single call for all would keep other threads from mapping files meanwhile.
            for at in range(self._next, self._end, _PAGE):
                ctypes.memset(_address(self._memory) + at, 0, 1)

    def _reserve(self, size: int) -> None:
        size = max(_CHUNK, size + -size % _PAGE)
        self._memory, self._next = large_pages(size)
        self._end = self._next + size


_chunks = _Chunks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_chunks.begin)


def large_pages(size: int) -> tuple[mmap.mmap, int]:
    """Reserves so many bytes and those up to the end of their last page.

    Returns:
        The memory, and where in it the first page begins.

    Raises:
        OSError: the kernel was built without such pages, or there is no memory.
    """
    # A page more, to begin where one does.
    memory = mmap.mmap(-1, size + -size % _PAGE + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory, -_address(memory) % _PAGE


def empty_words(n_words: int) -> Tensor:
    """Returns int32 [n_words], not initialised, for weights that are written once and read often."""
    import torch

    if not hasattr(mmap, "MADV_HUGEPAGE") or not n_words:
        return torch.empty(n_words, dtype=torch.int32)
    try:
        return _chunks.take(n_words)
    except OSError:  # the kernel was built without such pages, or there is no memory: torch says so better
        return torch.empty(n_words, dtype=torch.int32)


def prepare_memory(config: NativeConfig, n_layers: int, dtype: str) -> None:
    """Has the system give the pages for the weights of a model's first layers, at most 512 MiB.

    That takes as long as packing them, and in a virtual machine that has not used the memory yet ten times as
    long.

    Args:
        config: of the model.
        n_layers: the number of its layers that run.
        dtype: fp32 or int8.

    Raises:
        OSError: there are no such pages or no memory, or the products cannot be loaded.
    """
    path = library(f"{dtype}_products.cpp")
    if path is None or not hasattr(mmap, "MADV_HUGEPAGE") or not n_layers:
        return
    n_words = getattr(ctypes.CDLL(str(path)), f"embedkit_{dtype}_packed")
    n_words.argtypes, n_words.restype = (ctypes.c_int64, ctypes.c_int64), ctypes.c_int64
    width, inner, heads = config.hidden_size, config.intermediate_size, config.n_heads * config.head_width
    linears = (
        (heads + 2 * config.n_key_heads * config.head_width, width),
        (width, heads),
        (2 * inner if config.gated else inner, width),
        (width, inner),
    )
    of_layer = sum(_LINE + _WORD * n_words(*shape) for shape in linears)
    # A page for the weights with which the products are checked.
    _chunks.prepare(min(_PAGE + n_layers * of_layer, _MOST_PREPARED))


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
