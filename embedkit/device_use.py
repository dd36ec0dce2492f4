"""How a device was used: told by what measures it to whoever shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """How a device was used by a process so far.

    Attributes:
        busy: seconds that it worked at batches, from the first to the last operation of each.
        waited: seconds between the end of a batch and the beginning of the next one. A second process on the same
            device may have used them.
        allocated: most bytes that tensors had at once.
        reserved: most bytes that were taken from the device for them.
    """

    busy: float
    waited: float
    allocated: int
    reserved: int

    @property
    def waiting(self) -> float:
        """Share of the time that it waited, 0 to 1."""
        return self.waited / max(self.busy + self.waited, 1e-9)
