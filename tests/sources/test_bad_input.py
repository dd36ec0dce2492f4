"""Tables that somebody else exported: the right rows or one clear error, never a row that changed unseen."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.config import InputConfig
from embedkit.errors import InputError
from embedkit.sources import open_table
from embedkit.types import Fault, Record
from tests.sources.bad_input import CASES, Case
from tests.sources.helpers import rows, texts

#: The issue's words. What reads nothing but files is in CASES; the rest is named here with where it is tried.
LISTED = """
empty file; header only; no final newline; BOM; UTF-16 LE; UTF-16 BE; Latin-1; truncated UTF-8; NUL;
LF and CRLF in quotes at every offset around a block boundary; lone CR; mixed line ends; unterminated quote;
balanced stray quotes; unescaped inner quotes; backslash escapes; mid-field quote (`6" tall`); short row;
long row; blank lines; blank lines with one column; duplicate header; missing column; wrong delimiter;
20 MB field; 1 GB line; 10,000 columns; `00123` ids; `NA`, `null`, `nan` as text; `=cmd()` cells; duplicate ids;
lone surrogate; `NaN`; duplicate keys; two objects a line; trailing junk; one array; 100,000-deep nesting;
U+2028 and U+0085 inside strings; raw control characters; text as number, list, null; truncated last line;
truncated footer; dictionary, large_string and binary text; zero row groups; schema drift between files;
gzip truncated and concatenated; a zstd bomb
"""
ELSEWHERE = {"1 GB line"}  # the test of this name, below
EVERY = [
    pytest.param(case, id=f"{name}, {number}" if number else name)
    for name, cases in CASES.items()
    for number, case in enumerate(cases)
]


def test_every_case_of_the_list_is_tried() -> None:
    listed = {name.strip() for name in LISTED.replace("\n", " ").split(";")}
    assert listed - ELSEWHERE <= CASES.keys()
    assert all(CASES.values())


@pytest.mark.parametrize("case", EVERY)
def test_a_table_gives_the_right_rows_or_one_clear_error(tmp_path: Path, case: Case) -> None:
    for name, data in case.files.items():
        (tmp_path / name).write_bytes(data)
    config = InputConfig((str(tmp_path),), **case.options)
    if case.texts is None:
        with pytest.raises(InputError) as caught:
            list(open_table(config).records())
        assert re.search(case.error, caught.value.message)
        assert "\n" not in caught.value.message
        assert caught.value.hint
        return
    found = list(open_table(config).records())
    # Not `==`: pytest would take minutes to show how texts of 20 MB differ.
    differ = [
        place for place, pair in enumerate(zip(texts(found), case.texts, strict=False)) if pair[0] != pair[1]
    ]
    assert (len(found), differ) == (len(case.texts), [])
    assert [item.row for item in found] == list(range(len(found)))
    if case.ids is not None:
        assert [item.id for item in found if isinstance(item, Record)] == case.ids


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of memory")
@pytest.mark.parametrize(
    ("name", "head"),
    [("t.csv", b"id,text\n1,"), ("t.csv", b'id,text\n1,"\n'), ("t.jsonl", b'{"text": "'), ("t.txt", b"")],
    ids=["csv", "quoted", "jsonl", "txt"],
)
def test_a_line_of_1_gb_is_an_error_that_takes_bounded_memory(tmp_path: Path, name: str, head: bytes) -> None:
    """The file is sparse: 1 GB of zeros that are on no disk."""
    path = tmp_path / name
    path.write_bytes(head)
    with path.open("rb+") as file:
        file.truncate(2**30)
    before = _peak_of_memory(reset=True)
    with pytest.raises(InputError, match="is over"):
        list(open_table(InputConfig((str(path),))).records())
    assert _peak_of_memory() - before < 800 * 2**20


def _peak_of_memory(*, reset: bool = False) -> int:
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.txt"])
def test_a_disk_that_cannot_be_read_any_further_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import builtins
    import errno

    class Failing(io.FileIO):
        def readinto(self, buffer: Any, /) -> int:
            if self.tell() >= 2**20:
                raise OSError(errno.EIO, "Input/output error")
            return super().readinto(memoryview(buffer)[: 2**16]) or 0

    good = {"t.csv": "id,text\n" + "1,a text\n" * 300_000, "t.jsonl": '{"text": "a text"}\n' * 150_000}
    path = tmp_path / name
    path.write_text(good.get(name, "a text\n" * 300_000))
    real = open

    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if str(file) == str(path) and mode == "rb":
            return io.BufferedReader(Failing(file))
        return real(file, mode, *arguments, **options)

    table = open_table(InputConfig((str(path),)))
    monkeypatch.setattr(builtins, "open", opened)
    with pytest.raises(InputError, match=f"{name}: Input/output error"):
        table.scan()


# Anything that a writer can write ------------------------------------------------------------------------

ODD = st.sampled_from("\",\n\r\t ';|\\#=\u2028\x85\0\ufeff\u200d\u202e\u0301")
CELLS = st.text(st.one_of(ODD, st.characters(codec="utf-8")), max_size=8)
NAMES = ("text", "b", "c", "d")


@settings(max_examples=150, deadline=None)
@given(
    cells=st.integers(1, 4).flatmap(
        lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), max_size=6)
    ),
    dialect=st.sampled_from(["excel", "excel-tab", "unix"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_any_table_that_python_wrote_in_any_dialect_comes_back_row_for_row(
    cells: list[list[str]], dialect: str, quoting: int, end: str, encoding: str
) -> None:
    # Python before 3.13 leaves a CR unquoted when lines end in LF, and an LF when they end in CR, and cannot read
    # that back either; a file of UTF-8 that begins with U+FEFF is one with a mark.
    if any("\r" in cell or "\n" in cell for row in cells for cell in row):
        quoting = csv.QUOTE_ALL
    written = io.StringIO(newline="")
    width = len(cells[0]) if cells else 2
    writer = csv.writer(written, dialect=dialect, quoting=quoting, lineterminator=end)  # type: ignore[arg-type]
    writer.writerows([NAMES[:width], *cells])
    name = "t.tsv" if dialect == "excel-tab" else "t.csv"
    # Lines and tabs in a quoted cell are doubtful, unless the user says that cells are quoted.
    options = {"quoting": "double" if dialect == "excel-tab" else "auto"}
    with tempfile.TemporaryDirectory() as folder:
        found = rows(Path(folder), name, written.getvalue().encode(encoding), keep=NAMES[:width], **options)
    assert [item.kept for item in found if isinstance(item, Record)] == [tuple(row) for row in cells]
    assert texts(found) == [row[0] for row in cells]
    assert [item.row for item in found] == list(range(len(cells)))


KEYS = st.one_of(st.sampled_from(["text", "id", "Text", ""]), CELLS)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), CELLS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(CELLS, inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(
    objects=st.lists(st.dictionaries(KEYS, VALUES, max_size=5), max_size=6),
    ascii_only=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\n \n"]),
)
def test_any_json_object_is_its_record_or_the_fault_that_says_what_it_lacks(
    objects: list[dict[str, Any]], ascii_only: bool, end: str
) -> None:
    first = {"id": "first", "text": "first"}
    data = "".join(json.dumps(item, ensure_ascii=ascii_only) + end for item in (first, *objects))
    with tempfile.TemporaryDirectory() as folder:
        found = rows(Path(folder), "t.jsonl", data.encode(), keep=("text", "id"))
    assert len(found) == 1 + len(objects)
    for row, (item, written) in enumerate(zip(found, chain([first], objects), strict=True)):
        assert item.row == row
        expected = _fault_of(written)
        if expected is not None:
            assert isinstance(item, Fault)
            assert item.code == expected
        else:
            assert isinstance(item, Record)
            identity = written.get("id")
            assert (item.text, item.id) == (written["text"], None if identity is None else str(identity))
            assert item.kept == (written["text"], identity)


def _fault_of(written: dict[str, Any]) -> str | None:
    if "text" not in written:
        return "missing_column"
    if not isinstance(written["text"], str | None):
        return "text_not_string"
    identity = written.get("id")
    is_id = identity is None or isinstance(identity, str) or type(identity) is int
    return None if is_id else "id_not_string"
