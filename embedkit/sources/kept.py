"""The type of a kept column, as a name: `string`, `bool`, `int64`, `double`, another of Arrow's, `json`.

A name other than `json` is one that `pyarrow.type_for_alias` takes back. A column is `json` where no
such type holds all its values; its values then are what `json.dumps` can write.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_NAMES = {type(None): "null", str: "string", bool: "bool", float: "double"}
_INT64 = range(-(2**63), 2**63)
_EXACT_AS_DOUBLE = range(-(2**53), 2**53 + 1)


def type_of(value: Any) -> str:
    """The type of one value from JSON. `wide` is an int64 that a double cannot hold exactly."""
    if type(value) is not int:
        return _NAMES.get(type(value), "json")
    if value in _EXACT_AS_DOUBLE:
        return "int64"
    return "wide" if value in _INT64 else "json"


def unified(types: Collection[str]) -> str:
    """The one type that holds values of all these; integers among doubles are doubles."""
    found = set(types) - {"null"}
    if not found:
        return "string"
    if found == {"int64", "double"}:
        return "double"
    if found <= {"int64", "wide"}:
        return "int64"
    return found.pop() if len(found) == 1 else "json"
