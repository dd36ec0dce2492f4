"""Copies the arrays of a batch to the device and its vectors back.

On a CPU or MPS each batch is copied when its turn comes. On a GPU, copies go through pinned memory on streams of
their own, so that the host waits neither for the batch that it has just started nor for the copies of another one:

    stage      any thread    numpy → pinned buffer → (copy-in stream) → the device's buffer
    receive    the caller's  the compute stream waits for that copy alone
    give_back  the caller's  (copy-out stream, once the vectors are computed) → pinned buffer
    collect    the caller's  waits for that copy, one or two batches later

A buffer is written again only after the event that ends its last use.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedkit.types import DeviceStats

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
#: Takes the vectors of a batch, which are valid only during the call.
Use: TypeAlias = Callable[[Mapping[Any, NDArray[np.float32]]], None]

#: Parts of a buffer begin at multiples of this: torch reads no number across its own alignment.
_ALIGNMENT = 64


class Transfer:
    """Copies a batch when its turn comes, and waits for it.

    Attributes:
        prefetch: batches staged before their turn, in a thread of their own; 0: each in its turn.
        in_flight: batches that may be started before the vectors of the first are collected.
    """

    def __init__(self, device: torch.device, *, prefetch: int = 0, in_flight: int = 0) -> None:
        self.prefetch = prefetch
        self.in_flight = in_flight
        self._device = device

    def stage(self, arrays: Arrays) -> Any:
        """Starts the copy of arrays to the device."""
        return arrays

    def receive(self, staged: Any) -> dict[str, Tensor]:
        """Returns the arrays as tensors on the device, in the order of staging, valid until `give_back`.

        On a CPU they share the arrays' memory.
        """
        return {name: torch.from_numpy(array).to(self._device) for name, array in staged.items()}

    def give_back(self, staged: Any, vectors: Mapping[Any, Tensor]) -> Any:  # noqa: ARG002
        """Starts the copy of float32 vectors to the host; what was staged may be overwritten."""
        return vectors

    def collect(self, returning: Any, use: Use) -> None:
        """Waits for the vectors and hands them to `use`."""
        use({name: vectors.cpu().numpy() for name, vectors in returning.items()})

    def discard(self, staged: Any) -> None:
        """Releases what was staged for a batch that is not started or has failed."""

    def drop(self, returning: Any) -> None:
        """Releases the vectors of a batch that is not collected."""

    def free_memory(self) -> None:
        """Returns unused memory to the device after memory ran out."""

    def stats(self) -> DeviceStats | None:
        """Returns the use of the device so far; None if that is not measured."""
        return None


def transfer_for(device: torch.device) -> Transfer:
    """Returns the transfer for a device."""
    return PinnedTransfer(CudaDevice(device)) if device.type == "cuda" else Transfer(device)


class CudaDevice:
    """The operations of CUDA that PinnedTransfer needs. Streams are called `in`, `compute` and `out`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        stream: Any = torch.cuda.Stream
        self._streams: dict[str, torch.cuda.Stream] = {name: stream(device) for name in ("in", "out")}

    def pinned(self, size: int) -> Tensor:
        """Returns host memory that the device copies from and to by itself: uint8 [size]."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def memory(self, size: int) -> Tensor:
        """Returns device memory that only the `in` stream has used, and so waits for no other: uint8 [size]."""
        with torch.cuda.stream(self._stream("in")):
            return torch.empty(size, dtype=torch.uint8, device=self.device)

    def copy(self, stream: str, to: Tensor, source: Tensor) -> None:
        """Queues a copy on a stream."""
        with torch.cuda.stream(self._stream(stream)):
            to.copy_(source, non_blocking=True)

    def record(self, stream: str) -> torch.cuda.Event:
        """Returns an event that passes when a stream has finished everything queued so far.

        The host sleeps while it waits for it: other threads have work to do.
        """
        make: Any = torch.cuda.Event
        event: torch.cuda.Event = make(enable_timing=True, blocking=True)
        event.record(self._stream(stream))
        return event

    def wait(self, stream: str, event: torch.cuda.Event) -> None:
        """Makes a stream wait for an event; the host goes on."""
        self._stream(stream).wait_event(event)

    def finish(self, event: torch.cuda.Event) -> None:
        """Makes the host wait for an event."""
        event.synchronize()

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Returns the seconds between two events that have passed."""
        return float(begin.elapsed_time(end)) / 1000

    def peak(self) -> tuple[int, int]:
        """Returns the most bytes that tensors took, and that were reserved for them."""
        return torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)

    def free(self) -> None:
        """Frees memory that no tensor uses."""
        torch.cuda.empty_cache()

    def _stream(self, name: str) -> torch.cuda.Stream:
        return self._streams[name] if name in self._streams else torch.cuda.current_stream(self.device)


@dataclass(eq=False)
class _Buffer:
    """Reused memory, and the events that end its uses."""

    pinned: Tensor | None = None  # on the host
    memory: Tensor | None = None  # on the device; unused on the way back, where it is the vectors' own
    copied: Any = None  # event that ends the last copy from or to `pinned`
    used: Any = None  # event that ends the last batch that read `memory`


@dataclass(eq=False)
class _Staged:
    buffer: _Buffer
    parts: dict[str, tuple[int, NDArray[Any]]]
    began: Any = None


@dataclass(eq=False)
class _Returning:
    """Keeps the vectors alive until they are copied: their memory could be given to another tensor."""

    buffer: _Buffer
    vectors: Mapping[Any, Tensor]
    began: Any
    ended: Any


class PinnedTransfer(Transfer):
    """Copies through pinned memory without waiting. One thread stages, another does the rest."""

    def __init__(self, device: CudaDevice, *, prefetch: int = 2, in_flight: int = 2) -> None:
        super().__init__(torch.device("cuda"), prefetch=prefetch, in_flight=in_flight)
        self.device = device
        # One more than may be in use each way, and one for a batch that is being halved.
        self._free: queue.SimpleQueue[_Buffer] = queue.SimpleQueue()
        for _ in range(prefetch + 2):
            self._free.put(_Buffer())
        # A stack: the buffer that came back last is large enough, and no longer in use on the device.
        self._free_returning = [_Buffer() for _ in range(in_flight + 2)]
        self._last_ended: Any = None
        self._busy = self._waited = 0.0

    def stage(self, arrays: Arrays) -> _Staged:
        """See Transfer. Waits while all buffers are in use."""
        buffer = self._free.get()
        try:
            offsets, size = _offsets({name: array.nbytes for name, array in arrays.items()})
            if buffer.copied is not None:
                self.device.finish(buffer.copied)
            pinned = buffer.pinned = _large_enough(buffer.pinned, size, self.device.pinned)
            if buffer.memory is None or len(buffer.memory) < size:
                if buffer.used is not None:
                    # Freed memory goes to whichever tensor comes next, so the batch that reads it must have ended.
                    self.device.finish(buffer.used)
                buffer.memory = _large_enough(None, size, self.device.memory)
            elif buffer.used is not None:
                self.device.wait("in", buffer.used)
            host = pinned.numpy()
            for name, array in arrays.items():
                host[offsets[name] :][: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self.device.copy("in", buffer.memory[:size], pinned[:size])
            buffer.copied = self.device.record("in")
        except BaseException:
            self._free.put(buffer)
            raise
        return _Staged(buffer, {name: (offsets[name], array) for name, array in arrays.items()})

    def receive(self, staged: _Staged) -> dict[str, Tensor]:
        """See Transfer."""
        memory = staged.buffer.memory
        if memory is None:
            raise ValueError("nothing was staged")
        self.device.wait("compute", staged.buffer.copied)
        staged.began = self.device.record("compute")
        return {
            name: memory[offset : offset + array.nbytes].view(_dtype(array)).view(array.shape)
            for name, (offset, array) in staged.parts.items()
        }

    def give_back(self, staged: _Staged, vectors: Mapping[Any, Tensor]) -> _Returning:
        """See Transfer."""
        buffer = self._free_returning.pop()
        try:
            offsets, size = _offsets({name: tensor.numel() * 4 for name, tensor in vectors.items()})
            pinned = buffer.pinned = _large_enough(buffer.pinned, size, self.device.pinned)
            ended = self.device.record("compute")
            self.device.wait("out", ended)
            for name, tensor in vectors.items():
                self.device.copy("out", _part(pinned, offsets[name], tensor), tensor)
            buffer.copied = self.device.record("out")
        except BaseException:
            self._free_returning.append(buffer)
            raise
        staged.buffer.used = ended
        self._free.put(staged.buffer)
        return _Returning(buffer, vectors, staged.began, ended)

    def collect(self, returning: _Returning, use: Use) -> None:
        """See Transfer."""
        try:
            self.device.finish(returning.buffer.copied)
            pinned = returning.buffer.pinned
            if pinned is None:
                raise ValueError("nothing was given back")
            self._busy += self.device.seconds(returning.began, returning.ended)
            if self._last_ended is not None:
                # For its copies, or for the host.
                self._waited += self.device.seconds(self._last_ended, returning.began)
            self._last_ended = returning.ended
            offsets, _ = _offsets({name: tensor.numel() * 4 for name, tensor in returning.vectors.items()})
            use({name: _part(pinned, offsets[name], of).numpy() for name, of in returning.vectors.items()})
        finally:
            self._free_returning.append(returning.buffer)

    def discard(self, staged: _Staged) -> None:
        """See Transfer."""
        if staged.began is not None:
            # Part of the batch may still run and read the buffer.
            staged.buffer.used = self.device.record("compute")
        self._free.put(staged.buffer)

    def drop(self, returning: _Returning) -> None:
        """See Transfer."""
        self.device.finish(returning.buffer.copied)
        self._free_returning.append(returning.buffer)

    def free_memory(self) -> None:
        """See Transfer."""
        self.device.free()

    def stats(self) -> DeviceStats | None:
        """See Transfer."""
        if self._last_ended is None:
            return None
        return DeviceStats(self._busy, self._waited, *self.device.peak())


def _large_enough(buffer: Tensor | None, size: int, make: Callable[[int], Tensor]) -> Tensor:
    # An eighth more: pinning memory takes milliseconds, and batches differ little in size.
    return buffer if buffer is not None and len(buffer) >= size else make(max(4096, size + size // 8))


def _offsets(sizes: Mapping[Any, int]) -> tuple[dict[Hashable, int], int]:
    """Returns the offset of each part, and the bytes of all."""
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return offsets, max(end, 1)


def _part(pinned: Tensor, offset: int, like: Tensor) -> Tensor:
    return pinned[offset : offset + like.numel() * 4].view(torch.float32).view(like.shape)


def _dtype(array: NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(array[:0]).dtype
