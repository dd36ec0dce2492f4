"""Which columns of a table are the text, the id and the kept ones, and how cells become a text.

Knows column names and what their cells may be; never sees a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from embedkit.config import InputConfig
from embedkit.errors import InputError, UsageError
from embedkit.sources.headers import hint_for, is_header, listed, lookalike, shown

#: Where the text is looked for when no column is named, in this order.
USUAL_TEXT = ("text", "note", "sentence", "content", "body")
USUAL_ID = "id"

#: Marks between cells. One of them in the name of a table's one column means that it was read by another.
_SEPARATORS = {",": "','", ";": "';'", "|": "'|'", "\t": "tab"}
#: Formats whose files have marks between cells.
_DELIMITED = frozenset({"csv", "tsv"})

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


def decide(asked_for: Columns, there: Sequence[Column], *, file: str, file_format: str) -> Columns:
    """Fill in what the user left open, from the columns of the first file.

    Raises:
        InputError: no column is the text beyond doubt, or cells have another mark between them.
    """
    names = [column.name for column in there]
    identity = asked_for.id
    if identity is None and USUAL_ID in names:
        identity = USUAL_ID
    text = asked_for.text or _usual_text(there, identity)
    if not asked_for.text:
        _check_delimiter(names, file=file, file_format=file_format)
    if not text:
        for usual in USUAL_TEXT:
            _check_lookalike(usual, names, file=file)
        raise InputError(
            f"{file}: no column is named {', '.join(USUAL_TEXT)}, and there is not just one column of"
            f" strings under a header; columns: {listed(names, asked_for.named)}",
            hint="name the column of the texts with --text-column"
            if is_header(names, asked_for.named)
            else hint_for("", names, asked_for.named),
        )
    return Columns(text, asked_for.template, identity, asked_for.keep)


def remarks(asked_for: Columns, decided: Columns, there: Sequence[Column], *, file_format: str) -> list[str]:
    """Say which columns are the text and the id where the user named none, and what was nearly taken for one.

    A name is shown only where the names look like a header: no other would have been chosen.
    """
    if file_format == "txt":  # it has lines, and no columns to choose among
        return []
    told = []
    if not asked_for.text:
        told.append(f"the texts are those of {shown(decided.text[0])!r}")
    if asked_for.id is None:
        told.append("the ids are row numbers" if decided.id is None else f"the ids are those of {decided.id!r}")
    found = [f"columns: {', '.join(told)}"] if told else []
    odd = None if decided.id else lookalike(USUAL_ID, [column.name for column in there])
    if odd is not None:
        found.append(
            f"ids are row numbers: a column is named {USUAL_ID} but for what cannot be seen in its name ({odd[1]})"
        )
    return found


def check(
    columns: Columns, there: Sequence[Column], *, file: str, file_format: str, typed: Collection[str]
) -> None:
    """Hold the decided columns against those of one file.

    Args:
        columns: decided.
        there: the file's.
        file: its name.
        file_format: csv, tsv, jsonl, ….
        typed: those of the columns that the user named.

    Raises:
        InputError: a column is missing, is there twice, or cannot be a text or an id.
        UsageError: a field of the template is the name of no column, and asks for more than that.
    """
    by_name: dict[str, list[Column]] = {}
    for column in there:
        by_name.setdefault(column.name, []).append(column)
    for name in columns.named:
        found = by_name.get(name, [])
        if not found:
            names = [column.name for column in there]
            if columns.template is not None and name in columns.text:
                _check_field(name, names)
            _check_lookalike(name, names, file=file)
            _check_delimiter(names, file=file, file_format=file_format)
            raise InputError(
                f"{file}: there is no column {shown(name)}; columns: {listed(names, typed)}",
                hint=hint_for(name, names, typed),
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


def _usual_text(there: Sequence[Column], identity: str | None) -> tuple[str, ...]:
    names = [column.name for column in there]
    usual = [name for name in USUAL_TEXT if name in names]
    strings = [column.name for column in there if column.kind == "string" and column.name != identity]
    if usual:
        return (usual[0],)
    # What nobody named is taken for a name only if it looks like one: plans and schemas will hold it.
    return (strings[0],) if len(strings) == 1 and is_header(names) else ()


def _check_delimiter(names: Sequence[str], *, file: str, file_format: str) -> None:
    """Refuse a table of one column whose name holds another mark between cells."""
    if len(names) != 1 or file_format not in _DELIMITED:
        return
    marks = [mark for mark in _SEPARATORS if mark in names[0]]
    if not marks:
        return
    mark = max(marks, key=names[0].count)
    told = f", {shown(names[0])}," if is_header(names[0].split(mark)) else ""
    raise InputError(
        f"{file}: the one column{told} looks like several with another mark between them: {_SEPARATORS[mark]}",
        hint=f"say --delimiter {_SEPARATORS[mark]}; or name the column with --text-column, if it is one",
    )


def _check_lookalike(name: str, names: Sequence[str], *, file: str) -> None:
    """Refuse a name that differs from a column's in what cannot be seen, and say in what."""
    found = lookalike(name, names)
    if found is None:
        return
    escaped = "".join(letter if letter.isprintable() else _escape(letter) for letter in found[0])
    raise InputError(
        f"{file}: there is no column {shown(name)}; one is named so but for what cannot be seen: {found[1]}",
        hint=f"take it out of the header, or name the column with it: in bash, $'{escaped}'",
    )


def _escape(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) < 2**16 else f"\\U{ord(letter):08x}"


def _joined(cells: Cells) -> str | None:
    if all(cell is None for cell in cells):
        return None
    return "\n".join(cell for cell in cells if cell)


def _parsed(template: str) -> list[tuple[str, str | None]]:
    """Pairs of literal text and the field after it; None after the last.

    A field is the name of a column as it stands between the braces, dots and colons too: nothing is looked up in
    a cell, and nothing formatted.
    """
    parts: list[tuple[str, str | None]] = []
    literal, end = "", 0
    for match in re.finditer(r"\{\{|\}\}|\{([^{}]*)\}|[{}]", template):
        literal += template[end : match.start()]
        end = match.end()
        if match[0] in {"{{", "}}"}:
            literal += match[0][0]
        elif not match[1]:
            raise _bad_template("a brace stands alone" if match[0] in "{}" else "it has a field without a name")
        else:
            parts.append((literal, match[1]))
            literal = ""
    return [*parts, (literal + template[end:], None)]


def _fields(template: str) -> tuple[str, ...]:
    fields = tuple(dict.fromkeys(field for _, field in _parsed(template) if field is not None))
    if not fields:
        raise _bad_template("it names no column")
    return fields


def _check_field(name: str, names: Sequence[str]) -> None:
    """Refuse a field that no column is named like, if it reads as one of Python's with more than a name."""
    plain = re.split(r"[.\[!:]", name)[0]
    if plain != name and plain in names:
        raise _bad_template(f"it has a field that is not a plain {{name}}, and no column is named {shown(name)}")


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
