"""To a GPU and back without waiting, by way of pinned memory and events.

Each way has a stream of its own, so that the host never waits for the batch that it has just started, nor a batch
for the copies of another one:

    stage      any thread    numpy → pinned buffer → (stream of copies in) → the device's buffer
    receive    the caller's  the computing stream waits for that copy alone
    give_back  the caller's  (stream of copies out, once the vectors are there) → pinned buffer
    collect    the caller's  waits for that copy, one or two batches later

A buffer is written again when the event behind its last use has passed, never before. Not yet measured on a GPU.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedkit.inference.transfer.cuda import Device
from embedkit.inference.transfer.host import Arrays, Use
from embedkit.types import DeviceStats

#: Parts of a buffer begin at multiples of this: torch reads no number across its own alignment.
_ALIGNED = 64
#: Batches whose numbers are on the device before their turn, and that run while nobody looks for their vectors.
_AHEAD, _LATE = 2, 2


@dataclass(eq=False)
class _Buffer:
    """Memory that is used again and again, and the events behind its uses.

    Attributes:
        pinned: on the host.
        memory: on the device; unused on the way back, where it is the vectors' own.
        copied: behind the last copy from or to `pinned`.
        used: behind the last batch that read `memory`.
    """

    pinned: Tensor | None = None
    memory: Tensor | None = None
    copied: Any = None
    used: Any = None


@dataclass(eq=False)
class _Staged:
    buffer: _Buffer
    parts: dict[str, tuple[int, NDArray[Any]]]
    begun: Any = None


@dataclass(eq=False)
class _Returning:
    """Holds the vectors until they are copied: their memory may be given to another tensor after that."""

    buffer: _Buffer
    vectors: Mapping[Any, Tensor]
    begun: Any
    ended: Any


@dataclass
class _Clock:
    """What events say of the time between batches; read when they have passed."""

    last: Any = None
    busy: float = 0.0
    waited: float = 0.0
    batches: int = 0


@dataclass
class PinnedTransfer:
    """A Transfer that waits for nothing; see the top of this file. One thread stages and one does the rest.

    Args:
        device: what is asked of CUDA.
        ahead, late: see Transfer.
    """

    device: Device
    ahead: int = _AHEAD
    late: int = _LATE
    _clock: _Clock = field(default_factory=_Clock)

    def __post_init__(self) -> None:
        # One more than may be under way each way, and one for what is being halved.
        self._going = _pool(self.ahead + 2)
        # The one that came back last is large enough, and used no more on the device.
        self._coming: list[_Buffer] = [_Buffer() for _ in range(self.late + 2)]

    def stage(self, arrays: Arrays) -> _Staged:
        """See Transfer. Waits while all buffers are under way."""
        buffer = self._going.get()
        try:
            offsets, size = _offsets({name: array.nbytes for name, array in arrays.items()})
            if buffer.copied is not None:
                self.device.finish(buffer.copied)
            pinned = buffer.pinned = self._large_enough(buffer.pinned, size, self.device.pinned)
            if buffer.memory is None or len(buffer.memory) < size:
                if buffer.used is not None:
                    # Freed memory goes to whoever asks next, so the batch that reads it has to be through.
                    self.device.finish(buffer.used)
                buffer.memory = self._large_enough(None, size, self.device.memory)
            elif buffer.used is not None:
                self.device.wait("in", buffer.used)
            host = pinned.numpy()
            for name, array in arrays.items():
                host[offsets[name] :][: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self.device.copy("in", buffer.memory[:size], pinned[:size])
            buffer.copied = self.device.record("in")
        except BaseException:
            self._going.put(buffer)
            raise
        return _Staged(buffer, {name: (offsets[name], array) for name, array in arrays.items()})

    def receive(self, staged: _Staged) -> dict[str, Tensor]:
        """See Transfer."""
        memory = staged.buffer.memory
        if memory is None:
            raise ValueError("nothing was staged")
        self.device.wait("compute", staged.buffer.copied)
        staged.begun = self.device.record("compute")
        return {
            name: memory[offset : offset + array.nbytes].view(_dtype(array)).view(array.shape)
            for name, (offset, array) in staged.parts.items()
        }

    def give_back(self, staged: _Staged, vectors: Mapping[Any, Tensor]) -> _Returning:
        """See Transfer."""
        buffer = self._coming.pop()
        try:
            offsets, size = _offsets({name: of.numel() * 4 for name, of in vectors.items()})
            pinned = buffer.pinned = self._large_enough(buffer.pinned, size, self.device.pinned)
            ended = self.device.record("compute")
            self.device.wait("out", ended)
            for name, of in vectors.items():
                self.device.copy("out", _part(pinned, offsets[name], of), of)
            buffer.copied = self.device.record("out")
        except BaseException:
            self._coming.append(buffer)
            raise
        staged.buffer.used = ended
        self._going.put(staged.buffer)
        return _Returning(buffer, vectors, staged.begun, ended)

    def collect(self, returning: _Returning, use: Use) -> None:
        """See Transfer."""
        try:
            self.device.finish(returning.buffer.copied)
            pinned = returning.buffer.pinned
            if pinned is None:
                raise ValueError("nothing was given back")
            offsets, _ = _offsets({name: of.numel() * 4 for name, of in returning.vectors.items()})
            self._read_clock(returning)
            use({name: _part(pinned, offsets[name], of).numpy() for name, of in returning.vectors.items()})
        finally:
            self._coming.append(returning.buffer)

    def discard(self, staged: _Staged) -> None:
        """See Transfer."""
        if staged.begun is not None:
            # Part of the batch may run still, and read what was staged.
            staged.buffer.used = self.device.record("compute")
        self._going.put(staged.buffer)

    def drop(self, returning: _Returning) -> None:
        """See Transfer."""
        self.device.finish(returning.buffer.copied)
        self._coming.append(returning.buffer)

    def free_memory(self) -> None:
        """See Transfer."""
        self.device.free()

    def used(self) -> DeviceStats | None:
        """See Transfer."""
        if not self._clock.batches:
            return None
        return DeviceStats(self._clock.busy, self._clock.waited, *self.device.peak())

    def _read_clock(self, returning: _Returning) -> None:
        """Count the time of a batch, and the time before it: for its copies, or for the host."""
        clock = self._clock
        clock.busy += self.device.seconds(returning.begun, returning.ended)
        if clock.last is not None:
            clock.waited += self.device.seconds(clock.last, returning.begun)
        clock.last = returning.ended
        clock.batches += 1

    def _large_enough(self, old: Tensor | None, size: int, make: Callable[[int], Tensor]) -> Tensor:
        # With room for a little more: pinning memory takes milliseconds, and batches differ little in size.
        return old if old is not None and len(old) >= size else make(max(4096, size + size // 8))


def _pool(size: int) -> queue.SimpleQueue[_Buffer]:
    buffers: queue.SimpleQueue[_Buffer] = queue.SimpleQueue()
    for _ in range(size):
        buffers.put(_Buffer())
    return buffers


def _offsets(sizes: Mapping[Any, int]) -> tuple[dict[Hashable, int], int]:
    """Where each part begins, and bytes of all."""
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += -(-size // _ALIGNED) * _ALIGNED
    return offsets, max(end, 1)


def _part(pinned: Tensor, offset: int, like: Tensor) -> Tensor:
    return pinned[offset : offset + like.numel() * 4].view(torch.float32).view(like.shape)


def _dtype(array: NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(array[:0]).dtype
