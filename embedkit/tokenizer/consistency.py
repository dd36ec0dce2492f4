"""Hold the tokenizer that transformers builds against the files of the checkpoint.

transformers 5 builds a tokenizer anew from the vocabulary in tokenizer.json, by the class that is declared for
the model, and takes little else from that file. Where the two spell a probe otherwise, tokenizer.json with the
settings of tokenizer_config.json is used: it is what the authors saved, and what transformers 4 used. Knows no
model.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedkit.errors import ModelError

#: What tokenizers differ in: casing, accents, digits, punctuation, blanks, scripts, special tokens in a text.
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
#: A text that vocabularies of sentencepiece for any language with these letters spell in one way.
_PLAIN = "the patient was seen in the clinic today and went home"
#: Classes that put <s> before a text unless they are told not to, whatever tokenizer.json does; transformers 5
#: goes by that file alone.
_OPEN_WITH_BOS = ("LlamaTokenizer", "GemmaTokenizer")


@dataclass(frozen=True, slots=True)
class _Ends:
    """What a tokenizer puts around a text: pairs of token id and type id."""

    prefix: tuple[tuple[int, int], ...]
    suffix: tuple[tuple[int, int], ...]


def held_to_files(tokenizer: Any, folder: Path) -> tuple[Any, tuple[str, ...]]:
    """The tokenizer with what the checkpoint's files say of it.

    Args:
        tokenizer: of transformers; its backend is replaced where it contradicts the files.
        folder: of the model.

    Returns:
        It, and what the user should know.

    Raises:
        ModelError: tokenizer.json is no tokenizer; or there is none, and transformers spells texts otherwise than
            the vocabulary's own library.
    """
    backend = _backend(tokenizer)
    if backend is None:
        return tokenizer, against_code(tokenizer, folder)
    _uncut(backend)
    settings = stated_settings(folder)
    notices: list[str] = []
    if (folder / _FILE).is_file():
        saved = read_tokenizer(folder / _FILE)
        readings = _agreeing(backend, saved, settings, tokenizer)
        if readings is None:
            backend = _as_stated(saved, settings, backend, tokenizer)
            notices.append(
                f"{_FILE} is used as it was saved, with the settings of tokenizer_config.json: transformers "
                f"builds another tokenizer of it ({type(tokenizer).__name__}), which gives other tokens"
            )
        elif readings:
            notices.append(
                f"{_FILE} differs from what transformers does where tokenizer_config.json says nothing: "
                f"{' and '.join(readings)} are transformers' own; state them there to have them as saved"
            )
    else:
        _check_pieces(backend, folder)
        if type(tokenizer).__name__ in _OPEN_WITH_BOS:
            settings = {"add_bos_token": True, **settings}
    notices += _add_ends(backend, settings, tokenizer)
    declared = str(settings.get("tokenizer_class")).removesuffix("Fast")
    if {declared, type(tokenizer).__name__} & {*_OPEN_WITH_BOS}:
        notices += _leave_out_ends(backend, settings, tokenizer)
    _replace_backend(tokenizer, backend)
    return tokenizer, tuple(notices)


def read_tokenizer(path: Path) -> Any:
    """The tokenizer in a file, without the padding and truncation that may be in there.

    Raises:
        ModelError: it is not one.
    """
    from tokenizers import Tokenizer

    try:
        found = Tokenizer.from_file(str(path))
    except Exception as fault:  # noqa: BLE001 - the Rust library raises nothing more special
        raise ModelError(
            f"{path} is not a tokenizer that can be read ({type(fault).__name__})",
            hint="fetch it again, or convert it with the version of the tokenizers library that saved it",
        ) from None
    return _uncut(found)


def _uncut(backend: Any) -> Any:
    """Cutting and padding are the caller's: the tokenizer's own would hide how long a text was."""
    backend.no_truncation()
    backend.no_padding()
    return backend


def stated_settings(folder: Path) -> Mapping[str, Any]:
    """The settings in a model's tokenizer_config.json; {} where it has none."""
    try:
        found = json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _replace_backend(tokenizer: Any, backend: Any) -> None:
    if tokenizer.backend_tokenizer is not backend:
        tokenizer._tokenizer = backend  # noqa: SLF001 - transformers has no public way


def against_code(tokenizer: Any, folder: Path) -> tuple[str, ...]:
    """Say that a tokenizer that is code of its own, which is used, spells texts otherwise than tokenizer.json."""
    if not (folder / _FILE).is_file():
        return ()
    saved = read_tokenizer(folder / _FILE)

    def measure_coverage(text: str) -> Any:
        try:
            return tokenizer(text)["input_ids"]
        except Exception as fault:  # noqa: BLE001 - code of anybody's; a text that it cannot spell is told later
            return type(fault)

    if all(measure_coverage(text) == saved.encode(text).ids for text in _PROBES if text):
        return ()
    kind, held = (type(getattr(one, "model", None)).__name__ for one in (_backend(tokenizer), saved))
    built = f", as {kind} where the file has {held}" if kind not in {held, "NoneType"} else ""
    name = type(tokenizer).__name__
    return (f"{_FILE} is not used: code of the tokenizer's class, {name}, gives other tokens{built}",)


def _backend(tokenizer: Any) -> Any:
    return getattr(tokenizer, "backend_tokenizer", None)


# Are the two the same? -------------------------------------------------------------------------------


def _agreeing(built: Any, saved: Any, settings: Mapping[str, Any], tokenizer: Any) -> tuple[str, ...] | None:
    """Under which settings a tokenizer that was built is the saved one; None under no reading of the files.

    Where tokenizer_config.json leaves a setting out, transformers 4 and 5 agree on their default, whatever
    tokenizer.json says, and so does what is published of such a model.

    Returns:
        The settings that are nowhere stated and not as they were saved; () where there are none.
    """
    added = [str(token) for token in built.get_added_tokens_decoder().values()]
    probes = [*_PROBES, *(f"a {token} b{token}c" for token in _some(added))]
    wanted = _ids(built, probes)
    if _ids(saved, probes) == wanted:
        return ()
    for unstated, reading in _readings(built, saved, settings, tokenizer):
        if _ids(reading, probes) == wanted:
            return unstated
    return None


def _ids(backend: Any, texts: Sequence[str]) -> list[Any]:
    """What each text comes to; the kind of the error where it cannot be spelled."""

    def of(text: str) -> Any:
        try:
            encoded = backend.encode(text)
        except Exception as fault:  # noqa: BLE001 - the Rust library raises nothing more special
            return type(fault)
        return encoded.ids, encoded.type_ids, encoded.special_tokens_mask

    return [of(text) for text in texts]


def _some(tokens: Sequence[str]) -> Sequence[str]:
    """The first and the last of many."""
    return tokens if len(tokens) <= 40 else (*tokens[:20], *tokens[-20:])


def _readings(
    built: Any, saved: Any, settings: Mapping[str, Any], tokenizer: Any
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The saved tokenizer with the stated settings, and with others as they were built; these are named."""
    changes: list[tuple[str, Callable[[Any], None]]] = []
    if _bert(saved) and _bert(built):
        changes.append(("casing and accents", lambda reading: _copy_bert_flags(reading, built.normalizer)))
    if _byte_level(saved) and _byte_level(built) and "add_prefix_space" not in settings:
        prefixes = built.pre_tokenizer.add_prefix_space
        changes.append(("blanks before a text", lambda reading: _set_prefix_space(reading, prefixes)))
    for takes_away, *chosen in itertools.product((False, True), *((False, True) for _ in changes)):
        reading = _with_settings(saved, settings, built)
        if takes_away:
            _take_ends_away(reading, settings, tokenizer)
        made = [change for change, is_chosen in zip(changes, chosen, strict=True) if is_chosen]
        for _, change in made:
            change(reading)
        yield tuple(name for name, _ in made), reading


def _as_stated(saved: Any, settings: Mapping[str, Any], built: Any, tokenizer: Any) -> Any:
    """The saved tokenizer with the stated settings: no special tokens that are unwanted and were not built."""
    reading = _with_settings(saved, settings, built)
    there = _ends(built)
    taken = {
        **({"add_bos_token": False} if settings.get("add_bos_token") is False and not there.prefix else {}),
        **({"add_eos_token": False} if settings.get("add_eos_token") is False and not there.suffix else {}),
    }
    _take_ends_away(reading, taken, tokenizer)
    return reading


def _with_settings(saved: Any, settings: Mapping[str, Any], built: Any) -> Any:
    """A copy of the saved tokenizer with the settings that are stated, and the tokens that were added since."""
    from tokenizers import Tokenizer

    reading = Tokenizer.from_str(saved.to_str())
    if _bert(reading):
        flags = {"do_lower_case": "lowercase", "strip_accents": "strip_accents"}
        normalizer = reading.normalizer
        for name, flag in (*flags.items(), ("tokenize_chinese_chars", "handle_chinese_chars")):
            if name in settings:
                setattr(normalizer, flag, settings[name])
        reading.normalizer = normalizer
    if _byte_level(reading) and isinstance(settings.get("add_prefix_space"), bool):
        _set_prefix_space(reading, settings["add_prefix_space"])
    known = {str(token) for token in reading.get_added_tokens_decoder().values()}
    missing = [token for _, token in sorted(built.get_added_tokens_decoder().items()) if str(token) not in known]
    if missing:
        reading.add_tokens(missing)
    reading.encode_special_tokens = built.encode_special_tokens
    return _uncut(reading)


def _bert(backend: Any) -> bool:
    return type(backend.normalizer).__name__ == "BertNormalizer"


def _byte_level(backend: Any) -> bool:
    return type(backend.pre_tokenizer).__name__ == "ByteLevel"


def _copy_bert_flags(reading: Any, of: Any) -> None:
    normalizer = reading.normalizer
    for flag in ("lowercase", "strip_accents", "handle_chinese_chars", "clean_text"):
        setattr(normalizer, flag, getattr(of, flag))
    reading.normalizer = normalizer


def _set_prefix_space(reading: Any, value: bool) -> None:
    pre_tokenizer = reading.pre_tokenizer
    pre_tokenizer.add_prefix_space = value
    reading.pre_tokenizer = pre_tokenizer


def _check_pieces(backend: Any, folder: Path) -> None:
    """Hold a tokenizer that was built from a vocabulary of sentencepiece against that library."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix in {".model", ".spm"}]
    if len(files) != 1:
        return
    try:
        from sentencepiece import SentencePieceProcessor

        vocabulary = SentencePieceProcessor(model_file=str(files[0]))
        ids = vocabulary.encode(_PLAIN)
    except (ImportError, OSError, RuntimeError):  # it is of another library, such as tiktoken
        return
    encoded = backend.encode(_PLAIN, add_special_tokens=False)
    if vocabulary.unk_id() not in ids and encoded.tokens != vocabulary.id_to_piece(ids):
        raise ModelError(
            f"transformers does not spell texts as {files[0].name} does, and {folder} has no {_FILE}",
            hint=f"make one: load the tokenizer with transformers 4 and save_pretrained, then put {_FILE} there",
        )


# What is put around a text ---------------------------------------------------------------------------


def _add_ends(backend: Any, settings: Mapping[str, Any], tokenizer: Any) -> Iterator[str]:
    """Put the tokens around a text that tokenizer_config.json asks for and that are not there."""
    ends = _ends(backend)
    wants = {
        name: getattr(tokenizer, f"{name}_token_id", None)
        for name in ("bos", "eos")
        if settings.get(f"add_{name}_token") is True
    }
    # Another token in that place is what the authors put there instead, such as [CLS].
    bos = wants.get("bos") if not ends.prefix else None
    eos = wants.get("eos") if not ends.suffix else None
    if bos is None and eos is None:
        return
    prefix = ((bos, 0),) if bos is not None else ends.prefix
    suffix = ((eos, 0),) if eos is not None else ends.suffix
    _set_ends(backend, _Ends(prefix, suffix))
    for name, place, token in (("bos", "before", bos), ("eos", "after", eos)):
        if token is not None:
            yield (
                f"the tokenizer is to put a token {place} each text (add_{name}_token), which transformers leaves "
                f"out: {backend.id_to_token(token)} is added"
            )


def _leave_out_ends(backend: Any, settings: Mapping[str, Any], tokenizer: Any) -> Iterator[str]:
    """Leave the tokens around a text out that tokenizer_config.json does not want and that are there."""
    before = _ends(backend)
    _take_ends_away(backend, settings, tokenizer)
    after = _ends(backend)
    for name, place, had, has in (
        ("bos", "before", before.prefix, after.prefix),
        ("eos", "after", before.suffix, after.suffix),
    ):
        if had != has:
            yield (
                f"the tokenizer is to put no token {place} each text (add_{name}_token), which transformers puts "
                f"there: {backend.id_to_token(had[0][0])} is left out"
            )


def _take_ends_away(backend: Any, settings: Mapping[str, Any], tokenizer: Any) -> None:
    ends = _ends(backend)
    bos, eos = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos"))
    prefix = () if settings.get("add_bos_token") is False and _only(ends.prefix, bos) else ends.prefix
    suffix = () if settings.get("add_eos_token") is False and _only(ends.suffix, eos) else ends.suffix
    if (prefix, suffix) != (ends.prefix, ends.suffix):
        _set_ends(backend, _Ends(prefix, suffix))


def _only(end: tuple[tuple[int, int], ...], token: int | None) -> bool:
    return [found for found, _ in end] == [token]


def _ends(backend: Any) -> _Ends:
    """The special tokens around a text; nothing where no probe comes to a token of its own."""
    for text in _PROBES:
        try:
            encoded = backend.encode(text)
        except Exception:  # noqa: BLE001, S112 - it cannot be spelled: the next one may
            continue
        special = encoded.special_tokens_mask
        content = [place for place, mark in enumerate(special) if not mark]
        if content:
            tokens = list(zip(encoded.ids, encoded.type_ids, strict=True))
            return _Ends(tuple(tokens[: content[0]]), tuple(tokens[content[-1] + 1 :]))
    return _Ends((), ())


def _set_ends(backend: Any, ends: _Ends) -> None:
    """Replace the post-processor by one that puts these tokens around a text, and keeps its other steps."""
    from tokenizers import processors

    around = [*ends.prefix, *ends.suffix]
    # Names of our own: a token's may hold a colon, which parts a name from its type.
    names = [f"T{place}" for place in range(len(around))]
    parts = [f"{name}:{kind}" for name, (_, kind) in zip(names, around, strict=True)]
    single = [*parts[: len(ends.prefix)], "$A:0", *parts[len(ends.prefix) :]]
    template = processors.TemplateProcessing(
        single=single,
        pair=[*single, "$B:1"],
        special_tokens=[
            {"id": name, "ids": [token], "tokens": [backend.id_to_token(token)]}
            for name, (token, _) in zip(names, around, strict=True)
        ],
    )
    before = json.loads(backend.to_str())["post_processor"] or {}
    steps = before.get("processors", [before])
    trims = next((step for step in steps if step.get("type") == "ByteLevel"), None)
    if trims is None:
        backend.post_processor = template
    else:
        byte_level = processors.ByteLevel(trim_offsets=trims["trim_offsets"])
        backend.post_processor = processors.Sequence([byte_level, template])
