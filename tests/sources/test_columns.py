from __future__ import annotations

from pathlib import Path

import pytest

from embedkit.errors import InputError, UsageError
from embedkit.sources import Columns
from tests.sources.helpers import refused, rows, table, texts


@pytest.mark.parametrize(
    ("header", "options", "expected"),
    [
        ("id,text,note", {}, Columns(("text",), None, "id", ())),
        ("body,content,sentence,x", {}, Columns(("sentence",), None, None, ())),
        ("id,report", {}, Columns(("report",), None, "id", ())),
        ("report,key", {"id_column": "key"}, Columns(("report",), None, "key", ())),
        (
            "a,b,text",
            {"text_columns": ("b", "a"), "keep": ("text", "a")},
            Columns(("b", "a"), None, None, ("text", "a")),
        ),
        ("a,b,text", {"template": "{b}: {a} {b}"}, Columns(("b", "a"), "{b}: {a} {b}", None, ())),
    ],
)
def test_columns_are_decided_by_name_then_by_there_being_one(
    tmp_path: Path, header: str, options: dict[str, tuple[str, ...]], expected: Columns
) -> None:
    assert table(tmp_path, "t.csv", header.encode() + b"\n", **options).columns == expected


@pytest.mark.parametrize(
    ("header", "options", "words"),
    [
        ("id,a,b", {}, "no column is named text, note, sentence, content, body, .* columns: id, a, b"),
        ("id,a,b", {"text_columns": ("c",)}, r"t\.csv: there is no column c; columns: id, a, b"),
        ("id,a,b", {"template": "{a} {c}"}, "there is no column c"),
        ("id,text", {"id_column": "key"}, "there is no column key"),
        ("id,text", {"keep": ("label",)}, "there is no column label"),
        (",".join(f"c{n}" for n in range(60)), {}, "c48, c49 and 10 more$"),
        ("id,Ann Example,", {}, r"columns: id, \(11 characters\), \(no name\)$"),
        ("a," + "secret " * 20 + ",", {}, "columns: 3, not shown because the names do not look like a header$"),
    ],
)
def test_a_missing_column_is_an_error_that_lists_the_columns(
    tmp_path: Path, header: str, options: dict[str, tuple[str, ...]], words: str
) -> None:
    refused(tmp_path, "t.csv", header.encode() + b"\n", kind=InputError, match=words, **options)


def test_a_name_that_is_right_but_for_its_case_is_hinted_at(tmp_path: Path) -> None:
    error = refused(
        tmp_path, "t.csv", b"TEXT,b\n", kind=InputError, match="no column text", text_columns=("text",)
    )
    assert error.hint == "did you mean TEXT?"


ROWS = b"""{"id": 1, "title": "T", "body": "B"}
{"id": 2, "title": null, "body": "B"}
{"id": 3, "title": "", "body": "B"}
{"id": 4, "title": null, "body": ""}
{"id": 5, "title": null, "body": null}
{"id": 6, "title": " ", "body": null}
"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"text_columns": ("title", "body")}, ["T\nB", "B", "B", "", None, " "]),
        ({"template": "{title}. {body}"}, ["T. B", ". B", ". B", None, None, None]),
        ({"template": "{{{body}}} {title}", "text_columns": ("id",)}, ["{B} T", "{B} ", "{B} ", None, None, None]),
    ],
)
def test_several_columns_make_one_text(
    tmp_path: Path, options: dict[str, str], expected: list[str | None]
) -> None:
    assert texts(rows(tmp_path, "t.jsonl", ROWS, **options)) == expected


@pytest.mark.parametrize("name", ["note.text", "a:b", "a!r", "note[0]", "two words", "x.__class__"])
def test_a_field_of_a_template_is_the_name_of_a_column_whatever_is_in_it(tmp_path: Path, name: str) -> None:
    data = f"id,{name},note\n1,fine,other\n".encode()
    assert texts(rows(tmp_path, "t.csv", data, template=f"<{{{name}}}>")) == ["<fine>"]


@pytest.mark.parametrize("template", ["{a!r}", "{a:>9}", "{a.b}", "{a[0]}", "{}", "{a", "a}", "no field", ""])
def test_a_template_is_made_of_plain_fields_only(tmp_path: Path, template: str) -> None:
    refused(tmp_path, "t.csv", b"a,b\n", kind=UsageError, match="--template cannot be used", template=template)
