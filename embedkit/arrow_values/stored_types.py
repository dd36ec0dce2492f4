"""Kept values in Arrow: their types by name, the types that they are stored in, and arrays of them."""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from embedkit.errors import UsageError

_ZONED = re.compile(r"timestamp\[(s|ms|us|ns), tz=(.+)\]")
#: Separates the readable name of a type from its serialized schema.
_ENCODED = " arrow:"


class Cell(NamedTuple):
    """A value in an Arrow array; never null."""

    array: Any  # of a stored type: see `stored`
    place: int  # position in the array, from 0


def type_name(kind: pa.DataType) -> str:
    """Returns the name of a stored type, for `named_type`; such as `int64` or `timestamp[us, tz=UTC]`."""
    name = str(kind)
    with contextlib.suppress(UsageError):
        if named_type(name) == kind:
            return name
    encoded = base64.b64encode(pa.schema([pa.field("", kind)]).serialize().to_pybytes()).decode("ascii")
    return f"{name}{_ENCODED}{encoded}"


def named_type(name: str) -> pa.DataType:
    """Returns the Arrow type of a name by `type_name`, or of an alias of pyarrow.

    Raises:
        UsageError: it is neither.
    """
    if zoned := _ZONED.fullmatch(name):  # pyarrow has no alias for these types
        return pa.timestamp(zoned[1], tz=zoned[2])
    _, mark, encoded = name.rpartition(_ENCODED)
    try:
        if mark:
            return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(encoded))).field(0).type
        return pa.type_for_alias(name)
    except (pa.ArrowException, OSError, ValueError):
        raise UsageError(
            f"a kept column cannot have the type {name!r}",
            hint="use string, json, or an Arrow type such as int64, double, bool, timestamp[ms]",
        ) from None


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type in which values are kept: without dictionaries, run ends and views.

    An Arrow file cannot hold a dictionary that changes between batches; pyarrow 26 can neither filter nor take
    from views.
    """
    return next((make(kind) for is_it, make in _STORED if is_it(kind)), kind)


def stored(array: Any) -> Any:
    """Converts an array to its stored type.

    Raises:
        pa.ArrowException: pyarrow cannot convert it.
    """
    if pa.types.is_run_end_encoded(array.type):
        return stored(pc.run_end_decode(array))
    kind = stored_type(array.type)
    return array if array.type == kind else array.cast(kind)


def is_string(kind: pa.DataType) -> bool:
    """Checks for strings of any layout."""
    return kind in {pa.string(), pa.large_string(), pa.string_view()}


def is_binary(kind: pa.DataType) -> bool:
    """Checks for bytes of any layout."""
    return kind in {pa.binary(), pa.large_binary(), pa.binary_view()} or bool(pa.types.is_fixed_size_binary(kind))


def is_nested(kind: pa.DataType) -> bool:
    """Checks for lists, structs, maps and unions."""
    return bool(pa.types.is_nested(kind) or (is_extension(kind) and is_nested(kind.storage_type)))


def holds(kind: pa.DataType, is_it: Callable[[pa.DataType], bool]) -> bool:
    """Checks whether a type, or one nested in it, satisfies `is_it`."""
    if is_extension(kind):
        return holds(kind.storage_type, is_it)
    return is_it(kind) or any(holds(kind.field(at).type, is_it) for at in range(kind.num_fields))


def is_exact(kind: pa.DataType) -> bool:
    """Checks for types whose values have one text each, as ids need it: times, decimals, UUIDs."""
    return bool(pa.types.is_temporal(kind) or pa.types.is_decimal(kind) or isinstance(kind, pa.UuidType))


def _stored_field(field: pa.Field) -> pa.Field:
    return field.with_type(stored_type(field.type))


def _stored_struct(kind: pa.DataType) -> pa.DataType:
    return pa.struct([_stored_field(kind.field(at)) for at in range(kind.num_fields)])


def _stored_map(kind: pa.DataType) -> pa.DataType:
    return pa.map_(_stored_field(kind.key_field), _stored_field(kind.item_field), kind.keys_sorted)


IsType = Callable[[pa.DataType], bool]
#: Predicates on types, and the functions that return the stored type.
_STORED: tuple[tuple[IsType, Callable[[pa.DataType], pa.DataType]], ...] = (
    (pa.types.is_dictionary, lambda kind: stored_type(kind.value_type)),
    (pa.types.is_run_end_encoded, lambda kind: stored_type(kind.value_type)),
    (pa.types.is_string_view, lambda _: pa.string()),
    (pa.types.is_binary_view, lambda _: pa.binary()),
    (pa.types.is_struct, _stored_struct),
    (pa.types.is_map, _stored_map),
    (pa.types.is_list, lambda kind: pa.list_(_stored_field(kind.value_field))),
    (pa.types.is_large_list, lambda kind: pa.large_list(_stored_field(kind.value_field))),
    (pa.types.is_list_view, lambda kind: pa.list_view(_stored_field(kind.value_field))),
    (pa.types.is_large_list_view, lambda kind: pa.large_list_view(_stored_field(kind.value_field))),
    (pa.types.is_fixed_size_list, lambda kind: pa.list_(_stored_field(kind.value_field), kind.list_size)),
)


def is_extension(kind: pa.DataType) -> bool:
    """Checks for types that Arrow stores as another one, such as UUIDs."""
    return isinstance(kind, pa.BaseExtensionType)


def is_plain(kind: pa.DataType) -> bool:
    """Checks for types whose values are exact in Python and JSON."""
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(is_number) or is_string(kind) or kind in {pa.null(), pa.bool_()}


def kept_values(array: Any) -> list[Any]:
    """Returns the kept values of an array of a stored type; None for null."""
    if is_plain(array.type):
        return list(array.to_pylist())
    valid = array.is_valid().to_pylist()
    return [Cell(array, place) if is_valid else None for place, is_valid in enumerate(valid)]


def typed_array(values: Sequence[Any], kind: pa.DataType) -> Any:
    """Makes an array of a given type from kept values.

    Raises:
        pa.ArrowException, ValueError, TypeError, OverflowError: a value is not of that type.
    """
    if not any(isinstance(value, Cell) for value in values):
        return pa.array(values, kind)
    parts = [source.take(pa.array(places, pa.int64())) for source, places in _by_array(values)]
    parts = [part if part.type == kind else part.cast(kind) for part in parts]
    return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)


def _by_array(values: Sequence[Any]) -> Iterator[tuple[Any, list[int | None]]]:
    """Groups consecutive values by their array: yields arrays and places in them; None for null."""
    source: Any = None
    places: list[int | None] = []
    for value in values:
        if value is None:
            places.append(None)
            continue
        if not isinstance(value, Cell):
            raise TypeError("cells and Python values are mixed")
        if source is not None and value.array is not source:
            yield source, places
            places = []
        source = value.array
        places.append(value.place)
    yield source, places
