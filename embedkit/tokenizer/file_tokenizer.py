"""A tokenizer read from tokenizer.json without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The files of a folder that decide its tokenizer."""

    model_type: str
    settings: Mapping[str, Any]  # tokenizer_config.json
    special: Mapping[str, Any]  # special_tokens_map.json; empty if there is none
    text: str  # tokenizer.json
    parts: Mapping[str, Any]  # the same, parsed
    has_more: bool  # True if another file changes it


def read_files(folder: Path) -> TokenizerFiles:
    """Reads the files of a tokenizer.

    Raises:
        OSError: one of them is missing.
        ValueError: one of them is not JSON.
        KeyError: config.json names no type of model.
    """
    model_type = json.loads((folder / "config.json").read_bytes())["model_type"]
    settings = json.loads((folder / "tokenizer_config.json").read_bytes())
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    path = folder / "special_tokens_map.json"
    special = json.loads(path.read_bytes()) if path.is_file() else {}
    has_more = any((folder / name).is_file() for name in ("added_tokens.json", "chat_template.jinja"))
    return TokenizerFiles(model_type, settings, special, text, json.loads(text), has_more)


class FileTokenizer:
    """A Rust tokenizer with the attributes of a transformers tokenizer that embedkit uses.

    Args:
        backend: the Rust tokenizer.
        settings: the content of tokenizer_config.json.
        special: the special tokens by their role, such as `cls_token`.
        inputs: the names of the model's inputs.
        extra: more special tokens.
        kind: the name of transformers' class.
        equals_file: True if all of its parts are those of tokenizer.json.
    """

    def __init__(
        self,
        backend: Any,
        settings: Mapping[str, Any],
        special: Mapping[str, str],
        inputs: Sequence[str],
        extra: Sequence[str] = (),
        *,
        kind: str = "PreTrainedTokenizerFast",
        equals_file: bool = True,
    ) -> None:
        self._tokenizer = backend
        stated = settings.get("model_max_length")
        # transformers, too, has this number for no limit.
        self.model_max_length: int = int(1e30) if stated is None else stated
        self.model_input_names = list(inputs)
        self.truncation_side: str = settings.get("truncation_side", "right")
        ids = {role: backend.token_to_id(token) for role, token in special.items()}
        self.kind = kind
        self.equals_file = equals_file
        self.bos_token_id: int | None = ids.get("bos_token")
        self.eos_token_id: int | None = ids.get("eos_token")
        self.cls_token_id: int | None = ids.get("cls_token")
        self.unk_token_id: int | None = ids.get("unk_token")
        self.all_special_ids = [*ids.values(), *(backend.token_to_id(token) for token in extra)]

    @property
    def backend_tokenizer(self) -> Any:
        """The Rust tokenizer."""
        return self._tokenizer

    def get_vocab(self) -> dict[str, int]:
        """Returns every entry with its id."""
        vocab: dict[str, int] = self.backend_tokenizer.get_vocab(with_added_tokens=True)
        return vocab

    def __call__(self, text: str) -> dict[str, list[int]]:
        """Returns the ids of a text, special tokens included, not truncated."""
        return {"input_ids": self.backend_tokenizer.encode(text).ids}


def content_of(token: Any) -> str:
    """Returns the text of a token that tokenizer_config.json states, alone or with its flags.

    Raises:
        TypeError: it has none.
    """
    text: str = token["content"] if isinstance(token, Mapping) else token
    if not isinstance(text, str):
        raise TypeError
    return text
