"""The poolers that `embedkit fit` trains, as torch modules.

Each is made for `n_layers` layers of states of `hidden_size` dimensions. The attention kinds concatenate the
layers: a token's state is then [n_layers * hidden_size].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from embedkit.errors import UsageError
from embedkit.pooling.functions import Rectangle, pool
from embedkit.pooling.poolers import LayerwisePooler, concatenate_layers


@dataclass(frozen=True, slots=True)
class PoolerShape:
    """The sizes of a trained pooler; with its weights they define it."""

    kind: str  # a key of _CLASSES
    n_layers: int  # after aggregation
    hidden_size: int
    #: The kind's own size: of the hidden layer that scores tokens, of the LSTM's state, of the projection, or the
    #: dimensions kept; 0 if it has none.
    width: int = 0
    heads: int = 0  # of the multi-head attention; else 0
    of_tokens: str = ""  # cls or mean, the pooling of each layer for kinds that combine vectors of layers; else ""

    @property
    def input_size(self) -> int:
        """Returns the dimensions of the layers' states together."""
        return self.n_layers * self.hidden_size


class TrainedPooler(nn.Module):
    """The base of all kinds.

    Args:
        shape: its sizes.
        size: dimensions D' of its vectors.
    """

    layers: str | None = None

    def __init__(self, shape: PoolerShape, size: int) -> None:
        super().__init__()
        self.shape = shape
        self.size = size

    def dims(self, n_layers: int, hidden_size: int) -> int:
        """Returns the dimensions of its vectors, which its weights decide."""
        if (n_layers, hidden_size) != (self.shape.n_layers, self.shape.hidden_size):
            raise UsageError(
                f"this pooler takes {self.shape.n_layers} layers of {self.shape.hidden_size} dimensions, "
                f"and gets {n_layers} of {hidden_size}",
                hint="leave out --layers and --layer-agg: the pooler's file determines them",
            )
        return self.size


class AttentionPooler(TrainedPooler):
    """A weighted average of the tokens, with weights by a small network that scores each token alone.

    `attention`: Linear → LayerNorm → GELU → Linear; `attention-tanh`: Linear → Tanh → Linear (self-attentive
    pooling: Lin et al. 2017, arXiv 1703.03130, one hop). A softmax over the tokens that take part follows.
    """

    def __init__(self, shape: PoolerShape) -> None:
        super().__init__(shape, shape.input_size)
        inner = [nn.LayerNorm(shape.width), nn.GELU()] if shape.kind == "attention" else [nn.Tanh()]
        self.score = nn.Sequential(nn.Linear(shape.input_size, shape.width), *inner, nn.Linear(shape.width, 1))

    def forward(self, hidden_states: Tensor, mask: Tensor, input_ids: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Pools [L, N, T, D] to float32 [N, L D]."""
        states = _tokens(hidden_states, mask)
        # Only tokens that take part are scored: with one long text, a batch is mostly padding.
        scores = torch.full(mask.shape, -torch.inf, dtype=states.dtype, device=states.device)
        scores = scores.masked_scatter(mask, self.score(states[mask]).squeeze(-1))
        return torch.einsum("nt,ntd->nd", torch.softmax(scores, dim=1), states)


class MultiheadPooler(TrainedPooler):
    """A learned query that attends to the tokens with several heads (Lee et al. 2019, arXiv 1810.00825, PMA)."""

    def __init__(self, shape: PoolerShape) -> None:
        super().__init__(shape, shape.input_size)
        self.query = nn.Parameter(torch.empty(1, 1, shape.input_size))
        nn.init.normal_(self.query, std=shape.input_size**-0.5)
        self.attention = nn.MultiheadAttention(shape.input_size, shape.heads, batch_first=True)

    def forward(self, hidden_states: Tensor, mask: Tensor, input_ids: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Pools [L, N, T, D] to float32 [N, L D]."""
        states = _tokens(hidden_states, mask)
        query = self.query.expand(len(states), -1, -1)
        found: Tensor = self.attention(query, states, states, key_padding_mask=~mask, need_weights=False)[0]
        return found[:, 0]


class _OfLayerVectors(TrainedPooler, LayerwisePooler):
    """A kind that combines the cls or the mean of each layer."""

    def of_layer(self, hidden_states: Tensor, mask: Tensor | None, input_ids: Tensor) -> Tensor:  # noqa: ARG002
        """Pools [N, T, D] to float32 [N, D]."""
        return pool(self.shape.of_tokens, Rectangle(hidden_states, mask))

    def forward(self, hidden_states: Tensor, mask: Tensor, input_ids: Tensor) -> Tensor:
        """Pools [L, N, T, D] to float32 [N, D']."""
        # nn.Module's own __call__ calls this.
        return LayerwisePooler.__call__(self, hidden_states, mask, input_ids)


class WeightedLayersPooler(_OfLayerVectors):
    """sum(softmax(w)[l] v[l]): one learned weight a layer (as ELMo's: Peters et al. 2018, arXiv 1802.05365)."""

    def __init__(self, shape: PoolerShape) -> None:
        super().__init__(shape, shape.hidden_size)
        self.weights = nn.Parameter(torch.zeros(shape.n_layers))

    def of_layers(self, pooled: Tensor) -> Tensor:
        """Combines [L, N, D] to [N, D]."""
        return torch.einsum("l,lnd->nd", torch.softmax(self.weights, dim=0), pooled)


class LstmPooler(_OfLayerVectors):
    """The last state of an LSTM over the layers' vectors, from the first layer on."""

    def __init__(self, shape: PoolerShape) -> None:
        super().__init__(shape, shape.width)
        self.lstm = nn.LSTM(shape.hidden_size, shape.width)

    def of_layers(self, pooled: Tensor) -> Tensor:
        """Combines [L, N, D] to [N, hidden size]."""
        last: Tensor = self.lstm(pooled)[1][0]
        return last[0]


class ProjectedPooler(_OfLayerVectors):
    """tanh(W v + b) of the layers' concatenated vectors; with width 0, these vectors unchanged."""

    def __init__(self, shape: PoolerShape) -> None:
        super().__init__(shape, shape.width or shape.input_size)
        self.project = nn.Linear(shape.input_size, shape.width) if shape.width else None

    def of_layers(self, pooled: Tensor) -> Tensor:
        """Combines [L, N, D] to [N, width]."""
        vectors = concatenate_layers(pooled)
        return vectors if self.project is None else torch.tanh(self.project(vectors))


class RotatedPooler(_OfLayerVectors):
    """(v - center) R of the layers' concatenated vectors: PCA, or whitening (Su et al. 2021, arXiv 2103.15316)."""

    def __init__(self, shape: PoolerShape) -> None:
        super().__init__(shape, shape.width)
        self.register_buffer("center", torch.zeros(shape.input_size))
        self.register_buffer("rotation", torch.zeros(shape.input_size, shape.width))
        self.center: Tensor
        self.rotation: Tensor

    def of_layers(self, pooled: Tensor) -> Tensor:
        """Combines [L, N, D] to [N, width]."""
        return (concatenate_layers(pooled) - self.center) @ self.rotation


#: By kind. All are trained on labels but pca and whiten.
_CLASSES: Mapping[str, Callable[[PoolerShape], TrainedPooler]] = {
    "attention": AttentionPooler,
    "attention-tanh": AttentionPooler,
    "multihead-attention": MultiheadPooler,
    "weighted-layers": WeightedLayersPooler,
    "lstm": LstmPooler,
    "mean": ProjectedPooler,
    "cls": ProjectedPooler,
    "pca": RotatedPooler,
    "whiten": RotatedPooler,
}


def make_pooler(shape: PoolerShape) -> Any:
    """Makes the module of a kind, with random weights from torch's generator."""
    return _CLASSES[shape.kind](shape)


def _tokens(hidden_states: Tensor, mask: Tensor) -> Tensor:
    """Concatenates layers: [L, N, T, D] to float32 [N, T, L D]; zero where a token takes no part."""
    return hidden_states.permute(1, 2, 0, 3).flatten(2).float().masked_fill(~mask.unsqueeze(-1), 0.0)
