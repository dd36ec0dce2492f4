"""The norms of a layer: [..., D] → the same."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm. Torch computes mean and variance in fp32, whatever the states' dtype."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    def __call__(self, states: Tensor) -> Tensor:
        """Scales each row to mean 0 and variance 1, then applies weight and bias."""
        return functional.layer_norm(states, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class RmsNorm(Norm):
    """A norm without a mean: each row is divided by its root mean square, in fp32."""

    def __call__(self, states: Tensor) -> Tensor:
        """Scales each row to mean square 1, then applies the weight."""
        return functional.rms_norm(states, self.weight.shape, self.weight, self.eps)
