"""Functions for the tokenizers of the Rust library: reading, and the special tokens around a text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedkit.errors import ModelError


@dataclass(frozen=True, slots=True)
class Ends:
    """The special tokens around a text, as pairs of token id and type id."""

    prefix: tuple[tuple[int, int], ...] = ()
    suffix: tuple[tuple[int, int], ...] = ()


def rust_tokenizer(tokenizer: Any) -> Any | None:
    """Returns the Rust tokenizer in a tokenizer of transformers; None if it is written in Python."""
    return getattr(tokenizer, "backend_tokenizer", None)


def read_tokenizer(path: Path) -> Any:
    """Reads a tokenizer.json, without the padding and truncation that it may contain.

    Raises:
        ModelError: it cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the Rust library raises nothing more specific
        raise ModelError(
            f"{path} is not a tokenizer that can be read ({type(error).__name__})",
            hint="download it again, or convert it with the version of the tokenizers library that saved it",
        ) from None
    return disable_truncation(backend)


def disable_truncation(backend: Any) -> Any:
    """Switches truncation and padding off, which would hide the length of a text; returns the tokenizer."""
    backend.no_truncation()
    backend.no_padding()
    return backend


def find_ends(backend: Any, probes: Iterable[str]) -> Ends:
    """Finds the special tokens around a text; none if no probe has tokens of its own."""
    for text in probes:
        try:
            encoding = backend.encode(text)
        except Exception:  # noqa: BLE001, S112 - it has a character without a token: the next may not
            continue
        content = [index for index, is_special in enumerate(encoding.special_tokens_mask) if not is_special]
        if content:
            tokens = list(zip(encoding.ids, encoding.type_ids, strict=True))
            return Ends(tuple(tokens[: content[0]]), tuple(tokens[content[-1] + 1 :]))
    return Ends()


def set_ends(backend: Any, ends: Ends) -> None:
    """Makes the post-processor put these tokens around a text; keeps its trimming of offsets."""
    from tokenizers import processors

    around = [*ends.prefix, *ends.suffix]
    # Own names: a token may contain a colon, which separates a name from its type.
    names = [f"T{index}" for index in range(len(around))]
    parts = [f"{name}:{type_id}" for name, (_, type_id) in zip(names, around, strict=True)]
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
    byte_level = next((step for step in steps if step.get("type") == "ByteLevel"), None)
    if byte_level is None:
        backend.post_processor = template
    else:
        trim = processors.ByteLevel(trim_offsets=byte_level["trim_offsets"])
        backend.post_processor = processors.Sequence([trim, template])
