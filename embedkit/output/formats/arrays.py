"""Arrow arrays of numpy's numbers and of Python's values, made from their buffers, and numbers of Arrow arrays.

`pa.array` and `to_numpy` do the same, but first import pandas where it is installed, which takes 0.2 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_MOST_BYTES = 2**31 - 1
#: What pyarrow makes of Python's values.
_TYPES = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def number_array(numbers: NDArray[Any]) -> pa.Array:
    """Returns [N] numbers or booleans as an array of the same type; no copy of numbers that are contiguous."""
    if numbers.dtype == np.bool_:
        return pa.Array.from_buffers(pa.bool_(), len(numbers), [None, _bits(numbers)])
    buffer = pa.py_buffer(np.ascontiguousarray(numbers))
    return pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [None, buffer])


def text_array(texts: Sequence[str | None]) -> pa.Array:
    """Returns texts as an array of strings; None is null.

    Raises:
        UnicodeEncodeError: a text has half a character.
    """
    present = np.array([text is not None for text in texts], np.bool_)
    encoded = [b"" if text is None else text.encode() for text in texts]
    ends = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in encoded], out=ends[1:])
    if ends[-1] > _MOST_BYTES:
        return pa.array(texts, pa.string())
    valid = None if present.all() else _bits(present)
    buffers = [valid, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers)


def plain_array(values: Sequence[Any], kind: pa.DataType | None = None) -> pa.Array | None:
    """Returns what `pa.array` makes of texts, booleans, integers or floats of one type; None for other values.

    Args:
        values: None is null.
        kind: the type of the array; None for that of the values.

    Raises:
        UnicodeEncodeError: a text has half a character.
    """
    found = {type(value) for value in values} - {type(None)}
    if not found:
        return pa.nulls(len(values), kind or pa.null())
    of_values = found.pop()
    made = _TYPES.get(of_values)
    is_other_integer = of_values is int and kind is not None and pa.types.is_integer(kind)
    if found or made is None or not (kind is None or kind == made or is_other_integer):
        return None
    if of_values is str:
        return text_array(values)
    made = kind or made
    present = np.array([value is not None for value in values], np.bool_)
    try:
        numbers = np.array([of_values() if value is None else value for value in values], made.to_pandas_dtype())
    except OverflowError:
        return None
    if present.all():
        return number_array(numbers)
    return pa.Array.from_buffers(made, len(values), [_bits(present), number_array(numbers).buffers()[1]])


def numbers_of(array: pa.Array) -> NDArray[Any]:
    """Returns the [N] numbers of an array without nulls, read-only and not copied."""
    numbers: NDArray[Any] = np.from_dlpack(array)
    return numbers


def column_numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """Returns the [N] numbers of a column without nulls."""
    return np.concatenate([np.zeros(0, column.type.to_pandas_dtype()), *map(numbers_of, column.chunks)])


def valid_rows(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Returns [N] False where a column is null."""
    return np.concatenate([np.zeros(0, np.bool_), *map(_valid, column.chunks)])


def _valid(array: pa.Array) -> NDArray[np.bool_]:
    valid = array.buffers()[0]
    if valid is None or not array.null_count:  # none or, of the type null, all are
        return np.full(len(array), not array.null_count)
    bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")
    return bits[array.offset : array.offset + len(array)].astype(np.bool_)


def _bits(flags: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))
