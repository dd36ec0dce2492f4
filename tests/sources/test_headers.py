"""A name that the user did not type is shown or chosen only if it is surely a name: it may be a patient's row."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedkit.config import InputConfig
from embedkit.errors import InputError
from embedkit.sources import open_table
from embedkit.sources.headers import is_header
from tests.sources.helpers import refused, table

#: First rows of files without a header, each with cells that must not be shown.
ROWS = [
    ["Pt has flu"],
    ["fever"],
    ["Ann Example", "1945-03-02", "000-00-0001", "Pt is HIV positive"],
    ["101", "Bob Example", "HIV positive"],
    ["Ann", "F", "flu"],
    ["note", "Stable", "Ann"],
    ["P_001", "smoker"],
    ["ann_example", "hiv"],
    ["Pt fell; fever", "x"],
    ["Pt fell; fever"],
    ["Patient refused care"],
    ["", "flu"],
    ["Miller", "y", "HIV"],
    ["Miller", "admission", "HIV"],
    ["Miller", "clinical note", "admission"],
    ["Jones", "age", "HIV"],
    ["bed1", "bed2", "bed3", "Miller"],
    ["female", "HIV", "positive", "date", "x1"],
]

_ALIKE = "a column's name differs from id only by invisible characters"


def _parquet(names: list[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({name: ["x"] for name in names}), file)
    return file.getvalue()


def _files(names: list[str]) -> dict[str, bytes]:
    cells = [f'"{name}"' if "," in name else name for name in names]
    return {
        "t.csv": (",".join(cells) + "\n" + ",".join("y" for _ in cells) + "\n").encode(),
        "t.tsv": ("\t".join(names) + "\n" + "\t".join("y" for _ in cells) + "\n").encode(),
        "t.jsonl": json.dumps(dict.fromkeys(names, "y")).encode() + b"\n",
        "t.parquet": _parquet(names),
    }


@pytest.mark.parametrize(
    "options", [{}, {"text_columns": ("text",)}, {"keep": ("label",)}, {"template": "{text}"}]
)
@pytest.mark.parametrize("names", ROWS, ids="|".join)
def test_the_first_row_of_a_file_without_a_header_is_neither_chosen_nor_shown(
    tmp_path: Path, names: list[str], options: dict[str, tuple[str, ...]]
) -> None:
    for name, data in _files(names).items():
        if name in {"t.jsonl", "t.parquet"} and "" in names:
            continue
        (tmp_path / name).write_bytes(data)
        message = _shown(tmp_path / name, options)
        assert not any(cell in message for cell in names if len(cell) > 1 and cell != "note"), message


def _shown(path: Path, options: dict[str, Any]) -> str:
    """Returns all messages and stored data on the columns of a file."""
    try:
        found = open_table(InputConfig((str(path),), **options))
    except InputError as error:
        return error.message.replace(str(path.parent), "") + error.hint
    return f"{found.columns} {found.facts.kept_types()} {found.take_notes()}"


@pytest.mark.parametrize(
    "names",
    [
        ["id", "anything"],
        ["SUBJECT_ID", "HADM_ID", "befund"],
        ["patientId", "befund"],
        ["", "label", "befund"],
        ["title", "body"],
        ["text"],
        ["note_text"],
        ["Date of Birth", "befund"],
        ["c0", "c1", "c2", "c3"],
        ["f1", "f2", "f3", "target"],
        ["tweet_id", "tweet"],
        ["Name", "Age", "Klasse"],
        ["note.text", "a:b", "id"],
    ],
)
def test_a_header_is_known_for_one(names: list[str]) -> None:
    assert is_header(names)


def test_a_column_that_the_user_named_makes_a_header_of_its_row(tmp_path: Path) -> None:
    data = b"befund,Klasse\nx,y\n"
    assert not is_header(["befund", "Klasse"])
    options = {"text_columns": ("befund",), "keep": ("klasse",)}
    error = refused(tmp_path, "t.csv", data, kind=InputError, match="columns: befund, Klasse$", **options)
    assert error.hint == "did you mean Klasse?"


@pytest.mark.parametrize(
    ("header", "options", "hint"),
    [
        ("id,text", {"text_columns": ("txet",)}, "did you mean text?"),
        ("id,text,label", {"keep": ("lable",)}, "did you mean label?"),
        ("Patient_ID,text", {"id_column": "patient-id"}, "did you mean Patient_ID?"),
        ("id,text", {"template": "{Text}"}, "did you mean text?"),
        ("id,t\u0435xt", {"text_columns": ("text",)}, "with U+0435 CYRILLIC SMALL LETTER IE"),
        ("id,text", {"keep": ("diagnosis",)}, "name one of the existing columns"),
    ],
)
def test_a_mistyped_column_is_hinted_at(
    tmp_path: Path, header: str, options: dict[str, tuple[str, ...]], hint: str
) -> None:
    error = refused(tmp_path, "t.csv", header.encode() + b"\n", kind=InputError, match="no column", **options)
    assert hint in error.hint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text\u200b", "U+200B ZERO WIDTH SPACE"),
        ("\ufefftext", "U+FEFF ZERO WIDTH NO-BREAK SPACE"),
        (" text", "U+0020 SPACE"),
        ("text\xa0", "U+00A0 NO-BREAK SPACE"),
        ("te\u00adxt", "U+00AD SOFT HYPHEN"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"text_columns": ("text",)}])
def test_invisible_characters_of_a_name_are_named(
    tmp_path: Path, name: str, message: str, options: dict[str, tuple[str, ...]]
) -> None:
    error = refused(
        tmp_path, "t.csv", f"n,{name}\n1,a\n".encode(), kind=InputError, match="invisible characters", **options
    )
    assert message in error.message


@pytest.mark.parametrize(
    ("header", "mark"), [("a;note_text;b", "';'"), ("a|note_text", "'|'"), ("a\tnote_text", "tab")]
)
def test_another_delimiter_is_named_with_the_option_for_it(tmp_path: Path, header: str, mark: str) -> None:
    data = f"{header}\n1\n".encode()
    options = {"text_columns": ("note_text",)}
    error = refused(tmp_path, "t.csv", data, kind=InputError, match="looks like several", **options)
    assert error.hint.startswith(f"use --delimiter {mark}")


@pytest.mark.parametrize(
    ("header", "notes"),
    [
        ("id,text", ["columns: the texts are those of 'text', the ids are those of 'id'"]),
        ("nr,note", ["columns: the texts are those of 'note', the ids are row numbers"]),
        ("id,befund", ["columns: the texts are those of 'befund', the ids are those of 'id'"]),
        (
            "id\u200b,text",
            [
                "columns: the texts are those of 'text', the ids are row numbers",
                f"ids are row numbers: {_ALIKE} (U+200B ZERO WIDTH SPACE)",
            ],
        ),
    ],
)
def test_a_choice_that_the_user_did_not_make_is_reported(tmp_path: Path, header: str, notes: list[str]) -> None:
    assert table(tmp_path, "t.csv", header.encode() + b"\n").take_notes() == notes
