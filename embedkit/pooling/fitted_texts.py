"""Options on texts that a pooler's file decides: texts are read as those that the pooler was fitted on.

Values that the user did not give are taken from the file. The user is told of values that differ from the file's;
they are refused if a head would score texts in another casing or with another prompt than it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from embedkit.config import VectorConfig
from embedkit.errors import UsageError
from embedkit.pooling.pooler_files import PoolerFile, damaged
from embedkit.pooling.select import ChosenPooler

#: Fields of `text` in a file → their types.
_FIELDS = {"max_length": int, "lowercase": bool, "prompt": str, "on_long": str, "stride": int, "chunk_pool": str}
#: Of these, the ones that change what a token is: a head is not for texts that differ in them.
_OF_WORDS = ("lowercase", "prompt")
#: Values that are taken without a notice.
_USUAL = ("", "truncate", 0, False)
#: Characters of a prompt that are shown.
_SHOWN = 60


def with_texts_of(
    poolers: Mapping[str, ChosenPooler], config: VectorConfig, prompt: str | None
) -> tuple[VectorConfig, tuple[str, ...]]:
    """Sets `--max-length`, `--lowercase`, `--prompt`, `--on-long` and options of windows as poolers need them.

    Args:
        poolers: those of `--pool`.
        config: the user's options.
        prompt: the user's prompt; None if neither `--prompt` nor `--prompt-name` was given.

    Returns:
        The options, and what the user should know, a sentence each.

    Raises:
        UsageError: a head was trained on texts in another casing or with another prompt, or two poolers on
            different texts.
        ModelError: a file is damaged.
    """
    asked = _asked(config, prompt)
    notices: list[str] = []
    taken: dict[str, Any] = {}
    for chosen in poolers.values():
        if chosen.file is None:
            continue
        file, recorded = chosen.file, _recorded(chosen.file, config, asked)
        for name, value in recorded.items():
            if name in asked and asked[name] != value:
                notices.append(_difference(file, name, asked[name], value, with_head=config.pooling.with_head))
            elif name not in asked and taken.setdefault(name, value) != value:
                one, other = (_shown(name, of) for of in (taken[name], value))
                raise UsageError(
                    f"--pool: one pooler was fitted with {one}, and another with {other}",
                    hint=f"choose with {_option(name)}, or use one of the poolers alone",
                )
        new = chosen.needs + [
            _shown(name, value) for name, value in recorded.items() if name not in asked and value not in _USUAL
        ]
        notices += [f"as in {file.path}: {' '.join(new)}"] if new else []
    model, text = config.model, config.text
    if "lowercase" in taken:
        model = replace(model, lowercase="yes" if taken.pop("lowercase") else "no")
    return replace(config, model=model, text=replace(text, **taken)), tuple(notices)


def _asked(config: VectorConfig, prompt: str | None) -> dict[str, Any]:
    """Returns the user's values, without those not given."""
    model, text = config.model, config.text
    given = {name: getattr(text, name) for name in ("max_length", "on_long", "stride", "chunk_pool")}
    given |= {"prompt": prompt, "lowercase": None if model.lowercase == "auto" else model.lowercase == "yes"}
    # An error for texts that are too long changes no vector.
    given["on_long"] = "truncate" if text.on_long == "error" else text.on_long
    return {name: value for name, value in given.items() if value is not None}


def _recorded(file: PoolerFile, config: VectorConfig, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a file that apply to a run."""
    stored = file.recipe.get("text", {})  # old files may have none
    if not isinstance(stored, dict):
        raise damaged(file.path, "its recipe is incomplete")
    found = {name: stored[name] for name in _FIELDS if stored.get(name) is not None}
    if any(type(value) is not _FIELDS[name] for name, value in found.items()):
        raise damaged(file.path, "its recipe has a wrong value for texts")
    if found.get("on_long") == "error":
        found["on_long"] = "truncate"
    if asked.get("on_long", found.get("on_long")) != "chunk":
        found = {name: value for name, value in found.items() if name not in {"stride", "chunk_pool"}}
    elif config.units.unit == "chunk":
        found.pop("chunk_pool", None)
    return found


def _difference(file: PoolerFile, name: str, asked: Any, recorded: Any, *, with_head: bool) -> str:
    """Returns a notice about a value that differs from the file's; raises UsageError if a head forbids it."""
    given, fitted = _shown(name, asked), _shown(name, recorded)
    if with_head and name in _OF_WORDS:
        raise UsageError(
            f"{given}: the head in {file.path} was trained with {fitted}",
            hint=f"leave out {_option(name)}; or leave out --with-head: vectors alone may be made of other texts",
        )
    return f"{given}, and {file.path} was fitted with {fitted}: its scores are not for such texts"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _shown(name: str, value: Any) -> str:
    """Returns a value as on the command line."""
    if name == "prompt":
        short = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
        return f"--prompt {short!r}" if value else "no prompt"
    return f"{_option(name)} {({True: 'yes', False: 'no'}[value]) if name == 'lowercase' else value}"
