"""Reads config.json of the families that embedkit computes itself; imports no torch.

Every key must be known, either as one that decides a number or as one that does not. A model with any other key is
left to transformers.
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
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
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
#: Keys that change no number of the encoder: training, heads, generation, the files' origin.
_HARMLESS = frozenset(
    (
        "_attn_implementation",
        "_name_or_path",
        "_num_labels",
        "architectures",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "attn_implementation",
        "bos_token_id",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "cls_token_id",
        "directionality",
        "dropout",
        "dtype",
        "eos_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "hidden_dropout_prob",
        "id2label",
        "initializer_factor",
        "initializer_range",
        "label2id",
        "language",
        "mask_token_id",
        "model_type",
        "name",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
        "problem_type",
        "qa_dropout",
        "sep_token_id",
        "seq_classif_dropout",
        "sinusoidal_pos_embds",
        "summary_activation",
        "summary_last_dropout",
        "summary_type",
        "summary_use_proj",
        "tie_weights_",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    )
)


class NotNativeError(Exception):
    """A model is left to transformers; the message completes "because"."""


@dataclass(frozen=True, slots=True)
class NativeConfig:
    """The configuration of a model, as far as it decides numbers.

    Attributes:
        family: its family.
        vocab_size, hidden_size, n_layers, n_heads, intermediate_size: the usual sizes.
        max_position_embeddings: rows of the position embeddings.
        type_vocab_size: rows of the token type embeddings; 0 if it has none.
        embedding_size: width of the embeddings; projected if it is not `hidden_size`.
        activation: one of the values of ACTIVATIONS.
        layer_norm_eps: the epsilon of every norm.
        pad_id: positions count from the one after it; None if they count from 0.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    n_layers: int
    n_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    embedding_size: int
    activation: str
    layer_norm_eps: float
    pad_id: int | None

    @property
    def usable_positions(self) -> int:
        """Most tokens of a text: RoBERTa's first positions are not for tokens."""
        return self.max_position_embeddings - (0 if self.pad_id is None else self.pad_id + 1)


def read_config(config: Mapping[str, Any]) -> NativeConfig:
    """Reads a config.json.

    Args:
        config: its content.

    Raises:
        NotNativeError: it is of another family, or has a setting that embedkit does not know or support.
    """
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise NotNativeError(f"its type is '{config.get('model_type')}', not one of {', '.join(FAMILIES)}")
    key_of = {key: family.config_keys.get(key, key) for key in (*_SIZES, "hidden_act")}
    known = {*key_of.values(), "pad_token_id"}
    known |= {"layer_norm_eps"} if family.layer_norm_eps is None else set()
    known |= {"type_vocab_size"} if family.token_types else set()
    known |= {"embedding_size"} if family.projects_embeddings else set()
    _check_keys(config, known)
    sizes = {key: _size(config, key_of[key]) for key in _SIZES}
    activation = config.get(key_of["hidden_act"], "gelu")
    if activation not in ACTIVATIONS:
        raise NotNativeError(f"its activation is {str(activation)[:80]!r}")
    eps = family.layer_norm_eps or config.get("layer_norm_eps", 1e-12)
    if type(eps) is not float or not 0 < eps < 1:
        raise NotNativeError(f"its layer_norm_eps is {str(eps)[:80]!r}")
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise NotNativeError("its hidden size is no multiple of its heads")
    read = NativeConfig(
        family=family,
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        n_layers=sizes["num_hidden_layers"],
        n_heads=sizes["num_attention_heads"],
        intermediate_size=sizes["intermediate_size"],
        max_position_embeddings=sizes["max_position_embeddings"],
        type_vocab_size=_size(config, "type_vocab_size", 2) if family.token_types else 0,
        embedding_size=(
            _size(config, "embedding_size", 128) if family.projects_embeddings else sizes["hidden_size"]
        ),
        activation=ACTIVATIONS[activation],
        layer_norm_eps=eps,
        pad_id=_pad_id(config, family),
    )
    if read.usable_positions < 1:
        raise NotNativeError("it has no positions for tokens")
    return read


def _check_keys(config: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(config.keys() - known - _FIXED.keys() - _HARMLESS)
    if unknown:
        raise NotNativeError(f"its config.json sets '{unknown[0][:80]}'")
    for key, allowed in _FIXED.items():
        if key in config and config[key] not in allowed:
            raise NotNativeError(f"its config.json sets '{key}' to {str(config[key])[:80]!r}")


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    size = config.get(key, default)
    # `type`, since True is an int too.
    if type(size) is not int or size < 1:
        raise NotNativeError(f"its config.json has {str(size)[:80]!r} as '{key}'")
    return size


def _pad_id(config: Mapping[str, Any], family: Family) -> int | None:
    if not family.positions_after_pad:
        return None
    pad_id = config.get("pad_token_id", 1) if family.pad_id is None else family.pad_id
    if type(pad_id) is not int or pad_id < 0:
        raise NotNativeError(f"its pad_token_id is {str(pad_id)[:80]!r}")
    return pad_id
