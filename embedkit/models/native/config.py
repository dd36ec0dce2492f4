"""Reads config.json of the families that embedkit computes itself; imports no torch.

Every key must be known, whether it affects the numbers or not; a model with any other key is left to transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embedkit.models.native.families import FAMILIES
from embedkit.models.native.families.family import Family

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
#: Keys of every family.
_KEYS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "hidden_act", "pad_token_id"),
)
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
    *("bos_token_id", "cls_token_id", "eos_token_id", "mask_token_id", "sep_token_id"),
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


class NotNativeError(Exception):
    """A model is left to transformers; the message completes "because"."""


@dataclass(frozen=True, slots=True)
class NativeConfig:
    """The part of a model's configuration that affects the numbers."""

    family: Family
    vocab_size: int
    hidden_size: int
    n_layers: int
    n_heads: int
    intermediate_size: int
    max_position_embeddings: int  # rows of the position embeddings
    type_vocab_size: int  # rows of the token type embeddings; 0 if it has none
    embedding_size: int  # width of the embeddings; projected if it is not `hidden_size`
    activation: str  # one of the values of ACTIVATIONS
    layer_norm_eps: float  # the epsilon of every norm
    pad_id: int | None  # positions count from the one after it; None if they count from 0

    @property
    def usable_positions(self) -> int:
        """Most tokens of a text: RoBERTa's first positions are not for tokens."""
        return self.max_position_embeddings - (0 if self.pad_id is None else self.pad_id + 1)


def read_config(config: Mapping[str, Any]) -> NativeConfig:
    """Reads the content of a config.json.

    Raises:
        NotNativeError: it is of another family, or has a setting that embedkit does not know or support.
    """
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise NotNativeError(f"its type is '{config.get('model_type')}', not one of {', '.join(FAMILIES)}")
    _check_keys(config, family)

    def size(key: str, default: int | None = None) -> int:
        key = family.config_keys.get(key, key)
        return _checked(config.get(key, default), key, least=1)

    activation = config.get(family.config_keys.get("hidden_act", "hidden_act"), "gelu")
    if activation not in ACTIVATIONS:
        raise NotNativeError(f"its activation is {str(activation)[:80]!r}")
    eps = family.layer_norm_eps or config.get("layer_norm_eps", 1e-12)
    if type(eps) is not float or not 0 < eps < 1:
        raise NotNativeError(f"its layer_norm_eps is {str(eps)[:80]!r}")
    pad_id = None
    if family.positions_after_pad:
        pad_id = (
            _checked(config.get("pad_token_id", 1), "pad_token_id") if family.pad_id is None else family.pad_id
        )
    read = NativeConfig(
        family=family,
        vocab_size=size("vocab_size"),
        hidden_size=size("hidden_size"),
        n_layers=size("num_hidden_layers"),
        n_heads=size("num_attention_heads"),
        intermediate_size=size("intermediate_size"),
        max_position_embeddings=size("max_position_embeddings"),
        type_vocab_size=size("type_vocab_size", 2) if family.token_types else 0,
        embedding_size=size("embedding_size", 128) if family.projects_embeddings else size("hidden_size"),
        activation=ACTIVATIONS[activation],
        layer_norm_eps=eps,
        pad_id=pad_id,
    )
    if read.hidden_size % read.n_heads:
        raise NotNativeError("its hidden size is no multiple of its heads")
    if read.usable_positions < 1:
        raise NotNativeError("it has no positions for tokens")
    return read


def _check_keys(config: Mapping[str, Any], family: Family) -> None:
    known = {family.config_keys.get(key, key) for key in _KEYS}
    known |= {"layer_norm_eps"} if family.layer_norm_eps is None else set()
    known |= {"type_vocab_size"} if family.token_types else set()
    known |= {"embedding_size"} if family.projects_embeddings else set()
    unknown = sorted(config.keys() - known - _FIXED.keys() - _HARMLESS)
    if unknown:
        raise NotNativeError(f"its config.json sets '{unknown[0][:80]}'")
    for key, allowed in _FIXED.items():
        if key in config and config[key] not in allowed:
            raise NotNativeError(f"its config.json sets '{key}' to {str(config[key])[:80]!r}")


def _checked(number: Any, key: str, *, least: int = 0) -> int:
    # `type`, since True is an int too.
    if type(number) is not int or number < least:
        raise NotNativeError(f"its config.json has {str(number)[:80]!r} as '{key}'")
    return number
