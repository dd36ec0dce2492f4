"""What config.json tells of a model's size, before torch is there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from embedkit.errors import ModelError
from embedkit.models.repository.architectures import ARCHITECTURES, UNPROVEN, Architecture, max_positions
from embedkit.models.repository.config_keys import check_positions
from embedkit.models.repository.model_folder import ModelFolder

#: How the kinds of models spell it; transformers knows them all by the first.
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
#: Kinds that hash a token's id, so that any has an embedding.
_HASHES_TOKENS = ("canine",)
#: Kinds whose feed-forward part has a third matrix, a gate.
_GATED = ("gemma", "gte", "granite", "llama", "mistral", "modernbert", "nomic_bert", "olmo", "phi3", "qwen")


@dataclass(frozen=True, slots=True)
class ConfigFacts:
    """How large a model is.

    Attributes:
        config: with `hidden_size`, `num_hidden_layers` and what else config.json has, as attributes.
        hidden_size: dimensions of a state.
        n_layers: encoder layers.
        intermediate_size: inner dimensions of the feed-forward part; None if not told.
        positions: most tokens it has positions for; None = any number.
        layer_weights: values in the matrices of a layer; None if not told.
    """

    config: Any
    hidden_size: int
    n_layers: int
    intermediate_size: int | None
    positions: int | None
    layer_weights: int | None


def inner_widths(config: Any, hidden_size: int) -> tuple[int, int]:
    """The inner dimensions of a model's feed-forward part, and its heads; the usual ones where it does not say.

    Args:
        config: with what config.json has, as attributes.
        hidden_size: dimensions of a state.
    """
    told = {name: getattr(config, name, None) for name in (*_INTERMEDIATE_SIZE, *_N_HEADS)}
    return _first(told, _INTERMEDIATE_SIZE) or 4 * hidden_size, _first(told, _N_HEADS) or max(1, hidden_size // 64)


def architecture_of(folder: ModelFolder) -> Architecture:
    """What is known of a model's kind.

    Raises:
        ModelError: it is known that it cannot be run exactly.
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
    """Tokens that a model has an embedding for, from id 0; None = of any token, or nobody knows.

    Args:
        folder: the model.
        config: the encoder's, with its keys as attributes.
    """
    stated = getattr(config, "vocab_size", None)
    return stated if isinstance(stated, int) and folder.model_type not in _HASHES_TOKENS else None


def read_config_facts(folder: ModelFolder, *, trust_remote_code: bool) -> ConfigFacts:
    """The shape of a model, by its config.json alone; where that leaves something out, by transformers' defaults.

    Raises:
        ModelError: transformers does not know such a model.
    """
    architecture = architecture_of(folder)
    raw = folder.config
    size, layers = _first(raw, _HIDDEN_SIZE), _first(raw, _N_LAYERS)
    limit = architecture.position_limit
    told = size and layers and (limit is None or limit in raw) and "pad_token_id" in raw
    config: Any = SimpleNamespace(**{**raw, "hidden_size": size, "num_hidden_layers": layers})
    if not told or architecture is UNPROVEN:
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
    """Values in the matrices of a layer: queries, keys, values, output; up, down, and a gate."""
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
    except Exception as fault:  # noqa: BLE001 - anything may come from there; no row is involved yet
        raise ModelError(
            f"config.json of model '{folder.name}' ({folder.model_type}) cannot be read: {type(fault).__name__}",
            hint="check that this transformers knows the model type",
        ) from None


def _first(config: dict[str, Any], names: tuple[str, ...]) -> int | None:
    found = next((config[name] for name in names if isinstance(config.get(name), int)), None)
    return None if found is None else int(found)
