"""What a caller of `Encoder` hands over, as a list of texts: lists, generators, arrays, columns of any library.

pandas, polars, pyarrow and the like are known by what their objects can do, and imported by their owner alone. No
text ever gets into an error: the place in the list and the type do.
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

#: What `Encoder.encode` takes: a list, a generator, an array or a column of str; None and NaN are empty texts.
Texts: TypeAlias = "Iterable[str | None]"

#: Usual names of a column of texts, in the order in which one of them is taken for it.
_LIKELY = (
    *("text", "note", "sentence", "content", "body"),
    *("texts", "notes", "sentences", "note_text", "document", "abstract", "description", "report"),
    *("comment", "message", "passage", "title"),
)
#: Columns looked through for a likely name; there may be thousands.
_MOST_COLUMNS = 1_000
#: What gives all values of a column as Python's own, by position: of pyarrow, of pandas and polars, of numpy.
_TO_LIST = ("to_pylist", "to_list", "tolist")


def texts_of(given: Texts) -> list[str | None]:
    """All texts in their order, by position; None where a text is missing (None, NaN, NA, NaT).

    Args:
        given: a list, tuple, generator, array, Series, Arrow array or any other column of str.

    Raises:
        InputError: it is a table, a single text, unordered, or holds something else than texts.
    """
    return [_text(item, place) for place, item in enumerate(_items(given))]


def _items(given: Any) -> Iterable[Any]:
    if isinstance(given, str | bytes | bytearray | memoryview):
        raise InputError(
            f"texts is one {type(given).__name__}, and a list of str is what is embedded",
            hint="encode([text]) for a single text",
        )
    _refuse_table(given)
    if isinstance(given, AbstractSet) and not hasattr(given, "mapping"):
        raise InputError(
            f"texts is a {type(given).__name__}, which has no order to give vectors in",
            hint="give a list, such as sorted(texts), and keep it beside the vectors",
        )
    _refuse_array(given)
    for name in _TO_LIST:
        if callable(getattr(given, name, None)) and not isinstance(given, list | tuple):
            given = getattr(given, name)()
            break
    if _is_sequence(given):
        return (given[place] for place in range(len(given)))
    items: Iterable[Any] | None = None
    # Some have the method and refuse it; the error below is raised without theirs, which may quote a text.
    with contextlib.suppress(TypeError):
        items = iter(given)
    if items is None:
        raise InputError(f"texts is {_a(given)}, not a list of str", hint="encode([text]) for a single text")
    return items


def _is_sequence(given: Any) -> bool:
    """Whether it has a length and items and is no Iterable, such as a Dataset of torch."""
    kind = type(given)
    return not isinstance(given, Iterable) and hasattr(kind, "__len__") and hasattr(kind, "__getitem__")


def _refuse_array(given: Any) -> None:
    """Refuse an array that is no column, or one whose type says that it holds no texts."""
    ndim, shape = getattr(given, "ndim", 1), getattr(given, "shape", ())
    if isinstance(ndim, int) and ndim != 1:
        raise InputError(
            f"texts is an array of shape {tuple(shape)}, and one dimension is what a column has",
            hint="encode([text]) for a single text" if ndim == 0 else "give one column, such as texts[:, 0]",
        )
    # An array of nothing, or of NaN alone, has the type of numbers: numpy knows no other for these.
    if isinstance(given, np.ndarray) and given.dtype.kind not in "UOT" and not _is_missing_alone(given):
        raise InputError(
            f"texts is an array of {given.dtype}, not of str",
            hint="decode it with np.char.decode(texts)" if given.dtype.kind == "S" else "give the column of texts",
        )


def _is_missing_alone(array: Any) -> bool:
    return not array.size or (array.dtype.kind in "fMm" and bool((array != array).all()))  # noqa: PLR0124 - NaN, NaT


def _refuse_table(given: Any) -> None:
    """Refuse what has columns: iterating it gives their names, or its rows."""
    dtype_names = getattr(getattr(given, "dtype", None), "names", None)
    if isinstance(given, Mapping):
        names: Any = given.keys()
    elif isinstance(dtype_names, tuple):
        names = dtype_names
    elif callable(getattr(given, "collect_schema", None)):
        # Of polars: a lazy frame warns where it is asked for its columns.
        names = given.collect_schema().names()
    else:
        names = getattr(given, "column_names", None)
        names = getattr(given, "columns", None) if not _is_names(names) else names
    if not _is_names(names):
        return
    kind = type(given).__name__
    known = {str(name).lower(): name for name in islice(names, _MOST_COLUMNS) if isinstance(name, str)}
    likely = next((known[name] for name in _LIKELY if name in known), None)
    name = likely if likely is not None else "COLUMN"
    if (
        likely is None
        and isinstance(given, Mapping)
        and given
        and all(isinstance(of, str) for of in given.values())
    ):
        raise InputError(f"texts is a {kind}, not a list of str", hint="encode(list(texts.values()))")
    raise InputError(
        f"texts is a table ({kind}), and one column of it is what is embedded",
        hint=f'give the column of texts: encode(table["{name}"])'
        + ("" if likely is not None else ", COLUMN being its name"),
    )


def _is_names(names: Any) -> bool:
    return names is not None and not callable(names) and not isinstance(names, str) and isinstance(names, Iterable)


def _text(item: Any, place: int) -> str | None:
    if not isinstance(item, str):
        item = _plain(item)
    if isinstance(item, str):
        if not item.isascii() and _has_half_character(item):
            raise InputError(
                f"texts[{place}] has half a character (a lone surrogate), which no tokenizer takes",
                hint='repair it, such as with text.encode("utf-8", "replace").decode()',
            )
        # Of a subclass (numpy's, an enumeration's) what it holds, and not what it shows itself as.
        return str.__str__(item)
    if _is_missing(item):
        return None
    ways_out = {
        "bytes": 'decode it: text.decode("utf-8")',
        "dict": 'give the texts alone, such as [row["text"] for row in rows]',
        "list": "give one text a row, such as its parts joined",
        "tuple": "give one text a row, such as its parts joined",
    }
    raise InputError(
        f"texts[{place}] is {_a(item)}, not a str",
        hint=ways_out.get(type(item).__name__, "make a str of it, or None where there is no text"),
    )


def _plain(item: Any) -> Any:
    """A scalar of pyarrow or an array of no dimensions as Python's own; all else as it is."""
    if callable(getattr(item, "as_py", None)):
        return item.as_py()
    if getattr(item, "ndim", None) == 0 and callable(getattr(item, "item", None)):
        return item.item()
    return item


def _has_half_character(text: str) -> bool:
    """Whether a text cannot be written as UTF-8. The error that says so holds the text, and is dropped here."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _is_missing(item: Any) -> bool:
    """Whether an item says that there is no text: None, a NaN of any kind, pandas's NA and NaT."""
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
