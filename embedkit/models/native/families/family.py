"""The description of an encoder family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """An encoder family: how its config.json and checkpoint are read, and what its forward pass computes.

    All have post-norm layers with layer norms, a plain feed-forward network and full attention.
    """

    model_type: str  # as in config.json
    prefix: str  # precedes every tensor's name in checkpoints with heads
    layer: str = "encoder.layer.{}."  # the prefix of layer {}, from 0
    # The parts of a layer, as named in the checkpoint, without `.weight` and `.bias`.
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_out: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    output_norm: str = "output.LayerNorm"
    config_keys: Mapping[str, str] = field(default_factory=dict)  # its own names of config keys, by BERT's name
    layer_norm_eps: float | None = None  # the epsilon of every norm; None if config.json has it
    token_types: bool = True  # whether it has embeddings of token types
    projects_embeddings: bool = False  # whether embeddings may be narrower than the layers, and are projected
    positions_after_pad: bool = False  # whether positions count from the pad's id + 1, as RoBERTa's; else from 0
    pad_id: int | None = None  # that id if it is fixed; None if config.json has it
    relative_bias: str | None = None  # the tensor of the attention's relative position bias, in T5's buckets
