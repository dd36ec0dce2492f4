"""The values of kept columns, as Arrow arrays and as JSON.

Knows nothing of vectors. A value never appears in an error: it may be a patient's.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from embedkit.errors import OutputError, UsageError

_ZONED = re.compile(r"timestamp\[(s|ms|us|ns), tz=(.+)\]")


def arrow_type(name: str) -> pa.DataType:
    """The Arrow type that `name` stands for; `json` is text.

    Raises:
        UsageError: Arrow knows no such type.
    """
    if name == "json":
        return pa.string()
    if zoned := _ZONED.fullmatch(name):  # pyarrow prints these types, yet has no alias for them
        return pa.timestamp(zoned[1], tz=zoned[2])
    try:
        return pa.type_for_alias(name)
    except ValueError:
        raise UsageError(
            f"a kept column cannot have the type {name!r}",
            hint="use string, json, or an Arrow type such as int64, double, bool, timestamp[ms]",
        ) from None


def kept_array(name: str, values: Sequence[Any], kept: str) -> pa.Array:
    """The values of kept column `name` as Arrow's type for `kept`; None is null.

    Raises:
        OutputError: a value is not of that type; says where, not what.
    """
    if kept == "json":
        values = [None if value is None else json_text(value) for value in values]
    array = _try_array(values, arrow_type(kept))
    if array is not None:
        return array
    culprit = next((i for i, value in enumerate(values) if _try_array([value], arrow_type(kept)) is None), 0)
    raise OutputError(
        f"column {name!r}: the value at position {culprit} of the shard is not of the type {kept}",
        hint=f"make the values of {name!r} one type in the input, or leave it out of --keep",
    )


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


def _try_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array | None:
    """The array, or None. The cause is dropped here, not chained: pyarrow quotes the value in it."""
    try:
        return pa.array(values, type=kind)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None
