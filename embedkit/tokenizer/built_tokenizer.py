"""Builds the tokenizers that transformers builds from the vocabulary in tokenizer.json, without transformers.

These classes keep vocabulary, added tokens and perhaps the post-processor of the file, and put a normalizer and a
pre-tokenizer of their own in the place of the saved ones. Any setting or part that is not known here leaves the
tokenizer to transformers. What is built equals what transformers builds, part by part; see `follow_files` for what
becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedkit.tokenizer.file_tokenizer import FileTokenizer, TokenizerFiles, content_of, read_files
from embedkit.tokenizer.rust_tokenizer import disable_truncation

_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
#: Keys of tokenizer_config.json that do not affect the ids of a text, besides those of a class.
_HARMLESS = {
    *(
        "backend",
        "chat_template",
        "clean_up_tokenization_spaces",
        "errors",
        "is_local",
        "legacy",
        "local_files_only",
    ),
    *("max_length", "name_or_path", "padding_side", "pad_to_multiple_of", "pad_token_type_id", "sp_model_kwargs"),
    *("spaces_between_special_tokens", "special_tokens_map_file", "stride", "tokenizer_class", "tokenizer_file"),
    *("truncation_strategy", "use_default_system_prompt", "vocab_type"),
}
#: Those that are followed for all classes; the ends that they ask for, in `follow_files`.
_FOLLOWED = {
    *("added_tokens_decoder", "add_bos_token", "add_eos_token", "model_input_names", "model_max_length"),
    *("truncation_side",),
}
#: Names of the list of further special tokens, now and before.
_EXTRA = ("extra_special_tokens", "additional_special_tokens")
#: An option that only one kind of model has.
_MARKS = {"BPE": "merges", "Unigram": "unk_id", "WordPiece": "max_input_chars_per_word"}
#: The flags of a special token of which only the content is stated.
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


@dataclass(frozen=True, slots=True)
class _Source:
    """What the parts of a tokenizer are made from."""

    settings: Mapping[str, Any]  # those of the class, with its defaults
    special: Mapping[str, str]  # the special tokens by their role
    ids: Mapping[str, int]  # their ids
    charsmap: bytes | None  # sentencepiece's normalization in the file


@dataclass(frozen=True, slots=True, kw_only=True)
class _Class:
    """A class of transformers."""

    special: Mapping[str, str]  # its special tokens by their role, where no other is stated
    model: Mapping[str, Any]  # kind and options of its model, which the file must have; "" is no prefix
    settings: Mapping[str, Any] = field(default_factory=dict)  # its own ones, with their defaults
    normalizer: Callable[[_Source], Any]
    pre_tokenizer: Callable[[_Source], Any]
    post_processor: Callable[[_Source], Any] | None = None  # None if it keeps the file's
    inputs: Sequence[str] = ("input_ids", "attention_mask")
    resets_flags: bool = False  # whether special tokens lose the flags that the file gives them


_ROBERTA = dict(zip(_ROLES, ("<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"), strict=True))
_NO_AFFIXES = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
_WORD_PIECE = {
    "type": "WordPiece",
    "unk_token": "[UNK]",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 100,
}
_BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    **_NO_AFFIXES,
    "fuse_unk": False,
    "byte_fallback": False,
}


def _nothing(_: _Source) -> None:
    return None


def _charsmap(source: _Source) -> Any:
    from tokenizers import normalizers

    return None if source.charsmap is None else normalizers.Precompiled(source.charsmap)


def _words_and_blanks(source: _Source) -> Any:
    from tokenizers import pre_tokenizers

    scheme = "always" if source.settings.get("add_prefix_space", True) else "never"
    blanks = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme)
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), blanks])


def _deberta_normalizer(source: _Source) -> Any:
    from tokenizers import Regex, normalizers

    first = [normalizers.Lowercase()] if source.settings["do_lower_case"] else []
    blanks = normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " ")
    return normalizers.Sequence([*first, blanks, normalizers.NFC(), normalizers.Strip(left=False, right=True)])


def _deberta_pre_tokenizer(source: _Source) -> Any:
    from tokenizers import pre_tokenizers

    first = [pre_tokenizers.Punctuation(behavior="isolated")] if source.settings["split_by_punct"] else []
    scheme = "always" if source.settings["add_prefix_space"] else "first"
    blanks = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme)
    return pre_tokenizers.Sequence([*first, blanks])


def _template(single: str, pair: str) -> Callable[[_Source], Any]:
    """Puts tokens around a text, and around a pair of texts, which does not occur here."""

    def template(source: _Source) -> Any:
        from tokenizers import processors

        ids = [(token, source.ids[role]) for role, token in source.special.items() if f"{{{role}}}" in single]
        around, between = (text.format(**source.special).split() for text in (single, pair))
        return processors.TemplateProcessing(single=around, pair=between, special_tokens=ids)

    return template


def _roberta_processor(source: _Source) -> Any:
    from tokenizers import processors

    sep, cls = ((source.special[role], source.ids[role]) for role in ("sep_token", "cls_token"))
    trim, prefix = source.settings.get("trim_offsets", True), source.settings.get("add_prefix_space", False)
    return processors.RobertaProcessing(sep, cls, trim, prefix)


def _byte_level(source: _Source) -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=source.settings["add_prefix_space"])


def _bert_normalizer(source: _Source) -> Any:
    from tokenizers import normalizers

    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=source.settings["tokenize_chinese_chars"],
        strip_accents=source.settings["strip_accents"],
        lowercase=source.settings["do_lower_case"],
    )


def _bert_pre_tokenizer(_: _Source) -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.BertPreTokenizer()


#: How Qwen divides a text into words.
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _qwen_normalizer(_: _Source) -> Any:
    from tokenizers import normalizers

    return normalizers.NFC()


def _qwen_pre_tokenizer(source: _Source) -> Any:
    from tokenizers import Regex, pre_tokenizers

    words = pre_tokenizers.Split(Regex(_QWEN), behavior="isolated", invert=False)
    prefix = bool(source.settings["add_prefix_space"])
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)])


def _gemma_normalizer(_: _Source) -> Any:
    from tokenizers import normalizers

    return normalizers.Replace(" ", "\u2581")


def _gemma_pre_tokenizer(_: _Source) -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous", invert=False)


_CLASSES = {
    "DebertaV2Tokenizer": _Class(
        special=dict(zip(_ROLES, ("[CLS]", "[SEP]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"), strict=True)),
        model={"type": "Unigram", "byte_fallback": False},
        settings={"do_lower_case": False, "split_by_punct": False, "add_prefix_space": True, "unk_id": 1},
        normalizer=_deberta_normalizer,
        pre_tokenizer=_deberta_pre_tokenizer,
        post_processor=_template(
            "{cls_token}:0 $A:0 {sep_token}:0", "{cls_token}:0 $A:0 {sep_token}:0 $B:1 {sep_token}:1"
        ),
        inputs=("input_ids", "attention_mask", "token_type_ids"),
    ),
    "GemmaTokenizer": _Class(
        special={f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad", "mask")},
        model={**_BPE, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
        normalizer=_gemma_normalizer,
        pre_tokenizer=_gemma_pre_tokenizer,
    ),
    "MPNetTokenizer": _Class(
        special={**_ROBERTA, "unk_token": "[UNK]"},
        model=_WORD_PIECE,
        settings={"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None},
        normalizer=_bert_normalizer,
        pre_tokenizer=_bert_pre_tokenizer,
        post_processor=_roberta_processor,
    ),
    "Qwen2Tokenizer": _Class(
        special=dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
        model=_BPE,
        settings={"add_prefix_space": None},
        normalizer=_qwen_normalizer,
        pre_tokenizer=_qwen_pre_tokenizer,
        resets_flags=True,
    ),
    "RobertaTokenizer": _Class(
        special=_ROBERTA,
        model=_BPE,
        settings={"add_prefix_space": False, "trim_offsets": True},
        normalizer=_nothing,
        pre_tokenizer=_byte_level,
        post_processor=_roberta_processor,
    ),
    "T5Tokenizer": _Class(
        special={"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        model={"type": "Unigram", "unk_id": 2, "byte_fallback": False},
        settings={"extra_ids": 100},
        normalizer=_charsmap,
        pre_tokenizer=_words_and_blanks,
        post_processor=_template("$A {eos_token}", "$A {eos_token} $B {eos_token}"),
    ),
    "XLMRobertaTokenizer": _Class(
        special=_ROBERTA,
        model={"type": "Unigram", "unk_id": 3, "byte_fallback": False},
        settings={"add_prefix_space": True},
        normalizer=_charsmap,
        pre_tokenizer=_words_and_blanks,
        post_processor=_template(
            "{bos_token} $A {eos_token}", "{bos_token} $A {eos_token} {eos_token} $B {eos_token}"
        ),
    ),
}
#: The class that transformers has for a type of models.
_OF_TYPES = {
    "deberta-v2": "DebertaV2Tokenizer",
    "gemma3_text": "GemmaTokenizer",
    "gte": "XLMRobertaTokenizer",
    "longformer": "RobertaTokenizer",
    "mpnet": "MPNetTokenizer",
    "mt5": "T5Tokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "roberta": "RobertaTokenizer",
    "t5": "T5Tokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}


def build_tokenizer(folder: Path) -> FileTokenizer | None:
    """Builds the tokenizer of a folder; None if transformers would build another one, or might."""
    try:
        files = read_files(folder)
        name = str(files.settings.get("tokenizer_class", "")).removesuffix("Fast")
        if name != _OF_TYPES.get(files.model_type):
            return None
        return _build(files, name)
    except Exception:  # noqa: BLE001 - the Rust library raises nothing more specific; transformers reports faults
        return None


def _build(files: TokenizerFiles, name: str) -> FileTokenizer | None:
    from tokenizers import Tokenizer

    settings, parts, kind = files.settings, files.parts, _CLASSES[name]
    stated = {role: content_of(settings[role]) for role in _ROLES if settings.get(role) is not None}
    special = {role: token for role, token in kind.special.items() if role not in settings} | stated
    added = {token["content"]: token for token in parts["added_tokens"]}
    own = {key: settings.get(key, default) for key, default in kind.settings.items()}
    further = _further(settings, own.get("extra_ids", 0))
    if not (
        _are_known(files, kind)
        and _are_added(added, settings)
        and _is_model(parts["model"], kind, own, special)
        and all(added.get(token, {}).get("special") is True for token in (*special.values(), *further))
        and (not kind.resets_flags or all(_is_plain(added[token]) for token in (*special.values(), *further)))
        # Those that are not stated get the flags of one of which only the content is.
        and all(_is_plain(added[token]) for role, token in special.items() if role not in stated)
        and (kind.post_processor is not None or parts["post_processor"] is not None)
    ):
        return None
    backend = disable_truncation(Tokenizer.from_str(files.text))
    if any(backend.token_to_id(token) != saved["id"] for token, saved in added.items()):
        return None
    ids = {role: backend.token_to_id(token) for role, token in special.items()}
    source = _Source(own, special, ids, _saved_charsmap(parts["normalizer"]))
    before = _states(backend)
    backend.normalizer = kind.normalizer(source)
    backend.pre_tokenizer = kind.pre_tokenizer(source)
    if kind.post_processor is not None:
        backend.post_processor = kind.post_processor(source)
    equals_file = _states(backend) == before
    if not equals_file and any(token["normalized"] for token in added.values()):
        # Added tokens are normalized when they are added, which has to be done by the new normalizer.
        backend = Tokenizer.from_str(backend.to_str())
    inputs = settings.get("model_input_names", kind.inputs)
    return FileTokenizer(backend, settings, special, inputs, further, kind=name, equals_file=equals_file)


def _are_known(files: TokenizerFiles, kind: _Class) -> bool:
    """Checks that all settings are followed, and no other file adds any."""
    settings, cut, padding = files.settings, files.parts.get("truncation"), files.parts.get("padding")
    names = {key for key in settings if key.endswith("_token") and isinstance(settings[key], str)}
    known = _HARMLESS | _FOLLOWED | kind.settings.keys() | names | {*_ROLES, *_EXTRA, "split_special_tokens"}
    return (
        settings.keys() <= known
        and not all(name in settings for name in _EXTRA)
        and settings.get("split_special_tokens", False) is False
        # Without the key, transformers reads more files.
        and ("added_tokens_decoder" in settings or not files.has_more)
        and files.special.keys() <= settings.keys()
        and all(_texts(files.special[key]) == _texts(settings[key]) for key in files.special)
        and type(settings.get("model_max_length", 1)) is int
        and settings.get("truncation_side", "right") in {"right", "left"}
        and (cut is None or cut["direction"] == "Right" or "truncation_side" in settings)
        and (padding is None or "pad_token" in settings)
        and all(
            type(settings[key]) in _types(kind.settings[key]) for key in settings.keys() & kind.settings.keys()
        )
        and isinstance(settings.get("model_input_names", []), list)
    )


def _types(default: Any) -> set[type]:
    """Returns the types that a setting may have."""
    return {bool, type(None)} if default is None else {type(default)}


def _are_added(added: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> bool:
    """Checks that the added tokens of tokenizer.json are those stated, and in the order of their ids."""
    ids = [token["id"] for token in added.values()]
    if ids != sorted(set(ids)):
        return False
    stated = settings.get("added_tokens_decoder")
    if stated is None:
        return True
    saved = {str(token["id"]): {key: token[key] for key in ("content", *_PLAIN)} for token in added.values()}
    return {index: {"content": token["content"], **_flags(token)} for index, token in stated.items()} == saved


def _flags(token: Mapping[str, Any]) -> dict[str, Any]:
    return {flag: token[flag] for flag in _PLAIN}


def _is_plain(token: Mapping[str, Any]) -> bool:
    return _flags(token) == _PLAIN


def _is_model(model: Mapping[str, Any], kind: _Class, own: Mapping[str, Any], special: Mapping[str, str]) -> bool:
    """Checks that the options of the file's model are those that the class gives it."""
    # Older files do not name the kind.
    named = kind.model["type"] if _MARKS[kind.model["type"]] in model else None
    options = {"type": named, "ignore_merges": False, **_NO_AFFIXES, "byte_fallback": False, **model}
    options = {key: "" if key in _NO_AFFIXES and value is None else value for key, value in options.items()}
    wanted = dict(kind.model)
    if wanted.get("unk_token") is not None:
        wanted["unk_token"] = special["unk_token"]
    if "unk_id" in own:
        # DeBERTa's is the token's place in the vocabulary, if that has no score.
        zero = [
            index
            for index, (token, score) in enumerate(model["vocab"])
            if token == special["unk_token"] and score == 0
        ]
        wanted["unk_id"] = zero[0] if zero else own["unk_id"]
    return not options["ignore_merges"] and all(options[key] == value for key, value in wanted.items())


def _further(settings: Mapping[str, Any], n_extra: int) -> list[str]:
    """Returns the special tokens without a role, and those with one that is not in the table of roles.

    T5's `n_extra` ones are among them if no others are stated.
    """
    stated: Any = next((settings[name] or [] for name in _EXTRA if name in settings), {})
    named = stated
    if isinstance(stated, Mapping):
        named = (*stated.values(), *(f"<extra_id_{number}>" for number in range(n_extra)))
    more = (settings[key] for key in settings if key.endswith("_token") and key not in _ROLES)
    return [content_of(token) for token in (*named, *(token for token in more if isinstance(token, str)))]


def _saved_charsmap(normalizer: Any) -> bytes | None:
    """Finds sentencepiece's normalization in the file's normalizer, where transformers looks for it."""
    from base64 import b64decode

    if not normalizer:
        return None
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    found = [step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"]
    return b64decode(found[0]) if found else None


def _states(backend: Any) -> list[Any]:
    """Returns the parts of a tokenizer that a class may set, serialised."""
    parts = (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
    return [None if part is None else part.__getstate__() for part in parts]


def _texts(stated: Any) -> Any:
    if isinstance(stated, Mapping) and "content" not in stated:
        return {name: content_of(token) for name, token in stated.items()}
    return [content_of(token) for token in stated] if isinstance(stated, list) else content_of(stated)
