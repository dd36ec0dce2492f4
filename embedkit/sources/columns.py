"""Chooses the text, id and kept columns of a table, and makes texts of cells."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from embedkit.config import InputConfig
from embedkit.errors import InputError, UsageError
from embedkit.sources.headers import hint_for, is_header, listed, lookalike, shown

#: Names of text columns to look for, in this order, when the user named none.
USUAL_TEXT = ("text", "note", "sentence", "content", "body")
USUAL_ID = "id"

#: Delimiters. One of them in the name of a table's only column means that it separates the cells.
_SEPARATORS = {",": "','", ";": "';'", "|": "'|'", "\t": "tab"}
DELIMITED = frozenset({"csv", "tsv"})

#: Kinds of cells. `unknown`: it differs by row (JSON). `exact`: each value has one text, such as a date, a decimal
#: or a UUID.
Kind = Literal["string", "binary", "integer", "exact", "null", "other", "unknown"]
_TEXT_KINDS = frozenset({"string", "binary", "null", "unknown"})
_ID_KINDS = _TEXT_KINDS | {"integer", "exact"}

Cells = Sequence[str | None]
#: Function that returns whether any of the rows [first, stop) is wanted.
Wanted = Callable[[int, int], bool]


def every(first: int, stop: int) -> bool:
    """Wants all rows."""
    return first < stop


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a file."""

    name: str
    kind: Kind
    type: str  # for messages
    kept: str  # name of the type in which it is kept: see `kept_types.py`


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns in use, the same for all files of a table."""

    text: tuple[str, ...]  # in order; those of the template if there is one
    template: str | None  # None if the texts are joined by a newline
    id: str | None  # None if ids are row numbers
    keep: tuple[str, ...]  # copied to the output, in order

    @property
    def named(self) -> tuple[str, ...]:
        """Names of all columns to read, each once: text, id, kept."""
        ids = () if self.id is None else (self.id,)
        return tuple(dict.fromkeys((*self.text, *ids, *self.keep)))


def requested_columns(config: InputConfig) -> Columns:
    """Returns the columns that the user named; `text` is empty if they named none.

    With a template, text columns that it does not use are not read.

    Raises:
        UsageError: the template is not made of plain `{name}` fields.
    """
    text = config.text_columns
    if config.template is not None:
        text = tuple(dict.fromkeys(field for _, field in _parsed(config.template) if field is not None))
        if not text:
            raise _bad_template("it names no column")
    return Columns(text, config.template, config.id_column, tuple(dict.fromkeys(config.keep)))


def resolve_columns(requested: Columns, present: Sequence[Column], *, file: str, file_format: str) -> Columns:
    """Chooses the columns that the user did not name, from those of the first file.

    Raises:
        InputError: the text column is ambiguous, or the file has another delimiter.
    """
    names = [column.name for column in present]
    identity = requested.id
    if identity is None and USUAL_ID in names:
        identity = USUAL_ID
    text = requested.text or _usual_text(present, identity)
    if not requested.text:
        _check_delimiter(names, file=file, file_format=file_format)
    if not text:
        for usual in USUAL_TEXT:
            _check_lookalike(usual, names, file=file)
        raise InputError(
            f"{file}: no column is named {', '.join(USUAL_TEXT)}, and there is not just one column of"
            f" strings under a header; columns: {listed(names, requested.named)}",
            hint="name the column of the texts with --text-column"
            if is_header(names, requested.named)
            else hint_for("", names, requested.named),
        )
    return Columns(text, requested.template, identity, requested.keep)


def column_notices(
    requested: Columns, decided: Columns, present: Sequence[Column], *, file_format: str
) -> list[str]:
    """Reports the chosen text and id columns, and a column that was nearly chosen.

    A name is shown only if the names look like a header: no other one is chosen.
    """
    if file_format == "txt":  # there is no choice
        return []
    chosen = []
    if not requested.text:
        chosen.append(f"the texts are those of {shown(decided.text[0])!r}")
    if requested.id is None:
        chosen.append("the ids are row numbers" if decided.id is None else f"the ids are those of {decided.id!r}")
    notices = [f"columns: {', '.join(chosen)}"] if chosen else []
    odd = None if decided.id else lookalike(USUAL_ID, [column.name for column in present])
    if odd is not None:
        notices.append(
            f"ids are row numbers: a column's name differs from {USUAL_ID} only by invisible characters ({odd[1]})"
        )
    return notices


def check_columns(
    columns: Columns, present: Sequence[Column], *, file: str, file_format: str, typed: Collection[str]
) -> None:
    """Checks that a file has the columns in use.

    Args:
        columns: those in use.
        present: those of the file.
        file: its name.
        file_format: of the file.
        typed: names of columns that the user typed.

    Raises:
        InputError: a column is missing, occurs twice, or cannot be a text or an id.
        UsageError: a field of the template is not the name of a column, but has format options.
    """
    names = [column.name for column in present]
    for name in columns.named:
        found = [column for column in present if column.name == name]
        if not found:
            plain = re.split(r"[.\[!:]", name)[0]  # without format options, as in {name!r}
            if columns.template is not None and name in columns.text and plain in names:
                raise _bad_template(
                    f"it has a field that is not a plain {{name}}, and no column is named {shown(name)}"
                )
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
    """Returns the function that makes a row's text of its cells, in the order of `columns.text`."""
    if columns.template is not None:
        return _filler(columns.template, columns.text)
    if len(columns.text) == 1:
        return lambda cells: cells[0]
    return _joined


def _usual_text(present: Sequence[Column], identity: str | None) -> tuple[str, ...]:
    names = [column.name for column in present]
    usual = [name for name in USUAL_TEXT if name in names]
    strings = [column.name for column in present if column.kind == "string" and column.name != identity]
    if usual:
        return (usual[0],)
    # A name that the user did not type must look like one, since it will be in plans and schemas.
    return (strings[0],) if len(strings) == 1 and is_header(names) else ()


def _check_delimiter(names: Sequence[str], *, file: str, file_format: str) -> None:
    """Refuses a table of one column whose name contains another delimiter."""
    if len(names) != 1 or file_format not in DELIMITED:
        return
    marks = [mark for mark in _SEPARATORS if mark in names[0]]
    if not marks:
        return
    mark = max(marks, key=names[0].count)
    name = f", {shown(names[0])}," if is_header(names[0].split(mark)) else ""
    raise InputError(
        f"{file}: the only column{name} looks like several with another delimiter: {_SEPARATORS[mark]}",
        hint=f"use --delimiter {_SEPARATORS[mark]}; or name the column with --text-column, if it is one",
    )


def _check_lookalike(name: str, names: Sequence[str], *, file: str) -> None:
    """Refuses a name that differs from a column's only by invisible characters, and names these."""
    found = lookalike(name, names)
    if found is None:
        return
    escaped = "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in found[0])
    raise InputError(
        f"{file}: there is no column {shown(name)}; one differs only by invisible characters: {found[1]}",
        hint=f"remove them from the header, or name the column with them: in bash, $'{escaped}'",
    )


def _joined(cells: Cells) -> str | None:
    if all(cell is None for cell in cells):
        return None
    return "\n".join(cell for cell in cells if cell)


def _parsed(template: str) -> list[tuple[str, str | None]]:
    """Splits a template into pairs of literal text and the field after it; None after the last.

    A field is the name of a column, which may contain dots and colons: they have no other meaning.
    """
    parts: list[tuple[str, str | None]] = []
    literal, end = "", 0
    for match in re.finditer(r"\{\{|\}\}|\{([^{}]*)\}|[{}]", template):
        literal += template[end : match.start()]
        end = match.end()
        if match[0] in {"{{", "}}"}:
            literal += match[0][0]
        elif not match[1]:
            raise _bad_template("a brace is alone" if match[0] in "{}" else "it has a field without a name")
        else:
            parts.append((literal, match[1]))
            literal = ""
    return [*parts, (literal + template[end:], None)]


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
        return "".join(literal + ("" if at is None else cells[at] or "") for literal, at in parts)

    return fill
