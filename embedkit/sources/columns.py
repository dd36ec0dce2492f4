"""Which columns of a table are the text, the id and the kept ones, and how cells become a text.

Knows column names and what their cells may be; never sees a file.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from embedkit.config import InputConfig
from embedkit.errors import InputError, UsageError

#: Where the text is looked for when no column is named, in this order.
USUAL_TEXT = ("text", "note", "sentence", "content", "body")
USUAL_ID = "id"

#: Of a wide table, a message lists this many names. A name longer than the other number is more
#: likely a row of a file without a header than a name, so only its length is told.
LISTED, NAME_LENGTH = 50, 64

#: Marks between cells. One of them in the name of a table's one column means that it was read by another.
_SEPARATORS = ",;|\t"

#: What the cells of a column may be. `unknown`: each row says for itself (JSON).
#: `exact`: each value has one text, such as a date, a decimal or a UUID.
Kind = Literal["string", "binary", "integer", "exact", "null", "other", "unknown"]
_TEXT_KINDS = frozenset({"string", "binary", "null", "unknown"})
_ID_KINDS = _TEXT_KINDS | {"integer", "exact"}

Cells = Sequence[str | None]
#: Whether any of the rows [first, stop) is wanted.
Wanted = Callable[[int, int], bool]


def every(first: int, stop: int) -> bool:
    """All rows are wanted."""
    return first < stop


@dataclass(frozen=True, slots=True)
class Column:
    """A column as a file has it.

    Attributes:
        name: its name, as written.
        kind: what its cells may be.
        type: the type's name, for messages.
        kept: the type's name when the column is kept: see `kept.py`.
    """

    name: str
    kind: Kind
    type: str
    kept: str


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that were decided on, the same for all files of a table.

    Attributes:
        text: columns that make the text, in order; those of the template where there is one.
        template: how they are put together; None = joined by a newline.
        id: the id column; None = the row number.
        keep: columns that go through to the output, in order.
    """

    text: tuple[str, ...]
    template: str | None
    id: str | None
    keep: tuple[str, ...]

    @property
    def named(self) -> tuple[str, ...]:
        """Every column that is read, once: text, id, kept."""
        ids = () if self.id is None else (self.id,)
        return tuple(dict.fromkeys((*self.text, *ids, *self.keep)))


def asked(config: InputConfig) -> Columns:
    """The columns that the user named; `text` is empty where they named none.

    A template decides alone: text columns that it does not use are not read.

    Raises:
        UsageError: the template is not made of plain `{name}` fields.
    """
    text = config.text_columns if config.template is None else _fields(config.template)
    return Columns(text, config.template, config.id_column, tuple(dict.fromkeys(config.keep)))


def decide(asked_for: Columns, there: Sequence[Column], *, file: str) -> Columns:
    """Fill in what the user left open, from the columns of the first file.

    Raises:
        InputError: no column is the text beyond doubt, or cells have another mark between them.
    """
    names = [column.name for column in there]
    identity = asked_for.id or (USUAL_ID if USUAL_ID in names else None)
    text = asked_for.text or _usual_text(there, identity)
    if not asked_for.text and len(names) == 1 and any(mark in names[0] for mark in _SEPARATORS):
        raise InputError(
            f"{file}: the one column, {shown(names[0])}, looks like several with another mark between them",
            hint="csv has commas and tsv has tabs; or name the column with --text-column, if it is one",
        )
    if not text:
        raise InputError(
            f"{file}: no column is named {', '.join(USUAL_TEXT)}, and there is not just one column of"
            f" strings; columns: {listed(names)}",
            hint="name the column of the texts with --text-column",
        )
    return Columns(text, asked_for.template, identity, asked_for.keep)


def check(columns: Columns, there: Sequence[Column], *, file: str) -> None:
    """Hold the decided columns against those of one file.

    Raises:
        InputError: a column is missing, is there twice, or cannot be a text or an id.
    """
    by_name: dict[str, list[Column]] = {}
    for column in there:
        by_name.setdefault(column.name, []).append(column)
    for name in columns.named:
        found = by_name.get(name, [])
        if not found:
            raise InputError(
                f"{file}: there is no column {shown(name)}; columns: {listed(by_name)}",
                hint=_nearest(name, by_name),
            )
        if len(found) > 1:
            raise InputError(
                f"{file}: {len(found)} columns are named {shown(name)}",
                hint="rename them, so that it is clear which one is meant",
            )
        if name in columns.text and found[0].kind not in _TEXT_KINDS:
            raise InputError(
                f"{file}: column {shown(name)} has type {found[0].type}; a text is a string",
                hint="name a column of strings with --text-column, or cast this one",
            )
        if name == columns.id and found[0].kind not in _ID_KINDS:
            raise InputError(
                f"{file}: column {shown(name)} has type {found[0].type}; an id is a string or an integer"
                " (or a decimal, a date, a time, a UUID)",
                hint="name another column with --id-column, or cast this one",
            )


def composer(columns: Columns) -> Callable[[Cells], str | None]:
    """The function that makes a row's text of its text cells, given in the order of `columns.text`."""
    if columns.template is not None:
        return _filler(columns.template, columns.text)
    if len(columns.text) == 1:
        return lambda cells: cells[0]
    return _joined


def shown(name: str) -> str:
    """A column's name as a message may show it."""
    if not name:
        return "(no name)"
    return name if len(name) <= NAME_LENGTH and name.isprintable() else f"({len(name)} characters)"


def listed(names: Iterable[str]) -> str:
    """The names of a table's columns as a message may show them."""
    every = [shown(name) for name in names]
    more = f" and {len(every) - LISTED} more" if len(every) > LISTED else ""
    return ", ".join(every[:LISTED]) + more


def _usual_text(there: Sequence[Column], identity: str | None) -> tuple[str, ...]:
    names = {column.name for column in there}
    usual = [name for name in USUAL_TEXT if name in names]
    strings = [column.name for column in there if column.kind == "string" and column.name != identity]
    if usual:
        return (usual[0],)
    return (strings[0],) if len(strings) == 1 else ()


def _nearest(name: str, names: Iterable[str]) -> str:
    """Say so where the name is right but for its case: clinical tables often shout (`TEXT`, `ROW_ID`)."""
    same = [other for other in names if other.casefold() == name.casefold()]
    return f"did you mean {shown(same[0])}?" if same else "name one of the columns that are there"


def _joined(cells: Cells) -> str | None:
    if all(cell is None for cell in cells):
        return None
    return "\n".join(cell for cell in cells if cell)


def _parsed(template: str) -> list[tuple[str, str | None]]:
    """Pairs of literal text and the field after it; None after the last."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise _bad_template(str(error)) from None
    for _, field, spec, conversion in parts:
        if spec or conversion or field == "" or (field and set(field) & set(".[]{}")):
            raise _bad_template("it has a field that is not a plain {name}")
    return [(literal, field) for literal, field, _, _ in parts]


def _fields(template: str) -> tuple[str, ...]:
    fields = tuple(dict.fromkeys(field for _, field in _parsed(template) if field is not None))
    if not fields:
        raise _bad_template("it names no column")
    return fields


def _bad_template(reason: str) -> UsageError:
    return UsageError(
        f"--template cannot be used: {reason}",
        hint='write columns as {name} and braces as {{ and }}, such as "{title}. {body}"',
    )


def _filler(template: str, names: tuple[str, ...]) -> Callable[[Cells], str | None]:
    parts = [(literal, None if field is None else names.index(field)) for literal, field in _parsed(template)]

    def fill(cells: Cells) -> str | None:
        if all(cell is None or not cell.strip() for cell in cells):
            return None
        pieces = ((literal, "" if at is None else cells[at] or "") for literal, at in parts)
        return "".join(chain.from_iterable(pieces))

    return fill
