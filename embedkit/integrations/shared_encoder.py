"""Encoders that a process shares: pipelines unpickle the functions that they call, often many times."""

from __future__ import annotations

import os
import threading
from inspect import signature
from typing import Any

from embedkit.config import VectorConfig, arguments
from embedkit.errors import UsageError
from embedkit.inference.encoder import Encoder
from embedkit.suggest import did_you_mean

_LOCK = threading.Lock()
#: By process: a forked child cannot use the encoders of its parent.
_ENCODERS: dict[tuple[int, VectorConfig], Encoder] = {}


def checked_config(options: dict[str, Any]) -> VectorConfig:
    """Returns the configuration of an Encoder with some options; loads no model.

    Raises:
        UsageError: there is no such option, or a value cannot be used.
    """
    parameters = signature(Encoder).parameters
    for name in options.keys() - parameters.keys():
        hint = did_you_mean(name, parameters, "help(embedkit.Encoder) lists them")
        raise UsageError(f"'{name}' is not an argument of embedkit.Encoder", hint=hint)
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return arguments.vector_config(**{**defaults, **options})


def shared_encoder(options: dict[str, Any]) -> Encoder:
    """Returns this process's Encoder with some options; the first call loads the model.

    Raises:
        UsageError: there is no such option, or a value cannot be used.
        ModelError: the model is unavailable, or lacks the requested pooling.
    """
    key = os.getpid(), checked_config(options)
    with _LOCK:
        if key not in _ENCODERS:
            _ENCODERS[key] = Encoder(**options)
        return _ENCODERS[key]
