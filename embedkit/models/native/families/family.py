"""The description of a model family; imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from embedkit.models.native.config_reader import ConfigReader
from embedkit.models.native.rotation import Rotation


@dataclass(frozen=True, slots=True, kw_only=True)
class NormNames:
    """The norms around attention or the feed-forward network; None where there is none."""

    before: str | None = None  # of its input
    inner: str | None = None  # of its output, before the residual is added
    after: str | None = None  # of its output with the residual


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The names of a checkpoint's tensors, without `.weight` and `.bias`; None for what the family lacks."""

    words: str = "embeddings.word_embeddings"
    positions: str | None = "embeddings.position_embeddings"
    types: str | None = "embeddings.token_type_embeddings"
    embedding_norm: str | None = "embeddings.LayerNorm"
    final_norm: str | None = None  # of the last layer's states
    pooler: str | None = "pooler.dense"
    relative_bias: str | None = None  # what is added to the scores, in T5's buckets
    layer: str = "encoder.layer.{}."  # the prefix of layer {}, from 0
    # The parts of a layer. Several names are tensors whose rows are concatenated.
    qkv: tuple[str, ...] = ("attention.self.query", "attention.self.key", "attention.self.value")
    query_norm: str | None = None  # of each head
    key_norm: str | None = None
    attention_out: str = "attention.output.dense"
    attention_norms: NormNames = NormNames(after="attention.output.LayerNorm")
    up: tuple[str, ...] = ("intermediate.dense",)  # with a gate: gate, up
    gate_is_first: bool = True  # False if a single tensor has the gate after the other half
    down: str = "output.dense"
    ffn_norms: NormNames = NormNames(after="output.LayerNorm")
    unused: tuple[str, ...] = ()  # linear layers that the forward pass does not need


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """The tokens of its text that a token of this layer attends to, and how their positions are told apart."""

    causal: bool = False  # only itself and earlier ones
    window: int | None = None  # only those less than this many tokens away; None if all
    rotation: Rotation | None = None  # None if queries and keys are not rotated


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of a layer's attention."""

    n_layers: int
    n_heads: int  # of the queries
    width: int  # numbers of a head


#: Reads the attention of each layer from a config.json.
ReadAttention = Callable[[ConfigReader, Heads], tuple[LayerAttention, ...]]


def full_attention(_: ConfigReader, heads: Heads) -> tuple[LayerAttention, ...]:
    """Returns layers in which every token attends to its whole text."""
    return (LayerAttention(),) * heads.n_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family: how its config.json and checkpoint are read, and what its forward pass computes.

    What is not said here is as in BERT.
    """

    model_type: str  # as in config.json
    prefixes: tuple[str, ...]  # one may precede every tensor's name, as it does in checkpoints with heads
    layouts: tuple[Layout, ...] = (Layout(),)  # of its checkpoints
    # config.json
    config_keys: Mapping[str, str] = field(default_factory=dict)  # its own names of keys, by the usual name
    defaults: Mapping[str, Any] = field(default_factory=dict)  # for keys that are not there, by the usual name
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # more keys, and their supported values
    harmless: frozenset[str] = frozenset()  # more keys that change no number
    # Embeddings
    token_types: bool = True  # whether it has embeddings of token types
    may_lack_types: bool = False  # whether a config.json may say that there are 0 of them
    projects_embeddings: bool = False  # whether embeddings may be narrower than the layers, and are projected
    scales_embeddings: bool = False  # whether embeddings are multiplied by the square root of their width
    positions_after_pad: bool = False  # whether positions count from the pad's id + 1, as RoBERTa's; else from 0
    pad_id: int | None = None  # that id if it is fixed; None if config.json has it
    # Layers
    rms_norms: bool = False  # whether norms divide by the root mean square and do no more; else layer norms
    norms_add_one: bool = False  # whether 1 is added to the weights of norms
    norm_eps: float | None = None  # the epsilon of every norm; None if config.json has it
    skips_first_norm: bool = False  # whether layer 0 has no norm before its attention
    #: Whether these have a bias: "norm", "qkv", "out", "up", "down". A name is the key that says so.
    biases: Mapping[str, bool | str] = field(default_factory=dict)
    own_head_width: bool = False  # whether config.json may state the width of a head, and fewer heads of keys
    scale_key: str | None = None  # the key of a number whose root divides the scores; None for the heads' width
    gated: bool = False  # whether the feed-forward network multiplies its activations by a second projection
    attention: ReadAttention = full_attention
