"""Reads a tokenizer.json that transformers takes as it was saved, without transformers.

Other classes rebuild their parts from the vocabulary. These are the ones without parts of their own, for types of
models that embedkit computes itself; any setting that is not known here leaves the tokenizer to transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedkit.tokenizer.file_tokenizer import FileTokenizer, TokenizerFiles, content_of, read_files
from embedkit.tokenizer.rust_tokenizer import disable_truncation

#: Classes that take tokenizer.json as it is.
_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
#: Model types for which transformers follows tokenizer_config.json in that, or has no class at all.
_MODEL_TYPES = ("eurobert", "gemma3_text", "gte", "llama", "megatron-bert", "modernbert", "nomic_bert", "qwen3")
#: Model types for which it takes tokenizer.json as it is, whatever class is named.
_AS_SAVED = ("mistral", "umt5")
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
#: Keys of tokenizer_config.json that do not affect the ids of a text.
_HARMLESS = {
    *("backend", "chat_template", "clean_up_tokenization_spaces", "is_local", "local_files_only", "max_length"),
    *("name_or_path", "padding_side", "special_tokens_map_file", "stride", "tokenizer_class", "tokenizer_file"),
    *("truncation_strategy", "pad_to_multiple_of", "pad_token_type_id", "legacy", "sp_model_kwargs"),
    *("spaces_between_special_tokens", "use_default_system_prompt"),
}
_FOLLOWED = {
    *("added_tokens_decoder", "model_input_names", "model_max_length", "truncation_side"),
    # In `follow_files`.
    *("add_bos_token", "add_eos_token"),
}
#: Names of the list of further special tokens, now and before.
_EXTRA = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def read_saved_tokenizer(folder: Path) -> FileTokenizer | None:
    """Reads the tokenizer of a folder; None if transformers would change it, or might."""
    try:
        files = read_files(folder)
        settings = files.settings
        known = (
            _is_taken(files)
            # Mistral's own library would read this.
            and not (folder / "tekken.json").is_file()
            and not files.has_more
            and _is_plain(settings, files.special, files.parts)
        )
        special = {role: content_of(settings[role]) for role in _ROLES if settings.get(role) is not None}
        extra = [content_of(token) for name in _EXTRA for token in settings.get(name) or ()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not known:
        return None
    from tokenizers import Tokenizer

    backend = disable_truncation(Tokenizer.from_str(files.text))
    return FileTokenizer(backend, settings, special, settings["model_input_names"], extra)


def _is_taken(files: TokenizerFiles) -> bool:
    """Checks whether transformers takes tokenizer.json as it is for a model of this type."""
    declared = files.settings.get("tokenizer_class")
    if files.model_type in _AS_SAVED:
        return isinstance(declared, str)
    if files.model_type not in _MODEL_TYPES:
        return False
    # Llama's class is for sentencepiece; transformers, too, looks for this word in files that name it.
    is_llama3 = files.model_type == "llama" and declared in {"LlamaTokenizer", "LlamaTokenizerFast"}
    return declared in _CLASSES or (is_llama3 and '"ByteLevel"' in files.text)


def _is_plain(settings: Mapping[str, Any], special_map: Mapping[str, Any], parts: Mapping[str, Any]) -> bool:
    """Checks that all settings are followed here, and that no token would be added or changed."""
    added = {token["content"]: token for token in parts["added_tokens"]}
    named = [settings[role] for role in _ROLES if settings.get(role) is not None]
    named += [token for name in _EXTRA for token in settings.get(name) or ()]
    stated = settings.get("added_tokens_decoder", {})
    cut = parts.get("truncation")
    return (
        settings.keys() <= _HARMLESS | _FOLLOWED | {*_ROLES, *_EXTRA}
        and not all(name in settings for name in _EXTRA)
        and special_map.keys() <= settings.keys()
        and all(_texts(special_map[key]) == _texts(settings[key]) for key in special_map)
        and all(added.get(content_of(token), {}).get("special") is True for token in named)
        and all(_is_same(token, int(index), added) for index, token in stated.items())
        and type(settings.get("model_max_length", 1)) is int
        and settings.get("truncation_side", "right") in {"right", "left"}
        and (cut is None or cut["direction"] == "Right" or "truncation_side" in settings)
        and isinstance(settings["model_input_names"], list)
    )


def _is_same(token: Mapping[str, Any], index: int, added: Mapping[str, Mapping[str, Any]]) -> bool:
    """Checks that a token of tokenizer_config.json is the one of that id in tokenizer.json."""
    saved = added[token["content"]]
    return saved["id"] == index and all(token[flag] == saved[flag] for flag in _FLAGS)


def _texts(stated: Any) -> Any:
    return [content_of(token) for token in stated] if isinstance(stated, list) else content_of(stated)
