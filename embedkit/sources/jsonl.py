"""JSON Lines: one object a line, by Python's `json` without its extensions of JSON.

Codes of faults: `not_utf8`, `invalid_json`, `trailing_data`, `not_an_object`, `nan_in_json`,
`number_out_of_range`, `lone_surrogate`, `duplicate_key`, `nested_too_deep`, `missing_column`,
`text_not_string`, `id_not_string` (integers are fine). Blank lines are skipped. A kept column or an id
that an object lacks is null.
"""

from __future__ import annotations

import codecs
import io
import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NoReturn

from embedkit.errors import InputError
from embedkit.sources.columns import Cells, Column, Columns, Wanted, composer, every
from embedkit.sources.plain_text import LONE_SURROGATE, MAX_RECORD_BYTES, bounded_lines
from embedkit.types import UNREAD, Fault, Record

#: Most levels of nesting. Python's parser fails near 1,000, depending on the call stack; this limit does not, and
#: leaves room for `json.dumps`.
MAX_DEPTH = 100

#: Most lines and bytes to search for the columns that the user named, if the first object lacks some of them.
PEEKED_LINES, PEEKED_BYTES = 1_000, 4 * 2**20


class _RefusedError(ValueError):
    """An extension of JSON that Python's parser accepts."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class JsonLines:
    """One file of JSON Lines, read once.

    Its columns are the keys of the first object; of more objects, if it lacks one of `wanted`.
    """

    def __init__(self, stream: io.BufferedReader, file: str, *, wanted: frozenset[str] = frozenset()) -> None:
        if stream.peek(1).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
            raise InputError(
                f"{file}: one JSON array instead of an object a line",
                hint="convert it to lines: jq -c '.[]'",
            )
        self._file = file
        self._stream = stream
        self._wanted = wanted
        self._lines = bounded_lines(stream, file)
        self._peeked: deque[tuple[int, bytes]] = deque()
        self.seekable = stream.seekable()
        self.place = 0

    @cached_property
    def columns(self) -> tuple[Column, ...] | None:
        """See `Reader`; the first lines are parsed when this is first asked for."""
        return self._look(self._wanted)

    def rows(
        self,
        columns: Columns,
        first: int,
        wanted: Wanted = every,
        start: int | None = None,
        stop: int | None = None,
    ) -> Iterator[Record | Fault]:
        """Reads every line that is not blank, numbered from `first`; none that begins at byte `stop` or later."""
        compose = composer(columns)
        row = first
        for offset, line in self._all_lines() if start is None else self._lines_from(start):
            if stop is not None and offset >= stop:
                return
            if not line.strip():
                continue
            self.place = offset
            if wanted(row, row + 1):
                found = parsed(line)
                made = found if isinstance(found, str) else _record(found, columns, compose, row)
            else:
                made = UNREAD
            yield Fault(row, self._file, offset, made) if isinstance(made, str) else made
            row += 1

    def piece(self, first: int, stop: int) -> tuple[int, int]:
        """Returns where the lines that begin in the bytes [first, stop) start, and `stop`."""
        if first == 0:  # the first line begins after a byte order mark
            self._stream.seek(0)
            mark = self._stream.read(len(codecs.BOM_UTF8))
            return 0, max(stop, len(mark) + 1 if mark == codecs.BOM_UTF8 else 0)
        self._stream.seek(first - 1)
        start = first - 1
        while line := self._stream.readline(MAX_RECORD_BYTES):
            start += len(line)
            if line.endswith(b"\n") or start >= stop:
                break
        return start, stop

    def _lines_from(self, start: int) -> Iterator[tuple[int, bytes]]:
        self._stream.seek(start)
        return bounded_lines(self._stream, self._file, start)

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
                hint="if it is of another format, name that with --format",
            )
        return tuple(keys.values())


def parsed(line: bytes) -> dict[str, Any] | str:
    """Parses a line: its object, or the code of a fault."""
    try:
        found = _DECODER.decode(line.decode())
    except (ValueError, RecursionError) as error:
        return _code(error)
    if not isinstance(found, dict):
        return "not_an_object"
    if line.count(b"{") + line.count(b"[") > MAX_DEPTH and _too_deep(found):
        return "nested_too_deep"
    if (b"\\ud" in line or b"\\uD" in line) and LONE_SURROGATE.search(json.dumps(found, ensure_ascii=False)):
        return "lone_surrogate"
    return found


def _code(error: ValueError | RecursionError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not_utf8"
    if isinstance(error, json.JSONDecodeError):
        return "trailing_data" if error.msg.startswith("Extra data") else "invalid_json"
    if isinstance(error, _RefusedError):
        return error.code
    # Any other ValueError is of an integer of over 4,300 digits, which Python does not convert.
    return "nested_too_deep" if isinstance(error, RecursionError) else "number_out_of_range"


def _record(
    found: dict[str, Any], columns: Columns, compose: Callable[[Cells], str | None], row: int
) -> Record | str:
    """Makes the record of an object, or returns the code of a fault."""
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


def _reject_constant(_: str) -> NoReturn:
    raise _RefusedError("nan_in_json")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):  # 1e999 is JSON, but no double
        raise _RefusedError("number_out_of_range")
    return number


# One decoder for all lines: json.loads makes a new one for each call that has options.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_reject_constant, parse_float=_finite)


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        nested = [item for item in level if isinstance(item, dict | list)]
        if not nested:
            return False
        level = [inner for item in nested for inner in (item.values() if isinstance(item, dict) else item)]
    return any(isinstance(item, dict | list) for item in level)
