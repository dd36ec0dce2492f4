"""How the numbers of a batch get to the device and its vectors back; knows nothing of what is computed."""

from __future__ import annotations

import torch

from embedkit.inference.transfer.cuda import CudaDevice
from embedkit.inference.transfer.host import HostTransfer, Transfer
from embedkit.inference.transfer.pinned import PinnedTransfer

__all__ = ["HostTransfer", "PinnedTransfer", "Transfer", "transfer_for"]


def transfer_for(device: torch.device) -> Transfer:
    """The way to a device and back."""
    return PinnedTransfer(CudaDevice(device)) if device.type == "cuda" else HostTransfer(device)
