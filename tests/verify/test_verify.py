"""`embedkit verify` finds whatever is not as it was written, and `--on-exists resume --verify` mends it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.torture.bitflips import FORMATS, finished, misses
from embedkit.errors import OutputError
from embedkit.storage.checksummed_json import dump_checksummed, load_checksummed, load_json
from embedkit.verify import verify_output
from tests.conftest import NOTES
from tests.output.shards import vector_page

PART, RECORD = "embeddings/part-00001.parquet", "commits/00001.json"


@pytest.fixture(scope="module")
def folders(bert, one_thread, tmp_path_factory):
    """By format: a finished folder of three shards, with an empty row and one that cannot be read."""
    root = tmp_path_factory.mktemp("finished")
    return {form: finished(bert, root / form, form) for form in FORMATS}


@pytest.fixture
def out(folders, tmp_path) -> Path:
    """Returns a copy of the Parquet folder, to be damaged."""
    return shutil.copytree(folders["parquet"], tmp_path / "out")


def told(out: Path) -> list[str]:
    return [str(problem) for problem in verify_output(out).problems]


def change(path: Path, **values: object) -> None:
    """Changes a file and its checksum, as only someone could who means to."""
    content = load_checksummed(path.read_bytes())
    path.write_bytes(dump_checksummed({**content, **values}))


def reseal_files(out: Path) -> None:
    """Writes the present size and hash of its file into record 1."""
    data = (out / PART).read_bytes()
    files = [{"path": PART, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}]
    change(out / RECORD, files=files)


# Bits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_any_single_bit_that_flips_in_a_folder_is_found_and_its_file_named(folders, tmp_path, form):
    out = shutil.copytree(folders[form], tmp_path / "out")
    assert told(out) == []
    assert any((out / "rejects").iterdir())
    assert list(misses(out, 100, seed=1)) == []


def test_every_bit_of_a_sealed_file_is_covered():
    data = dump_checksummed({"rows": 3, "names": ["é", 'a "b"', None]}, indent=2)
    assert load_checksummed(data) == {"rows": 3, "names": ["é", 'a "b"', None]}
    for place in range(8 * len(data)):
        other_casing = bytearray(data)
        other_casing[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError):  # noqa: PT011 - whichever: the seal, UTF-8, JSON
            load_checksummed(bytes(other_casing))


def test_the_seal_is_the_hash_of_the_bytes_before_its_line():
    data = dump_checksummed({"rows": 3})
    body, _, line = data.rpartition(b",\n")
    assert line == b'"sha256": "%s"}\n' % hashlib.sha256(body).hexdigest().encode()
    assert json.loads(data)["rows"] == 3
    assert load_json(b'{"rows": 3}') == {"rows": 3}


# Files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "problems"),
    [
        (lambda out: (out / PART).unlink(), [f"{PART}: is missing"]),
        (lambda out: os.truncate(out / PART, 1000), [f"{PART}: has 1,000 bytes, and its record says"]),
        (
            lambda out: (out / RECORD).unlink(),
            [f"{RECORD}: is missing: the shard is not done", "manifest.json: counts", f"{PART}: is in no record"],
        ),
        (
            lambda out: (out / "manifest.json").unlink(),
            ["manifest.json: is missing: the run is not finished"],
        ),
        (lambda out: (out / "plan.json").unlink(), ["plan.json: is missing"]),
        (lambda out: (out / "embeddings/notes.txt").write_text(""), ["embeddings/notes.txt: is in no record"]),
        (
            lambda out: (out / PART).rename(out / "x") and (out / PART).symlink_to(out / "x"),
            [f"{PART}: is missing", f"{PART}: is a link", "x: is in no record"],
        ),
        (
            lambda out: shutil.copy(out / "embeddings/part-00000.parquet", out / PART),
            [f"{PART}: "],
        ),
        (
            lambda out: shutil.copy(out / "commits/00000.json", out / RECORD),
            [
                f"{RECORD}: is the record of shard 0",
                f"{PART}: is in no record",
                "manifest.json: its records_sha256",
            ],
        ),
        (lambda out: change(out / RECORD, rows=8), [f"{RECORD}: 7 rows in are not"]),
        (lambda out: change(out / RECORD, start=6), [f"{RECORD}: has the rows 6 to 14, and the plan's shard"]),
        (lambda out: change(out / RECORD, files=[]), [f"{RECORD}: does not list the files", f"{PART}: is in no"]),
        (
            lambda out: change(out / "plan.json", fingerprint="f00d"),
            ["plan.json: its fingerprint", "manifest.json: its plan_sha256", f"{PART}: is by another recipe"],
        ),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) else "",
)
def test_what_is_not_as_it_was_written_is_told_by_its_file(out, damage, problems):
    damage(out)
    found = told(out)
    for problem in problems:
        assert any(line.startswith(problem) for line in found), found


def test_what_a_killed_run_left_is_a_note_and_no_fault(out):
    from embedkit.storage.atomic import temporary_name

    (out / "embeddings" / temporary_name("part-00001.parquet")).write_bytes(b"half")
    found = verify_output(out)
    assert found.problems == []
    assert "killed" in str(found.notes[0])


# Rows, where all hashes are right --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda table: table.slice(1), "holds 6 rows, and its record says 7"),
        (lambda table: table.take(list(range(6, -1, -1))), "its ids are not the numbers of its rows"),
        (
            lambda table: table.set_column(
                table.schema.get_field_index("n_used"),
                table.schema.field("n_used"),
                pa.array([1] * table.num_rows, pa.int32()),
            ),
            "its receipts do not add up",
        ),
    ],
    ids=["a row lost", "reordered", "another receipt"],
)
def test_rows_that_contradict_the_record_are_found_by_reading_them(encode, tmp_path, edit, problem):
    out = tmp_path / "out"
    table = tmp_path / "notes.txt"  # no ids: they are the numbers of the rows
    table.write_text("".join(f"note {n} of a day\n" for n in range(20)))
    assert encode(table, "-o", out, "--shard-rows", 7).code == 0
    assert told(out) == []
    pq.write_table(edit(pq.read_table(out / PART)), out / PART, write_page_checksum=True)
    reseal_files(out)
    assert any(line.startswith(f"{PART}: {problem}") for line in told(out)), told(out)


def test_a_number_that_is_not_finite_is_found(encode, tmp_path):
    out = tmp_path / "out"
    assert encode(NOTES, "-o", out, "--limit", 5, "--output-format", "npy").code == 0
    name = "embeddings/part-00000.npy"
    vectors = np.load(out / name, allow_pickle=False)
    vectors[2, 3] = np.inf
    np.save(out / name, vectors, allow_pickle=False)
    record = load_checksummed((out / "commits/00000.json").read_bytes())
    record["files"][0] |= {
        "bytes": (out / name).stat().st_size,
        "sha256": hashlib.sha256((out / name).read_bytes()).hexdigest(),
    }
    (out / "commits/00000.json").write_bytes(dump_checksummed(record))
    assert f"{name}: holds a number that is not finite" in told(out)


# The command -----------------------------------------------------------------------------------------


def test_a_sound_output_is_one_line_and_0(embedkit_cli, folders):
    ran = embedkit_cli("verify", folders["parquet"])
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{folders['parquet']}: as it was written: 20 rows, 19 vectors, ")
    assert len(ran.out.splitlines()) == 1


def test_a_damaged_output_is_5_with_a_line_a_file_and_the_way_out(embedkit_cli, out):
    (out / PART).unlink()
    os.truncate(out / "embeddings/part-00002.parquet", 99)
    ran = embedkit_cli("verify", out)
    assert ran.code == 5
    assert [line.split(":")[0] for line in ran.out.splitlines()] == [PART, "embeddings/part-00002.parquet"]
    error, hint = ran.err.splitlines()
    assert error == f"error: {out} is not as it was written: 2 faults"
    assert "--on-exists resume --verify" in hint


@pytest.mark.parametrize("name", ["nothing", "foreign", "table.csv"])
def test_what_embedkit_did_not_write_is_refused(embedkit_cli, tmp_path, name):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/notes.txt").write_text("mine")
    (tmp_path / "table.csv").write_text("text\na\n")
    ran = embedkit_cli("verify", tmp_path / name)
    assert (ran.code, len(ran.err.splitlines())) == (5, 2), ran.err


@pytest.mark.parametrize("form", FORMATS)
def test_a_single_file_is_held_against_what_it_says_of_itself(encode, embedkit_cli, tmp_path, form):
    out = tmp_path / f"out.{form}"
    assert encode(NOTES, "-o", out).code == 0
    ran = embedkit_cli("verify", out)
    assert ran.code == 0, ran.out
    assert "66 vectors" in ran.out
    assert (form == "parquet") == ("has no checksums" not in ran.err)
    os.truncate(out, out.stat().st_size - 100)
    assert embedkit_cli("verify", out).code == 5


def test_a_flipped_bit_in_a_page_of_a_parquet_file_is_found(encode, tmp_path):
    out = tmp_path / "out.parquet"
    assert encode(NOTES, "-o", out).code == 0
    _, stop = vector_page(out, "embedding")
    data = bytearray(out.read_bytes())
    data[stop - 9] ^= 1
    out.write_bytes(data)
    assert ["page checksum" in line for line in told(out)] == [True]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "options",
    [
        ("--layers", "1,2", "--layer-agg", "separate", "--pool", "cls,mean"),
        ("--precision", "int8"),
        ("--precision", "binary"),
        ("--precision", "float16", "--keep", "label"),
        ("--pool", "none", "--limit", "9"),
        ("--limit", "0"),
    ],
    ids=" ".join,
)
def test_what_encode_writes_is_sound_whatever_is_in_it(encode, tmp_path, form, options):
    if form == "npy" and "none" in options:
        pytest.skip("npy holds no token vectors")
    folder, file = tmp_path / "out", tmp_path / f"out.{form}"
    assert encode(NOTES, "-o", folder, "--output-format", form, "--shard-rows", 20, *options).code == 0
    assert told(folder) == []
    alone = form == "jsonl" and options[-1] in {"int8", "binary"}
    assert encode(NOTES, "-o", file, *options).code == (2 if alone else 0)
    assert alone or told(file) == []


def test_a_record_of_another_make_is_told_and_no_fault_of_embedkits(out):
    plan = load_checksummed((out / "plan.json").read_bytes())
    del plan["starts"]
    (out / "plan.json").write_bytes(dump_checksummed(plan))
    assert "plan.json: has a checksum that fits, yet not the content that embedkit writes" in told(out)


def test_an_output_of_a_stream_and_one_of_skipped_rows_are_sound(encode, tmp_path, monkeypatch):
    import io
    import sys

    lines = b'{"text": "pain"}\n{"text": 7}\n{"text": ""}\n' * 5
    for form in FORMATS:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        options = ("--shard-rows", 4, "--on-bad-row", "skip", "--output-format", form)
        assert encode("-", "-o", tmp_path / form, *options).code == 0
        assert told(tmp_path / form) == []


# Mending ---------------------------------------------------------------------------------------------


def test_resume_with_verify_makes_a_shard_again_whose_bytes_changed(encode, tmp_path):
    arguments = (NOTES, "-o", tmp_path / "out", "--shard-rows", 20)
    assert encode(*arguments).code == 0
    part = tmp_path / "out" / PART
    whole = part.read_bytes()
    part.write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
    assert encode(*arguments, "--on-exists", "resume").code == 0  # trusts the size
    assert part.read_bytes() != whole
    ran = encode(*arguments, "--on-exists", "resume", "--verify")
    assert ran.code == 0, ran.err
    assert part.read_bytes() == whole
    assert told(tmp_path / "out") == []


def test_a_changed_record_or_plan_is_not_believed_on_resume(encode, tmp_path):
    arguments = (NOTES, "-o", tmp_path / "out", "--shard-rows", 20, "--on-exists", "resume")
    assert encode(*arguments).code == 0
    record = tmp_path / "out" / RECORD
    whole = record.read_bytes()
    record.write_bytes(whole.replace(b'"vectors": 20', b'"vectors": 21'))
    assert record.read_bytes() != whole
    assert encode(*arguments).code == 0
    assert record.read_bytes() == whole
    plan = tmp_path / "out" / "plan.json"
    plan.write_bytes(plan.read_bytes().replace(b"[0, 20, 40, 60]", b"[0, 20, 41, 60]"))
    ran = encode(*arguments)
    assert (ran.code, "plan.json is damaged" in ran.err) == (5, True), ran.err


def test_verify_without_resume_is_refused(encode, tmp_path):
    ran = encode(NOTES, "-o", tmp_path / "out", "--verify")
    assert (ran.code, "--on-exists resume --verify" in ran.err) == (2, True)


def test_a_manifest_that_does_not_fit_its_seal_is_not_read(out):
    import embedkit

    path = out / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"rows": 20', b'"rows": 21', 1))
    with pytest.raises(OutputError, match="damaged") as caught:
        embedkit.read(out)
    assert "embedkit verify" in caught.value.hint
