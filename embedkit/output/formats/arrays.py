"""Arrow arrays of numpy's numbers and of texts, made from their buffers.

`pa.array` makes the same ones, but first imports pandas where it is installed, which takes 0.2 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_MOST_BYTES = 2**31 - 1


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


def _bits(flags: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))
