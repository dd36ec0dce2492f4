"""JSON Lines: an object a line, by Python's `json`, refusing what JSON does not have.

Faults, one word each: `not_utf8`, `invalid_json`, `trailing_data`, `not_an_object`, `nan_in_json`,
`number_out_of_range`, `lone_surrogate`, `duplicate_key`, `nested_too_deep`, `missing_column`,
`text_not_string`, `id_not_string` (integers are fine). Blank lines are no rows. A kept column or an id
that an object lacks is null.
"""

from __future__ import annotations

import codecs
import io
import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from embedkit.errors import InputError
from embedkit.sources.columns import Cells, Column, Columns, Wanted, composer, every
from embedkit.sources.lines import bounded_lines
from embedkit.types import UNREAD, Fault, Record

#: Python's parser gives up near 1,000 levels, but where exactly hangs on who called it; a bound of
#: our own refuses the same rows every time, and leaves `json.dumps` room to write them again.
MAX_DEPTH = 100

#: How far to look for the columns that the user named, when the first object lacks some of them.
PEEKED_LINES, PEEKED_BYTES = 1_000, 4 * 2**20


class _RefusedError(ValueError):
    """Something that Python's parser would let pass."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class JsonLines:
    """One file of JSON Lines, read once.

    Attributes:
        columns: keys of the first object (of more objects, where it lacks one of `wanted`); None where
            the file has no object.
    """

    def __init__(self, stream: io.BufferedReader, file: str, *, wanted: frozenset[str] = frozenset()) -> None:
        if stream.peek(1).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
            raise InputError(
                f"{file}: one JSON array, where an object a line is read",
                hint="turn it into lines: jq -c '.[]'",
            )
        self._file = file
        self._lines = bounded_lines(stream, file)
        self._peeked: deque[tuple[int, bytes]] = deque()
        self.columns = self._look(wanted)

    def rows(self, columns: Columns, first: int, wanted: Wanted = every) -> Iterator[Record | Fault]:
        """Every line that is not blank, numbered from `first`."""
        compose = composer(columns)
        row = first
        for offset, line in self._all_lines():
            if not line.strip():
                continue
            if wanted(row, row + 1):
                found = parsed(line)
                made = found if isinstance(found, str) else _record(found, columns, compose, row)
            else:
                made = UNREAD
            yield Fault(row, self._file, offset, made) if isinstance(made, str) else made
            row += 1

    def _all_lines(self) -> Iterator[tuple[int, bytes]]:
        while self._peeked:
            yield self._peeked.popleft()
        yield from self._lines

    def _look(self, wanted: frozenset[str]) -> tuple[Column, ...] | None:
        keys: dict[str, Column] = {}
        size = 0
        for offset, line in self._lines:
            if not line.strip():
                continue
            self._peeked.append((offset, line))
            size += len(line)
            found = parsed(line)
            if isinstance(found, dict):
                for key, value in found.items():
                    keys.setdefault(key, _column(key, value))
            if keys and wanted <= keys.keys():
                break
            if len(self._peeked) >= PEEKED_LINES or size >= PEEKED_BYTES:
                break
        else:
            return tuple(keys.values()) or None
        if not keys:
            raise InputError(
                f"{self._file}: none of the first {len(self._peeked):,} lines is a JSON object",
                hint="if it is of another format, say so with --format",
            )
        return tuple(keys.values())


def parsed(line: bytes) -> dict[str, Any] | str:
    """The object on a line, or the code of what is wrong with it."""
    try:
        found = _DECODER.decode(line.decode())
    except (ValueError, RecursionError) as error:
        return _code(error)
    if not isinstance(found, dict):
        return "not_an_object"
    if line.count(b"{") + line.count(b"[") > MAX_DEPTH and _too_deep(found):
        return "nested_too_deep"
    if (b"\\ud" in line or b"\\uD" in line) and _has_lone_surrogate(found):
        return "lone_surrogate"
    return found


def _code(error: ValueError | RecursionError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not_utf8"
    if isinstance(error, json.JSONDecodeError):
        return "trailing_data" if error.msg.startswith("Extra data") else "invalid_json"
    if isinstance(error, _RefusedError):
        return error.code
    # What is left of ValueError: an integer of over 4,300 digits, which Python does not convert.
    return "nested_too_deep" if isinstance(error, RecursionError) else "number_out_of_range"


def _record(
    found: dict[str, Any], columns: Columns, compose: Callable[[Cells], str | None], row: int
) -> Record | str:
    """The record of an object, or the code of why there is none."""
    texts: list[str | None] = []
    for name in columns.text:
        if name not in found:
            return "missing_column"
        cell = found[name]
        if cell is not None and not isinstance(cell, str):
            return "text_not_string"
        texts.append(cell)
    identity = row if columns.id is None else found.get(columns.id)
    if isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    if identity is not None and not isinstance(identity, str):
        return "id_not_string"
    return Record(row, identity, compose(texts), tuple([found.get(name) for name in columns.keep]))


def _column(name: str, value: Any) -> Column:
    return Column(name, "string" if isinstance(value, str) else "unknown", type(value).__name__, "text")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _RefusedError("duplicate_key")
    return found


def _refuse_constant(_: str) -> NoReturn:
    raise _RefusedError("nan_in_json")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):  # 1e999 is JSON, but no double
        raise _RefusedError("number_out_of_range")
    return number


# One decoder for all lines: json.loads makes a new one for each call that has options.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        nested = [item for item in level if isinstance(item, dict | list)]
        if not nested:
            return False
        level = [inner for item in nested for inner in (item.values() if isinstance(item, dict) else item)]
    return any(isinstance(item, dict | list) for item in level)


def _has_lone_surrogate(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
