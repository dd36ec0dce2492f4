"""Texts of a caller of `Encoder`: lists, generators, arrays, columns of any library.

Objects of pandas, polars and pyarrow are recognised by their methods, without importing the library. Errors give
the position and the type of an item, never its text.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from decimal import Decimal
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from embedkit.errors import InputError
from embedkit.sources.columns import USUAL_TEXT
from embedkit.sources.plain_text import LONE_SURROGATE

#: What `Encoder.encode` takes: a list, a generator, an array or a column of str; None and NaN are empty texts.
Texts: TypeAlias = "Iterable[str | None]"

#: Usual names of a column of texts, the likeliest first.
_LIKELY = (
    *USUAL_TEXT,
    *("texts", "notes", "sentences", "note_text", "document", "abstract", "description", "report"),
    *("comment", "message", "passage", "title"),
)
#: Most columns to search for a likely name; there may be thousands.
_MOST_COLUMNS = 1_000
#: Methods that convert a column to Python's values: of pyarrow, of pandas and polars, of numpy.
_TO_LIST = ("to_pylist", "to_list", "tolist")


def texts_of(given: Texts) -> list[str | None]:
    """List all texts, in order; None for a missing one (None, NaN, NA, NaT).

    Args:
        given: a list, tuple, generator, array, Series, Arrow array or any other column of str.

    Raises:
        InputError: it is a table, a single text, unordered, or contains anything but texts.
    """
    return [_text(item, place) for place, item in enumerate(_items(given))]


def _items(given: Any) -> Iterable[Any]:
    if isinstance(given, str | bytes | bytearray | memoryview):
        raise InputError(
            f"texts is one {type(given).__name__}, not a list of str",
            hint="encode([text]) for a single text",
        )
    _check_no_table(given)
    if isinstance(given, AbstractSet) and not hasattr(given, "mapping"):
        raise InputError(
            f"texts is a {type(given).__name__}, which has no order",
            hint="give a list, such as sorted(texts), and keep it with the vectors",
        )
    _check_array(given)
    for name in _TO_LIST:
        if callable(getattr(given, name, None)) and not isinstance(given, list | tuple):
            given = getattr(given, name)()
            break
    kind = type(given)
    if not isinstance(given, Iterable) and hasattr(kind, "__len__") and hasattr(kind, "__getitem__"):
        return (given[place] for place in range(len(given)))  # a Dataset of torch
    items: Iterable[Any] | None = None
    # The error below is raised outside of this block, because the message of the first one may quote a text.
    with contextlib.suppress(TypeError):
        items = iter(given)
    if items is None:
        raise InputError(f"texts is {_a(given)}, not a list of str", hint="encode([text]) for a single text")
    return items


def _check_array(given: Any) -> None:
    """Refuse an array that is not a column, or whose type excludes texts."""
    ndim, shape = getattr(given, "ndim", 1), getattr(given, "shape", ())
    if isinstance(ndim, int) and ndim != 1:
        raise InputError(
            f"texts is an array of shape {tuple(shape)}, not of one dimension",
            hint="encode([text]) for a single text" if ndim == 0 else "give one column, such as texts[:, 0]",
        )
    # Empty arrays and arrays of NaN have a numeric type in numpy.
    if isinstance(given, np.ndarray) and given.dtype.kind not in "UOT" and not _is_missing_alone(given):
        raise InputError(
            f"texts is an array of {given.dtype}, not of str",
            hint="decode it with np.char.decode(texts)" if given.dtype.kind == "S" else "give the column of texts",
        )


def _is_missing_alone(array: Any) -> bool:
    return not array.size or (array.dtype.kind in "fMm" and bool((array != array).all()))  # noqa: PLR0124 - NaN, NaT


def _check_no_table(given: Any) -> None:
    """Refuse a table: iterating it gives names of columns, or rows."""
    dtype_names = getattr(getattr(given, "dtype", None), "names", None)
    if isinstance(given, Mapping):
        names: Any = given.keys()
    elif isinstance(dtype_names, tuple):
        names = dtype_names
    elif callable(getattr(given, "collect_schema", None)):
        # A lazy frame of polars warns if asked for `columns`.
        names = given.collect_schema().names()
    else:
        names = getattr(given, "column_names", None)
        names = getattr(given, "columns", None) if not _is_names(names) else names
    if not _is_names(names):
        return
    kind = type(given).__name__
    known = {str(name).lower(): name for name in islice(names, _MOST_COLUMNS) if isinstance(name, str)}
    likely = next((known[name] for name in _LIKELY if name in known), None)
    hint = f'give the column of texts: encode(table["{likely}"])'
    if likely is None:
        if isinstance(given, Mapping) and given and all(isinstance(value, str) for value in given.values()):
            raise InputError(f"texts is a {kind}, not a list of str", hint="encode(list(texts.values()))")
        hint = 'give the column of texts: encode(table["COLUMN"]), with COLUMN replaced by its name'
    raise InputError(f"texts is a table ({kind}), not one of its columns", hint=hint)


def _is_names(names: Any) -> bool:
    return names is not None and not callable(names) and not isinstance(names, str) and isinstance(names, Iterable)


def _text(item: Any, place: int) -> str | None:
    if not isinstance(item, str):
        if callable(getattr(item, "as_py", None)):
            item = item.as_py()  # a scalar of pyarrow
        elif getattr(item, "ndim", None) == 0 and callable(getattr(item, "item", None)):
            item = item.item()  # an array of no dimensions
    if isinstance(item, str):
        if not item.isascii() and LONE_SURROGATE.search(item):
            raise InputError(
                f"texts[{place}] has half a character (a lone surrogate), which tokenizers refuse",
                hint='repair it, for example with text.encode("utf-8", "replace").decode()',
            )
        # The value of a subclass (numpy's, an enumeration's), not its representation.
        return str.__str__(item)
    if _is_missing(item):
        return None
    hints = {
        "bytes": 'decode it: text.decode("utf-8")',
        "dict": 'give the texts alone, such as [row["text"] for row in rows]',
        "list": "give one text a row, such as its parts joined",
        "tuple": "give one text a row, such as its parts joined",
    }
    raise InputError(
        f"texts[{place}] is {_a(item)}, not a str",
        hint=hints.get(type(item).__name__, "convert it to a str, or to None if there is no text"),
    )


def _is_missing(item: Any) -> bool:
    """Check for a missing text: None, a NaN of any kind, pandas's NA and NaT."""
    if item is None:
        return True
    if isinstance(item, float | np.floating | Decimal):
        return math.isnan(item)
    if isinstance(item, np.datetime64 | np.timedelta64):
        return bool(np.isnat(item))
    return item is np.ma.masked or type(item).__name__ in {"NAType", "NaTType"}


def _a(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}" if value is not None else "None"
