"""The type of a kept column, as a name: `string`, `bool`, `int64`, `double`, another of Arrow's, `text`, `json`.

Of Parquet and Arrow it is the type of the file, by `arrow_values.type_name`; of text formats it is found by
looking at the values. `text` and `json` are for columns that no such type holds: `text` where some values are
strings, which stand as they are beside the others as JSON; `json` where none is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from embedkit.arrow_values import Cell, has_non_finite, holds, is_nested, is_string, named_type, plain_value

_NAMES = {type(None): "null", str: "string", bool: "bool", float: "double"}
_INT64 = range(-(2**63), 2**63)
_EXACT_AS_DOUBLE = range(-(2**53), 2**53 + 1)


def type_of(value: Any) -> str:
    """The type of one value: `wide` is an int64 that a double cannot hold exactly, `cell` an Arrow value."""
    if isinstance(value, Cell):
        return "cell"
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
    if found <= {"string", "large_string"}:
        return "large_string" if "large_string" in found else "string"
    if len(found) == 1:
        return found.pop()
    return "json" if found <= {"bool", "int64", "wide", "double", "json"} else "text"


def declared_type(names: Collection[str]) -> str:
    """The one type of a column in files that declare it; those of nulls alone fit any."""
    return unified(names) if set(names) - {"null"} else "null" if names else "string"


def fit_together(one: str, other: str) -> bool:
    """Whether two declared types are the same, or strings of two layouts."""
    kinds = (named_type(one), named_type(other))
    return kinds[0] == kinds[1] or all(is_string(kind) for kind in kinds)


class KeptTypes:
    """Finds the types of kept columns while rows are read.

    Args:
        keep: names of the columns.
        declared: for each of them, the types that Parquet and Arrow files declare.
        by_value: whether there are files of other formats, too.

    Attributes:
        non_finite: for each column that has any, the rows that hold NaN or an infinity.
    """

    def __init__(self, keep: Sequence[str], declared: Mapping[str, Collection[str]], *, by_value: bool) -> None:
        self.keep = keep
        self.non_finite = Counter[str]()
        self._declared = declared
        self._by_value = by_value
        self._seen: list[set[str]] = [set() for _ in keep]
        self._floats = [
            any(holds(named_type(name), pa.types.is_floating) for name in declared.get(column, ()))
            for column in keep
        ]

    def add(self, kept: Sequence[Any]) -> None:
        """Take in the kept values of a row."""
        for place, value in enumerate(kept):
            if self._by_value:
                self._seen[place].add(type_of(value))
            if isinstance(value, float):
                is_hole = not math.isfinite(value)
            else:
                is_hole = self._floats[place] and isinstance(value, Cell) and has_non_finite(plain_value(value))
            if is_hole:
                self.non_finite[self.keep[place]] += 1

    def names(self) -> dict[str, str]:
        """For each column, the name of its type."""
        return {name: self._name(name, seen) for name, seen in zip(self.keep, self._seen, strict=True)}

    def _name(self, column: str, seen: set[str]) -> str:
        declared = self._declared.get(column, ())
        values = seen - {"null"}
        if not self._by_value or (declared and values <= {"cell"}):
            return declared_type(declared)
        if "cell" not in values:
            return unified(values)
        as_json = "json" if is_nested(named_type(declared_type(declared))) else "text"
        return unified((values - {"cell"}) | {as_json})
