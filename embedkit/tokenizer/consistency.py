"""Compares the tokenizer that transformers builds with the checkpoint's files, and follows the files.

transformers 5 rebuilds a tokenizer from the vocabulary in tokenizer.json, by the class that is declared for the
model. If that tokenizes a probe in another way, tokenizer.json is used with the settings of tokenizer_config.json:
so did transformers 4.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedkit.errors import ModelError
from embedkit.tokenizer.file_tokenizer import FileTokenizer
from embedkit.tokenizer.rust_tokenizer import (
    Ends,
    disable_truncation,
    find_ends,
    read_tokenizer,
    rust_tokenizer,
    set_ends,
)

#: Texts that tokenizers differ in: casing, accents, digits, punctuation, blanks, scripts.
_PROBES = (
    "The patient denies chest pain; Temp. 38.4 on 12/05/2023, 1,250 mg p.o. (q.d.)",
    "NASA's McDonald e-mailed I'll, don't, we've: \"O'Brien\" -- x_y-z @user #1 50% $3.50 C++",
    "caf\u00e9 cafe\u0301 na\u00efve \u00c5ngstr\u00f6m \u00dcBER stra\u00dfe \u0130stanbul \ufb01ne",
    "  two  blanks\tand\ttabs\n\nand lines \r\n end  ",
    "中文字 日本語 한국어 Привет مرحبا हिन्दी",
    "50 \u00b5g/h \u2265 7.3 \u2122 \u201cquoted\u201d\u2026 10\u00a0000 \U0001f637",
    "immunohistochemistry pneumonoultramicroscopic ACGTTGCA MKTAYIAKQR",
    "a",
    "",
)
_FILE = "tokenizer.json"
#: Settings in tokenizer_config.json, and their names in BERT's normalizer.
_BERT_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
_BERT_FLAGS = (*_BERT_SETTINGS.values(), "clean_text")
#: A text that vocabularies of sentencepiece with these letters tokenize in one way.
_PLAIN = "the patient was seen in the clinic today and went home"
#: Classes that put <s> before a text unless a setting forbids it; transformers 5 follows tokenizer.json alone.
_OPEN_WITH_BOS = ("LlamaTokenizer", "GemmaTokenizer")


def follow_files(tokenizer: Any, folder: Path) -> tuple[Any, tuple[str, ...]]:
    """Makes a tokenizer follow the checkpoint's files.

    Returns:
        The tokenizer, and notices for the user.

    Raises:
        ModelError: tokenizer.json cannot be read; or there is none, and transformers tokenizes texts differently
            from the vocabulary's own library.
    """
    backend = rust_tokenizer(tokenizer)
    if backend is None:
        return tokenizer, compare_with_file(tokenizer, folder)
    disable_truncation(backend)
    settings = stated_settings(folder)
    notices: list[str] = []
    name, equals_file = type(tokenizer).__name__, False
    if isinstance(tokenizer, FileTokenizer):
        name, equals_file = tokenizer.kind, tokenizer.equals_file
    if not (folder / _FILE).is_file():
        _check_sentencepiece(backend, folder)
        if name in _OPEN_WITH_BOS:
            settings = {"add_bos_token": True, **settings}
    elif not equals_file:
        saved = read_tokenizer(folder / _FILE)
        overruled = _overruled_settings(backend, saved, settings, tokenizer)
        if overruled is None:
            backend = _as_stated(saved, settings, backend, tokenizer)
            notices.append(
                f"{_FILE} is used as it was saved, with the settings of tokenizer_config.json: transformers "
                f"builds another tokenizer from it ({name}), which gives other tokens"
            )
        elif overruled:
            notices.append(
                f"{_FILE} differs from transformers' defaults in {' and '.join(overruled)}, which "
                "tokenizer_config.json does not set: the defaults are used; set them there to use the saved ones"
            )
    notices += _add_ends(backend, settings, tokenizer)
    declared = str(settings.get("tokenizer_class")).removesuffix("Fast")
    if {declared, name} & {*_OPEN_WITH_BOS}:
        notices += _remove_ends(backend, settings, tokenizer)
    if tokenizer.backend_tokenizer is not backend:
        tokenizer._tokenizer = backend  # noqa: SLF001 - transformers has no public way
    return tokenizer, tuple(notices)


def stated_settings(folder: Path) -> Mapping[str, Any]:
    """Reads a model's tokenizer_config.json; {} if there is none."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def compare_with_file(tokenizer: Any, folder: Path) -> tuple[str, ...]:
    """Compares a tokenizer written in Python with tokenizer.json; a notice if they differ."""
    if not (folder / _FILE).is_file():
        return ()
    saved = read_tokenizer(folder / _FILE)

    def ids(text: str) -> Any:
        try:
            return tokenizer(text)["input_ids"]
        except Exception as error:  # noqa: BLE001 - code of any kind
            return type(error)

    if all(ids(text) == saved.encode(text).ids for text in _PROBES if text):
        return ()
    backend = rust_tokenizer(tokenizer)
    kinds = [] if backend is None else [type(each.model).__name__ for each in (backend, saved)]
    models = f", as {kinds[0]}; the file has {kinds[1]}" if len(set(kinds)) == 2 else ""
    name = type(tokenizer).__name__
    return (f"{_FILE} is not used: code of the tokenizer's class, {name}, gives other tokens{models}",)


def _overruled_settings(
    built: Any, saved: Any, settings: Mapping[str, Any], tokenizer: Any
) -> tuple[str, ...] | None:
    """Names the saved settings that transformers' defaults replace in a tokenizer that it built.

    For a setting that is not in tokenizer_config.json, transformers 4 and 5 use the same default, whatever
    tokenizer.json says, and published results of such models rely on it.

    Returns:
        () if there are none; None if the tokenizers differ in anything else.
    """
    added = [str(token) for token in built.get_added_tokens_decoder().values()]
    # Many added tokens: the first and the last.
    chosen = added if len(added) <= 40 else [*added[:20], *added[-20:]]
    probes = [*_PROBES, *(f"a {token} b{token}c" for token in chosen)]
    wanted = _encode(built, probes)
    if _encode(saved, probes) == wanted:
        return ()
    variants = _variants(built, saved, settings, tokenizer)
    return next((names for names, variant in variants if _encode(variant, probes) == wanted), None)


def _encode(backend: Any, texts: Sequence[str]) -> list[Any]:
    """Encodes each text; the type of the exception if that fails."""
    found: list[Any] = []
    for text in texts:
        try:
            encoding = backend.encode(text)
            found.append((encoding.ids, encoding.type_ids, encoding.special_tokens_mask))
        except Exception as error:  # noqa: BLE001 - the Rust library raises nothing more specific
            found.append(type(error))
    return found


def _variants(
    built: Any, saved: Any, settings: Mapping[str, Any], tokenizer: Any
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields the saved tokenizer with the stated settings and, named, with defaults of the built one."""
    changes: list[tuple[str, Callable[[Any], None]]] = []
    if _is_bert(saved) and _is_bert(built):
        flags = {flag: getattr(built.normalizer, flag) for flag in _BERT_FLAGS}
        changes.append(("casing and accents", lambda variant: _set(variant, "normalizer", flags)))
    if _is_byte_level(saved) and _is_byte_level(built) and "add_prefix_space" not in settings:
        prefix = {"add_prefix_space": built.pre_tokenizer.add_prefix_space}
        changes.append(("blanks before a text", lambda variant: _set(variant, "pre_tokenizer", prefix)))
    for without_ends, *chosen in itertools.product((False, True), *((False, True) for _ in changes)):
        variant = _with_settings(saved, settings, built)
        if without_ends:
            _drop_ends(variant, settings, tokenizer)
        made = [change for change, is_chosen in zip(changes, chosen, strict=True) if is_chosen]
        for _, change in made:
            change(variant)
        yield tuple(name for name, _ in made), variant


def _as_stated(saved: Any, settings: Mapping[str, Any], built: Any, tokenizer: Any) -> Any:
    """Returns the saved tokenizer with the stated settings, without ends that they switch off."""
    ends = find_ends(built, _PROBES)
    absent = [name for name, end in (("bos", ends.prefix), ("eos", ends.suffix)) if not end]
    switched_off = {key: False for name in absent if settings.get(key := f"add_{name}_token") is False}
    variant = _with_settings(saved, settings, built)
    _drop_ends(variant, switched_off, tokenizer)
    return variant


def _with_settings(saved: Any, settings: Mapping[str, Any], built: Any) -> Any:
    """Copies the saved tokenizer, with the stated settings and the tokens that were added later."""
    from tokenizers import Tokenizer

    variant = Tokenizer.from_str(saved.to_str())
    if _is_bert(variant):
        flags = {_BERT_SETTINGS[name]: value for name, value in settings.items() if name in _BERT_SETTINGS}
        _set(variant, "normalizer", flags)
    if _is_byte_level(variant) and isinstance(settings.get("add_prefix_space"), bool):
        _set(variant, "pre_tokenizer", {"add_prefix_space": settings["add_prefix_space"]})
    known = {str(token) for token in variant.get_added_tokens_decoder().values()}
    missing = [token for _, token in sorted(built.get_added_tokens_decoder().items()) if str(token) not in known]
    if missing:
        variant.add_tokens(missing)
    variant.encode_special_tokens = built.encode_special_tokens
    return disable_truncation(variant)


def _is_bert(backend: Any) -> bool:
    return type(backend.normalizer).__name__ == "BertNormalizer"


def _is_byte_level(backend: Any) -> bool:
    return type(backend.pre_tokenizer).__name__ == "ByteLevel"


def _set(backend: Any, part: str, values: Mapping[str, Any]) -> None:
    """Sets attributes of a part of a Rust tokenizer, which returns a copy of it."""
    changed = getattr(backend, part)
    for name, value in values.items():
        setattr(changed, name, value)
    setattr(backend, part, changed)


def _check_sentencepiece(backend: Any, folder: Path) -> None:
    """Compares a tokenizer that was built from a sentencepiece vocabulary with that library."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix in {".model", ".spm"}]
    if len(files) != 1:
        return
    try:
        from sentencepiece import SentencePieceProcessor

        vocabulary = SentencePieceProcessor(model_file=str(files[0]))
        ids = vocabulary.encode(_PLAIN)
    except (ImportError, OSError, RuntimeError):  # a file of another library, such as tiktoken
        return
    encoding = backend.encode(_PLAIN, add_special_tokens=False)
    if vocabulary.unk_id() not in ids and encoding.tokens != vocabulary.id_to_piece(ids):
        raise ModelError(
            f"transformers does not tokenize texts as {files[0].name} does, and {folder} has no {_FILE}",
            hint=f"make one: load the tokenizer with transformers 4 and save_pretrained, then put {_FILE} there",
        )


def _add_ends(backend: Any, settings: Mapping[str, Any], tokenizer: Any) -> Iterator[str]:
    """Adds the tokens around a text that tokenizer_config.json asks for and that are missing; yields notices."""
    ends = find_ends(backend, _PROBES)
    found = {"bos": ends.prefix, "eos": ends.suffix}
    for name, side in (("bos", "before"), ("eos", "after")):
        token = getattr(tokenizer, f"{name}_token_id", None)
        # Another token at that end was put there by the authors instead, such as [CLS].
        if settings.get(f"add_{name}_token") is True and token is not None and not found[name]:
            found[name] = ((token, 0),)
            yield (
                f"add_{name}_token asks for a token {side} each text, which transformers leaves out: "
                f"{backend.id_to_token(token)} is added"
            )
    if found != {"bos": ends.prefix, "eos": ends.suffix}:
        set_ends(backend, Ends(found["bos"], found["eos"]))


def _remove_ends(backend: Any, settings: Mapping[str, Any], tokenizer: Any) -> Iterator[str]:
    """Removes the tokens around a text that tokenizer_config.json switches off; yields notices."""
    before = find_ends(backend, _PROBES)
    after = _drop_ends(backend, settings, tokenizer)
    for name, side, had, has in (
        ("bos", "before", before.prefix, after.prefix),
        ("eos", "after", before.suffix, after.suffix),
    ):
        if had != has:
            yield (
                f"add_{name}_token switches off the token {side} each text, which transformers adds: "
                f"{backend.id_to_token(had[0][0])} is left out"
            )


def _drop_ends(backend: Any, settings: Mapping[str, Any], tokenizer: Any) -> Ends:
    """Removes a single bos or eos token that the settings switch off; returns the remaining ends."""
    ends = find_ends(backend, _PROBES)

    def is_off(name: str, end: tuple[tuple[int, int], ...]) -> bool:
        token = getattr(tokenizer, f"{name}_token_id", None)
        return settings.get(f"add_{name}_token") is False and [found for found, _ in end] == [token]

    prefix = () if is_off("bos", ends.prefix) else ends.prefix
    kept = Ends(prefix, () if is_off("eos", ends.suffix) else ends.suffix)
    if kept != ends:
        set_ends(backend, kept)
    return kept
