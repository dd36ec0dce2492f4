from __future__ import annotations

import csv
import io
import json
import tempfile
import traceback
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embedkit.sources
from embedkit.config import InputConfig
from embedkit.errors import InputError
from embedkit.sources import Scan, open_table
from embedkit.types import Fault, Record
from tests.sources.helpers import piped, rows, table, texts

FIELDS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=12)


def test_the_public_names_are_these() -> None:
    names = ["Columns", "Part", "PartScan", "Place", "Scan", "SourceFile", "SpanBook", "SpanColumn", "Table"]
    assert embedkit.sources.__all__ == [*names, "TableFacts", "Wanted", "every", "open_table"]


@settings(max_examples=80, deadline=None)
@given(cells=st.lists(st.tuples(FIELDS, FIELDS, FIELDS), max_size=8))
def test_csv_and_json_lines_of_the_same_rows_give_equal_records(cells: list[tuple[str, str, str]]) -> None:
    names = ("id", "text", "label")
    written = io.StringIO(newline="")
    csv.writer(written).writerows([names, *cells])
    lines = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in cells)
    with tempfile.TemporaryDirectory() as folder:
        from_csv = rows(Path(folder), "t.csv", written.getvalue().encode(), keep=("label",))
        from_json = rows(Path(folder), "t.jsonl", lines.encode(), keep=("label",) if cells else ())
    assert from_csv == from_json


def test_rows_are_numbered_over_files_of_different_formats(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_bytes(b"text,x\na,1\nb\n")
    (tmp_path / "2.jsonl").write_bytes(b"")
    (tmp_path / "3.jsonl").write_bytes(b'\n{"text": "c"}\n3\n')
    (tmp_path / "4.txt").write_bytes(b"d")
    found = list(open_table(InputConfig((str(tmp_path),))).records())
    assert texts(found) == ["a", "<short_row>", "c", "<not_an_object>", "d"]
    assert [item.row for item in found] == [0, 1, 2, 3, 4]
    assert [item.id for item in found if isinstance(item, Record)] == ["0", "2", "4"]
    assert [item.file for item in found if isinstance(item, Fault)] == [
        str(tmp_path / "1.csv"),
        str(tmp_path / "3.jsonl"),
    ]


def test_a_column_must_be_in_every_file(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_bytes(b"id,text\n1,a\n")
    (tmp_path / "2.csv").write_bytes(b"text,x\na,1\n")
    with pytest.raises(InputError, match=r"2\.csv: there is no column id; columns: text, x"):
        open_table(InputConfig((str(tmp_path),)))


@pytest.mark.parametrize("limit", [0, 1, 3, 4, 5, None])
def test_a_limit_counts_rows_over_files_faults_too(tmp_path: Path, limit: int | None) -> None:
    (tmp_path / "1.csv").write_bytes(b"text,x\na,1\nb\nc,1\n")
    (tmp_path / "2.csv").write_bytes(b"text,x\nd,1\n")
    found = open_table(InputConfig((str(tmp_path),), limit=limit))
    assert len(list(found.records())) == found.scan().rows == min(4, 4 if limit is None else limit)


def test_a_scan_counts_rows_faults_and_characters(tmp_path: Path) -> None:
    data = b'{"text": "abc"}\n{"text": null}\n' + b"3\n" * 25 + '{"text": "é"}\n'.encode()
    collected: list[int] = []
    found = table(tmp_path, "t.jsonl", data).scan(collected.append)
    assert (found.rows, found.n_faults, len(found.faults)) == (28, 25, 20)
    assert collected == [3, 0, *[0] * 25, 1]


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ([None, None], "string"),
        (["a", None], "string"),
        ([True, None], "bool"),
        ([1, -(2**63)], "int64"),
        ([2**63], "json"),
        ([1, 1.5], "double"),
        ([2**53 + 1, 1.5], "json"),
        ([True, 1], "json"),
        (["1", 1], "text"),
        ([[1]], "json"),
        ([{"a": 1}, None], "json"),
    ],
)
def test_a_scan_of_json_lines_finds_the_one_type_of_a_kept_column(
    tmp_path: Path, values: list[Any], name: str
) -> None:
    data = "".join(json.dumps({"text": "a", "k": value}) + "\n" for value in values).encode()
    found = table(tmp_path, "t.jsonl", data, keep=("k",))
    assert found.scan() == Scan(len(values), (), 0, {"k": name})
    assert [item.kept[0] for item in found.records() if isinstance(item, Record)] == values
    assert piped(data, keep=("k",)).facts.kept_types() == {"k": "text"}


MARKER = "Mr Miller of Ward 7"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", f'id,text\n1,"{MARKER}\n'),
        ("t.csv", f'id,text\n1,"{MARKER}"x{MARKER}\n'),
        ("t.csv", f"id,text\n1,{MARKER}\xff\n"),
        ("t.csv", f"id,text\n{MARKER}\n"),
        ("t.csv", f"{MARKER} came in the night and was seen at once by the doctor on call,x\n"),
        ("t.txt", f"{MARKER}\xff\n"),
        ("t.parquet", f"PAR1{MARKER}PAR1"),
        ("t.arrow", f"ARROW1{MARKER}ARROW1"),
        ("t.csv.gz", f"\x1f\x8b\x08{MARKER}"),
        ("t.jsonl", f'[{{"text": "{MARKER}"}}]'),
        *(
            ("t.jsonl", '{"text": "a"}\n' + line)
            for line in (
                f'{{"text": "{MARKER}',
                f'{{"text": "{MARKER}"}} {MARKER}',
                f'{{"text": "{MARKER}\xff"}}',
                f'{{"text": "{MARKER}\\ud83d"}}',
                f'{{"text": ["{MARKER}"]}}',
                f'{{"{MARKER}": 1, "{MARKER}": 2}}',
                f'{{"text": "{MARKER}", "n": NaN}}',
                f'"{MARKER}"',
            )
        ),
    ],
)
def test_no_fault_and_no_error_holds_what_is_in_a_row(tmp_path: Path, name: str, data: str) -> None:
    collected: list[object] = []
    try:
        collected.extend(item for item in rows(tmp_path, name, data.encode("latin-1")) if isinstance(item, Fault))
    except InputError as error:
        chain: BaseException | None = error
        while chain is not None:
            collected.append(
                (str(chain), chain.args, vars(chain), getattr(chain, "doc", None), getattr(chain, "object", None))
            )
            chain = chain.__cause__ or chain.__context__
        collected.append("".join(traceback.format_exception(error)))
    assert collected
    assert "Miller" not in repr(collected)


@pytest.mark.parametrize("form", ["csv", "jsonl", "txt", "parquet", "arrow"])
def test_rows_that_are_not_wanted_keep_their_places_and_change_no_other(tmp_path: Path, form: str) -> None:
    texts = ["one", "two\nlines", "", '"quoted"', *(f"note {row}" for row in range(2500)), "last"]
    if form == "txt":
        texts[1] = "two"
    files = []
    for name, some in (("a", texts[:1300]), ("b", texts[1300:])):
        path = tmp_path / f"{name}.{form}"
        made = pa.table({"text": some, "k": some})
        if form == "csv":
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([("text", "k"), *zip(some, some, strict=True)])
        elif form == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in made.to_pylist()))
        elif form == "txt":
            path.write_text("".join(f"{text}\n" for text in some))
        elif form == "parquet":
            pq.write_table(made, path)
        else:
            with pa.ipc.new_file(path, made.schema) as file:
                file.write(made)
        files.append(str(path))
    keep = ("text",) if form == "txt" else ("k",)
    opened = open_table(InputConfig(tuple(files), text_columns=("text",), keep=keep))
    every = list(opened.records())
    some = list(opened.records(lambda first, stop: first < 2490 and stop > 1290))
    assert [item.row for item in some] == list(range(len(texts))) == [item.row for item in every]
    assert some[1290:2490] == every[1290:2490]
    others = [*zip(some[:1290], every[:1290], strict=True), *zip(some[2490:], every[2490:], strict=True)]
    assert all(item == other or item.code == "unread" for item, other in others)
    assert any(isinstance(item, Fault) for item in some)
