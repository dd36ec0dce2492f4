"""The description of a model family; imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from embedkit.models.native.config_reader import ConfigReader
from embedkit.models.native.rotation import Rotation, read_rotation


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
    copies: tuple[str, ...] = ()  # other names that a checkpoint may have the same embeddings under
    positions: str | None = "embeddings.position_embeddings"
    types: str | None = "embeddings.token_type_embeddings"
    embedding_norm: str | None = "embeddings.LayerNorm"
    projection: str = "embeddings_project"  # of embeddings that are narrower than the layers
    ignored: tuple[str, ...] = ()  # tensors that it may have, and transformers does not use either
    final_norm: str | None = None  # of the last layer's states
    pooler: str | None = "pooler.dense"
    relative_bias: str | None = None  # what is added to the scores of layer {}, or of all, in T5's buckets
    distances: str | None = None  # DeBERTa's embeddings of relative positions, for all layers
    distances_norm: str | None = None
    convolution: str | None = None  # DeBERTa's, beside the first layer
    convolution_norm: str | None = None
    layer: str = "encoder.layer.{}."  # the prefix of layer {}, from 0
    # The parts of a layer. Several names are tensors whose rows are concatenated.
    qkv: tuple[str, ...] = ("attention.self.query", "attention.self.key", "attention.self.value")
    query_norm: str | None = None  # of each head
    key_norm: str | None = None
    distances_key: str | None = None  # projections of `distances`, unless they are those of the tokens
    distances_query: str | None = None
    attention_out: str = "attention.output.dense"
    attention_norms: NormNames = NormNames(after="attention.output.LayerNorm")
    up: tuple[str, ...] = ("intermediate.dense",)  # with a gate: gate, up
    gate_is_first: bool = True  # False if a single tensor has the gate after the other half
    down: str = "output.dense"
    ffn_norms: NormNames = NormNames(after="output.LayerNorm")
    unused: tuple[str, ...] = ()  # linear layers that the forward pass does not need


@dataclass(frozen=True, slots=True)
class RelativeBias:
    """T5's relative position bias: a number for each head and bucket of distances; see relative.t5_buckets."""

    buckets: int = 32
    farthest: int = 128


@dataclass(frozen=True, slots=True)
class Disentangled:
    """DeBERTa's relative positions: embeddings of distances, projected to keys and queries of each head.

    `buckets` and `farthest` are those of relative.deberta_rows.
    """

    buckets: int
    farthest: int
    has_keys: bool  # whether queries are multiplied by keys of distances, "c2p"
    has_queries: bool  # whether keys are multiplied by queries of distances, "p2c"
    shares_projections: bool  # whether the tokens' projections are used
    normed: bool  # whether the embeddings go through a norm

    @property
    def rows(self) -> int:
        """Rows of the embeddings."""
        return 2 * (self.buckets or self.farthest)


@dataclass(frozen=True, slots=True)
class Convolution:
    """DeBERTa-v2's convolution of the embeddings, added to the states of the first layer."""

    size: int  # tokens that it spans
    activation: Any  # by transformers' name


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """The tokens of its text that a token of this layer attends to, and how their positions are told apart."""

    causal: bool = False  # only itself and earlier ones
    window: int | None = None  # only those less than this many tokens away; None if all
    rotation: Rotation | None = None  # None if queries and keys are not rotated
    bias: RelativeBias | None = None  # None if nothing is added to the scores
    disentangled: Disentangled | None = None  # None if positions are not DeBERTa's


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of a layer's attention."""

    n_layers: int
    n_heads: int  # of the queries
    width: int  # numbers of a head


#: Reads the attention of each layer from a config.json.
ReadAttention = Callable[[ConfigReader, Heads], tuple[LayerAttention, ...]]
#: Reads the factor of the scores, given the width of a head.
ReadScale = Callable[[ConfigReader, int], float]
#: Reads the convolution beside the first layer; None if there is none.
ReadConvolution = Callable[[ConfigReader], Convolution | None]
#: Reads the activation, by transformers' name, and whether there is a gate.
ReadActivation = Callable[[ConfigReader], tuple[Any, bool]]


def full_attention(_: ConfigReader, heads: Heads) -> tuple[LayerAttention, ...]:
    """Returns layers in which every token attends to its whole text."""
    return (LayerAttention(),) * heads.n_layers


def rotary_attention(base: float, *, causal: bool = False) -> ReadAttention:
    """Returns a reader of layers that attend to the whole text, or all that precedes, and rotate by one base.

    Args:
        base: that of a config.json that has none.
        causal: whether a token attends to itself and earlier ones alone.
    """

    def read(reader: ConfigReader, heads: Heads) -> tuple[LayerAttention, ...]:
        rotation = read_rotation(reader, heads.width, base)
        return (LayerAttention(causal=causal, rotation=rotation),) * heads.n_layers

    return read


def by_width(_: ConfigReader, width: int) -> float:
    """Returns the usual factor of scores: 1 by the root of the heads' width."""
    return float(width**-0.5)


def without_convolution(_: ConfigReader) -> None:
    """Returns None: the first layer is like the others."""


def without_gate(reader: ConfigReader) -> tuple[Any, bool]:
    """Returns the activation of a plain feed-forward network."""
    return reader.get("hidden_act"), False


def with_gate(reader: ConfigReader) -> tuple[Any, bool]:
    """Returns the activation of one that multiplies its activations by a second projection."""
    return reader.get("hidden_act"), True


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
    projects_first: bool = False  # whether they are projected before their norm, not after it
    scales_embeddings: bool = False  # whether embeddings are multiplied by the square root of their width
    positions_key: str | None = None  # the key that says whether there are embeddings of positions; None if always
    limits_positions: bool = True  # whether config.json has a largest number of positions
    positions_after_pad: bool = False  # whether positions count from the pad's id + 1, as RoBERTa's; else from 0
    pad_id: int | None = None  # that id if it is fixed; None if config.json has it
    # Layers
    rms_norms: bool = False  # whether norms divide by the root mean square and do no more; else layer norms
    norms_add_one: bool = False  # whether 1 is added to the weights of norms
    norm_eps: float | None = None  # the epsilon of every norm; None if config.json has it
    skips_first_norm: bool = False  # whether layer 0 has no norm before its attention
    #: Whether these have a bias: "norm", "qkv", "out", "up", "down", "projection". A name is the key that says so.
    biases: Mapping[str, bool | str] = field(default_factory=dict)
    own_head_width: bool = False  # whether config.json may state the width of a head, and fewer heads of keys
    scale: ReadScale = by_width
    activation: ReadActivation = without_gate
    attention: ReadAttention = full_attention
    convolution: ReadConvolution = without_convolution
