"""The interface of poolers, which may see several layers at once, and the pooling by document frequencies.

Poolers are those of other packages, those that `embedkit fit` trains (trained.py), and idf's.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Pooler(Protocol):
    """Maps the hidden states of texts to one vector a text.

    A text must give the same vector in any batch and with any padding: states outside `mask` are arbitrary.

    Attributes:
        layers: the layers that it needs, as `--layers` takes them; None for those that the user names.
    """

    layers: str | None

    @abstractmethod
    def dims(self, n_layers: int, hidden_size: int) -> int:
        """Returns the dimensions D' of its vectors, for `n_layers` layers of `hidden_size` dimensions."""

    def __call__(self, hidden_states: Tensor, mask: Tensor, input_ids: Tensor) -> Tensor:
        """Pools some texts.

        Args:
            hidden_states: [L, N, T, D] of a float dtype: the layers in the order asked for, of N texts. L is 1
                if layers are aggregated, and under `separate`.
            mask: bool [N, T], the tokens that take part.
            input_ids: int64 [N, T]; arbitrary where `mask` is false.

        Returns:
            float32 [N, D'].
        """


class LayerwisePooler(Pooler):
    """A pooler that makes a vector of each layer first, so that no states are kept for it."""

    layers: str | None = None

    @abstractmethod
    def of_layer(self, hidden_states: Tensor, mask: Tensor | None, input_ids: Tensor) -> Tensor:
        """Pools one layer [N, T, D] to float32 [N, K]; all tokens take part if mask is None."""

    @abstractmethod
    def of_layers(self, pooled: Tensor) -> Tensor:
        """Combines the results of `of_layer`, float32 [L, N, K], to float32 [N, D']."""

    def __call__(self, hidden_states: Tensor, mask: Tensor, input_ids: Tensor) -> Tensor:
        """Pools [L, N, T, D] to float32 [N, D']; see Pooler."""
        return self.of_layers(torch.stack([self.of_layer(layer, mask, input_ids) for layer in hidden_states]))


def concatenate_layers(pooled: Tensor) -> Tensor:
    """Concatenates the vectors of layers, [L, N, D] to [N, L D]."""
    return pooled.transpose(0, 1).flatten(1)


def inverse_document_frequencies(frequencies: NDArray[np.int64], n_documents: int) -> NDArray[np.float32]:
    """Computes idf(t) = ln((1 + n) / (1 + df(t))) + 1: float32 [vocabulary].

    The idea is Karen Spärck Jones's (1972, "A statistical interpretation of term specificity and its application
    in retrieval", Journal of Documentation 28); the form is scikit-learn's `smooth_idf`: as if one more text had
    every token, so that no weight is infinite, and none is below 1.

    Args:
        frequencies: int64 [vocabulary], the number of texts that have each token.
        n_documents: the number of texts.
    """
    return np.asarray(np.log((1.0 + n_documents) / (1.0 + frequencies)) + 1.0, np.float32)


class IdfPooler(LayerwisePooler):
    """sum(idf[id] h) / sum(idf[id]) over the tokens that take part; layers concatenated.

    Args:
        weights: float32 [vocabulary].
    """

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def dims(self, n_layers: int, hidden_size: int) -> int:
        """Returns the dimensions of the layers together."""
        return n_layers * hidden_size

    def of_layer(self, hidden_states: Tensor, mask: Tensor | None, input_ids: Tensor) -> Tensor:
        """Pools [N, T, D] to float32 [N, D]."""
        states = hidden_states.float()
        if mask is None:
            weights = self.weights[input_ids]
        else:
            # Replaced by zero, not multiplied by it: 0 x inf would be NaN.
            states = states.masked_fill(~mask.unsqueeze(-1), 0.0)
            weights = self.weights[input_ids.masked_fill(~mask, 0)] * mask
        return torch.einsum("nt,ntd->nd", weights, states) / weights.sum(dim=1, keepdim=True)

    def of_layers(self, pooled: Tensor) -> Tensor:
        """Concatenates [L, N, D] to [N, L D]."""
        return concatenate_layers(pooled)


def vocabulary_hash(vocabulary: Mapping[str, int], *, lowercase: bool) -> str:
    """Hashes a tokenizer's entries by id, and whether texts are lowercased: SHA-256 in hexadecimal digits."""
    entries = sorted((number, entry) for entry, number in vocabulary.items())
    return hashlib.sha256(json.dumps([lowercase, entries]).encode()).hexdigest()
