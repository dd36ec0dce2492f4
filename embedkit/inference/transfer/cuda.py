"""What is asked of CUDA on the way to a GPU and back, and nothing else: all the rest is tested without one."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Device(Protocol):
    """What is asked of CUDA. Streams are called `in`, `compute` and `out`."""

    def pinned(self, size: int) -> Tensor:
        """Host memory that a device copies from and to by itself: uint8 [size]."""

    def memory(self, size: int) -> Tensor:
        """Memory of the device: uint8 [size]."""

    def copy(self, stream: str, to: Tensor, of: Tensor) -> None:
        """Have a stream copy a tensor, without waiting for it."""

    def record(self, stream: str) -> Any:
        """An event that passes when a stream has done all that it was given so far."""

    def wait(self, stream: str, event: Any) -> None:
        """Let a stream go on only when an event has passed; the host does not wait."""

    def finish(self, event: Any) -> None:
        """Let the host wait until an event has passed."""

    def seconds(self, begin: Any, end: Any) -> float:
        """Time between two events that have passed."""

    def peak(self) -> tuple[int, int]:
        """Most bytes that tensors had, and that were taken from the device for them."""

    def free(self) -> None:
        """Give memory back that no tensor has."""


class CudaDevice:
    """A CUDA device, by way of torch.

    Args:
        device: which.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        stream: Any = torch.cuda.Stream
        self._streams: dict[str, torch.cuda.Stream] = {name: stream(device) for name in ("in", "out")}

    def pinned(self, size: int) -> Tensor:
        """See Device."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def memory(self, size: int) -> Tensor:
        """See Device; of memory that only the stream of copies in has used, which need not wait for the others."""
        with torch.cuda.stream(self._stream("in")):
            return torch.empty(size, dtype=torch.uint8, device=self._device)

    def copy(self, stream: str, to: Tensor, of: Tensor) -> None:
        """See Device."""
        with torch.cuda.stream(self._stream(stream)):
            to.copy_(of, non_blocking=True)

    def record(self, stream: str) -> torch.cuda.Event:
        """See Device; the host sleeps while it waits for it, for other threads have work to do."""
        make: Any = torch.cuda.Event
        event: torch.cuda.Event = make(enable_timing=True, blocking=True)
        event.record(self._stream(stream))
        return event

    def wait(self, stream: str, event: torch.cuda.Event) -> None:
        """See Device."""
        self._stream(stream).wait_event(event)

    def finish(self, event: torch.cuda.Event) -> None:
        """See Device."""
        event.synchronize()

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """See Device."""
        return float(begin.elapsed_time(end)) / 1000

    def peak(self) -> tuple[int, int]:
        """See Device."""
        cuda = torch.cuda
        return cuda.max_memory_allocated(self._device), cuda.max_memory_reserved(self._device)

    def free(self) -> None:
        """See Device."""
        torch.cuda.empty_cache()

    def _stream(self, name: str) -> torch.cuda.Stream:
        return self._streams[name] if name in self._streams else torch.cuda.current_stream(self._device)
