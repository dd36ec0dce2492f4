"""Defaults of options from environment variables, such as EMBEDKIT_MODEL.

Only options that describe a machine or a site have one: what a file of results depends on, apart from the model,
belongs to the command line or to a file for `--config`, both of which win.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from embedkit.errors import UsageError
from embedkit.suggest import did_you_mean

_PREFIX = "EMBEDKIT_"
NAMES = ("model", "device", "dtype", "offline", "batch_tokens", "workers", "engine", "private", "progress")
#: Variables of the tests and benchmarks.
_OF_DEVELOPMENT = ("EMBEDKIT_TEST_DEVICE", "EMBEDKIT_FAULTS")
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def defaults(parameters: Sequence[Any]) -> dict[str, Any]:
    """Returns the values of environment variables for a command's options, by the names of its parameters.

    A command without `--config` takes none: its options, such as the model of `verify`, override what an output
    records. An empty variable counts as unset.

    Raises:
        UsageError: a variable has a value that its option cannot have.
    """
    by_name = {one.name: one for one in parameters}
    if "config" not in by_name:
        return {}
    values = {name: os.environ.get(variable(name), "").strip() for name in NAMES if name in by_name}
    return {name: _converted(by_name[name], value) for name, value in values.items() if value}


def notes(context: Any, given: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each value that a command takes from `given`, the result of `defaults`."""
    # The command line is a source of its own; a file for --config has replaced values of the map.
    taken = [
        name
        for name, value in given.items()
        if context.get_parameter_source(name).name == "DEFAULT_MAP" and context.default_map[name] is value
    ]
    options = {one.name: one.opts[-1] for one in context.command.params}
    found = [f"{options[name]} is {os.environ[variable(name)].strip()}, from {variable(name)}" for name in taken]
    return found + _ignored(options)


def _ignored(options: Mapping[str, str]) -> list[str]:
    """Returns a sentence for each variable that looks like one of embedkit's and has no effect.

    Args:
        options: parameter → option, of a command.
    """
    if "config" not in options:
        return []
    known = {*map(variable, NAMES), *_OF_DEVELOPMENT}
    sentences = []
    for found in sorted(name for name in os.environ if name.upper().startswith(_PREFIX) and name not in known):
        word = found[len(_PREFIX) :].upper()
        if option := options.get(word.lower() if word.lower() not in NAMES else ""):
            hint = f"give {option} on the command line or in a file for --config"
        else:
            hint = did_you_mean(word, map(str.upper, NAMES), "unset it", prefix=_PREFIX)
        sentences.append(f"{found} is ignored, since embedkit has no such variable: {hint}")
    return sentences


def variable(name: str) -> str:
    """Returns the environment variable of a parameter."""
    return _PREFIX + name.upper()


def _converted(parameter: Any, value: str) -> Any:
    if parameter.is_flag:
        if value.lower() not in _YES + _NO:
            raise UsageError(
                f"{variable(parameter.name)} cannot be '{value}'", hint="use 1 or 0, true or false, yes or no"
            )
        return value.lower() in _YES
    if parameter.multiple:
        return [value]
    if parameter.name == "workers" and not re.fullmatch(r"[0-9]+(:[0-9]+)?", value):
        raise UsageError(f"{variable(parameter.name)} cannot be '{value}'", hint="use a whole number, or unset it")
    return value
