from __future__ import annotations

import datetime as dt
import io
import random
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from embedkit.arrow_values import plain_values, type_name
from embedkit.config import InputConfig
from embedkit.errors import InputError
from embedkit.sources import Columns, open_table
from embedkit.sources.columnar import Columnar
from embedkit.types import Fault, Record
from tests.sources.helpers import piped, refused, rows, table, texts


def parquet(content: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(content, file, **options)
    return file.getvalue()


def arrow_file(content: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_file(file, content.schema) as writer:
        writer.write_table(content, **options)
    return file.getvalue()


def arrow_stream(content: pa.Table) -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content)
    return file.getvalue()


def feather(content: pa.Table) -> bytes:
    file = io.BytesIO()
    pyarrow.feather.write_feather(content, file)
    return file.getvalue()


WRITERS = [(parquet, "t.parquet"), (arrow_file, "t.arrow"), (arrow_stream, "t.arrow"), (feather, "t.feather")]
STRINGS = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_string()),
]


@pytest.mark.parametrize(("write", "name"), WRITERS)
@pytest.mark.parametrize("layout", STRINGS, ids=str)
def test_strings_of_every_layout_are_texts(
    tmp_path: Path, write: Callable[[pa.Table], bytes], name: str, layout: pa.DataType
) -> None:
    content = pa.table(
        {"id": pa.array([7, None, 9], pa.uint64()), "text": pa.array(["é\n", None, ""]).cast(layout)}
    )
    expected = [Record(0, "7", "é\n"), Record(1, None, None), Record(2, "9", "")]
    assert rows(tmp_path, name, write(content)) == expected
    assert (
        list(piped(write(content), format=name.rpartition(".")[2].replace("feather", "arrow")).records())
        == expected
    )


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_many_batches_come_in_order(tmp_path: Path, write: Callable[[pa.Table], bytes], name: str) -> None:
    numbers = [str(number) for number in range(5_000)]
    found = rows(tmp_path, name, write(pa.table({"other": [0.5] * 5_000, "text": numbers})))
    assert texts(found) == numbers
    assert [item.row for item in found] == list(range(5_000))
    assert texts(rows(tmp_path, name, write(pa.table({"text": numbers})), limit=1_030)) == numbers[:1_030]


@pytest.mark.parametrize("layout", [pa.binary(), pa.string(), pa.string_view()], ids=str)
def test_bytes_that_are_not_utf8_are_a_fault_of_their_row(tmp_path: Path, layout: pa.DataType) -> None:
    offsets, data = pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc")
    bad = pa.Array.from_buffers(pa.binary(), 3, [None, offsets, data])
    if layout == pa.string():
        bad = pa.Array.from_buffers(pa.string(), 3, [None, offsets, data])
    elif layout == pa.string_view():
        bad = bad.cast(pa.binary_view()).view(pa.string_view())
    found = rows(tmp_path, "t.arrow", arrow_file(pa.table({"text": bad})))
    assert texts(found) == ["a", "<not_utf8>", "c"]
    assert found[1] == Fault(1, str(tmp_path / "t.arrow"), None, "not_utf8")


@pytest.mark.parametrize(
    ("values", "declared", "name", "expected"),
    [
        ([1], pa.int32(), "int32", [1]),
        (["a"], pa.large_string(), "large_string", ["a"]),
        (["a"], pa.dictionary(pa.int8(), pa.string()), "string", ["a"]),
        ([True, None], pa.bool_(), "bool", [True, None]),
        ([dt.date(2020, 1, 2)], pa.date32(), "date32[day]", ["2020-01-02"]),
        (
            [1_000, 1_001],
            pa.timestamp("ns"),
            "timestamp[ns]",
            ["1970-01-01T00:00:00.000001000", "1970-01-01T00:00:00.000001001"],
        ),
        ([0], pa.timestamp("us", "UTC"), "timestamp[us, tz=UTC]", ["1970-01-01T00:00:00+00:00"]),
        ([Decimal("1.50")], pa.decimal128(5, 2), type_name(pa.decimal128(5, 2)), ["1.50"]),
        ([[1, 2]], pa.list_(pa.int64()), type_name(pa.list_(pa.field("element", pa.int64()))), [[1, 2]]),
        (
            [{"a": b"\xff"}],
            pa.struct({"a": pa.binary()}),
            type_name(pa.struct({"a": pa.binary()})),
            [{"a": "/w=="}],
        ),
        ([None], pa.null(), "null", [None]),
    ],
)
def test_kept_columns_come_with_the_name_of_their_type(
    tmp_path: Path, values: list[Any], declared: pa.DataType, name: str, expected: list[Any]
) -> None:
    content = pa.table({"text": ["t"] * len(values), "k": pa.array(values, declared)})
    found = table(tmp_path, "t.parquet", parquet(content), keep=("k",))
    kept = [item.kept[0] for item in found.records() if isinstance(item, Record)]
    assert plain_values(kept) == expected
    assert found.facts.kept_types() == found.scan().kept_types == {"k": name}


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ({"text": [1]}, "column text has type int64; a text is a string"),
        ({"text": [["a"]]}, "column text has type list<element: string>"),
        ({"text": ["a"], "id": [1.5]}, "column id has type double; an id is a string or an integer"),
        ({"a": ["x"], "b": ["y"], "c": [1]}, "columns: a, b, c"),
    ],
)
def test_a_column_of_another_type_is_an_error(tmp_path: Path, column: dict[str, Any], words: str) -> None:
    refused(tmp_path, "t.parquet", parquet(pa.table(column)), kind=InputError, match=words)


@pytest.mark.parametrize(("write", "name"), WRITERS)
@pytest.mark.parametrize("part", [0.0, 0.5, 0.98])
def test_a_file_that_is_cut_off_is_an_error(
    tmp_path: Path, write: Callable[[pa.Table], bytes], name: str, part: float
) -> None:
    data = write(pa.table({"text": [f"{number} secret" for number in range(5_000)]}))
    error = refused(tmp_path, name, data[: int(len(data) * part)], kind=InputError, match="cannot be read as")
    assert error.__cause__ is None
    assert error.__context__ is None


def test_a_flipped_bit_in_a_page_with_a_checksum_is_an_error(tmp_path: Path) -> None:
    content = pa.table({"text": [f"{number} secret" for number in range(50)]})
    data = bytearray(parquet(content, write_page_checksum=True, compression="none", use_dictionary=False))
    data[data.index(b"7 secret")] ^= 1
    refused(tmp_path, "t.parquet", bytes(data), kind=InputError, match="cannot be read as parquet")


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"id": [1], "text": ["a"]}, "no column k"),
        ({"id": [1], "text": ["a"], "k": ["x"]}, "column k is string, and int64 in an earlier file"),
        ({"id": ["1"], "text": ["a"], "k": [1]}, "column id is string, and int64 in an earlier file"),
        ({"id": [1], "text": [2], "k": [1]}, "column text has type int64"),
    ],
)
def test_files_whose_columns_drift_apart_are_an_error(tmp_path: Path, second: dict[str, Any], words: str) -> None:
    (tmp_path / "1.parquet").write_bytes(parquet(pa.table({"id": [1], "text": ["a"], "k": [1]})))
    (tmp_path / "2.parquet").write_bytes(parquet(pa.table(second)))
    with pytest.raises(InputError, match=rf"2\.parquet: .*{words}"):
        open_table(InputConfig((str(tmp_path),), keep=("k",)))


def test_a_column_that_is_all_null_in_one_file_fits_any_type(tmp_path: Path) -> None:
    (tmp_path / "1.parquet").write_bytes(parquet(pa.table({"text": [None], "k": [None]})))
    (tmp_path / "2.parquet").write_bytes(parquet(pa.table({"text": ["a"], "k": [1]})))
    found = open_table(InputConfig((str(tmp_path),), keep=("k",)))
    assert texts(list(found.records())) == [None, "a"]
    assert found.facts.kept_types() == {"k": "int64"}


def test_a_row_group_is_read_a_mebibyte_at_a_time_and_not_as_a_whole(tmp_path):
    path = tmp_path / "t.parquet"
    written = ["".join(random.Random(row).choices("abcdef", k=1_000)) for row in range(3_000)]
    pq.write_table(pa.table({"text": written}), path, compression="none", use_dictionary=False)
    reads = []

    class Counting(io.FileIO):
        def readinto(self, buffer):
            reads.append(super().readinto(buffer))
            return reads[-1]

    with io.BufferedReader(Counting(path)) as stream:
        reader = Columnar(stream, "t.parquet", file_format="parquet", config=InputConfig((str(path),)))
        found = list(reader.rows(Columns(("text",), None, None, ()), 0))
    assert [row.text for row in found] == written
    assert sum(reads) > 3 * 10**6
    assert max(reads) <= 2**20
