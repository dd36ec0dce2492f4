"""The values of kept columns, as Arrow arrays and as JSON text.

A column has an Arrow type, or is `json` or `text`: text of any values, by JSON, where strings have quotes in
`json` and stand as they are in `text`. Rows that are yet to be pooled into groups have `mixed` columns:
written like `json`, so that nothing is lost, for what will be `text`. Knows nothing of vectors. A value never
appears in an error: it may be a patient's.
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


def arrow_type(name: str) -> pa.DataType:
    """The Arrow type that `name` stands for; `json`, `text` and `mixed` are strings.

    Raises:
        UsageError: Arrow knows no such type.
    """
    return pa.string() if name in _WRITERS else named_type(name)


@cache
def fits_parquet(name: str) -> bool:
    """Whether Parquet can hold a column of this type."""
    schema = pa.schema([("", arrow_type(name))])
    try:
        pq.write_table(schema.empty_table(), io.BytesIO())
    except pa.ArrowException:
        return False
    return True


def kept_array(name: str, values: Sequence[Any], kept: str) -> pa.Array:
    """The values of kept column `name` as Arrow's type for `kept`; None is null.

    Args:
        name: of the column.
        values: kept values.
        kept: see the module.

    Raises:
        OutputError: a value is not of that type; says where, not what.
    """
    write = _WRITERS.get(kept)
    if write is not None:
        values = [None if value is None else write(value) for value in plain_values(values)]
    array = _try_array(values, arrow_type(kept))
    if array is not None:
        return array
    culprit = next(
        (at for at in range(len(values)) if _try_array(values[at : at + 1], arrow_type(kept)) is None), 0
    )
    raise OutputError(
        f"column {name!r}: the value at position {culprit} of the shard is not of the type {_shown(kept)}",
        hint=f"make the values of {name!r} one type in the input, or leave it out of --keep",
    )


def kept_values_of(column: pa.ChunkedArray, kept: str) -> list[Any]:
    """The kept values of a column that was written by `kept_array`; JSON is read again, but for `text`."""
    if kept in {"json", "mixed"}:
        return [None if text is None else json.loads(text) for text in column.to_pylist()]
    return [value for chunk in column.chunks for value in kept_values(stored(chunk))]


def json_text(value: Any) -> str:
    """`value` as compact JSON; NaN and the infinities, for which JSON has no word, as null."""
    try:
        return _dumps(value)
    except ValueError:  # rare: only non-finite numbers come here
        loose = json.dumps(value, ensure_ascii=False, default=_plain)
        return _dumps(json.loads(loose, parse_constant=lambda _: None))


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> str:
    """What JSON has no type for: times by ISO 8601, bytes in base64, the rest (decimals) by str."""
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return str(value)


def _shown(kept: str) -> str:
    return kept if kept in _WRITERS else str(named_type(kept))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)


def _try_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array | None:
    """The array, or None. The cause is dropped here, not chained: pyarrow quotes the value in it."""
    try:
        return typed_array(values, kind)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None


_WRITERS: Mapping[str, Callable[[Any], str]] = {"json": json_text, "mixed": json_text, "text": _text}
