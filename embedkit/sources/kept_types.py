"""Types of kept columns, as names: `string`, `bool`, `int64`, `double`, another one of Arrow, `text` or `json`.

Parquet and Arrow files declare the type (see `arrow_values.type_name`); in text formats it is inferred from the
values. `text` and `json` are for values without a common type: all are written as JSON, except that in `text`
columns strings are unchanged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from embedkit.arrow_values import (
    Cell,
    has_non_finite,
    holds,
    is_nested,
    is_string,
    named_type,
    plain_value,
    type_name,
)
from embedkit.sources.scan import FoundTypes

_NAMES = {type(None): "null", str: "string", bool: "bool", float: "double"}
_INT64 = range(-(2**63), 2**63)
_EXACT_AS_DOUBLE = range(-(2**53), 2**53 + 1)


def type_of(value: Any) -> str:
    """Returns the type of one value; `wide` is an int64 that is not exact as a double, `cell` an Arrow value."""
    if isinstance(value, Cell):
        return "cell"
    if type(value) is not int:
        return _NAMES.get(type(value), "json")
    if value in _EXACT_AS_DOUBLE:
        return "int64"
    return "wide" if value in _INT64 else "json"


def unified(types: Collection[str]) -> str:
    """Returns the common type of values of these types; of integers and doubles it is double."""
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
    """Returns the common type of a column that files declare with these types; nulls fit any type.

    It is `text` if no type holds the values of all of them exactly.
    """
    declared = sorted(set(names) - {"null"})
    if not declared:
        return "null" if names else "string"
    joined: str | None = declared[0]
    for name in declared[1:]:
        joined = None if joined is None else common_type(joined, name)
    return joined or "text"


def common_type(one: str, other: str) -> str | None:
    """Returns the type that holds the values of two declared types exactly; None if there is none.

    A finer unit of time covers fewer years, so that times may still not fit.
    """
    if one == other:
        return one
    kinds = [named_type(one), named_type(other)]
    if not any(all(map(is_it, kinds)) for is_it in _JOINABLE):
        return None
    if pa.uint64() in kinds and any(map(pa.types.is_signed_integer, kinds)):
        return None  # pyarrow would choose int64
    try:
        schema = pa.unify_schemas([pa.schema([("", kind)]) for kind in kinds], promote_options="permissive")
    except pa.ArrowException:
        return None
    found = schema.field(0).type
    # Parquet has no negative scales.
    return None if pa.types.is_decimal(found) and found.scale < 0 else type_name(found)


def fit_together(one: str, other: str) -> bool:
    """Checks whether columns of two types can be joined: a type holds both exactly, or both are numeric."""
    kinds = (named_type(one), named_type(other))
    return common_type(one, other) is not None or all(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds
    )


#: Predicates on types: two types can have a common one if both satisfy the same predicate.
_JOINABLE: tuple[Callable[[pa.DataType], bool], ...] = (
    is_string,
    *(pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
    *(pa.types.is_timestamp, pa.types.is_duration, pa.types.is_time, pa.types.is_date),
    lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind),
)


class KeptTypes:
    """Finds the types of kept columns while rows are read.

    Args:
        keep: names of the columns.
        declared: for each of them, the types that Parquet and Arrow files declare.
        by_value: infer all types from values, because there are files of other formats. Declared types without a
            common one, such as int64 and double, are always inferred.

    Attributes:
        non_finite: for each column that has any, the number of rows with NaN or an infinity.
    """

    def __init__(self, keep: Sequence[str], declared: Mapping[str, Collection[str]], *, by_value: bool) -> None:
        self.keep = keep
        self.non_finite = Counter[str]()
        self._declared = declared
        types = {column: declared_type(names) for column, names in declared.items()}
        self._by_value = [by_value or types.get(column) == "text" for column in keep]
        #: Common type of columns that files declare with several types, until a value does not fit.
        self._joined = [
            named_type(types[column])
            if len(set(declared.get(column, ())) - {"null"}) > 1 and types[column] != "text"
            else None
            for column in keep
        ]
        self._does_not_fit = [False] * len(keep)
        self._last: list[Any] = [None] * len(keep)
        self._seen: list[set[str]] = [set() for _ in keep]
        self._floats = [
            any(holds(named_type(name), pa.types.is_floating) for name in declared.get(column, ()))
            for column in keep
        ]

    def add(self, kept: Sequence[Any]) -> None:
        """Adds the kept values of a row."""
        for place, value in enumerate(kept):
            if self._by_value[place]:
                self._seen[place].add(type_of(value))
            if isinstance(value, Cell) and self._joined[place] is not None:
                self._check_fit(place, value.array)
            if isinstance(value, float):
                is_non_finite = not math.isfinite(value)
            else:
                is_non_finite = (
                    self._floats[place] and isinstance(value, Cell) and has_non_finite(plain_value(value))
                )
            if is_non_finite:
                self.non_finite[self.keep[place]] += 1

    def floats(self) -> list[str] | None:
        """Lists the columns whose values must be searched for NaN; None if values decide types as well."""
        if any(self._by_value) or any(joined is not None for joined in self._joined):
            return None
        return [name for name, has_floats in zip(self.keep, self._floats, strict=True) if has_floats]

    def found(self) -> FoundTypes:
        """Returns what the rows so far have added."""
        seen = tuple(tuple(sorted(types)) for types in self._seen)
        return FoundTypes(seen, tuple(self._does_not_fit), dict(self.non_finite))

    def merge(self, found: FoundTypes) -> None:
        """Adds what other rows of the table have added elsewhere."""
        for place, (types, is_unfit) in enumerate(zip(found.seen, found.unfit, strict=True)):
            self._seen[place].update(types)
            self._does_not_fit[place] |= is_unfit
        self.non_finite.update(found.non_finite)

    def names(self) -> dict[str, str]:
        """Returns the name of each column's type."""
        return {name: self._name(place, name) for place, name in enumerate(self.keep)}

    def splits(self, column: str) -> bool:
        """Checks whether equal values may have several texts, such as `1` and `1.0`, for lack of a common type."""
        values = self._seen[self.keep.index(column)] - {"null"}
        is_plain = len(values) < 2 or values <= {"string", "int64", "wide"}
        return not is_plain and unified(values) in {"text", "json"}

    def _check_fit(self, place: int, array: Any) -> None:
        """Checks, once an array, that its values fit the common type."""
        if self._does_not_fit[place] or array is self._last[place]:
            return
        self._last[place] = array
        try:
            array.cast(self._joined[place])
        except pa.ArrowException:
            self._does_not_fit[place] = True

    def _name(self, place: int, column: str) -> str:
        declared, seen = self._declared.get(column, ()), self._seen[place]
        values = seen - {"null"}
        if self._does_not_fit[place]:
            return "text"
        if not self._by_value[place] or (declared and values <= {"cell"}):
            return declared_type(declared)
        if "cell" not in values:
            return unified(values)
        as_json = "json" if is_nested(named_type(declared_type(declared))) else "text"
        return unified((values - {"cell"}) | {as_json})
