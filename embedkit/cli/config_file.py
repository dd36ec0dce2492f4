"""Reads `--config`: a TOML file that sets options of a command."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import typer

from embedkit.cli.parsing import JOINED, annotation_of, closest_options
from embedkit.errors import UsageError
from embedkit.storage.filesystem import read_file
from embedkit.suggest import closest_names


def read_config_file(ctx: typer.Context, path: Path | None) -> Path | None:
    """Sets the values in a TOML file as defaults of the command, so that options on the command line win."""
    if path is None:
        return None
    try:
        values = tomllib.loads(read_file(path).decode("utf-8-sig"))
    except OSError as fault:
        raise UsageError(f"--config {path}: {os.strerror(fault.errno or 0)}", hint="check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise UsageError(f"--config {path} is not valid TOML ({_describe(fault)})", hint="fix the file") from None
    known = {str(one.name): one for one in ctx.command.params if one.name not in {"config", "help"}}
    read: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            raise _unknown_key(path, key, value, known, str(ctx.info_name))
        if name in read:
            raise UsageError(f"--config {path} sets {key} twice, with - and with _", hint="leave out one of them")
        read[name] = _from_toml(path, key, value, known[name], str(ctx.info_name))
    ctx.default_map = {**(ctx.default_map or {}), **read}
    return path


def _describe(fault: tomllib.TOMLDecodeError | UnicodeDecodeError) -> str:
    if isinstance(fault, UnicodeDecodeError):
        return f"byte {fault.start} is not UTF-8"
    # Not the whole message: it may quote a value.
    reason, _, position = str(fault).rpartition(" (")
    return f"{'duplicate key, ' * reason.startswith('Cannot overwrite')}{position.rstrip(')')}"


def _unknown_key(path: Path, key: str, value: Any, known: dict[str, Any], command: str) -> UsageError:
    if isinstance(value, dict):
        return UsageError(
            f"--config {path} has a section [{key}]; options must be at the top level",
            hint=f'remove the line [{key}], and write options such as pool = "mean"',
        )
    keys = sorted(name.replace("_", "-") for name in known)
    short = next((one for one in known.values() if f"-{key}" in one.opts), None)
    near = [f"-{key}"] if short else closest_options(key, list(known.values()))
    lines = dict.fromkeys(_as_toml(option, known) for option in near or closest_names(key, keys))
    meant = f"did you mean {' or '.join(lines)}? " if lines else ""
    return UsageError(
        f"--config {path} sets '{key}', which is not an option of {command}",
        hint=f"{meant}available: {', '.join(keys)}",
    )


def _as_toml(phrase: str, known: dict[str, Any]) -> str:
    """Returns an option as written in a config file: `pool` for --pool, `dtype = "fp16"` for --dtype fp16."""
    option, _, value = phrase.partition(" ")
    one = next((one for one in known.values() if option in (*one.opts, *one.secondary_opts)), None)
    if one is None:
        return f"'{phrase}'"
    name = str(one.name).replace("_", "-")
    if option in one.secondary_opts:
        return f"{name} = false"
    return f'{name} = "{value}"' if value else f"'{name}'"


#: TOML's types, as named in messages.
_TOML_TYPES = {
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "a list",
    dict: "a table",
}


def _from_toml(path: Path, key: str, value: Any, option: Any, command: str) -> Any:
    """Converts a value of a config file to what the option takes.

    Raises:
        UsageError: it has a wrong type; names the key, both types and the value.
    """
    converted: Any
    if option.multiple or option.nargs == -1:
        # `--test` of fit is also a share.
        share = str(value) if option.name == "test" and isinstance(value, float | int) else value
        needed, converted = "a list of strings", _as_strings(share)
    elif option.is_flag:
        needed, converted = "a boolean, true or false,", value if isinstance(value, bool) else None
    elif annotation_of(option) in (int, float):
        is_integer = annotation_of(option) is int
        needed = "an integer" if is_integer else "a number"
        converted = _as_number(value, is_integer=is_integer)
    else:
        needed = "a string or a list of them" if option.name in JOINED else "a string"
        converted = _as_string(value, option.name)
    if converted is None:
        found = _TOML_TYPES.get(type(value), "a date or a time")
        flag = option.opts[-1] if option.opts[-1].startswith("-") else option.metavar
        raise UsageError(
            f"--config {path} sets {key} ({flag}) to {found}, {str(value)[:80]!r}, but {needed} is needed",
            hint=f"`embedkit {command} --help` lists what each option takes",
        )
    return converted


def _as_strings(value: Any) -> list[str] | None:
    values = value if isinstance(value, list) else [value]
    return values if all(isinstance(one, str) for one in values) else None


def _as_string(value: Any, name: str) -> str | None:
    if isinstance(value, list) and name in JOINED:
        parts = [_as_string(one, "") for one in value]
        return ",".join(map(str, parts)) if parts and None not in parts else None
    if isinstance(value, bool):
        return {True: "yes", False: "no"}[value] if name == "lowercase" else None
    return str(value) if isinstance(value, (str, int, float)) else None


def _as_number(value: Any, *, is_integer: bool) -> int | float | None:
    """Converts a number, or a string that holds one; None if it is neither."""
    if isinstance(value, bool) or not isinstance(value, (str, int) if is_integer else (str, int, float)):
        return None
    try:
        return int(value) if is_integer else float(value)
    except ValueError:
        return None
