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

#: Texts for `Encoder.encode`: a list, a generator, an array or a column of str; None and NaN are empty texts.
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


def texts_of(texts: Texts) -> list[str | None]:
    """Lists all texts, in order; None for a missing one (None, NaN, NA, NaT).

    Args:
        texts: a list, tuple, generator, array, Series, Arrow array or any other column of str.

    Raises:
        InputError: it is a table, a single text, unordered, or contains anything but texts.
    """
    return [_text(item, place) for place, item in enumerate(_items(texts))]


def _items(texts: Any) -> Iterable[Any]:
    if isinstance(texts, str | bytes | bytearray | memoryview):
        raise InputError(
            f"texts is one {type(texts).__name__}, not a list of str",
            hint="encode([text]) for a single text",
        )
    _check_no_table(texts)
    if isinstance(texts, AbstractSet) and not hasattr(texts, "mapping"):
        raise InputError(
            f"texts is a {type(texts).__name__}, which has no order",
            hint="give a list, such as sorted(texts), and keep it with the vectors",
        )
    _check_array(texts)
    for name in _TO_LIST:
        if callable(getattr(texts, name, None)) and not isinstance(texts, list | tuple):
            texts = getattr(texts, name)()
            break
    kind = type(texts)
    if not isinstance(texts, Iterable) and hasattr(kind, "__len__") and hasattr(kind, "__getitem__"):
        return (texts[place] for place in range(len(texts)))  # a Dataset of torch
    items: Iterable[Any] | None = None
    # The error below is raised outside of this block, because the message of the first one may quote a text.
    with contextlib.suppress(TypeError):
        items = iter(texts)
    if items is None:
        raise InputError(f"texts is {_a(texts)}, not a list of str", hint="encode([text]) for a single text")
    return items


def _check_array(texts: Any) -> None:
    """Refuses an array that is not a column, or whose type excludes texts."""
    ndim, shape = getattr(texts, "ndim", 1), getattr(texts, "shape", ())
    if isinstance(ndim, int) and ndim != 1:
        raise InputError(
            f"texts is an array of shape {tuple(shape)}, not of one dimension",
            hint="encode([text]) for a single text" if ndim == 0 else "give one column, such as texts[:, 0]",
        )
    # Empty arrays and arrays of NaN have a numeric type in numpy.
    if isinstance(texts, np.ndarray) and texts.dtype.kind not in "UOT" and not _is_missing_alone(texts):
        raise InputError(
            f"texts is an array of {texts.dtype}, not of str",
            hint="decode it with np.char.decode(texts)" if texts.dtype.kind == "S" else "give the column of texts",
        )


def _is_missing_alone(array: Any) -> bool:
    return not array.size or (array.dtype.kind in "fMm" and bool((array != array).all()))  # noqa: PLR0124 - NaN, NaT


def _check_no_table(texts: Any) -> None:
    """Refuses a table: iterating it gives names of columns, or rows."""
    dtype_names = getattr(getattr(texts, "dtype", None), "names", None)
    if isinstance(texts, Mapping):
        names: Any = texts.keys()
    elif isinstance(dtype_names, tuple):
        names = dtype_names
    elif callable(getattr(texts, "collect_schema", None)):
        # A lazy frame of polars warns if asked for `columns`.
        names = texts.collect_schema().names()
    else:
        names = getattr(texts, "column_names", None)
        names = getattr(texts, "columns", None) if not _is_names(names) else names
    if not _is_names(names):
        return
    kind = type(texts).__name__
    known = {str(name).lower(): name for name in islice(names, _MOST_COLUMNS) if isinstance(name, str)}
    likely = next((known[name] for name in _LIKELY if name in known), None)
    hint = f'give the column of texts: encode(table["{likely}"])'
    if likely is None:
        if isinstance(texts, Mapping) and texts and all(isinstance(value, str) for value in texts.values()):
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
    """Checks for a missing text: None, a NaN of any kind, pandas's NA and NaT."""
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
