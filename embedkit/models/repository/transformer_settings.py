"""The settings that sentence-transformers keeps for the Transformer module of a model: lengths, casing, arguments.

Reads JSON only. A setting that may change the numbers and is not followed is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embedkit.errors import ModelError
from embedkit.models.repository.model_folder import ModelFolder

#: Where the settings may be, in the order in which sentence-transformers looks for them.
_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
#: What the module gives unless it is told otherwise; all else is for pictures, chats, classes or pairs of texts.
_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}
#: Names of the same groups of arguments, and those of each that change no number, or that embedkit's own options
#: stand for (`--dtype`, `--device`). The length is followed.
_GROUPS = {
    ("model_args", "model_kwargs"): {
        *("torch_dtype", "dtype", "attn_implementation", "device_map", "low_cpu_mem_usage", "use_safetensors"),
        *("add_pooling_layer", "weights_only", "trust_remote_code"),
    },
    ("tokenizer_args", "processor_kwargs"): {"model_max_length", "padding_side", "use_fast", "trust_remote_code"},
    ("config_args", "config_kwargs"): {
        *("use_cache", "output_hidden_states", "output_attentions", "trust_remote_code"),
    },
}
#: Of `encode_query` and `encode_document`, of speed, or read elsewhere.
_HARMLESS = {
    *("max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name"),
    *("processing_kwargs", "unpad_inputs", "query_length", "document_length", "query_expansion"),
    *(name for names in _GROUPS for name in names),
}
_HARMLESS_PROCESSING = {
    "max_length",
    "truncation",
    "padding",
    "padding_side",
    "pad_to_multiple_of",
    "return_tensors",
}


@dataclass(frozen=True, slots=True)
class TransformerSettings:
    """How the authors tokenize a text, and what they take from the encoder.

    Attributes:
        max_length: their limit in tokens; None = what the tokenizer and the encoder say.
        lowercase: whether texts are lowercased before the tokenizer does anything.
        output_hidden_states: whether all layers are handed out; None = as config.json says.
    """

    max_length: int | None = None
    lowercase: bool = False
    output_hidden_states: bool | None = None

    def gives_layers(self, config: Mapping[str, Any]) -> bool:
        """Whether later modules get the states of all layers."""
        stated = self.output_hidden_states
        return bool(config.get("output_hidden_states", False) if stated is None else stated)


def transformer_settings(model: ModelFolder, path: str) -> TransformerSettings:
    """The settings of the Transformer module in the folder `path`.

    Raises:
        ModelError: one of them is not followed, and may change the numbers.
    """
    folder = f"{path}/" if path else ""
    found = next((read for name in _FILES if (read := model.read_recipe(folder + name))), {})
    _refuse_other_outputs(model, found)
    for name in found:
        if name not in _HARMLESS and found[name] is not None:
            raise _refusal(model, f"the setting '{name}'")
    groups = [_group(model, found, names, harmless) for names, harmless in _GROUPS.items()]
    _, of_tokenizer, of_config = groups
    processing = _processing(model, found.get("processing_kwargs") or {})
    limits = (processing.get("max_length"), of_tokenizer.get("model_max_length"), found.get("max_seq_length"))
    return TransformerSettings(
        max_length=next((_length(limit) for limit in limits if limit is not None), None),
        lowercase=bool(found.get("do_lower_case", False)),
        output_hidden_states=of_config.get("output_hidden_states"),
    )


def _refuse_other_outputs(model: ModelFolder, found: Mapping[str, Any]) -> None:
    task = found.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise _refusal(model, f"the task '{task}'")
    modalities = found.get("modality_config", {"text": _TEXT})
    output = found.get("module_output_name", "token_embeddings")
    if "message" in modalities:
        raise _refusal(model, "texts put into a chat (modality 'message')")
    if modalities.get("text") != _TEXT or output != "token_embeddings":
        named = (modalities.get("text") or {}).get("method_output_name")
        raise _refusal(model, f"an encoder's output other than last_hidden_state ('{named}' as '{output}')")


def _group(
    model: ModelFolder, found: Mapping[str, Any], names: tuple[str, str], harmless: set[str]
) -> Mapping[str, Any]:
    older, newer = names
    arguments: Mapping[str, Any] = found.get(older) or found.get(newer) or {}
    for name in arguments:
        if name not in harmless:
            raise _refusal(model, f"'{name}' in {older if older in found else newer}")
    return arguments


def _processing(model: ModelFolder, found: Mapping[str, Any]) -> Mapping[str, Any]:
    given = {**(found.get("text") or {}), **(found.get("common") or {})}
    for name, value in given.items():
        if name not in _HARMLESS_PROCESSING or (name == "truncation" and value not in {True, "longest_first"}):
            raise _refusal(model, f"'{name}' in processing_kwargs")
    return given


def _length(value: Any) -> int:
    if int(value) < 1:
        raise ValueError(value)
    return int(value)


def _refusal(model: ModelFolder, what: str) -> ModelError:
    return ModelError(
        f"the recipe that model '{model.name}' ships has {what}, which embedkit does not follow",
        hint="choose the pooling yourself, such as --pool mean; it is then the plain encoder's vector",
    )
