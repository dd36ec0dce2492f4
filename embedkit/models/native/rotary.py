"""Rotates queries and keys by the positions of their tokens; see rotation.py."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from embedkit.models.native.rotation import Rotation


@dataclass(frozen=True, slots=True)
class Frequencies:
    """The rotation of a head from one position to the next."""

    steps: Tensor  # the angle of each pair of numbers, fp32 [width / 2]
    factor: float  # for cosine and sine

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cosine and sine of the angles at positions int64 [T]: fp32 [T, width / 2]."""
        # The product is rounded as in transformers. In fp64, a cosine is the same in each lane of a register.
        turned = (positions[:, None].float() * self.steps).double()
        return (turned.cos() * self.factor).float(), (turned.sin() * self.factor).float()


def rotate_(heads: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """Rotates each pair of numbers that are half a head apart, in place.

    Args:
        heads: [T, heads, width].
        cosine: fp32 [T, width / 2].
        sine: the same.
    """
    half = heads.shape[-1] // 2
    first, second = heads[..., :half].float(), heads[..., half:].float()
    cosine, sine = cosine[:, None], sine[:, None]
    rotated = first * cosine - second * sine
    heads[..., half:] = second * cosine + first * sine
    heads[..., :half] = rotated


def frequencies(rotation: Rotation, device: torch.device) -> Frequencies:
    """Computes the frequencies of a rotation, by the same operations in the same order as transformers."""
    settings = dict(rotation.settings)
    powers = rotation.base ** (torch.arange(0, rotation.width, 2, dtype=torch.int64).float() / rotation.width)
    steps, factor = 1.0 / powers, 1.0
    if rotation.kind == "linear":
        steps = steps / settings["factor"]
    elif rotation.kind == "llama3":
        steps = _llama3(steps, **settings)
    elif rotation.kind == "yarn":
        steps, factor = _yarn(rotation, powers, **settings)
    return Frequencies(steps.to(device), factor)


def _llama3(
    plain: Tensor,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> Tensor:
    """Slows long waves down by a factor, short ones not, and those between in part (Llama 3.1)."""
    length = original_max_position_embeddings
    waves = 2 * math.pi / plain
    slowed = torch.where(waves > length / low_freq_factor, plain / factor, plain)
    share = (length / waves - low_freq_factor) / (high_freq_factor - low_freq_factor)
    between = ~(waves < length / high_freq_factor) & ~(waves > length / low_freq_factor)
    return torch.where(between, (1 - share) * slowed / factor + share * slowed, slowed)


def _yarn(
    rotation: Rotation,
    powers: Tensor,
    *,
    factor: float,
    original_max_position_embeddings: int,
    attention_factor: float | None,
    beta_fast: float | None,
    beta_slow: float | None,
    truncate: bool,
) -> tuple[Tensor, float]:
    """Interpolates by parts of the spectrum (Peng et al. 2023, arXiv 2309.00071)."""
    if attention_factor is None:
        attention_factor = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0

    def dimension(turns: float) -> float:
        """Returns the dimension that turns as often within the original length."""
        length = original_max_position_embeddings
        return rotation.width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rotation.base))

    low, high = dimension(beta_fast or 32), dimension(beta_slow or 1)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotation.width - 1)
    high += 0.001 if low == high else 0.0
    ramp = ((torch.arange(rotation.width // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept, float(attention_factor)
