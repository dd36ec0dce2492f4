"""Kept columns, ids and groups through files: each type, from each format of input, to each format of output.

The oracle is pyarrow, which compares what was put in with what comes out, and literals written beside the values.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import embedkit
from embedkit.arrow_values import json_values, kept_values
from embedkit.output.formats.values import kept_array

#: The last second of the year 9999, and a moment of which the last nanosecond counts, both since 1970.
LAST, NANO = 253_402_300_799, 1_700_000_000_000_000_001
NAN, INF = math.nan, math.inf


def extension(kind: pa.DataType, storage: pa.Array) -> pa.Array:
    return pa.ExtensionArray.from_storage(kind, storage)


def struct_of(*fields: tuple[str, Any]) -> pa.DataType:
    return pa.struct(list(fields))


#: name → (Arrow array of three values, what JSON Lines have of them).
TYPES: dict[str, tuple[pa.Array, list[Any]]] = {
    "null": (pa.nulls(3), [None] * 3),
    "bool": (pa.array([True, None, False]), [True, None, False]),
    "int8": (pa.array([-128, None, 127], pa.int8()), [-128, None, 127]),
    "int64": (pa.array([2**53 + 1, -(2**63), None]), [2**53 + 1, -(2**63), None]),
    "uint64": (pa.array([2**64 - 1, 0, None], pa.uint64()), [2**64 - 1, 0, None]),
    "float16": (pa.array([1.5, None, -0.0], pa.float16()), [1.5, None, -0.0]),
    "float32": (pa.array([0.5, -0.0, None], pa.float32()), [0.5, -0.0, None]),
    "float64": (pa.array([0.1, -INF, NAN]), [0.1, None, None]),
    "string": (pa.array(["001", "", None]), ["001", "", None]),
    "large_string": (pa.array(["é", None, '"'], pa.large_string()), ["é", None, '"']),
    "binary": (pa.array([b"\xff", None, b""]), ["/w==", None, ""]),
    "fixed_binary": (pa.array([b"abcd", None, b"\0\0\0\0"], pa.binary(4)), ["YWJjZA==", None, "AAAAAA=="]),
    "decimal": (pa.array([Decimal("1.50"), Decimal("0.00"), None], pa.decimal128(9, 2)), ["1.50", "0.00", None]),
    "decimal256": (
        pa.array([Decimal("0E-20"), None, Decimal(10) ** 40], pa.decimal256(76, 20)),
        ["0." + "0" * 20, None, f"1{'0' * 40}.{'0' * 20}"],
    ),
    "date32": (
        pa.array([18_262, 2_932_897, -719_163], pa.int32()).cast(pa.date32()),
        ["2020-01-01", "+10000-01-01", "0000-12-31"],
    ),
    "date64": (pa.array([0, None, 86_400_000], pa.int64()).cast(pa.date64()), ["1970-01-01", None, "1970-01-02"]),
    "time32_s": (pa.array([86_399, None, 0], pa.time32("s")), ["23:59:59", None, "00:00:00"]),
    "time32_ms": (pa.array([1, None, 0], pa.time32("ms")), ["00:00:00.001", None, "00:00:00"]),
    "time64_ns": (pa.array([1, None, 10**9], pa.time64("ns")), ["00:00:00.000000001", None, "00:00:01"]),
    "timestamp_s": (
        pa.array([LAST + 1, None, 0], pa.timestamp("s")),
        ["+10000-01-01T00:00:00", None, "1970-01-01T00:00:00"],
    ),
    "timestamp_us": (
        pa.array([LAST * 10**6 + 1, (LAST + 1) * 10**6, -62_135_596_801 * 10**6], pa.timestamp("us")),
        ["9999-12-31T23:59:59.000001", "+10000-01-01T00:00:00", "0000-12-31T23:59:59"],
    ),
    "timestamp_ns": (
        pa.array([NANO, NANO - 1, None], pa.timestamp("ns")),
        ["2023-11-14T22:13:20.000000001", "2023-11-14T22:13:20", None],
    ),
    "zoned": (
        pa.array([LAST * 10**6, 0, None], pa.timestamp("us", "Asia/Tokyo")),
        ["+10000-01-01T08:59:59+09:00", "1970-01-01T09:00:00+09:00", None],
    ),
    "zoned_utc": (
        pa.array([0, None, 1], pa.timestamp("ms", "UTC")),
        ["1970-01-01T00:00:00+00:00", None, "1970-01-01T00:00:00.001+00:00"],
    ),
    "duration_s": (pa.array([90, -1, None], pa.duration("s")), ["PT90S", "-PT1S", None]),
    "duration_ns": (pa.array([1_000, 1_001, None], pa.duration("ns")), ["PT0.000001S", "PT0.000001001S", None]),
    "list": (
        pa.array([[1], None, [NANO, None]], pa.list_(pa.timestamp("ns"))),
        [["1970-01-01T00:00:00.000000001"], None, ["2023-11-14T22:13:20.000000001", None]],
    ),
    "far_list": (
        pa.array([[(LAST + 1) * 10**6], [], None], pa.list_(pa.timestamp("us"))),
        [["+10000-01-01T00:00:00"], [], None],
    ),
    "large_list": (pa.array([["a"], [], None], pa.large_list(pa.string())), [["a"], [], None]),
    "fixed_list": (pa.array([[1, 2], [3, None], None], pa.list_(pa.int8(), 2)), [[1, 2], [3, None], None]),
    "struct": (
        pa.array(
            [{"d": 0, "x": [Decimal("1.0")]}, None, {"d": None, "x": None}],
            struct_of(("d", pa.date32()), ("x", pa.list_(pa.decimal128(3, 1)))),
        ),
        [{"d": "1970-01-01", "x": ["1.0"]}, None, {"d": None, "x": None}],
    ),
    "map": (
        pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int8())),
        [[["k", 1]], [], None],
    ),
    "uuid": (
        extension(pa.uuid(), pa.array([bytes(range(16)), None, b"\xff" * 16], pa.binary(16))),
        ["00010203-0405-0607-0809-0a0b0c0d0e0f", None, "ffffffff-ffff-ffff-ffff-ffffffffffff"],
    ),
    "json_text": (extension(pa.json_(), pa.array(['{"a": 1}', None, "[]"])), ['{"a": 1}', None, "[]"]),
    "bool8": (extension(pa.bool8(), pa.array([1, 0, None], pa.int8())), [True, False, None]),
}
#: Layouts of strings and numbers, and the types of the values in them.
LAYOUTS: dict[str, tuple[pa.Array, pa.Array]] = {
    "dictionary": (pa.array(["b", None, "b"]).dictionary_encode(), pa.array(["b", None, "b"])),
    "categories": (pa.array([7, None, 7], pa.int8()).dictionary_encode(), pa.array([7, None, 7], pa.int8())),
    "view": (pa.array(["a" * 20, None, ""], pa.string_view()), pa.array(["a" * 20, None, ""])),
    "bytes_view": (pa.array([b"\xff", None, b""], pa.binary_view()), pa.array([b"\xff", None, b""])),
    "listed": (
        pa.array([["a"], None, ["b", "a"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        pa.array([["a"], None, ["b", "a"]], pa.list_(pa.string())),
    ),
}
ROWS = {"id": ["a", "b", "c"], "text": ["fever", "", "cough at night"]}


def write(path: Path, table: pa.Table) -> Path:
    """Writes the table in the format that the name tells."""
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([table.column_names, *(row.values() for row in table.to_pylist())])
    return path


def read(path: Path) -> pa.Table:
    if path.suffix == ".arrow":
        return pa.ipc.open_file(path).read_all()
    return pq.read_table(path.with_name("out.metadata.parquet") if path.suffix == ".npy" else path)


def lines(text: str | Path) -> list[dict[str, Any]]:
    text = text.read_text() if isinstance(text, Path) else text
    return [json.loads(line) for line in text.splitlines()]


def as_parquet_has_it(table: pa.Table, tmp_path: Path) -> pa.Table:
    """Parquet has no seconds, and no dates in milliseconds."""
    return pq.read_table(write(tmp_path / "roundtrip.parquet", table))


def same(found: pa.ChunkedArray, expected: pa.ChunkedArray) -> bool:
    """Type and values, bit by bit: NaN is NaN, and -0.0 is not 0.0."""
    if pa.types.is_floating(expected.type) and found.type == expected.type:
        whole = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[expected.type.bit_width]
        found, expected = (pa.chunked_array([c.view(whole) for c in of.chunks]) for of in (found, expected))
    return bool(found.type == expected.type and found.equals(expected))


def keep(names: Any) -> list[str]:
    return [argument for name in names for argument in ("--keep", name)]


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Any:
    def give(data: bytes) -> str:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        return "-"

    return give


# Types through files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["out.parquet", "out.arrow", "out.npy", "folder"])
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_a_kept_column_has_the_type_and_the_values_of_the_input(encode, tmp_path, form, output):
    table = pa.table(ROWS | {name: array for name, (array, _) in TYPES.items()})
    path = write(tmp_path / f"in.{form}", table)
    ran = encode(path, *keep(TYPES), "--shard-rows", 2, "-o", tmp_path / output)
    assert ran.code == 0, ran.err
    given = read(path)
    found = embedkit.read(tmp_path / output).table if output == "folder" else read(tmp_path / output)
    expected = given if output == "out.arrow" else as_parquet_has_it(given, tmp_path)
    if output == "out.npy":  # rows without a vector are in neither file
        expected = expected.take([0, 2])
    assert [name for name in TYPES if not same(found[name], expected[name])] == []


@pytest.mark.parametrize("output", ["out.jsonl", "-"])
@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("pandas", [True, False])
def test_json_lines_have_one_kind_of_value_a_type(encode, tmp_path, monkeypatch, form, output, pandas):
    if not pandas:
        monkeypatch.setitem(sys.modules, "pandas", None)
    table = pa.table(ROWS | {name: array for name, (array, _) in TYPES.items()})
    ran = encode(
        write(tmp_path / f"in.{form}", table), *keep(TYPES), "-o", tmp_path / output if output != "-" else "-"
    )
    assert ran.code == 0, ran.err
    rows = lines(ran.out if output == "-" else tmp_path / output)
    assert {name: [row[name] for row in rows] for name in TYPES} == {name: of for name, (_, of) in TYPES.items()}
    assert math.copysign(1, rows[2]["float16"]) == -1
    assert "note: column float64: NaN or infinite in 2 rows" in ran.err


@pytest.mark.parametrize("output", ["out.parquet", "out.arrow"])
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_layouts_come_out_as_the_values_in_them(encode, tmp_path, form, output):
    table = pa.table(ROWS | {name: array for name, (array, _) in LAYOUTS.items()})
    names = list(LAYOUTS)
    if form == "arrow":
        table = table.append_column("runs", pa.RunEndEncodedArray.from_arrays([2, 3], ["x", "y"]))
        names.append("runs")
    path = write(tmp_path / f"in.{form}", table)
    assert encode(path, *keep(names), "--shard-rows", 1, "-o", tmp_path / output).code == 0
    found = read(tmp_path / output).select(names)
    expected = {name: values for name, (_, values) in LAYOUTS.items()} | {"runs": pa.array(["x", "x", "y"])}
    assert found.equals(pa.table({name: expected[name] for name in names}))


def test_a_type_that_parquet_lacks_is_json_there_and_itself_in_arrow(encode, tmp_path):
    months = pa.array([pa.MonthDayNano([1, 2, 3]), None, pa.MonthDayNano([0, 0, 0])])
    path = write(tmp_path / "in.arrow", pa.table(ROWS | {"months": months}))
    for name in ("out.arrow", "out.parquet", "out.jsonl"):
        assert encode(path, "--keep", "months", "-o", tmp_path / name).code == 0
    assert read(tmp_path / "out.arrow")["months"].to_pylist() == months.to_pylist()
    texts = ["P1M2DT0.000000003S", None, "P0M0DT0S"]
    assert [row["months"] for row in lines(tmp_path / "out.jsonl")] == texts
    assert [cell and json.loads(cell) for cell in read(tmp_path / "out.parquet")["months"].to_pylist()] == texts


@pytest.mark.parametrize("output", ["out.parquet", "out.npy"])
def test_a_time_that_parquet_cannot_hold_is_told_without_its_value(encode, tmp_path, output):
    path = write(tmp_path / "in.arrow", pa.table({"text": ["pain"], "k": pa.array([2**62], pa.timestamp("s"))}))
    ran = encode(path, "--keep", "k", "-o", tmp_path / output)
    assert ran.code == 5
    assert "out of range for Parquet" in ran.err
    assert str(2**62) not in ran.err
    assert encode(path, "--keep", "k", "-o", tmp_path / "out.arrow").code == 0
    assert same(read(tmp_path / "out.arrow")["k"], read(path)["k"])


def test_a_string_inside_a_list_that_is_not_utf8_is_a_fault_of_its_row(encode, tmp_path):
    offsets, data = pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")
    cells = pa.Array.from_buffers(pa.string(), 2, [None, offsets, data])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), cells)
    path = write(tmp_path / "in.arrow", pa.table({"text": ["pain"] * 2, "k": lists}))
    assert encode(path, "--keep", "k", "-o", tmp_path / "out.arrow").code == 3
    ran = encode(path, "--keep", "k", "-o", tmp_path / "out.arrow", "--on-bad-row", "null")
    assert ran.code == 0, ran.err
    assert read(tmp_path / "out.arrow").select(["k", "status"]).to_pylist() == [
        {"k": ["a"], "status": "ok"},
        {"k": None, "status": "not_utf8"},
    ]


def test_a_run_that_was_killed_goes_on_with_the_types_of_its_plan(encode, tmp_path):
    table = pa.table(ROWS | {name: array for name, (array, _) in TYPES.items()})
    arguments = (write(tmp_path / "in.arrow", table), *keep(TYPES), "--shard-rows", 1)
    for name in ("whole", "killed"):
        assert encode(*arguments, "-o", tmp_path / name).code == 0
    for name in ("manifest.json", "commits/00002.json", "embeddings/part-00002.parquet"):
        (tmp_path / "killed" / name).unlink()
    ran = encode(*arguments, "-o", tmp_path / "killed", "--on-exists", "resume")
    assert ran.code == 0, ran.err
    parts = [tmp_path / name / "embeddings" / "part-00002.parquet" for name in ("whole", "killed")]
    assert parts[0].read_bytes() == parts[1].read_bytes()


@pytest.mark.parametrize(
    ("array", "kept", "expected"),
    [
        (pa.array([Decimal("1.50"), None]), "json", ['"1.50"', None]),
        (pa.array([["a"], None]), "json", ['["a"]', None]),
        (pa.array([0, None], pa.timestamp("us", "UTC")), "json", ['"1970-01-01T00:00:00+00:00"', None]),
        (pa.array(["a", None], pa.large_string()), "string", ["a", None]),
        (pa.nulls(2), "string", [None, None]),
    ],
)
def test_the_types_in_the_plans_of_earlier_versions_still_hold(array, kept, expected):
    assert kept_array("k", kept_values(array), kept).equals(pa.array(expected, pa.string()))


@pytest.mark.parametrize("level", ["chunk", "word", "token"])
def test_rows_of_parts_of_a_text_repeat_its_kept_values(encode, tmp_path, level):
    path = write(tmp_path / "in.parquet", pa.table(ROWS | {name: array for name, (array, _) in TYPES.items()}))
    more = ("--on-long", "chunk") if level == "chunk" else ()
    ran = encode(path, *keep(TYPES), "--level", level, *more, "-o", tmp_path / "out.parquet")
    assert ran.code == 0, ran.err
    found, given = read(tmp_path / "out.parquet"), as_parquet_has_it(read(path), tmp_path)
    of_row = ["abc".index(identity) for identity in found["id"].to_pylist()]
    assert len(of_row) > 3 or level == "chunk"
    assert [name for name in TYPES if not same(found[name], given[name].take(of_row))] == []


def test_plan_and_encode_take_years_that_python_does_not_have(encode, embedkit_cli, bert, tmp_path):
    table = pa.table(ROWS | {"far": TYPES["date32"][0], "zoned": TYPES["zoned"][0]})
    path = write(tmp_path / "in.parquet", table)
    ran = embedkit_cli("plan", path, *keep(["far", "zoned"]), "-m", bert)
    assert ran.code == 0, ran.err
    assert encode(path, *keep(["far", "zoned"]), "-o", tmp_path / "out").code == 0


# Several formats -----------------------------------------------------------------------------------------

DATE = pa.array([18_262], pa.int32()).cast(pa.date32())
MIXED = [
    ([("1.jsonl", ["a"]), ("2.csv", ["b"])], pa.array(["a", "b"]), ["a", "b"]),
    ([("1.jsonl", [1]), ("2.csv", ["x"])], pa.array(["1", "x"]), [1, "x"]),
    (
        [("1.jsonl", [{"k": [1]}, "s"]), ("2.csv", ["x"])],
        pa.array(['{"k":[1]}', "s", "x"]),
        [{"k": [1]}, "s", "x"],
    ),
    ([("1.jsonl", [None]), ("2.parquet", [7])], pa.array([None, 7]), [None, 7]),
    ([("1.parquet", [2**53 + 1]), ("2.jsonl", [2])], pa.array([2**53 + 1, 2]), [2**53 + 1, 2]),
    ([("1.parquet", [2]), ("2.jsonl", [1.5])], pa.array([2.0, 1.5]), [2, 1.5]),
    (
        [("1.parquet", [2**53 + 1]), ("2.jsonl", [1.5])],
        pa.array(["9007199254740993", "1.5"]),
        [2**53 + 1, 1.5],
    ),
    ([("1.parquet", ["a"]), ("2.csv", ["b"])], pa.array(["a", "b"]), ["a", "b"]),
    ([("1.parquet", DATE), ("2.csv", ["soon"])], pa.array(["2020-01-01", "soon"]), ["2020-01-01", "soon"]),
    (
        [("1.parquet", DATE), ("2.jsonl", [None])],
        pa.array([18_262, None], pa.int32()).cast(pa.date32()),
        ["2020-01-01", None],
    ),
    (
        [("1.parquet", pa.array(["a"]).dictionary_encode()), ("2.arrow", pa.array(["b"], pa.large_string()))],
        pa.array(["a", "b"], pa.large_string()),
        ["a", "b"],
    ),
    ([("1.csv", ["1"]), ("2.csv", ["007"])], pa.array(["1", "007"]), ["1", "007"]),
    # Files that declare several types.
    (
        [("1.parquet", pa.array([7], pa.int32())), ("2.arrow", pa.array([2**53 + 1]))],
        pa.array([7, 2**53 + 1]),
        [7, 2**53 + 1],
    ),
    (
        [("1.parquet", pa.array([255], pa.uint8())), ("2.parquet", pa.array([-1], pa.int8()))],
        pa.array([255, -1], pa.int16()),
        [255, -1],
    ),
    ([("1.parquet", [1]), ("2.parquet", [1.5, None])], pa.array([1.0, 1.5, None]), [1, 1.5, None]),
    (
        [("1.parquet", [2**53 + 1]), ("2.parquet", [1.5])],
        pa.array(["9007199254740993", "1.5"]),
        [2**53 + 1, 1.5],
    ),
    (
        [("1.parquet", pa.nulls(1)), ("2.parquet", pa.array([0.5], pa.float32())), ("3.parquet", [0.25])],
        pa.array([None, 0.5, 0.25]),
        [None, 0.5, 0.25],
    ),
    (
        [("1.parquet", pa.array([1], pa.timestamp("us"))), ("2.arrow", pa.array([NANO], pa.timestamp("ns")))],
        pa.array([1_000, NANO], pa.timestamp("ns")),
        ["1970-01-01T00:00:00.000001", "2023-11-14T22:13:20.000000001"],
    ),
    (
        [("1.arrow", pa.array([LAST + 1], pa.timestamp("s"))), ("2.arrow", pa.array([1], pa.timestamp("ns")))],
        pa.array(["+10000-01-01T00:00:00", "1970-01-01T00:00:00.000000001"]),
        ["+10000-01-01T00:00:00", "1970-01-01T00:00:00.000000001"],
    ),
    (
        [("1.parquet", pa.array([Decimal("1.5")])), ("2.parquet", pa.array([Decimal("20.25")]))],
        pa.array([Decimal("1.50"), Decimal("20.25")], pa.decimal128(4, 2)),
        ["1.5", "20.25"],
    ),
]


@pytest.mark.parametrize(("files", "expected", "as_json"), MIXED)
def test_files_of_several_formats_give_one_type_and_leave_every_value_as_it_is(
    encode, tmp_path, files, expected, as_json
):
    paths = []
    for name, values in files:
        if name.endswith("jsonl"):
            rows = ({"text": "pain", "k": value} for value in values)
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            write(tmp_path / name, pa.table({"text": ["pain"] * len(values), "k": values}))
        paths.append(tmp_path / name)
    for output in ("out.parquet", "out.jsonl"):
        assert encode(*paths, "--keep", "k", "-o", tmp_path / output).code == 0
    found = read(tmp_path / "out.parquet")["k"]
    assert same(found, pa.chunked_array([expected])), found
    assert [row["k"] for row in lines(tmp_path / "out.jsonl")] == as_json


GROUPED = b"".join(
    json.dumps(row).encode() + b"\n"
    for row in [
        {"patient": "P1", "text": "fine", "label": "a", "n": 10, "tags": ["x"]},
        {"patient": "P1", "text": "well", "label": "a", "n": 9, "tags": ["x"]},
        {"patient": 7, "text": "ill", "label": 2.5, "n": 1, "tags": []},
    ]
)


def test_json_lines_from_stdin_keep_strings_as_they_are(encode, tmp_path, piped):
    assert encode(piped(GROUPED), *keep(["patient", "label", "tags"]), "-o", tmp_path / "out.parquet").code == 0
    found = read(tmp_path / "out.parquet").select(["patient", "label", "tags"]).to_pydict()
    assert found == {
        "patient": ["P1", "P1", "7"],
        "label": ["a", "a", "2.5"],
        "tags": ['["x"]', '["x"]', "[]"],
    }


@pytest.mark.parametrize("from_stdin", [True, False])
@pytest.mark.parametrize(("output", "label"), [("out.parquet", "2.5"), ("out.jsonl", 2.5)])
def test_groups_have_the_text_of_their_value_from_stdin_as_from_a_file(
    encode, tmp_path, piped, from_stdin, output, label
):
    (tmp_path / "in.jsonl").write_bytes(GROUPED)
    given = piped(GROUPED) if from_stdin else tmp_path / "in.jsonl"
    more = ("--group-by", "patient", "--group-pool", "last", "--order-by", "n", *keep(["label", "tags"]))
    ran = encode(given, *more, "-o", tmp_path / output)
    assert ran.code == 0, ran.err
    rows = lines(tmp_path / output) if output.endswith("jsonl") else read(tmp_path / output).to_pylist()
    assert [(row["id"], row["label"]) for row in rows] == [("P1", "a"), ("7", label)]
    assert [row["tags"] for row in rows] == ([["x"], []] if output.endswith("jsonl") else ['["x"]', "[]"])
    assert encode(tmp_path / "in.jsonl", "-o", tmp_path / "rows.jsonl").code == 0
    first = lines(tmp_path / "rows.jsonl")[0]["embedding"]
    assert rows[0]["embedding"] == pytest.approx(first, abs=1e-6)


# Ids, groups, order --------------------------------------------------------------------------------------

#: Columns of one value, and its text as an id.
IDENTITIES = {
    "int64": (pa.array([2**63 - 1]), "9223372036854775807"),
    "uint64": (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
    "date": (DATE, "2020-01-01"),
    "far": (pa.array([2_932_897], pa.int32()).cast(pa.date32()), "+10000-01-01"),
    "decimal": (pa.array([Decimal("1.50")]), "1.50"),
    "timestamp": (pa.array([NANO], pa.timestamp("ns")), "2023-11-14T22:13:20.000000001"),
    "zoned": (pa.array([0], pa.timestamp("s", "Asia/Tokyo")), "1970-01-01T09:00:00+09:00"),
    "time": (pa.array([1], pa.time32("s")), "00:00:01"),
    "uuid": (extension(pa.uuid(), pa.array([bytes(16)], pa.binary(16))), "00000000-0000-0000-0000-000000000000"),
    "category": (pa.array(["00123"]).dictionary_encode(), "00123"),
    "large": (pa.array(["00123"], pa.large_string()), "00123"),
    "view": (pa.array(["00123"], pa.string_view()), "00123"),
}
GROUPS = {
    name: IDENTITIES[name] for name in ("uint64", "date", "decimal", "timestamp", "zoned", "uuid", "view")
} | {
    "bool": (pa.array([True]), "true"),
    "double": (pa.array([1.0]), "1.0"),
    "list": (pa.array([[1, 2]]), "[1,2]"),
}


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_an_id_is_the_text_of_its_value(encode, tmp_path, form):
    for name, (array, text) in IDENTITIES.items():
        path = write(tmp_path / f"{name}.{form}", pa.table({"text": ["pain"], "key": array}))
        ran = encode(path, "--id-column", "key", "-o", "-")
        assert ran.code == 0, ran.err
        assert [row["id"] for row in lines(ran.out)] == [text], name


def test_a_group_is_named_by_the_text_of_its_value(encode, tmp_path):
    for name, (array, text) in GROUPS.items():
        table = pa.table({"text": ["pain", "fever"], "key": pa.concat_arrays([array, array])})
        path = write(tmp_path / f"{name}.parquet", table)
        out = tmp_path / f"{name}.out.parquet"
        ran = encode(path, "--group-by", "key", "-o", out)
        assert ran.code == 0, ran.err
        assert read(out)["id"].to_pylist() == [text], name
        assert read(out)["n_rows"].to_pylist() == [2], name


def test_kept_columns_of_groups_keep_their_types_and_a_column_of_nan_is_no_column_of_several_values(
    encode, tmp_path
):
    names = [name for name in TYPES if name not in {"date64", "time32_s", "timestamp_s"}]
    whole = pa.table({name: TYPES[name][0] for name in names})
    table = pa.concat_tables([whole, whole]).append_column("patient", pa.array(["a", "b", "c"] * 2))
    path = write(tmp_path / "in.parquet", table.append_column("text", pa.array(["pain"] * 6)))
    ran = encode(path, "--group-by", "patient", *keep(names), "-o", tmp_path / "out.arrow")
    assert ran.code == 0, ran.err
    found = read(tmp_path / "out.arrow")
    assert [name for name in names if not same(found[name], read(path).slice(0, 3)[name])] == []
    assert "several values" not in ran.err
    ran = encode(path, "--group-by", "patient", *keep(names), "-o", tmp_path / "out.jsonl")
    rows = lines(tmp_path / "out.jsonl")
    assert {name: [row[name] for row in rows] for name in names} == {name: TYPES[name][1] for name in names}
    assert "column float64: NaN or infinite in 2 rows" in ran.err


def test_a_group_has_one_name_in_files_of_several_types_or_is_refused(encode, tmp_path):
    def files(*values):
        for at, of in enumerate(values):
            form = "csv" if isinstance(of[0], str) else "parquet"
            yield write(tmp_path / f"{at}.{form}", pa.table({"text": ["pain"] * len(of), "key": of}))

    out = tmp_path / "out.parquet"
    for values, names in [
        (([1], [1.0, 2.0]), ["1.0", "2.0"]),
        ((["1"], [1, 2]), ["1", "2"]),
        (([Decimal("1.5")], [Decimal("1.50")]), ["1.50"]),
    ]:
        ran = encode(*files(*values), "--group-by", "key", "-o", out, "--on-exists", "overwrite")
        assert ran.code == 0, ran.err
        assert read(out)["id"].to_pylist() == names
    for values in [(["1"], [1.0]), (["True"], [True]), ([2**53 + 1], [1.0])]:
        ran = encode(*files(*values), "--group-by", "key", "-o", out, "--on-exists", "overwrite")
        assert (ran.code, "one value may be two groups" in ran.err) == (3, True), ran.err


def test_rows_are_grouped_and_ordered_by_their_id(encode, embedkit_cli, bert, tmp_path):
    path = write(tmp_path / "in.csv", pa.table({"id": ["7", "10", "7"], "text": ["a", "b", "c"], "w": ["x"] * 3}))
    out = tmp_path / "out.parquet"
    assert encode(path, "--group-by", "id", "-o", out).code == 0
    assert read(out).select(["id", "n_rows"]).to_pydict() == {"id": ["10", "7"], "n_rows": [1, 2]}
    more = ("--group-by", "w", "--group-pool", "last", "--order-by", "id")
    assert encode(path, *more, "-o", tmp_path / "last.parquet").code == 0
    assert encode(path, "-o", tmp_path / "rows.parquet").code == 0
    rows = embedkit.read(tmp_path / "rows.parquet").vectors
    assert embedkit.read(tmp_path / "last.parquet").vectors[0] == pytest.approx(rows[1], abs=1e-6)
    for options in (("--group-by", "id"), more):
        assert embedkit_cli("plan", path, "-m", bert, *options).code == 0
    ran = encode(path, "--group-by", "id", "--id-column", "w", "-o", tmp_path / "other.parquet")
    assert (ran.code, "error: --group-by id: embedkit writes a column of that name" in ran.err) == (2, True)
    nulls = write(tmp_path / "nulls.jsonl", pa.table({"id": ["a", None], "text": ["a", "b"]}))
    ran = encode(nulls, "--group-by", "id", "-o", tmp_path / "nulls.parquet")
    assert (ran.code, "row 1 of" in ran.err and "no_group" in ran.err) == (3, True), ran.err


def test_rows_whose_group_is_nan_are_in_no_group(encode, tmp_path):
    path = write(tmp_path / "in.parquet", pa.table({"text": ["a", "b"], "key": pa.array([NAN, 2.0])}))
    assert encode(path, "--group-by", "key", "-o", tmp_path / "out.parquet").code == 3
    ran = encode(path, "--group-by", "key", "-o", tmp_path / "out.parquet", "--on-bad-row", "skip")
    assert ran.code == 0, ran.err
    assert read(tmp_path / "out.parquet")["id"].to_pylist() == ["2.0"]


@pytest.mark.parametrize(
    ("form", "values", "last"),
    [
        ("parquet", pa.array([NANO, NANO - 1, None]), 0),
        ("parquet", pa.array([2**64 - 1, 2**64 - 2, 0], pa.uint64()), 0),
        ("parquet", pa.array([Decimal("1.0000000000000000002"), Decimal("1.0000000000000000001"), None]), 0),
        ("parquet", pa.array([NANO, NANO - 1, None], pa.timestamp("ns")), 0),
        ("parquet", pa.array([LAST + 1, LAST, 0], pa.timestamp("s")), 0),
        ("parquet", pa.array([1, 2, None], pa.duration("ns")), 1),
        ("parquet", pa.array([1.5, NAN, -INF]), 0),
        ("parquet", pa.array([NAN, 1.5, None]), 1),
        ("parquet", pa.array([True, False, None]), 0),
        *((form, [str(NANO), str(NANO - 1), ""], 0) for form in ("parquet", "csv", "jsonl")),
        ("csv", ["10", "9", "1e0"], 0),
        ("csv", ["2", "2.0", "1"], 1),
        ("jsonl", [2**53 + 1, float(2**53), 1], 0),
        ("jsonl", [NANO, NANO - 1, None], 0),
        ("jsonl", [10, "9", 8.5], 0),
    ],
)
def test_the_last_row_of_a_group_is_the_largest_and_not_the_largest_double(encode, tmp_path, form, values, last):
    texts, path = ["fever", "cough", "pain"], tmp_path / f"in.{form}"
    if form == "jsonl":
        rows = ({"text": text, "key": "k", "at": value} for text, value in zip(texts, values, strict=True))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        write(path, pa.table({"text": texts, "key": ["k"] * 3, "at": values}))
    arguments = ("--group-by", "key", "--group-pool", "last", "--order-by", "at", "-o", tmp_path / "out.parquet")
    ran = encode(path, *arguments)
    assert ran.code == 0, ran.err
    assert encode(path, "-o", tmp_path / "rows.parquet").code == 0
    vectors = embedkit.read(tmp_path / "rows.parquet").vectors
    assert embedkit.read(tmp_path / "out.parquet").vectors[0] == pytest.approx(vectors[last], abs=1e-6)
    assert "ordered as text" not in ran.err


@pytest.mark.parametrize(("values", "last"), [(["nan", "5"], 0), (["1_0", "9"], 1), (["٣", "4"], 0)])
def test_an_order_in_which_some_values_are_no_numbers_is_that_of_texts_and_said(encode, tmp_path, values, last):
    path = write(tmp_path / "in.csv", pa.table({"text": ["fever", "cough"], "key": ["k"] * 2, "at": values}))
    more = ("--group-by", "key", "--group-pool", "last", "--order-by", "at")
    ran = encode(path, *more, "-o", tmp_path / "out.parquet")
    assert ran.code == 0, ran.err
    assert "--order-by at: not a number in 1 row, so all are ordered as text" in ran.err
    assert encode(path, "-o", tmp_path / "rows.parquet").code == 0
    vectors = embedkit.read(tmp_path / "rows.parquet").vectors
    assert embedkit.read(tmp_path / "out.parquet").vectors[0] == pytest.approx(vectors[last], abs=1e-6)


@pytest.mark.parametrize(
    ("values", "is_told"),
    [
        (["2020-01-09", "2020-01-10"], False),
        (["2020-01-09T23:00:00Z", "2020-01-10T00:00:00Z"], False),
        (["2020-01-09 23:00:00", "2020-01-10T00:00:00"], True),
        (["2020-1-9", "2020-1-10"], True),
        (["09/01/2020", "10/01/2019"], True),
        (["2020-01-01T00:00:00+09:00", "2019-12-31T20:00:00+00:00"], True),
        (["9:00", "10:00"], True),
    ],
)
def test_an_order_of_texts_that_may_not_be_that_of_times_is_said(encode, tmp_path, values, is_told):
    path = write(tmp_path / "in.csv", pa.table({"text": ["fever", "cough"], "key": ["k"] * 2, "at": values}))
    more = ("--group-by", "key", "--group-pool", "last", "--order-by", "at")
    ran = encode(path, *more, "-o", tmp_path / "out.parquet")
    assert ran.code == 0, ran.err
    assert ("--order-by at: ordered as text" in ran.err) == is_told
    assert not any(value in ran.err for value in values)


# Options and reading back --------------------------------------------------------------------------------


def test_a_column_that_is_named_twice_is_kept_once(encode, tmp_path):
    path = write(tmp_path / "in.csv", pa.table({"text": ["pain"], "a": ["1"], "b": ["2"]}))
    assert encode(path, *keep(["a", "a", "b", "text"]), "-o", tmp_path / "out.parquet").code == 0
    found = read(tmp_path / "out.parquet")
    assert found.column_names[:4] == ["id", "a", "b", "text"]
    assert found.select(["a", "b", "text"]).to_pylist() == [{"a": "1", "b": "2", "text": "pain"}]


@pytest.mark.parametrize("name", ["id", "n_tokens", "status", "embedding"])
def test_a_kept_column_with_a_name_of_our_own_is_refused(encode, tmp_path, name):
    path = write(tmp_path / "in.csv", pa.table({"text": ["pain"], name: ["1"]}))
    ran = encode(path, "--keep", name, "-o", tmp_path / "out.parquet")
    assert ran.code == 2
    assert f"--keep {name}: embedkit writes a column of that name" in ran.err


def test_json_lines_are_read_back_with_their_numbers_to_the_digit(encode, tmp_path):
    values = [10**30, 2**64 - 1, -(2**63), 0.1, None, [10**25], "1"]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": "pain", "k": value}) + "\n" for value in values))
    assert encode(path, "--keep", "k", "-o", tmp_path / "out.jsonl").code == 0
    assert [row["k"] for row in lines(tmp_path / "out.jsonl")] == values
    expected = [None if value is None else value if value == "1" else json.dumps(value) for value in values]
    assert embedkit.read(tmp_path / "out.jsonl").table["k"].to_pylist() == expected


@given(days=st.integers(-(2**31), 2**31 - 1))
def test_a_date_of_any_year_is_the_one_that_numpy_has(days):
    (text,) = json_values(pa.array([days], pa.int32()).cast(pa.date32()))
    year, month, day = re.fullmatch(r"([+-]?\d{4,})-(\d\d)-(\d\d)", text).groups()
    expected = re.fullmatch(r"(-?\d+)-(\d\d)-(\d\d)", str(np.datetime64(days, "D"))).groups()
    assert (int(year), month, day) == (int(expected[0]), *expected[1:])


@given(
    seconds=st.integers(-62_000_000_000, 253_000_000_000),
    zone=st.sampled_from(["UTC", "America/New_York", "Europe/Dublin", "+05:30"]),
)
def test_a_moment_in_a_zone_is_the_one_that_python_has_where_it_has_one(seconds, zone):
    array = pa.array([seconds], pa.timestamp("s", zone))
    assert json_values(array) == [array.to_pylist()[0].isoformat()]
