"""The description of an encoder family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """An encoder family: how its config.json and checkpoint are read, and what its forward pass computes.

    All have post-norm layers with layer norms, a plain feed-forward network and full attention.

    Attributes:
        model_type: as in config.json.
        prefix: precedes every tensor's name in checkpoints with heads.
        layer: the prefix of layer {}, from 0.
        query, key, value, attention_out, attention_norm, up, down, output_norm: the parts of a layer, as named in
            the checkpoint, without `.weight` and `.bias`.
        config_keys: its own names of config keys, by BERT's name.
        layer_norm_eps: the epsilon of every norm; None if config.json has it.
        token_types: whether it has embeddings of token types.
        projects_embeddings: whether embeddings may be narrower than the layers, and are projected.
        positions_after_pad: whether positions count from the pad's id + 1, as RoBERTa's do; else from 0.
        pad_id: that id where it is fixed; None if config.json has it.
        relative_bias: the tensor of the attention's relative position bias (T5's buckets); None if it has none.
    """

    model_type: str
    prefix: str
    layer: str = "encoder.layer.{}."
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_out: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    output_norm: str = "output.LayerNorm"
    config_keys: Mapping[str, str] = field(default_factory=dict)
    layer_norm_eps: float | None = None
    token_types: bool = True
    projects_embeddings: bool = False
    positions_after_pad: bool = False
    pad_id: int | None = None
    relative_bias: str | None = None
