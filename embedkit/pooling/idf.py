"""Tokens weighed by how few texts have them: document frequencies counted, and the pooling by them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedkit.pooling.poolers import LayerwisePooler, side_by_side


def inverse_document_frequencies(frequencies: NDArray[np.int64], n_documents: int) -> NDArray[np.float32]:
    """float32 [vocabulary] idf(t) = ln((1 + n) / (1 + df(t))) + 1.

    The idea is Karen Spärck Jones's (1972, "A statistical interpretation of term specificity and its application
    in retrieval", Journal of Documentation 28); the form is scikit-learn's `smooth_idf`: as if one more text had
    every token, so that none has an infinite weight, and none a weight below 1.

    Args:
        frequencies: int64 [vocabulary], in how many texts each token is.
        n_documents: how many texts there are.
    """
    return np.asarray(np.log((1.0 + n_documents) / (1.0 + frequencies)) + 1.0, np.float32)


class IdfPooler(LayerwisePooler):
    """sum(idf[id] h) / sum(idf[id]) over the tokens that take part; layers side by side.

    Args:
        weights: float32 [vocabulary].
    """

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def dims(self, n_layers: int, hidden_size: int) -> int:
        """Those of the layers given."""
        return n_layers * hidden_size

    def of_layer(self, hidden_states: Tensor, mask: Tensor | None, input_ids: Tensor) -> Tensor:
        """[N, T, D] to float32 [N, D]."""
        states = hidden_states.float()
        if mask is None:
            weights = self.weights[input_ids]
        else:
            # A state that takes no part is replaced, not multiplied by zero: 0 x inf would be NaN.
            states = states.masked_fill(~mask.unsqueeze(-1), 0.0)
            weights = self.weights[input_ids.masked_fill(~mask, 0)] * mask
        return torch.einsum("nt,ntd->nd", weights, states) / weights.sum(dim=1, keepdim=True)

    def of_layers(self, pooled: Tensor) -> Tensor:
        """[L, N, D] to [N, L D]."""
        return side_by_side(pooled)


def vocabulary_hash(vocabulary: Mapping[str, int], *, lowercase: bool) -> str:
    """SHA-256 of a tokenizer's entries by id, and of whether texts are lowercased: 64 hexadecimal digits."""
    entries = sorted((number, entry) for entry, number in vocabulary.items())
    return hashlib.sha256(json.dumps([lowercase, entries]).encode()).hexdigest()
