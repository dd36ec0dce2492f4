"""Damaged files: found by their hash, or parsed in a child process before they are parsed here."""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedkit
from embedkit.config import InputConfig
from embedkit.errors import InputError, OutputError, UsageError
from embedkit.output.inspect import inspect_output
from embedkit.sources import open_table
from embedkit.storage import parser_probe, parser_probe_child
from embedkit.storage.filesystem import sha256_of_file
from embedkit.storage.parser_probe import Prober, probe_file
from embedkit.types import Fault, Record
from embedkit.verify import verify_output
from tests.conftest import NOTES

FORMATS = ("parquet", "arrow", "npy", "jsonl")


@pytest.fixture(scope="module")
def outputs(bert, tmp_path_factory):
    """Returns the folder of finished outputs of ten rows: one file a format, and a folder a format."""
    from embedkit.cli import run

    folder = tmp_path_factory.mktemp("outputs")
    for form in FORMATS:
        for more in (["-o", f"{folder}/one.{form}"], ["-o", f"{folder}/{form}", "--output-format", form]):
            options = ["--limit", "10", "--shard-rows", "4", "--keep", "label", "--pool", "mean", "-q"]
            assert run(["encode", str(NOTES), "-m", str(bert), *more, *options]) == 0
    return folder


def read_all(path: Path) -> None:
    found = embedkit.read(path)
    _ = found.vectors, found.ids, found.table.to_pylist()


def string_offsets(path: Path, column: str) -> int:
    """Returns the position of the offsets of a column of strings in an Arrow file of one batch or more."""
    mapped = pa.memory_map(str(path))
    column_of_first = pa.ipc.open_file(mapped).get_batch(0).column(column)
    return column_of_first.buffers()[1].address - mapped.read_buffer(1).address


def flip(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("bit", [3, 7])  # too far by 128 MiB: outside of the file; and negative
def test_an_offset_beyond_its_column_is_an_error_and_not_the_end_of_the_process(outputs, tmp_path, bit):
    path = tmp_path / "o.arrow"
    shutil.copy(outputs / "one.arrow", path)
    flip(path, string_offsets(path, "status") + 4 + 3, bit)
    assert [problem.path for problem in verify_output(path).problems] == ["o.arrow"]
    for opens in (inspect_output, read_all):
        with pytest.raises(OutputError, match="is damaged"):
            opens(path)


def test_a_column_of_another_type_is_damage_and_not_a_fault_of_embedkit(outputs, tmp_path):
    path = tmp_path / "o.parquet"
    table = pq.read_table(outputs / "one.parquet")
    place = table.column_names.index("embedding")
    lists = table["embedding"].cast(pa.list_(pa.field("element", pa.float32(), nullable=False)))
    pq.write_table(table.set_column(place, "embedding", lists), path)
    assert "its column 'embedding' is list<" in verify_output(path).problems[0].what
    for opens in (inspect_output, read_all):
        with pytest.raises(OutputError, match="its column 'embedding' is list<"):
            opens(path)


def test_the_shape_in_an_array_s_header_is_compared_with_its_rows(outputs, tmp_path):
    for name in ("one.npy", "one.metadata.parquet"):
        shutil.copy(outputs / name, tmp_path / name)
    array = np.load(tmp_path / "one.npy")
    for wrong in (array.view(np.int32), array[:-1], np.asfortranarray(array), array[:, :7]):
        np.save(tmp_path / "one.npy", wrong)
        with pytest.raises(OutputError, match=r"one\.npy is (damaged: its header says|not the array that)"):
            _ = embedkit.read(tmp_path / "one.npy").vectors


PARSERS = (
    *("pyarrow.parquet.read_schema", "pyarrow.parquet.ParquetFile", "pyarrow.parquet.read_table"),
    *("pyarrow.ipc.open_file", "numpy.load", "embedkit.output.formats.jsonl_format.parse_line"),
)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("opens", [inspect_output, read_all], ids=["inspect", "read"])
def test_a_shard_s_hash_is_checked_before_it_is_parsed(form, opens, outputs, tmp_path, monkeypatch):
    folder = tmp_path / "o"
    shutil.copytree(outputs / form, folder)
    for parser in PARSERS:
        monkeypatch.setattr(parser, None)
    for file in json.loads((folder / "commits/00000.json").read_bytes())["files"]:
        path = folder / file["path"]
        flip(path, file["bytes"] - 40, 0)
        with pytest.raises(OutputError, match=r"part-00000\.\w+ is damaged: its SHA-256"):
            opens(folder)
        flip(path, file["bytes"] - 40, 0)


def test_reading_without_the_check_reads_each_file_once(outputs, monkeypatch):
    hashes = {"plan.json": sha256_of_file}  # of no other file
    for name in ("parquet", "one.parquet", "one.arrow"):
        expected = embedkit.read(outputs / name).vectors
        with monkeypatch.context() as patched:
            patched.setattr("embedkit.output.open.sha256_of_file", lambda path: hashes[path.name](path))
            patched.setattr("embedkit.output.safe_reading.probe_file", None)
            np.testing.assert_array_equal(embedkit.read(outputs / name, check=False).vectors, expected)


# Where in the whole are flips that each reader meets: descriptions at the ends, pages and buffers between.
@pytest.mark.parametrize("form", FORMATS)
def test_a_flipped_bit_anywhere_is_an_answer_or_an_error_of_one_line(form, outputs, tmp_path):
    for path in outputs.glob("one.*"):
        shutil.copy(path, tmp_path / path.name)
    given, pick, messages = tmp_path / f"one.{form}", random.Random(form), []
    for name in ("one.npy", "one.metadata.parquet") if form == "npy" else (f"one.{form}",):
        path = tmp_path / name
        content = path.read_bytes()
        for _ in range(30):
            flip(path, pick.randrange(len(content)), pick.randrange(8))
            verify_output(given)
            for opens in (inspect_output, read_all):
                try:
                    opens(given)
                except OutputError as error:
                    messages.append(error.message)
            path.write_bytes(content)
    assert messages
    assert not any("\n" in sentence for sentence in messages)


def a_child(tmp_path: Path, then: str) -> Prober:
    """Returns a prober whose child answers that it is ready, and does something else with the first file."""
    script = tmp_path / "child.py"
    ready = "import sys\nsys.stdin.readline()\nprint('ready', flush=True)\nsys.stdin.readline()\n"
    script.write_text(f"{ready}{then}\n", encoding="utf-8")
    return Prober(script)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("then", "fault"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the parser crashes with SIGSEGV"),
        ("import os; os.abort()", "the parser crashes with SIGABRT"),
        ("import os; os._exit(3)", "the parser ends with exit code 3"),
        (
            "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 9))\nwhile True: pass",
            "the parser does not end",
        ),
    ],
)
def test_a_child_that_dies_over_a_file_is_a_finding(tmp_path, then, fault):
    assert a_child(tmp_path, then).probe_file(tmp_path / "x.parquet", "parquet") == fault


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_file_that_kills_the_parser_is_reported_by_verify_inspect_read_and_encode(
    outputs, tmp_path, monkeypatch, bert
):
    crash = "the parser crashes with SIGSEGV"
    path = tmp_path / "o.parquet"
    shutil.copy(outputs / "one.parquet", path)
    monkeypatch.setattr("embedkit.output.safe_reading.probe_file", lambda *_, **__: crash)
    assert crash in verify_output(path).problems[0].what
    for opens in (inspect_output, read_all):
        with pytest.raises(OutputError, match=crash):
            opens(path)
    monkeypatch.setattr("embedkit.sources.columnar.probe_file", lambda *_, **__: crash)
    with pytest.raises(InputError, match="cannot be read as parquet"):
        open_table(InputConfig((str(path),), text_columns=("label",)))


def test_a_child_that_ended_because_it_was_idle_is_started_again(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    script = Path(parser_probe_child.__file__).read_text(encoding="utf-8")
    assert "_IDLE = 20" in script
    (tmp_path / "child.py").write_text(script.replace("_IDLE = 20", "_IDLE = 0.1"), encoding="utf-8")
    prober = Prober(tmp_path / "child.py")
    assert prober.probe_file(tmp_path / "a.parquet", "parquet") is None
    first = prober._child
    assert first.wait(10) == 0
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not really PAR1")
    assert prober.probe_file(tmp_path / "b.parquet", "parquet") == "ArrowInvalid"
    assert prober._child is not first
    prober.close()


@pytest.mark.parametrize("place", [0, 1], ids=["it starts", "it parses"])
def test_a_reply_that_an_interrupted_request_did_not_read_is_not_taken_for_the_next_file(
    place, tmp_path, monkeypatch
):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not really PAR1")
    prober, asked, calls = Prober(), parser_probe._exchange, []

    def stopped(child, line, data):
        calls.append(line)
        if len(calls) <= place:
            return asked(child, line, data)
        child.stdin.write(line)
        child.stdin.flush()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(parser_probe, "_exchange", stopped)
        with pytest.raises(KeyboardInterrupt):
            prober.probe_file(tmp_path / "b.parquet", "parquet")
    assert prober.probe_file(tmp_path / "a.parquet", "parquet") is None
    assert prober.probe_file(tmp_path / "b.parquet", "parquet") == "ArrowInvalid"
    prober.close()


def test_where_no_child_can_be_started_files_are_parsed_here(tmp_path, outputs, monkeypatch):
    monkeypatch.setattr("embedkit.storage.parser_probe._PROBER", Prober(tmp_path / "nothing.py"))
    read_all(outputs / "one.parquet")
    monkeypatch.setattr("sys.executable", "")
    assert Prober().probe_file(outputs / "one.parquet", "parquet") is None


def test_a_missing_file_or_one_in_memory_is_no_fault(tmp_path):
    assert probe_file(tmp_path / "gone.parquet", "parquet") is None
    pq.write_table(pa.table({"a": ["x"] * 3}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    assert probe_file(data, "parquet") is None
    assert probe_file(memoryview(data[:-9]), "parquet") == "ArrowInvalid"


def test_the_child_reports_no_content_of_a_file(tmp_path):
    path = tmp_path / "t.arrow"
    table = pa.table({"text": ["Jane Doe has a cold"] * 3})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    flip(path, string_offsets(path, "text") + 4 + 3, 3)
    request = {"path": str(path), "bytes": 0, "format": "arrow", "part": "all", "without": []}
    ran = subprocess.run(
        [sys.executable, "-I", parser_probe_child.__file__],
        input=f"{json.dumps(sys.path)}\n{json.dumps(request)}\n".encode(),
        capture_output=True,
        check=True,
    )
    assert json.loads(ran.stdout.splitlines()[1]) == {"fault": "ArrowInvalid"}
    assert b"Jane" not in ran.stdout + ran.stderr


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("compressed", [False, True], ids=["file", "gz"])
def test_a_flipped_bit_in_an_input_is_rows_or_an_input_error(form, compressed, tmp_path):
    table = pa.table({"id": ["a", "b", "c"], "text": ["one", None, "three"], "n": [1, 2, None]})
    path = tmp_path / f"t.{form}"
    if form == "parquet":
        pq.write_table(table, path, write_page_checksum=True)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    content, pick, messages = path.read_bytes(), random.Random(0), []
    given = tmp_path / f"t.{form}.gz" if compressed else path
    for _ in range(30):
        flip(path, pick.randrange(len(content)), pick.randrange(8))
        if compressed:
            given.write_bytes(gzip.compress(path.read_bytes(), 1))
        try:
            found = list(open_table(InputConfig((str(given),), text_columns=("text",))).records())
            assert all(isinstance(item, Record | Fault) for item in found)
        except InputError as error:
            messages.append(error.message)
        path.write_bytes(content)
    assert messages
    assert not any("\n" in sentence for sentence in messages)


@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
@pytest.mark.parametrize("piped", [False, True], ids=["named", "piped"])
def test_an_arrow_input_with_an_offset_beyond_its_column_is_refused(stream, piped, tmp_path):
    path = tmp_path / "t.arrow"
    table = pa.table({"text": ["one", "two", "three"]})
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(path, table.schema) as writer:
        writer.write_table(table)
    content = bytearray(path.read_bytes())
    offsets = content.index(np.array([0, 3, 6, 11], np.int32).tobytes())
    content[offsets + 4 + 3] ^= 8
    path.write_bytes(content)
    config = InputConfig(("-" if piped else str(path),), format="arrow", text_columns=("text",))
    with pytest.raises(InputError, match="cannot be read as arrow"):
        list(open_table(config, stdin=io.BytesIO(content) if piped else None).records())


def test_a_row_that_is_not_utf8_is_a_bad_row_and_no_damage(tmp_path):
    path = tmp_path / "t.arrow"
    texts = pa.array([b"one", b"\xff", b"three"]).view(pa.string())
    with pa.ipc.new_file(path, pa.schema({"text": pa.string()})) as writer:
        writer.write_batch(pa.record_batch({"text": texts}))
    found = list(open_table(InputConfig((str(path),))).records())
    assert [item.code if isinstance(item, Fault) else item.text for item in found] == ["one", "not_utf8", "three"]


def test_a_limit_leaves_the_rest_of_an_input_alone(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["x"] * 40, "other": ["y"] * 40}), path, row_group_size=10)
    asked = []

    def probed(*arguments: object, **options: object) -> None:
        asked.append((options["part"], sorted(options["without"])))

    monkeypatch.setattr("embedkit.sources.columnar.probe_file", probed)
    found = list(open_table(InputConfig((str(path),), limit=15)).records())
    assert len(found) == 15
    assert [part for part in asked if part[0] != "none"] == [(0, ["other"]), (1, ["other"])]


MISSING = [embedkit.read, inspect_output, verify_output]


@pytest.mark.parametrize("opens", MISSING)
def test_a_missing_output_is_reported_with_similar_names(opens, outputs, tmp_path):
    for name, near in {"one.parqet": "one.parquet", "ones.npy": "one.npy", "parqett": "parquet"}.items():
        with pytest.raises(OutputError) as caught:
            opens(outputs / name)
        assert f"{name} does not exist" in caught.value.message
        assert str(outputs / near) in caught.value.hint
        assert f"does not exist (hint: did you mean {outputs}" in str(caught.value)
    with pytest.raises(OutputError, match="does not exist") as caught:
        opens(tmp_path / "no" / "such.parquet")
    assert "there is no folder" in caught.value.hint
    with pytest.raises(OutputError, match="does not exist") as caught:
        opens(tmp_path / "missing.csv")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "gone.parquet")
    with pytest.raises(OutputError, match=r"is a link to .*gone\.parquet, which does not exist"):
        opens(tmp_path / "link.parquet")


def test_read_takes_a_str_or_a_path(outputs):
    assert embedkit.read(str(outputs / "one.parquet")).ids == embedkit.read(outputs / "one.parquet").ids
    for wrong in (None, 7, b"one.parquet", pa.table({})):
        with pytest.raises(UsageError, match="path cannot be a"):
            embedkit.read(wrong)
