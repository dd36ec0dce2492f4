"""Converts the arguments of `Encoder` to option values: numpy numbers, lists, devices and dtypes of torch.

Objects of torch and numpy are recognised by the names of their classes, without importing them. Every function
raises UsageError for a value of another type; the config that takes a value checks it.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable
from typing import Any, TypeAlias

from embedkit.config.model_config import BatchConfig, ModelConfig
from embedkit.config.run_config import VectorConfig
from embedkit.config.vector_config import PoolingConfig, TextConfig
from embedkit.errors import UsageError

#: `--layers`: its text, a layer number, several of them, or a slice.
Layers: TypeAlias = "str | int | slice | Iterable[int]"
#: `--pool`: its text, the path of a pooler file, or several of these.
Pool: TypeAlias = "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]"

#: What torch and numpy call the formats of `--dtype`.
_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int8": "int8"}


def model_name(model: object) -> str:
    """Returns the folder, alias or hub id of a model."""
    if isinstance(model, str) or (isinstance(model, os.PathLike) and isinstance(os.fspath(model), str)):
        return os.fspath(model)
    raise UsageError(
        f"model cannot be {_kind(model)}",
        hint="give a folder, an alias or a hub id; a model in memory can be saved to a folder by its "
        "save_pretrained, with its tokenizer",
    )


def layers_text(layers: object) -> str:
    """Returns `--layers` for a text, a number, several numbers or a slice."""
    hint = 'give a number (-1 is the last), a list such as [-1, -2], a slice such as slice(-4, None), or "all"'
    if isinstance(layers, str):
        return layers
    if isinstance(layers, slice):
        bounds = [
            "" if bound is None else _whole("layers", bound, hint)
            for bound in (layers.start, layers.stop, layers.step)
        ]
        if bounds[2] not in {"", "1"}:
            raise UsageError(f"layers cannot be a slice with a step of {bounds[2]}", hint=hint)
        return f"{bounds[0]}:{bounds[1]}"
    if not _has_items(layers):
        return _whole("layers", layers, hint)
    parts = [item if isinstance(item, str) else _whole("layers", item, hint) for item in _items(layers)]
    if not parts:
        raise UsageError("layers names no layer", hint=hint)
    return ",".join(parts)


def pool_text(pool: object) -> str:
    """Returns `--pool` for a text, a path, or several of these."""
    hint = (
        'give a name, a file of `embedkit fit`, or a list such as ["cls", "mean"]; pool="none" for token vectors'
    )
    parts: list[Any] = [pool] if isinstance(pool, str | os.PathLike) or not _has_items(pool) else _items(pool)
    wrong = [part for part in parts if not isinstance(part, str | os.PathLike)]
    if wrong:
        raise UsageError(f"pool cannot be {_kind(wrong[0])}", hint=hint)
    if not parts:
        raise UsageError("pool names no pooling", hint=hint)
    return ",".join(str(os.fspath(part)) for part in parts)


def device_name(device: object) -> str:
    """Returns `--device` for a text or a torch.device."""
    if isinstance(device, str):
        return device
    if _is_of(device, "torch", "device"):
        return str(device)
    raise UsageError(
        f"device cannot be {_kind(device)}", hint='use "auto", "cpu", "cuda", "cuda:0", "mps" or a torch.device'
    )


def dtype_name(dtype: object) -> str:
    """Returns `--dtype` for a text, or a dtype of torch or numpy."""
    if isinstance(dtype, str):
        return dtype
    is_numpy = _is_of(dtype, "numpy", "dtype") or (isinstance(dtype, type) and dtype.__module__ == "numpy")
    if is_numpy or _is_of(dtype, "torch", "dtype"):
        name = str(getattr(dtype, "__name__", dtype)).removeprefix("torch.")
        return _DTYPES.get(name, name)
    raise UsageError(f"dtype cannot be {_kind(dtype)}", hint='use "auto", "fp32", "bf16", "fp16", "int8"')


def whole_number(name: str, value: object) -> int | None:
    """Returns a Python int for a whole number, also of numpy; None for None."""
    return None if value is None else int(_whole(name, value, "give a whole number, or leave it out"))


def none_if_auto(value: object) -> object:
    """Returns None for "auto", and any other value unchanged."""
    return None if isinstance(value, str) and value == "auto" else value


def yes_or_no(name: str, value: object) -> bool:
    """Returns a Python bool for True or False, also of numpy; a text such as "no" would count as True."""
    if isinstance(value, bool) or _is_of(value, "numpy", "bool"):
        return bool(value)
    raise UsageError(f"{name} cannot be {_kind(value)}", hint="use True or False")


def text_or_none(name: str, value: object) -> str | None:
    """Returns a text or None unchanged."""
    if value is None or isinstance(value, str):
        return value
    raise UsageError(f"{name} cannot be {_kind(value)}", hint="give a str, or leave it out")


def text(name: str, value: object) -> str:
    """Returns a text unchanged."""
    if isinstance(value, str):
        return value
    raise UsageError(f"{name} cannot be {_kind(value)}", hint="give a str, or leave it out")


def _whole(name: str, value: object, hint: str) -> str:
    is_bool = isinstance(value, bool) or _is_of(value, "numpy", "bool")
    if not is_bool and hasattr(value, "__index__"):
        return str(operator.index(value))
    raise UsageError(f"{name} cannot be {_kind(value)}", hint=hint)


def _has_items(value: object) -> bool:
    """Returns True for a collection; an array without dimensions is a number."""
    is_bytes = isinstance(value, bytes | bytearray | memoryview)  # their items would be taken for numbers
    return isinstance(value, Iterable) and not is_bytes and getattr(value, "ndim", 1) != 0


def _items(values: Any) -> list[Any]:
    # Vectors are concatenated in the order of layers and poolings.
    if isinstance(values, set | frozenset | dict):
        raise UsageError(f"a {type(values).__name__} has no order to put vectors in", hint="give a list")
    return list(values)


def _is_of(value: object, package: str, name: str) -> bool:
    """Checks whether a value is of a class, without importing it."""
    return any(
        kind.__module__.partition(".")[0] == package and kind.__name__.rstrip("_") == name
        for kind in type(value).__mro__
    )


def _kind(value: object) -> str:
    """Describes a value in an error: numbers and texts as they are, others by type."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    kind = type(value)
    return (
        f"a {kind.__name__} of {kind.__module__.partition('.')[0]}"
        if kind.__module__ != "builtins"
        else (f"a {kind.__name__}")
    )


def vector_config(**options: Any) -> VectorConfig:
    """Converts all arguments of `embedkit.Encoder` to a configuration.

    Raises:
        UsageError: a value that cannot be used.
    """
    options = {**options, **{name: none_if_auto(options[name]) for name in ("max_length", "batch_tokens")}}
    max_length, stride, truncate_dim, batch_tokens, batch_size = (
        whole_number(name, options[name])
        for name in ("max_length", "stride", "truncate_dim", "batch_tokens", "batch_size")
    )
    normalize = options["normalize"]
    return VectorConfig(
        model=ModelConfig(
            ModelConfig().model if options["model"] is None else model_name(options["model"]),
            text_or_none("revision", options["revision"]),
            yes_or_no("offline", options["offline"]),
            yes_or_no("trust_remote_code", options["trust_remote_code"]),
            text("lowercase", options["lowercase"]),
            device_name(options["device"]),
            dtype_name(options["dtype"]),
        ),
        text=TextConfig(
            max_length,
            text_or_none("on_long", options["on_long"]),
            stride,
            text_or_none("chunk_pool", options["chunk_pool"]),
            text_or_none("prompt", options["prompt"]),
            text_or_none("prompt_name", options["prompt_name"]),
        ),
        pooling=PoolingConfig(
            layers_text(options["layers"]),
            text("layer_agg", options["layer_agg"]),
            pool_text(options["pool"]),
            yes_or_no("exclude_special", options["exclude_special"]),
            None if normalize is None else yes_or_no("normalize", normalize),
            truncate_dim,
        ),
        batch=BatchConfig(batch_tokens, batch_size),
    )
