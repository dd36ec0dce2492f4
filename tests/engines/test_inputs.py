"""What becomes of inputs that could be lost, doubled or written over: the command line on odd tables."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedkit
from embedkit.cli import run
from tests.conftest import Ran
from tests.sources.helpers import zstd

Cli = Callable[..., Ran]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stdin_of(data: bytes) -> Any:
    return io.TextIOWrapper(io.BytesIO(data))


# Outputs among the inputs, and inputs among the outputs ---------------------------------------------------


@pytest.mark.parametrize("form", ["parquet", "arrow", "jsonl", "npy"])
def test_what_embedkit_wrote_into_a_folder_is_not_read_from_it(encode: Cli, here: Path, form: str) -> None:
    (here / "data").mkdir()
    (here / "data/a.csv").write_text("id,text\n1,fine\n2\n")
    options = ("--keep", "text", "--on-bad-row", "skip")
    assert encode("data", *options, "-o", f"data/own.{form}").code == 0
    assert (here / "data/own.rejects.jsonl").exists()
    for typed in ("data", "data/*.[!n]*"):
        ran = encode(typed, *options, "-o", "o.parquet", "--on-exists", "overwrite")
        assert (ran.code, embedkit.read("o.parquet").ids) == (0, ["1"])
        assert f"{typed}: left out 2 files that embedkit wrote" in ran.err


def test_an_output_that_is_named_is_read_with_a_word(encode: Cli, here: Path) -> None:
    (here / "a.csv").write_text("id,text\n1,fine\n")
    encode("a.csv", "--keep", "text", "-o", "own.parquet")
    ran = encode("own.parquet", "-o", "o.parquet")
    assert ran.code == 0
    assert "own.parquet was written by embedkit; it is read because you named it" in ran.err


@pytest.fixture
def table(here: Path) -> bytes:
    """Writes a table under many names, and returns its bytes."""
    for folder in ("out/embeddings", "o.parquet.partial", "o.parquet.rows.partial", "sweep/vectors", "linked"):
        (here / folder).mkdir(parents=True)
    pq.write_table(pa.table({"id": ["1", "2"], "text": ["a b", "c"], "label": ["x", "y"]}), here / "in.parquet")
    data = (here / "in.parquet").read_bytes()
    others = ("out/embeddings/t", "o.parquet.partial/t", "o.parquet.rows.partial/t", "x.metadata", "sweep/results")
    for name in (*others, "sweep/vectors/t"):
        (here / f"{name}.parquet").write_bytes(data)
    (here / "o.rejects.jsonl").write_text('{"id": "1", "text": "a b", "label": "x"}\n')
    (here / "spans.parquet").write_bytes(data)
    (here / "out/plan.json").write_text("{}")
    (here / "hard.parquet").hardlink_to("in.parquet")
    (here / "soft.parquet").symlink_to("in.parquet")
    (here / "linked/here").symlink_to("..")
    return data


@pytest.mark.parametrize(
    ("read", "options"),
    [
        ("in.parquet", ("-o", "in.parquet")),
        ("./in.parquet", ("-o", "linked/here/in.parquet")),
        ("in.parquet", ("-o", "hard.parquet")),
        ("in.parquet", ("-o", "soft.parquet")),
        ("soft.parquet", ("-o", "in.parquet")),
        ("[hi]*.parquet", ("-o", "in.parquet")),
        ("o.rejects.jsonl", ("-o", "o.parquet")),
        ("x.metadata.parquet", ("-o", "x.npy")),
        ("o.parquet.partial/t.parquet", ("-o", "o.parquet")),
        ("out/embeddings/t.parquet", ("-o", "out")),
        ("in.parquet", ("-o", "in.parquet", "--group-by", "label")),
        ("out/embeddings/t.parquet", ("-o", "out", "--group-by", "label")),
        ("o.parquet.rows.partial/t.parquet", ("-o", "o.parquet", "--group-by", "label")),
    ],
)
@pytest.mark.parametrize("on_exists", ["overwrite", "resume"])
def test_an_output_never_replaces_what_is_read(
    encode: Cli, here: Path, table: bytes, read: str, options: tuple[str, ...], on_exists: str
) -> None:
    before = sorted(here.rglob("*"))
    ran = encode(read, *options, "--on-exists", on_exists)
    assert (ran.code, "the output would replace" in ran.err) == (2, True), ran.err
    assert sorted(here.rglob("*")) == before
    for path in before:
        assert path.suffix != ".parquet" or path.is_dir() or path.read_bytes() == table


def test_a_file_of_spans_is_an_input_too(encode: Cli, here: Path, table: bytes) -> None:
    spans = pa.table({"id": ["1"], "start": [0], "end": [1]})
    pq.write_table(spans, here / "spans.parquet")
    ran = encode("in.parquet", "--spans", "spans.parquet", "-o", "spans.parquet", "--on-exists", "overwrite")
    assert ran.code == 2
    assert pq.read_table("spans.parquet").equals(spans)


@pytest.mark.parametrize("read", ["sweep/results.parquet", "sweep/vectors/t.parquet"])
def test_a_sweep_never_replaces_what_it_reads(
    embedkit_cli: Cli, bert: Path, here: Path, table: bytes, read: str
) -> None:
    ran = embedkit_cli("sweep", read, "-m", bert, "--label", "label", "-o", "sweep", "--on-exists", "overwrite")
    assert (ran.code, (here / read).read_bytes()) == (2, table), ran.err


def test_a_fit_never_replaces_a_model_s_weights_or_its_input(
    embedkit_cli: Cli, bert: Path, here: Path, table: bytes
) -> None:
    weights = next(bert.glob("*.safetensors"))
    before = weights.read_bytes()
    ran = embedkit_cli("fit", "in.parquet", "-m", bert, "--pooler", "idf", "-o", weights, "--overwrite")
    assert (ran.code, weights.read_bytes() == before) == (2, True), ran.err
    (here / "t.safetensors").write_text("id,text\n1,a\n")
    options = ("--format", "csv", "-m", bert, "--pooler", "idf", "-o", "t.safetensors", "--overwrite")
    assert embedkit_cli("fit", "t.safetensors", *options).code == 2
    assert (here / "t.safetensors").read_text() == "id,text\n1,a\n"


def test_a_report_never_replaces_what_it_shows(encode: Cli, embedkit_cli: Cli, here: Path) -> None:
    (here / "a.csv").write_text("text\nfine\n")
    encode("a.csv", "-o", "own.parquet")
    before = (here / "own.parquet").read_bytes()
    ran = embedkit_cli("report", "own.parquet", "-o", "own.parquet", "--on-exists", "overwrite")
    assert (ran.code, (here / "own.parquet").read_bytes() == before) == (2, True)


# Rows that are lost, and names that nobody gave ----------------------------------------------------------


@pytest.mark.parametrize(
    ("pack", "out"),
    [
        (gzip.compress, "-"),
        (gzip.compress, "o.parquet"),
        (bz2.compress, "o"),
        (lzma.compress, "o.parquet"),
        (zstd.compress, "o"),
    ],
)
def test_damage_late_in_a_compressed_stdin_is_an_error_and_no_whole_output(
    encode: Cli, here: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes], out: str
) -> None:
    first = pack(b"".join(b'{"text": "row %d"}\n' % row for row in range(200)))
    second = pack(b'{"text": "last"}\n')
    for damaged in (second[:-3], b"\x01" + second[1:]):
        monkeypatch.setattr(sys, "stdin", stdin_of(first + damaged))
        ran = encode("-", "-o", out, "--shard-rows", 100, "--on-exists", "overwrite")
        assert (ran.code, "damaged" in ran.err or "cut off" in ran.err) == (3, True), ran.err
        assert not (here / "o/manifest.json").exists()
        assert not (here / "o.parquet").exists()


def test_one_bad_byte_is_one_reject_and_the_other_rows_are_there(encode: Cli, here: Path) -> None:
    (here / "t.csv").write_bytes(b"id,text\n1,fine\n2,caf\xe9\n3,well\n")
    ran = encode("t.csv", "-o", "o.parquet")
    assert (ran.code, "row 1 of t.csv (not_utf8, byte 15)" in ran.err, "iconv" in ran.err) == (3, True, True)
    assert encode("t.csv", "-o", "o.parquet", "--on-bad-row", "skip").code == 0
    assert embedkit.read("o.parquet").ids == ["1", "3"]
    rejects = [json.loads(line) for line in (here / "o.rejects.jsonl").read_text().splitlines()]
    assert rejects == [{"row": 1, "file": "t.csv", "offset": 15, "code": "not_utf8"}]


@pytest.mark.parametrize(
    ("data", "code", "option"),
    [
        ('id\ttext\n1\t"Pain\n2\tno\n3\tMonday"\n4\tfine\n', "lines_and_tabs_in_quotes", "--quoting none"),
        ('id\ttext\n1\t"Pain\n2\tno\n', "a quote that is never closed", "--quoting none"),
        ('id\ttext\n1\t"Pain" since\n', "text after a closing quote", "--quoting none"),
    ],
)
def test_quotes_that_merge_rows_of_tsv_are_refused_with_the_way_out(
    encode: Cli, here: Path, data: str, code: str, option: str
) -> None:
    (here / "t.tsv").write_text(data)
    ran = encode("t.tsv", "-o", "o.parquet")
    assert (ran.code, code in ran.err, option in ran.err) == (3, True, True), ran.err
    assert encode("t.tsv", "-o", "o.parquet", "--quoting", "none", "--keep", "text").code == 0
    written = [line.split("\t")[1] for line in data.splitlines()[1:]]
    assert embedkit.read("o.parquet").table.column("text").to_pylist() == written


def test_quotes_inside_cells_are_counted_in_a_note(
    encode: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = 'id,text\n1,6" tall\n2,fine\n'
    (here / "t.csv").write_text(data)
    note = "note: 1 row has a quote inside an unquoted cell, first row 0 of"
    assert f"{note} t.csv" in encode("t.csv", "-o", "o.parquet").err
    monkeypatch.setattr(sys, "stdin", stdin_of(data.encode()))
    assert f"{note} -" in encode("-", "--format", "csv", "-o", "p.parquet").err


def test_how_a_table_is_split_is_part_of_a_run_and_of_its_check(
    encode: Cli, embedkit_cli: Cli, bert: Path, here: Path
) -> None:
    (here / "t.csv").write_text('id;text\n1;"a\n2;b, c"\n')
    options = ("--delimiter", ";", "--quoting", "none")
    assert encode("t.csv", "-o", "o", *options, "--shard-rows", 1).code == 0
    (here / "o/manifest.json").unlink()
    assert encode("t.csv", "-o", "o", "--delimiter", ";", "--shard-rows", 1, "--on-exists", "resume").code == 5
    assert encode("t.csv", "-o", "o", *options, "--shard-rows", 1, "--on-exists", "resume").code == 0
    assert encode("t.csv", "-o", "o.parquet", *options).code == 0
    assert embedkit_cli("verify", "o", "-m", bert, "--resample", 2).code == 0
    assert embedkit_cli("verify", "o.parquet", "-m", bert, "--resample", 2, "--input", "t.csv").code == 0


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", "Pt has flu\nPt fell\n"),
        ("t.csv", "fever\ncough\n"),
        ("t.csv", '{"text":"Pt has flu"}\n'),
        ("t.csv", "Ann Example,1945-03-02,Pt has flu\n"),
        ("t.tsv", "101\tAnn Example\tPt has flu\n"),
        ("t.jsonl", '{"Ann Example": "Pt has flu"}\n'),
        ("t.jsonl", '{"Pt has flu": "x"}\n'),
    ],
)
@pytest.mark.parametrize("command", ["encode", "plan", "fit", "sweep"])
@pytest.mark.parametrize("named", [(), ("--text-column", "text"), ("--template", "{text}")])
def test_a_patient_s_row_in_the_place_of_a_header_reaches_nothing(
    embedkit_cli: Cli, bert: Path, here: Path, name: str, data: str, command: str, named: tuple[str, ...]
) -> None:
    (here / "in").mkdir()
    (here / "in" / name).write_text(data)
    options = {
        "encode": ("--keep", "label", "-o", "out", "-v"),
        "plan": ("--keep", "label", "--json"),
        "fit": ("--pooler", "mean", "--label", "label", "-o", "out.safetensors"),
        "sweep": ("--label", "label", "-o", "out"),
    }[command]
    for extra in (options, options[2:] if command in {"encode", "plan"} else options):
        ran = embedkit_cli(command, f"in/{name}", "-m", bert, *named, *extra)
        assert ran.code == 3, ran.err
        made = [path.read_bytes() for path in here.rglob("*") if path.is_file() and path.parent.name != "in"]
        for cell in ("Pt", "flu", "fever", "Ann", "1945"):
            assert not any(cell.encode() in told for told in (ran.out.encode(), ran.err.encode(), *made)), ran.err


def test_a_closed_stdin_is_an_input_error(encode: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    ran = encode("-", "--format", "jsonl", "-o", "o.parquet")
    assert (ran.code, ran.told[0]) == (3, "error: stdin is closed, so no rows can be read")


def test_a_stdin_that_cannot_be_read_is_an_input_error(
    encode: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = os.open(here / "t", os.O_CREAT | os.O_WRONLY)
    with os.fdopen(descriptor, "rb") as binary, io.TextIOWrapper(binary) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        ran = encode("-", "--format", "jsonl", "-o", "o.parquet")
    assert (ran.code, ran.told[0]) == (3, "error: stdin: Bad file descriptor")


def test_an_input_whose_name_is_not_utf8_is_encoded_and_reported(encode: Cli, here: Path) -> None:
    name = os.fsdecode(b"caf\xe9.csv")
    (here / name).write_text("id,text\n1,fine\n2\n")
    assert encode(name, "-o", "o", "--on-bad-row", "null").code == 0
    plan = json.loads((here / "o/plan.json").read_text())
    assert plan["input"]["files"][0]["name"] == "caf\\xe9.csv"
    assert '"file": "caf\\\\xe9.csv"' in (here / "o/rejects/part-00000.jsonl").read_text()
    assert run(["verify", "o"]) == 0
