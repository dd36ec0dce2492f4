from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.errors import InputError
from embedkit.sources import plain_text
from embedkit.types import Fault, Record
from tests.sources.helpers import refused, rows, table, texts

TEXTS = st.text(st.one_of(st.sampled_from('"\\\n\r\u2028\x85\0{['), st.characters(codec="utf-8")), max_size=12)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(
    objects=st.lists(st.fixed_dictionaries({"text": TEXTS, "other": VALUES}), max_size=8),
    ascii_only=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_any_objects_with_a_text_come_back(objects: list[dict[str, Any]], ascii_only: bool, end: str) -> None:
    data = "".join(json.dumps(item, ensure_ascii=ascii_only) + end for item in objects).encode()
    with tempfile.TemporaryDirectory() as folder:
        found = rows(Path(folder), "t.jsonl", data, keep=("other",))
    assert texts(found) == [item["text"] for item in objects]
    assert [item.kept for item in found if isinstance(item, Record)] == [(item["other"],) for item in objects]
    assert [item.row for item in found] == list(range(len(objects)))


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"text": "a', "invalid_json"),
        (b"{'text': 1}", "invalid_json"),
        (b'{"text": "a"} x', "trailing_data"),
        (b'{"text": "a"}{"text": "b"}', "trailing_data"),
        (b'"text"', "not_an_object"),
        (b"null", "not_an_object"),
        (b"[1]", "not_an_object"),
        (b'{"text": "a", "n": NaN}', "nan_in_json"),
        (b'{"text": "a", "n": [-Infinity]}', "nan_in_json"),
        (b'{"text": "a", "n": 1e999}', "number_out_of_range"),
        (b'{"text": "a", "n": ' + b"1" * 5_000 + b"}", "number_out_of_range"),
        (rb'{"text": "\ud83d"}', "lone_surrogate"),
        (rb'{"text": "a", "\uDC00": 1}', "lone_surrogate"),
        (b'{"text": "a", "text": "b"}', "duplicate_key"),
        (b'{"text": "a", "n": {"x": 1, "x": 2}}', "duplicate_key"),
        (b'{"text": "a", "n": ' + b"[" * 101 + b"]" * 101 + b"}", "nested_too_deep"),
        (b'{"text": "a", "n": ' + b'{"x":' * 100_000 + b"1" + b"}" * 100_000 + b"}", "nested_too_deep"),
        (b'{"text": "caf\xe9"}', "not_utf8"),
        (b'{"text": "\xed\xa0\x80"}', "not_utf8"),
        (b'{"Text": "a"}', "missing_column"),
        (b'{"text": 1}', "text_not_string"),
        (b'{"text": ["a"]}', "text_not_string"),
        (b'{"text": {"a": 1}}', "text_not_string"),
        (b'{"text": false}', "text_not_string"),
        (b'{"text": "a", "id": 1.5}', "id_not_string"),
        (b'{"text": "a", "id": true}', "id_not_string"),
    ],
)
def test_a_line_that_is_no_record_is_a_fault_and_the_rest_is_read(tmp_path: Path, line: bytes, code: str) -> None:
    first = '{"id": 1, "text": "é"}\n\n'.encode()
    found = rows(tmp_path, "t.jsonl", first + line + b'\n{"id": 3, "text": "after"}')
    assert found[1] == Fault(1, str(tmp_path / "t.jsonl"), len(first), code)
    assert texts(found) == ["é", f"<{code}>", "after"]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('{"text": "a\u2028b\x85c"}', "a\u2028b\x85c"),
        (r'{"text": "\ud83d\ude42"}', "🙂"),
        (r'{"text": "\u0000"}', "\0"),
        (r'{"text": "\\ud83d"}', "\\ud83d"),
        ('{"text": "' + "[" * 500 + '"}', "[" * 500),
        ('{"text": null}', None),
        ('{"text": ""}', ""),
        ('\ufeff{"text": "a"}', "a"),
    ],
)
def test_what_looks_odd_but_is_json_is_read(tmp_path: Path, line: str, text: str | None) -> None:
    assert texts(rows(tmp_path, "t.jsonl", line.encode() + b"\r\n")) == [text]


def test_ids_stay_as_they_are_and_may_be_null_or_lacking(tmp_path: Path) -> None:
    data = b'{"id":"007","text":"a"}\n{"id":12345678901234567890,"text":"b"}\n{"id":null,"text":"c"}\n{"text":"d"}'
    found = rows(tmp_path, "t.jsonl", data)
    assert [item.id for item in found if isinstance(item, Record)] == ["007", "12345678901234567890", None, None]


@pytest.mark.parametrize("data", [b'[{"text": "a"}]', b'\xef\xbb\xbf \n[\n {"text": "a"}\n]\n'])
def test_one_array_is_one_error_that_names_jq(tmp_path: Path, data: bytes) -> None:
    assert "jq -c '.[]'" in refused(tmp_path, "t.jsonl", data, kind=InputError, match="one JSON array").hint


def test_a_line_over_the_bound_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_text, "MAX_RECORD_BYTES", 100)
    data = b'{"text": "a"}\n{"text": "' + b"x" * 100
    refused(tmp_path, "t.jsonl", data, kind=InputError, match="the record at byte 14 is over")


def test_utf16_is_an_error_that_names_iconv(tmp_path: Path) -> None:
    error = refused(tmp_path, "t.jsonl", '{"text": "a"}'.encode("utf-16"), kind=InputError, match="UTF-16")
    assert "iconv" in error.hint


def test_the_first_object_decides_the_columns(tmp_path: Path) -> None:
    found = table(tmp_path, "t.jsonl", b'oops\n{"id": 1, "n": 2, "report": "a"}\n{"id": 2, "text": "b"}\n')
    assert found.columns.text == ("report",)
    assert texts(list(found.records())) == ["<invalid_json>", "a", "<missing_column>"]


def test_a_named_column_may_be_lacking_in_the_first_object(tmp_path: Path) -> None:
    data = b'{"text": "a"}\n{"text": "b", "label": "x"}\n'
    found = rows(tmp_path, "t.jsonl", data, keep=("label",))
    assert [item.kept for item in found if isinstance(item, Record)] == [(None,), ("x",)]
    refused(
        tmp_path, "t.jsonl", data, keep=("lable",), kind=InputError, match="no column lable; columns: text, label"
    )


def test_lines_of_something_else_are_an_error_and_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    refused(tmp_path, "t.jsonl", b"a,b\n" * 1_500, kind=InputError, match="none of the first 1,000 lines")
    assert rows(tmp_path, "t.jsonl", b"") == []
    assert texts(rows(tmp_path, "t.jsonl", b"oops\n3\n")) == ["<invalid_json>", "<not_an_object>"]
