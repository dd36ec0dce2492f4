"""A device that copies as late as it may, and refuses what would be a race on a real one."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch


class RaceError(AssertionError):
    """A buffer is read or written although nobody waited for what is done to it."""


@dataclass(eq=False)
class Event:
    """Where a stream stood when it was recorded.

    Attributes:
        stream: which.
        place: how much of its own work it had been given.
        compute: the last event of the computing stream that it had waited for.
        time: seconds.
        where: the memory that it copied to last.
    """

    stream: str
    place: int
    compute: int
    time: float
    where: int = 0


class FakeDevice:
    """See embedkit.inference.transfer.CudaDevice. Computes at once; copies as late as possible.

    Memory is filled with NaN until it is copied to. Each event of the computing stream is a second after the last.
    """

    def __init__(self):
        self.work = {"in": deque(), "out": deque()}
        self.put = {"in": 0, "out": 0, "compute": 0}
        self.done = {"in": 0, "out": 0}
        #: Events of the computing stream that a stream, or the host, has waited for.
        self.seen = {"in": 0, "out": 0, "host": 0}
        #: Where memory lies → the last event of the computing stream before it was read.
        self.read = {}
        self.where = 0
        self.freed = 0
        self.most_waiting = 0

    def pinned(self, size):
        return torch.full((size,), 255, dtype=torch.uint8)

    def memory(self, size):
        return torch.full((size,), 255, dtype=torch.uint8)

    def copy(self, stream, to, of):
        if stream == "in":
            self.where = to.untyped_storage().data_ptr()
            last = self.read.get(self.where, -1)
            if max(self.seen["in"], self.seen["host"]) <= last:
                raise RaceError("a batch may still read this memory")
            self._later("in", lambda: to.copy_(of))
        else:
            if self.seen["out"] < self.put["compute"]:
                raise RaceError("these vectors are not there yet")
            self._later("out", lambda: to.copy_(of))
        self.most_waiting = max(self.most_waiting, len(self.work["out"]))

    def record(self, stream):
        self.put[stream] += 1
        if stream == "compute":
            return Event(stream, self.put[stream], self.put[stream], float(self.put[stream]))
        event = Event(stream, self.put[stream], self.seen[stream], 0.0, self.where)
        self.work[stream].append((self.put[stream], lambda: None))
        return event

    def wait(self, stream, event):
        if stream == "compute":
            self._run(event)
            # Read from now on, beyond the event that says that reading begins.
            self.read[event.where] = self.put["compute"] + 1
        else:
            self.seen[stream] = max(self.seen[stream], event.compute)

    def finish(self, event):
        self._run(event)
        self.seen["host"] = max(self.seen["host"], event.compute)

    def seconds(self, begin, end):
        if max(begin.compute, end.compute) > self.seen["host"]:
            raise RaceError("these events have not passed")
        return end.time - begin.time

    def peak(self):
        return 3 << 30, 4 << 30

    def free(self):
        self.freed += 1

    def _later(self, stream, do):
        self.put[stream] += 1
        self.work[stream].append((self.put[stream], do))

    def _run(self, event):
        work = self.work.get(event.stream, ())
        with torch.inference_mode():
            while work and work[0][0] <= event.place:
                work.popleft()[1]()
