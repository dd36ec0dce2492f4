from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.errors import InputError, UsageError
from embedkit.sources import plain_text
from embedkit.types import Fault, Record
from tests.sources.helpers import refused, rows, table, texts

FIELDS = st.text(
    st.one_of(st.sampled_from('",\n\r\t \u2028\x85\0\ufeff'), st.characters(codec="utf-8")), max_size=12
)


@settings(max_examples=150, deadline=None)
@given(
    cells=st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(FIELDS, min_size=width, max_size=width))),
    suffix=st.sampled_from([".csv", ".tsv"]),
    terminator=st.sampled_from(["\n", "\r\n"]),
)
def test_any_table_that_python_wrote_comes_back_cell_for_cell(
    cells: list[list[str]], suffix: str, terminator: str
) -> None:
    width = len(cells[0]) if cells else 2
    written = io.StringIO(newline="")
    # Python before 3.13 leaves a lone CR unquoted when lines end in LF, and cannot read that back either.
    quoting = csv.QUOTE_ALL if any("\r" in cell for row in cells for cell in row) else csv.QUOTE_MINIMAL
    delimiter = "," if suffix == ".csv" else "\t"
    writer = csv.writer(written, delimiter=delimiter, lineterminator=terminator, quoting=quoting)
    writer.writerow(["text", "b", "c", "d"][:width])
    writer.writerows(cells)
    with tempfile.TemporaryDirectory() as folder:
        names = ("text", "b", "c", "d")[:width]
        # Lines and tabs in a quoted cell are doubtful, unless the user says that cells are quoted.
        quoting = "auto" if suffix == ".csv" else "double"
        found = rows(Path(folder), "t" + suffix, written.getvalue().encode(), keep=names, quoting=quoting)
    assert [item.kept for item in found if isinstance(item, Record)] == [tuple(row) for row in cells]
    assert texts(found) == [row[0] for row in cells]
    assert [item.row for item in found] == list(range(len(cells)))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'text,b\n"one\ntwo",x\n', ["one\ntwo"]),
        (b'text,b\r\n"one\r\ntwo",x\r\n', ["one\r\ntwo"]),
        (b"text,b\rone,x\rtwo,y\r", ["one", "two"]),
        (b"text,b\none,x", ["one"]),
        (b"\xef\xbb\xbftext,b\none,x\n", ["one"]),
        ("\ufefftext,b\n\u00e9\U0001f642,x\n".encode("utf-16-le"), ["\u00e9\U0001f642"]),
        ("\ufefftext,b\n\u00e9,x\n".encode("utf-16-be"), ["\u00e9"]),
        (b"\n\ntext,b\n\none,x\n\n\ntwo,y\n\n", ["one", "two"]),
        (b"text\none\n\nthree\n", ["one", "", "three"]),
        (b'text\none\n""\nthree\n', ["one", "", "three"]),
        (b"text,b\nNA,x\nnull,x\nnan,x\n,x\n", ["NA", "null", "nan", ""]),
        (b'text,b\n6" tall,x\n', ['6" tall']),
        (b"text,b\na\0b,x\n", ["a\0b"]),
        ("text,b\na\u2028b\x85c,x\n".encode(), ["a\u2028b\x85c"]),
        (b"text,b\n", []),
        (b"text", []),
    ],
)
def test_cells_are_read_as_they_were_written(tmp_path: Path, data: bytes, expected: list[str]) -> None:
    assert texts(rows(tmp_path, "t.csv", data)) == expected


def test_a_row_of_another_width_is_a_fault_with_row_and_byte(tmp_path: Path) -> None:
    data = 'id,text\n1,"é\nx"\n2\n3,c,d\n4,ok\n'.encode()
    found = rows(tmp_path, "t.csv", data)
    name = str(tmp_path / "t.csv")
    # The header is 8 bytes; the first row 1 , " é(2) \n x " \n = 9.
    assert found[1] == Fault(1, name, 17, "short_row")
    assert found[2] == Fault(2, name, 19, "long_row")
    assert texts(found) == ["é\nx", "<short_row>", "<long_row>", "ok"]


@pytest.mark.parametrize(("mark", "encoding"), [(b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le")])
def test_a_faults_offset_is_where_its_bytes_are_in_the_file(tmp_path: Path, mark: bytes, encoding: str) -> None:
    data = mark + "id,text\n1,é🙂\n2\n".encode(encoding)
    (fault,) = (item for item in rows(tmp_path, "t.csv", data) if isinstance(item, Fault))
    assert fault.offset == data.index("\n2\n".encode(encoding)) + len("\n".encode(encoding))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'id,text\n1,a\n2,"b\n3,c\n', "row 1, at byte 12, has a quote that is never closed"),
        (b'id,text\n1,a\n2,"b"x\n', "row 1, at byte 12, has text after a closing quote"),
        (b"", "empty file, no header"),
        (b"\n\r\n", "empty file, no header"),
        (b"text,b,text\n1,2,3\n", "2 columns are named text"),
        (b"id,text,caf\xe9\n1,a,b\n", "not UTF-8 at byte 11"),
        ("\ufeffid,text\n1,a\n".encode("utf-16-le")[:-1], "not UTF-16, as its first bytes say, at byte 24"),
        ("id,text\n1,a\n".encode("utf-32"), "UTF-32 is not supported"),
        (b'{"id": 1, "text": "a"}\n', "the first line is JSON"),
        ("text,b\na,x\n".encode("utf-16-le"), "NUL bytes in the header"),
    ],
)
def test_a_file_that_cannot_be_split_into_rows_is_an_error_with_the_position(
    tmp_path: Path, data: bytes, words: str
) -> None:
    refused(tmp_path, "t.csv", data, kind=InputError, match=words)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_that_is_not_utf8_costs_its_row_alone_wherever_it_is(tmp_path: Path, mark: bytes) -> None:
    before, after = "id,text\n" + "1,é and more\n" * 20_000, "3,ü\n" * 20_000
    data = mark + before.encode() + b'2,"\xff\n"\n' + after.encode()
    found = rows(tmp_path, "t.csv", data)
    assert [item for item in found if isinstance(item, Fault)] == [
        Fault(20_000, str(tmp_path / "t.csv"), len(mark) + len(before.encode()), "not_utf8")
    ]
    assert len(found) == 40_001
    assert found[-1] == Record(40_000, "3", "ü")


def test_half_a_character_of_utf16_costs_its_row_alone(tmp_path: Path) -> None:
    data = b"\xff\xfe" + "id,text\n1,a\ud800\n2,b\n".encode("utf-16-le", "surrogatepass")
    assert texts(rows(tmp_path, "t.csv", data)) == ["<lone_surrogate>", "b"]


@pytest.mark.parametrize(
    ("name", "delimiter", "data"),
    [
        ("t.csv", ";", 'id;text\n1;"a;\nb, c"\n'),
        ("t.csv", "|", 'id|text\n1|"a;\nb, c"\n'),
        ("t.csv", "tab", 'id\ttext\n1\t"a;\nb, c"\n'),
        ("t.tsv", ",", 'id,text\n1,"a;\nb, c"\n'),
        ("t.csv", "\x01", 'id\x01text\n1\x01"a;\nb, c"\n'),
    ],
)
def test_the_delimiter_of_the_user_is_used(tmp_path: Path, name: str, delimiter: str, data: str) -> None:
    assert texts(rows(tmp_path, name, data.encode(), delimiter=delimiter)) == ["a;\nb, c"]


@pytest.mark.parametrize(
    ("name", "delimiter"), [("t.csv", '"'), ("t.csv", "\n"), ("t.csv", "ab"), ("t.jsonl", ";")]
)
def test_a_delimiter_that_cannot_be_one_is_refused(tmp_path: Path, name: str, delimiter: str) -> None:
    refused(tmp_path, name, b"", kind=UsageError, match="--delimiter", delimiter=delimiter)


@settings(max_examples=100, deadline=None)
@given(cells=st.lists(st.tuples(FIELDS, FIELDS), max_size=5))
def test_without_quoting_every_quote_is_a_letter(cells: list[tuple[str, str]]) -> None:
    """Texts as a database writes them: cells with neither tabs nor line ends, joined as they are."""
    plain = [tuple("".join(c for c in cell if c not in "\t\r\n") for cell in row) for row in cells]
    data = "text\tb\n" + "".join("\t".join(row) + "\n" for row in plain)
    with tempfile.TemporaryDirectory() as folder:
        found = rows(Path(folder), "t.tsv", data.encode(), keep=("text", "b"), quoting="none")
    assert [item.kept for item in found if isinstance(item, Record)] == plain


def test_quotes_inside_cells_are_counted_with_their_first_row(tmp_path: Path) -> None:
    data = 'id,text,b\n1,"he said ""so""",x\n2,6" tall,x\n3,"a, b",x\n4,say "x" now,5"\n'
    found = table(tmp_path, "t.csv", data.encode())
    assert found.scan().n_faults == 0
    columns, note = found.take_notes()
    assert columns.startswith("columns: ")
    assert note.startswith(f"2 rows have a quote inside an unquoted cell, first row 1 of {tmp_path}/t.csv")
    assert found.take_notes() == []


def test_a_duplicate_column_does_not_matter_unless_it_is_read(tmp_path: Path) -> None:
    assert texts(rows(tmp_path, "t.csv", b"x,text,x\n1,a,2\n")) == ["a"]


def test_ten_thousand_columns_and_a_field_of_3_mb_are_read(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(9_999)]
    big = "line, one\n" * 300_000
    data = ",".join([*names, "text"]) + "\n" + "," * 9_999 + f'"{big}"\n'
    assert texts(rows(tmp_path, "t.csv", data.encode())) == [big]


@pytest.mark.parametrize("record", ["x" * 5_000, '"' + "x\n" * 2_500])
def test_a_record_over_the_bound_is_an_error_and_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: str
) -> None:
    monkeypatch.setattr(plain_text, "MAX_RECORD_BYTES", 1_000)
    data = f"id,text\n1,a\n2,{record}".encode()
    refused(tmp_path, "t.csv", data, kind=InputError, match="the record at byte 12 is over")


def test_every_column_of_a_csv_but_the_id_counts_as_a_string(tmp_path: Path) -> None:
    assert table(tmp_path, "t.csv", b"id,report\n00123,a\n").columns.text == ("report",)
