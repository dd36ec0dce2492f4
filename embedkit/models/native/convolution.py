"""DeBERTa-v2's convolution of neighbouring tokens, beside its first layer (He et al. 2020, arXiv 2006.03654)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from embedkit.models.native.attention import Texts
from embedkit.models.native.layer import ACTIVATIONS
from embedkit.models.native.linear import GRAIN, Linear
from embedkit.models.native.norm import Norm


@dataclass(frozen=True, slots=True)
class TokenConvolution:
    """A convolution within each text, whose output is added to the states of the first layer."""

    linear: Linear  # [T, D * size] → [T, D]
    size: int  # tokens that it spans, an odd number
    activation: str  # a name of layer.ACTIVATIONS
    norm: Norm  # of the sum

    def __call__(self, embedded: Tensor, states: Tensor, texts: Texts) -> Tensor:
        """Computes hidden_states[1].

        Args:
            embedded: hidden_states[0], [T, D] of packed texts.
            states: the output of the first layer, [T, D].
            texts: the T tokens.
        """
        around = neighbours(embedded, texts, self.size)
        padded = functional.pad(around, (0, 0, 0, -len(around) % GRAIN))
        convolved = ACTIVATIONS[self.activation](self.linear(padded)[: len(states)])
        return self.norm(convolved + states)


def neighbours(states: Tensor, texts: Texts, size: int) -> Tensor:
    """Returns the states around each token, zeros beyond the ends of its text: [T, D] → [T, D * size].

    In the order of a convolution's weights: each of the D numbers for `size` tokens.
    """
    width, blocks = states.shape[1], []
    for group in texts.groups:
        rows = states[group.start : group.start + group.count * group.length]
        padded = functional.pad(rows.view(group.count, group.length, width), (0, 0, size // 2, size // 2))
        blocks.append(padded.unfold(1, size, 1).reshape(len(rows), width * size))
    return torch.cat(blocks)
