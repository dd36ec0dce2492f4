"""JSON values as objects of typed classes, from several threads at once."""

from __future__ import annotations

import threading
from typing import TypeVar

import msgspec

_T = TypeVar("_T")

#: msgspec 0.22 prepares a class at its first use. A second thread that meets the class half prepared crashes the
#: process: 1 of 25 processes in which 32 threads parsed their first record at the same time.
_CONVERTING = threading.Lock()


def convert(content: object, kind: type[_T]) -> _T:
    """Returns the object of a type that a JSON value describes.

    Raises:
        msgspec.ValidationError: a value is missing or of another type.
    """
    with _CONVERTING:
        return msgspec.convert(content, kind)
