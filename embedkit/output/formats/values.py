"""The values of kept columns, as Arrow arrays and as JSON text.

A column has an Arrow type, or is `json` or `text`: any values as JSON text, with strings quoted in `json` and
unquoted in `text`. Rows that will be pooled into groups have `mixed` columns: written like `json`, so that nothing
is lost, and `text` in the groups. No error contains a value, which may be a patient's.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedkit.arrow_values import kept_values, named_type, plain_values, stored, typed_array
from embedkit.errors import OutputError
from embedkit.output.formats.arrays import plain_array


def arrow_type(name: str) -> pa.DataType:
    """Returns the Arrow type of the name; `json`, `text` and `mixed` are strings.

    Raises:
        UsageError: Arrow knows no such type.
    """
    return pa.string() if name in _WRITERS else named_type(name)


@cache
def fits_parquet(name: str) -> bool:
    """Returns True if Parquet can hold a column of this type."""
    schema = pa.schema([("", arrow_type(name))])
    try:
        pq.ParquetWriter(io.BytesIO(), schema).close()
    except pa.ArrowException:
        return False
    return True


def kept_array(name: str, values: Sequence[Any], kept: str) -> pa.Array:
    """Returns the values of kept column `name` as Arrow's type for `kept`, see the module; None is null.

    Raises:
        OutputError: a value is not of that type; gives its position, not the value.
    """
    write, kind = _WRITERS.get(kept), arrow_type(kept)
    if write is not None:
        values = [None if value is None else write(value) for value in plain_values(values)]
    array = _try_array(values, kind)
    if array is not None:
        return array
    culprit = next((at for at in range(len(values)) if _try_array(values[at : at + 1], kind) is None), 0)
    shown = kept if write else kind
    raise OutputError(
        f"column {name!r}: the value at position {culprit} of the shard is not of the type {shown}",
        hint=f"make the values of {name!r} one type in the input, or leave it out of --keep",
    )


def kept_values_of(column: pa.ChunkedArray, kept: str) -> list[Any]:
    """Returns the kept values of a column that `kept_array` wrote; JSON is parsed, except for `text`."""
    if kept in {"json", "mixed"}:
        return [None if text is None else json.loads(text) for text in column.to_pylist()]
    return [value for chunk in column.chunks for value in kept_values(stored(chunk))]


def json_text(value: Any) -> str:
    """Returns a value as compact JSON; NaN and infinities, which JSON does not have, as null."""
    try:
        return _dumps(value)
    except ValueError:  # rare: only non-finite numbers come here
        loose = json.dumps(value, ensure_ascii=False, default=_plain)
        return _dumps(json.loads(loose, parse_constant=lambda _: None))


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> str:
    """Converts types that JSON does not have: times to ISO 8601, bytes to base64, others (decimals) by str."""
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return str(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)


def _try_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array | None:
    """Returns the array, or None. The exception is dropped, not chained: pyarrow quotes the value in it."""
    try:
        array = plain_array(values, kind)
        return typed_array(values, kind) if array is None else array
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None


_WRITERS: Mapping[str, Callable[[Any], str]] = {"json": json_text, "mixed": json_text, "text": _text}
