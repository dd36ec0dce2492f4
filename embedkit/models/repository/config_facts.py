"""Reads the sizes of a model from its config.json, without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from embedkit.errors import ModelError
from embedkit.models.repository.architectures import ARCHITECTURES, UNPROVEN, Architecture, max_positions
from embedkit.models.repository.config_keys import check_positions
from embedkit.models.repository.model_folder import ModelFolder

#: Names of a size in config.json; transformers gives every model the first as an attribute.
_HIDDEN_SIZE = ("hidden_size", "d_model", "dim", "n_embd", "emb_dim")
_N_LAYERS = ("num_hidden_layers", "encoder_layers", "num_layers", "n_layers", "n_layer")
_INTERMEDIATE_SIZE = (
    "intermediate_size",
    "encoder_ffn_dim",
    "d_ff",
    "ffn_dim",
    "hidden_dim",
    "n_inner",
    "d_inner",
)
_N_HEADS = ("num_attention_heads", "encoder_attention_heads", "num_heads", "n_heads", "n_head")
#: Model types that hash a token's id, so that any id has an embedding.
_HASHES_TOKENS = ("canine",)
#: Model types whose feed-forward part has a third matrix, a gate.
_GATED = ("gemma", "gte", "granite", "llama", "mistral", "modernbert", "nomic_bert", "olmo", "phi3", "qwen")


@dataclass(frozen=True, slots=True)
class ConfigFacts:
    """The sizes of a model.

    Attributes:
        config: has the keys of config.json as attributes, and always `hidden_size` and `num_hidden_layers`.
        hidden_size: dimensions of a state.
        n_layers: encoder layers.
        intermediate_size: inner dimensions of the feed-forward part; None if not stated.
        positions: most tokens that it has positions for; None if any number.
        layer_weights: number of values in the matrices of a layer; None if not stated.
    """

    config: Any
    hidden_size: int
    n_layers: int
    intermediate_size: int | None
    positions: int | None
    layer_weights: int | None


def stated_sizes(folder: ModelFolder) -> tuple[int | None, int | None]:
    """Returns the dimensions of a state and the number of layers by config.json alone; None if not stated."""
    return _first(folder.config, _HIDDEN_SIZE), _first(folder.config, _N_LAYERS)


def inner_widths(config: Any, hidden_size: int) -> tuple[int, int]:
    """Returns the inner dimensions of the feed-forward part and the number of heads; the usual ones by default."""
    keys = {name: getattr(config, name, None) for name in (*_INTERMEDIATE_SIZE, *_N_HEADS)}
    return _first(keys, _INTERMEDIATE_SIZE) or 4 * hidden_size, _first(keys, _N_HEADS) or max(1, hidden_size // 64)


def architecture_of(folder: ModelFolder) -> Architecture:
    """Returns the table entry of a model's type.

    Raises:
        ModelError: a model of this type cannot be run exactly.
    """
    architecture = ARCHITECTURES.get(folder.model_type, UNPROVEN)
    if folder.runs_own_encoder:
        return replace(architecture, loader="AutoModel", layers=None, batches=UNPROVEN.batches, refusals=())
    refusal = architecture.refusal(folder.config)
    if refusal is not None:
        raise ModelError(
            f"embedkit does not run model '{folder.name}' ({folder.model_type}): {refusal.reason}",
            hint=refusal.way_out,
        )
    check_positions(folder.name, folder.config)
    return architecture


def n_embeddings(folder: ModelFolder, config: Any) -> int | None:
    """Returns the number of tokens that a model has an embedding for, from id 0; None if any token, or unknown."""
    stated = getattr(config, "vocab_size", None)
    return stated if isinstance(stated, int) and folder.model_type not in _HASHES_TOKENS else None


def read_config_facts(folder: ModelFolder, *, trust_remote_code: bool) -> ConfigFacts:
    """Reads a model's sizes from config.json, and from transformers' defaults if it lacks some.

    Raises:
        ModelError: transformers does not know the model type.
    """
    architecture = architecture_of(folder)
    raw = folder.config
    size, layers = stated_sizes(folder)
    limit = architecture.position_limit
    complete = size and layers and (limit is None or limit in raw) and "pad_token_id" in raw
    config: Any = SimpleNamespace(**{**raw, "hidden_size": size, "num_hidden_layers": layers})
    if not complete or architecture is UNPROVEN:
        config = _by_transformers(folder, trust_remote_code=trust_remote_code)
    hidden = int(config.hidden_size)
    width = _first(raw, _INTERMEDIATE_SIZE)
    return ConfigFacts(
        config=config,
        hidden_size=hidden,
        n_layers=int(config.num_hidden_layers),
        intermediate_size=width,
        positions=max_positions(config, architecture),
        layer_weights=None if width is None else _layer_weights(folder, hidden, width),
    )


def _layer_weights(folder: ModelFolder, hidden: int, width: int) -> int:
    """Counts the values in a layer's matrices: query, key, value, output; up, down, and perhaps a gate."""
    heads = _first(folder.config, ("num_attention_heads",)) or 1
    shared = (_first(folder.config, ("num_key_value_heads",)) or heads) / heads
    matrices = 3 if folder.model_type.startswith(_GATED) else 2
    return round(hidden * hidden * (2 + 2 * shared)) + matrices * hidden * width


def _by_transformers(folder: ModelFolder, *, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            folder.folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
        return config if hasattr(config, "num_hidden_layers") else config.get_text_config()
    except Exception as error:  # noqa: BLE001 - it may raise anything; no row is involved yet
        raise ModelError(
            f"config.json of model '{folder.name}' ({folder.model_type}) cannot be read: {type(error).__name__}",
            hint="check that this version of transformers knows the model type",
        ) from None


def _first(config: dict[str, Any], names: tuple[str, ...]) -> int | None:
    found = next((config[name] for name in names if isinstance(config.get(name), int)), None)
    return None if found is None else int(found)
