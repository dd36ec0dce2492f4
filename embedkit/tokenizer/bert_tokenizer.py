"""Reads BERT's tokenizer without transformers, whose import takes longer than a small job.

Only if tokenizer.json contains the normalizer, pre-tokenizer and special tokens that transformers would build from
tokenizer_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedkit.tokenizer.file_tokenizer import FileTokenizer, read_files
from embedkit.tokenizer.rust_tokenizer import disable_truncation

#: Classes of tokenizers with BERT's normalizer and WordPiece.
_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")
#: Model types for which transformers uses the class named in tokenizer_config.json.
_MODEL_TYPES = ("bert", "distilbert", "electra", "gte", "megatron-bert", "nomic_bert")
_SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
#: Keys of tokenizer_config.json that do not affect the ids of a text.
_HARMLESS = {
    *("backend", "clean_up_tokenization_spaces", "do_basic_tokenize", "is_local", "local_files_only"),
    *("model_input_names", "name_or_path", "never_split", "padding_side", "special_tokens_map_file"),
    *("tokenizer_class", "tokenizer_file"),
}
_FOLLOWED = {"do_lower_case", "model_max_length", "strip_accents", "tokenize_chinese_chars", "truncation_side"}


def read_bert_tokenizer(folder: Path) -> FileTokenizer | None:
    """Reads the tokenizer of a folder; None if only transformers can load it."""
    try:
        files = read_files(folder)
        plain = (
            files.model_type in _MODEL_TYPES
            and not files.has_more
            and _is_plain(files.settings, files.special)
            and _matches_settings(files.parts, files.settings)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not plain:
        return None
    from tokenizers import Tokenizer

    types = [] if files.model_type == "distilbert" else ["token_type_ids"]
    backend = disable_truncation(Tokenizer.from_str(files.text))
    return FileTokenizer(backend, files.settings, _SPECIAL, ["input_ids", *types, "attention_mask"])


def _is_plain(settings: Mapping[str, Any], special: Mapping[str, Any]) -> bool:
    """Checks that all settings are followed here, and that the special tokens are BERT's."""
    return (
        str(settings.get("tokenizer_class", "")).removesuffix("Fast") in _CLASSES
        and settings.keys() <= _HARMLESS | _FOLLOWED | _SPECIAL.keys()
        and special.keys() <= _SPECIAL.keys()
        and all(found.get(key, token) == token for found in (settings, special) for key, token in _SPECIAL.items())
        and type(settings.get("model_max_length", 1)) is int
        and settings.get("truncation_side", "right") in {"right", "left"}
        and "model_input_names" not in settings
        and settings.get("never_split") is None
    )


def _matches_settings(parts: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Checks that tokenizer.json contains the parts that transformers would build from the settings."""
    model, vocab = parts["model"], parts["model"]["vocab"]
    ids = {key: vocab[token] for key, token in _SPECIAL.items()}
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
        "strip_accents": settings.get("strip_accents"),
        "lowercase": settings.get("do_lower_case", True),
    }
    return (
        parts["normalizer"] == normalizer
        and parts["pre_tokenizer"] == {"type": "BertPreTokenizer"}
        and model.get("type", "WordPiece") == "WordPiece"
        and (model["unk_token"], model["continuing_subword_prefix"]) == (_SPECIAL["unk_token"], "##")
        and model["max_input_chars_per_word"] == 100
        and _frames(parts["post_processor"], ids)
        and _are_special(parts["added_tokens"], ids)
    )


def _frames(processor: Mapping[str, Any], ids: Mapping[str, int]) -> bool:
    """Checks that a text is put between [CLS] and [SEP]."""
    if processor["type"] == "BertProcessing":
        ends = [["[CLS]", ids["cls_token"]], ["[SEP]", ids["sep_token"]]]
        return [processor["cls"], processor["sep"]] == ends
    names = [next(iter(piece.values())) for piece in processor["single"]]
    tokens = processor["special_tokens"]
    return (
        processor["type"] == "TemplateProcessing"
        and [name["id"] for name in names] == ["[CLS]", "A", "[SEP]"]
        and not any(name["type_id"] for name in names)
        and tokens["[CLS]"]["ids"] == [ids["cls_token"]]
        and tokens["[SEP]"]["ids"] == [ids["sep_token"]]
    )


def _are_special(added: list[Mapping[str, Any]], ids: Mapping[str, int]) -> bool:
    """Checks that exactly the five special tokens are recognised in a text, before anything else."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    found = {token["content"]: token for token in added}
    return set(found) == set(_SPECIAL.values()) and all(
        {**plain, "id": ids[key], "content": token} == found[token] for key, token in _SPECIAL.items()
    )
