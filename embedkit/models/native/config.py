"""Reads config.json of the families that embedkit computes itself; imports no torch.

Every key must be known, whether it affects the numbers or not; a model with any other key is left to transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from embedkit.models.native.config_reader import ConfigReader, NotNativeError
from embedkit.models.native.families import FAMILIES
from embedkit.models.native.families.family import Convolution, Family, Heads, LayerAttention

#: Activations by the names of transformers; several are one function.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
#: The parts of a model that may have a bias; see Family.
_BIASED = ("norm", "qkv", "out", "up", "down", "projection")
#: Keys that change what is computed, and the values that are supported.
_FIXED: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "position_embedding_type": ("absolute", None),
    "pruned_heads": ({}, None),
    "relative_attention_num_buckets": (32,),
    "return_dict": (True, None),
}
#: Keys that change no number of the encoder.
_HARMLESS = {
    # The files' origin and the output's form.
    *("_name_or_path", "architectures", "dtype", "language", "model_type", "name", "name_or_path", "torch_dtype"),
    *("output_attentions", "output_hidden_states", "output_past", "transformers_version"),
    # Training, and values before it.
    *("attention_dropout", "attention_probs_dropout_prob", "classifier_dropout", "dropout", "hidden_dropout_prob"),
    *("finetuning_task", "gradient_checkpointing", "initializer_factor", "initializer_range", "problem_type"),
    *("qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds"),
    # Heads and generation.
    *("_num_labels", "id2label", "label2id", "num_labels", "tie_weights_", "tie_word_embeddings", "use_cache"),
    *("bos_token_id", "cls_token_id", "eos_token_id", "mask_token_id", "pad_token_id", "sep_token_id"),
    *(
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    ),
    *("summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj"),
    # How the same numbers are computed.
    *("_attn_implementation", "attn_implementation", "chunk_size_feed_forward", "directionality"),
}


@dataclass(frozen=True, slots=True)
class NativeConfig:
    """The part of a model's configuration that affects the numbers."""

    family: Family
    vocab_size: int
    hidden_size: int
    n_layers: int
    n_heads: int  # of the queries
    n_key_heads: int  # of keys and values; each serves as many of the queries'
    head_width: int  # numbers of a head
    scale: float  # factor for the scores of attention
    intermediate_size: int
    max_position_embeddings: int | None  # rows of the position embeddings, or the longest text; None for any
    has_positions: bool  # whether it has position embeddings, if its layout names them
    type_vocab_size: int  # rows of the token type embeddings; 0 if it has none
    embedding_size: int  # width of the embeddings; projected if it is not `hidden_size`
    activation: str  # one of the values of ACTIVATIONS
    gated: bool  # whether the feed-forward network multiplies its activations by a second projection
    norm_eps: float  # the epsilon of every norm
    pad_id: int | None  # positions count from the one after it; None if they count from 0
    attention: tuple[LayerAttention, ...]  # of each layer
    convolution: Convolution | None  # beside the first layer; its activation is a value of ACTIVATIONS
    biased: frozenset[str]  # the parts of _BIASED that have one

    @property
    def usable_positions(self) -> int | None:
        """Most tokens of a text, None for any: RoBERTa's first positions are not for tokens."""
        if self.max_position_embeddings is None:
            return None
        return self.max_position_embeddings - (0 if self.pad_id is None else self.pad_id + 1)


def read_config(config: Mapping[str, Any]) -> NativeConfig:
    """Reads the content of a config.json.

    Raises:
        NotNativeError: it is of another family, or has a setting that embedkit does not know or support.
    """
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise NotNativeError(f"its type is '{config.get('model_type')}', not one of {', '.join(FAMILIES)}")
    reader = ConfigReader(config, family.config_keys, family.defaults)
    hidden_size, n_heads = reader.size("hidden_size"), reader.size("num_attention_heads")
    n_key_heads, head_width = n_heads, hidden_size // n_heads
    if family.own_head_width:
        n_key_heads = reader.size("num_key_value_heads") if reader.get("num_key_value_heads") else n_heads
        head_width = reader.size("head_dim") if reader.get("head_dim") else head_width
    elif hidden_size % n_heads:
        raise NotNativeError("its hidden size is no multiple of its heads")
    if n_heads % n_key_heads:
        raise NotNativeError("its heads are no multiple of those of its keys")
    activation, gated = family.activation(reader)
    convolution = family.convolution(reader)
    eps = family.norm_eps or reader.number("layer_norm_eps")
    if eps >= 1:
        raise NotNativeError(f"its norms have the epsilon {eps}")
    n_layers = reader.size("num_hidden_layers")
    read = NativeConfig(
        family=family,
        vocab_size=reader.size("vocab_size"),
        hidden_size=hidden_size,
        n_layers=n_layers,
        n_heads=n_heads,
        n_key_heads=n_key_heads,
        head_width=head_width,
        scale=family.scale(reader, head_width),
        intermediate_size=reader.size("intermediate_size"),
        max_position_embeddings=reader.size("max_position_embeddings") if family.limits_positions else None,
        has_positions=family.positions_key is None or reader.flag(family.positions_key),
        type_vocab_size=_token_types(reader, family),
        embedding_size=reader.size("embedding_size", hidden_size) if family.projects_embeddings else hidden_size,
        activation=_activation(activation),
        gated=gated,
        norm_eps=eps,
        pad_id=_pad_id(reader, family) if family.positions_after_pad else None,
        attention=family.attention(reader, Heads(n_layers, n_heads, head_width)),
        convolution=convolution and replace(convolution, activation=_activation(convolution.activation)),
        biased=frozenset(part for part in _BIASED if _has_bias(reader, family.biases.get(part, True))),
    )
    reader.check_others({**_FIXED, **family.fixed}, _HARMLESS | family.harmless)
    if read.usable_positions is not None and read.usable_positions < 1:
        raise NotNativeError("it has no positions for tokens")
    return read


def _activation(stated: Any) -> str:
    """Returns the value of ACTIVATIONS for a name of transformers."""
    if not isinstance(stated, str) or stated not in ACTIVATIONS:
        raise NotNativeError(f"its activation is {str(stated)[:80]!r}")
    return ACTIVATIONS[stated]


def _token_types(reader: ConfigReader, family: Family) -> int:
    if not family.token_types:
        return 0
    return reader.size("type_vocab_size", least=0 if family.may_lack_types else 1)


def _pad_id(reader: ConfigReader, family: Family) -> int:
    return reader.size("pad_token_id", least=0) if family.pad_id is None else family.pad_id


def _has_bias(reader: ConfigReader, stated: bool | str) -> bool:
    return reader.flag(stated) if isinstance(stated, str) else stated
