"""What a pooler is: idf's, those that `fit` trains, and those of other packages are all this.

A pooler is told which tokens take part, and sees hidden states of several layers at once where the poolings of
`tokens.py` see one layer. It knows nothing of models, batches or files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor


class Pooler(Protocol):
    """Hidden states of texts to one vector a text.

    The same text must give the same vector whatever texts stand beside it and however far it is padded: what
    `mask` leaves out may hold anything.

    Attributes:
        layers: the layers that it needs, as `--layers` spells them; None: those that `--layers` names.
    """

    layers: str | None

    def dims(self, n_layers: int, hidden_size: int) -> int:
        """Dimensions D' of its vectors, for `n_layers` layers given and states of `hidden_size` dimensions."""

    def __call__(self, hidden_states: Tensor, mask: Tensor, input_ids: Tensor) -> Tensor:
        """Pool some texts.

        Args:
            hidden_states: [L, N, T, D] of a float dtype: the layers in the order asked for, of N texts. L is 1
                where `--layer-agg` has made one state of several, and under `separate`.
            mask: bool [N, T], the tokens that take part.
            input_ids: int64 [N, T]; meaningless where `mask` is false.

        Returns:
            float32 [N, D'].
        """


class LayerwisePooler(ABC):
    """A pooler that makes a vector of each layer first: no more than these are kept as the layers come."""

    layers: str | None = None

    @abstractmethod
    def dims(self, n_layers: int, hidden_size: int) -> int:
        """Dimensions of its vectors; see Pooler."""

    @abstractmethod
    def of_layer(self, hidden_states: Tensor, mask: Tensor | None, input_ids: Tensor) -> Tensor:
        """One layer [N, T, D] to float32 [N, K]; mask None: all tokens take part."""

    @abstractmethod
    def of_layers(self, pooled: Tensor) -> Tensor:
        """What `of_layer` gave for the layers, float32 [L, N, K], to float32 [N, D']."""

    def __call__(self, hidden_states: Tensor, mask: Tensor, input_ids: Tensor) -> Tensor:
        """[L, N, T, D] to float32 [N, D']; see Pooler."""
        return self.of_layers(torch.stack([self.of_layer(layer, mask, input_ids) for layer in hidden_states]))


def side_by_side(pooled: Tensor) -> Tensor:
    """Vectors of layers [L, N, D] to [N, L D], the first layer's dimensions first."""
    return pooled.transpose(0, 1).flatten(1)
