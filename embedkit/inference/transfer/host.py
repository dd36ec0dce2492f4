"""What stands between the host and a device, and the plain way: one memory, or one batch after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedkit.types import DeviceStats

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
#: What is made of the vectors that came back; they are gone when it returns.
Use: TypeAlias = Callable[[Mapping[Any, NDArray[np.float32]]], None]


class Transfer(Protocol):
    """What stands between the host and the device.

    Attributes:
        ahead: batches that are staged before their turn, in a thread of their own; 0 = each when its turn comes.
        late: batches that may have been started whose vectors are not collected.
    """

    ahead: int
    late: int

    def stage(self, arrays: Arrays) -> Any:
        """Send arrays on their way to the device."""

    def receive(self, staged: Any) -> dict[str, Tensor]:
        """The arrays as tensors on the device, valid until they are given back; in the order of staging."""

    def give_back(self, staged: Any, vectors: Mapping[Any, Tensor]) -> Any:
        """Send float32 vectors on their way to the host, and say that what was staged is used up."""

    def collect(self, returning: Any, use: Use) -> None:
        """Wait for the vectors, and use them."""

    def discard(self, staged: Any) -> None:
        """What was staged is not wanted any more, or its batch has failed."""

    def drop(self, returning: Any) -> None:
        """Nobody wants these vectors."""

    def free_memory(self) -> None:
        """Make room after memory ran out."""

    def used(self) -> DeviceStats | None:
        """How the device was used so far; None where that is not measured."""


class HostTransfer:
    """Where the host's memory is the device's, and on devices that are given each batch in turn.

    Args:
        device: of the tensors.
    """

    ahead = late = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def stage(self, arrays: Arrays) -> Arrays:
        """See Transfer."""
        return arrays

    def receive(self, staged: Arrays) -> dict[str, Tensor]:
        """See Transfer; on a CPU the tensors share the arrays' memory."""
        return {name: torch.from_numpy(array).to(self._device) for name, array in staged.items()}

    def give_back(self, staged: Arrays, vectors: Mapping[Any, Tensor]) -> Mapping[Any, Tensor]:  # noqa: ARG002
        """See Transfer."""
        return vectors

    def collect(self, returning: Mapping[Any, Tensor], use: Use) -> None:
        """See Transfer."""
        use({name: vectors.cpu().numpy() for name, vectors in returning.items()})

    def discard(self, staged: Arrays) -> None:
        """See Transfer."""

    def drop(self, returning: Mapping[Any, Tensor]) -> None:
        """See Transfer."""

    def free_memory(self) -> None:
        """See Transfer."""

    def used(self) -> None:
        """See Transfer."""
