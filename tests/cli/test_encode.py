from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedkit
from embedkit.verify import verify_output
from tests.conftest import NOTES

OUTPUTS = ("out", "out.parquet", "out.npy", "out.jsonl", "out.arrow")


def vectors_of(ran, path):
    assert ran.code == 0, ran.err
    return embedkit.read(path).vectors


def write_jsonl(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def as_jsonl(notes, tmp_path):
    return write_jsonl(tmp_path / "notes.jsonl", notes.rows)


# Where the vectors go ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "options"),
    [
        *((output, ()) for output in OUTPUTS),
        ("out", ("--output-format", "npy")),
        ("out", ("--output-format", "arrow", "--shard-rows", 8)),
        ("out", ("--output-format", "jsonl", "--shard-rows", 8)),
        ("out.parquet", ("--output-format", "parquet", "--shard-rows", 8)),
    ],
)
def test_every_output_holds_the_ids_and_vectors_of_the_python_class(encode, notes, tmp_path, output, options):
    ran = encode(NOTES, "-o", tmp_path / output, *options)
    assert (ran.code, ran.out) == (0, ""), ran.err
    found = embedkit.read(tmp_path / output)
    assert found.ids == notes.ids
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(found.vectors, notes.vectors, rtol=0, atol=1e-5)


def test_stdout_is_json_lines_with_the_same_bytes_as_a_jsonl_file(encode, tmp_path):
    to_stdout = encode(NOTES, "-o", "-")
    to_file = encode(NOTES, "-o", tmp_path / "out.jsonl")
    assert (to_stdout.code, to_file.code) == (0, 0)
    assert to_stdout.out == (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    assert to_stdout.told[0].startswith("stdout: 67 rows")


@pytest.mark.parametrize("name", ["notes.csv", "notes.csv.gz"])
def test_without_o_the_output_is_a_folder_named_after_the_input(encode, tmp_path, monkeypatch, name):
    content = NOTES.read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    monkeypatch.chdir(tmp_path)
    ran = encode(tmp_path / name, "--limit", 3)
    assert ran.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "notes.embeddings"]
    assert ran.told[0].startswith("notes.embeddings: 3 rows")


def test_a_row_keeps_its_position_its_id_and_has_a_receipt(encode, notes, tmp_path):
    assert encode(NOTES, "-o", tmp_path / "out.parquet").code == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["id", "n_tokens", "n_used", "n_chunks", "status", "embedding"]
    rows = {row["id"]: row for row in table.to_pylist()}
    assert list(rows) == [row["id"] for row in notes.rows]  # all 67, `00101` and not 101
    assert rows["00163"] == {
        "id": "00163",
        "n_tokens": 0,
        "n_used": 0,
        "n_chunks": 0,
        "status": "empty",
        "embedding": None,
    }
    assert rows["00155"]["embedding"] == rows["00150"]["embedding"]  # the same note twice
    assert (rows["00101"]["status"], rows["00101"]["n_used"]) == ("truncated", 64)
    assert rows["00101"]["n_tokens"] > 1000


# Which rows, and what of them --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text_of"),
    [
        (("--text-column", "label"), lambda row: row["label"]),
        (
            ("--text-column", "label", "--text-column", "text"),
            lambda row: f"{row['label']}\n{row['text']}".rstrip(),
        ),
        (("--template", "{label}: {text} {{}}"), lambda row: f"{row['label']}: {row['text']} {{}}"),
        (("--prompt", "note: "), lambda row: row["text"] and f"note: {row['text']}"),
    ],
    ids=["another column", "two columns", "template", "prompt"],
)
def test_the_text_is_what_the_options_make_of_a_row(encode, notes, bert, tmp_path, options, text_of):
    found = vectors_of(encode(NOTES, "-o", tmp_path / "out", *options), tmp_path / "out")
    expected = embedkit.Encoder(str(bert)).encode([text_of(row) for row in notes.rows])
    np.testing.assert_allclose(found, expected[~np.isnan(expected).any(axis=1)], rtol=0, atol=1e-5)


def test_kept_columns_are_copied_and_the_text_only_if_named(encode, notes, tmp_path):
    assert encode(NOTES, "-o", tmp_path / "a", "--keep", "label", "--keep", "patient_id").code == 0
    table = embedkit.read(tmp_path / "a").table
    for name in ("label", "patient_id"):
        assert table[name].to_pylist() == [row[name] for row in notes.rows]
    assert "text" not in table.column_names
    assert encode(NOTES, "-o", tmp_path / "b", "--keep", "text").code == 0
    assert embedkit.read(tmp_path / "b").table["text"].to_pylist() == notes.texts


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (("--id-column", "patient_id"), ["P1001", "P1005", "P1009"]),
        ((), ["00101", "00102", "00103"]),
    ],
)
def test_limit_takes_the_first_rows_and_ids_come_from_the_column_named(encode, tmp_path, options, ids):
    assert encode(NOTES, "-o", tmp_path / "out", "--limit", 3, *options).code == 0
    assert embedkit.read(tmp_path / "out").ids == ids


def test_an_empty_table_gives_an_output_without_rows(encode, tmp_path):
    assert encode(NOTES, "-o", tmp_path / "out", "--limit", 0).code == 0
    assert embedkit.read(tmp_path / "out").vectors.shape == (0, 32)


def write_tsv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("notes.jsonl", write_jsonl),
        ("notes.tsv", write_tsv),
        ("notes.parquet", lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path)),
    ],
)
def test_the_same_rows_in_another_format_give_the_same_bytes_of_vectors(encode, notes, tmp_path, name, write):
    write(tmp_path / name, notes.rows)
    from_csv = vectors_of(encode(NOTES, "-o", tmp_path / "a.npy"), tmp_path / "a.npy")
    other = vectors_of(encode(tmp_path / name, "-o", tmp_path / "b.npy"), tmp_path / "b.npy")
    assert other.tobytes() == from_csv.tobytes()


@pytest.mark.parametrize("typed", [("b.jsonl", "a.jsonl"), ("*.jsonl",), (".",)], ids=["files", "glob", "folder"])
def test_many_files_are_one_table_whose_rows_are_numbered_through(encode, notes, tmp_path, monkeypatch, typed):
    plain = [{"text": text} for text in notes.texts]
    write_jsonl(tmp_path / "a.jsonl", plain[:5])
    write_jsonl(tmp_path / "b.jsonl", plain[5:9])
    monkeypatch.chdir(tmp_path)
    found = vectors_of(encode(*typed, "-o", "out", "--shard-rows", 3), "out")
    order = [5, 6, 7, 8, 0, 1, 2, 3, 4] if typed[0] == "b.jsonl" else range(9)
    np.testing.assert_allclose(found, notes.vectors[list(order)], rtol=0, atol=1e-5)
    assert embedkit.read("out").ids == [str(row) for row in range(9)]


def test_a_bad_row_can_be_kept_without_a_vector_or_left_out_and_is_listed(encode, tmp_path):
    table = tmp_path / "in.jsonl"
    table.write_text('{"id": "a", "text": "pain"}\n{"id": "b", "te\n{"id": "c", "text": "fever"}\n')
    assert encode(table, "-o", tmp_path / "null", "--on-bad-row", "null").code == 0
    assert encode(table, "-o", tmp_path / "skip", "--on-bad-row", "skip").code == 0
    kept, left = (embedkit.read(tmp_path / name) for name in ("null", "skip"))
    assert kept.table["status"].to_pylist() == ["ok", "invalid_json", "ok"]
    assert left.table["id"].to_pylist() == kept.ids == left.ids == ["a", "c"]
    for name in ("null", "skip"):
        (line,) = (tmp_path / name / "rejects" / "part-00000.jsonl").read_text().splitlines()
        assert json.loads(line) == {"row": 1, "file": str(table), "offset": 28, "code": "invalid_json"}


# What is computed --------------------------------------------------------------------------------------


def test_several_layers_and_poolings_are_concatenated_pooling_by_pooling(encode, tmp_path):
    def run(name, *options):
        return vectors_of(encode(NOTES, "-o", tmp_path / name, "--limit", 9, *options), tmp_path / name)

    together = run("together", "--layers", "-1,-2", "--pool", "cls,mean")
    parts = [
        run(f"{pool}{layer}", "--layers", layer, "--pool", pool) for pool in ("cls", "mean") for layer in (3, 2)
    ]
    np.testing.assert_array_equal(together, np.hstack(parts))


def test_separate_layers_are_columns_named_by_layer_and_pooling(encode, tmp_path):
    ran = encode(NOTES, "-o", tmp_path / "out.parquet", "--layers", "2:4", "--layer-agg", "separate")
    assert "67 rows, 66 vectors of 32 dimensions in 2 columns" in ran.err
    assert pq.read_schema(tmp_path / "out.parquet").names[-2:] == ["embedding_L02_mean", "embedding_L03_mean"]
    found = embedkit.read(tmp_path / "out.parquet")
    alone = vectors_of(encode(NOTES, "-o", tmp_path / "two", "--layers", "2"), tmp_path / "two")
    np.testing.assert_array_equal(found.variant("L02_mean"), alone)


def test_vectors_are_normalised_then_cut(encode, notes, tmp_path):
    options = ("--normalize", "--truncate-dim", 8)
    found = vectors_of(encode(NOTES, "-o", tmp_path / "out", *options), tmp_path / "out")
    unit = notes.vectors / np.linalg.norm(notes.vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(found, unit[:, :8], rtol=0, atol=1e-6)


@pytest.mark.parametrize("output", ["out", "out.parquet", "out.npy", "out.arrow"])
@pytest.mark.parametrize("precision", ["float16", "int8", "binary"])
def test_lower_precision_is_read_back_within_its_rounding(encode, notes, tmp_path, precision, output):
    found = vectors_of(encode(NOTES, "-o", tmp_path / output, "--precision", precision), tmp_path / output)
    expected, steps = {
        "float16": (notes.vectors.astype(np.float16), 0),
        "int8": (notes.vectors, np.ptp(notes.vectors, axis=0) / 255 / 2 * 1.001),  # half of 255 steps
        "binary": (notes.vectors > 0, 0),
    }[precision]
    assert (np.abs(found - expected.astype(np.float32)) <= steps + 1e-5).all()


@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_integers_in_json_lines_are_not_read_as_vectors(encode, tmp_path, precision):
    # One .jsonl file has no place for the ranges or the bits that make vectors of them again.
    ran = encode(NOTES, "-o", tmp_path / "out.jsonl", "--precision", precision)
    if ran.code == 0:
        with pytest.raises(embedkit.EmbedkitError):
            _ = embedkit.read(tmp_path / "out.jsonl").vectors
    else:
        assert ran.code == 2


def test_layers_of_a_model_with_other_config_names_work(embedkit_cli, tmp_path):
    from tests.tiny_models import make

    folder = make("distilbert", tmp_path / "distilbert").folder  # dim, n_layers and n_heads in its config
    ran = embedkit_cli("encode", NOTES, "-m", folder, "-o", tmp_path / "out", "--layers", "all", "--limit", 4)
    assert vectors_of(ran, tmp_path / "out").shape == (4, 4 * 32)


# What is said ------------------------------------------------------------------------------------------


def test_the_summary_shows_path_rows_vectors_and_truncation(encode, tmp_path):
    # [CLS] pain [SEP] are 3 tokens; 70 times pain are 72, of which 64 fit.
    table = write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in ("pain", "", "pain " * 70, "pain")])
    ran = encode(table, "-o", tmp_path / "out")
    first, second, third, fourth = ran.told
    assert first == f"{tmp_path / 'out'}: 4 rows, 3 vectors of 32 dimensions"
    assert second.startswith("without a vector: 1 empty")
    assert third == "truncated: 1 rows (25.0 %), 8 tokens lost (10.3 %) at 64 tokens a text"  # 8 of 78
    assert "rows/s" in fourth
    assert ran.out == ""
    found = embedkit.read(tmp_path / "out").table
    assert found["n_tokens"].to_pylist() == [3, 0, 72, 3]
    assert found["n_used"].to_pylist() == [3, 0, 64, 3]
    assert found["status"].to_pylist() == ["ok", "empty", "truncated", "ok"]


def test_q_prints_nothing_and_v_prints_the_recipe(encode, tmp_path):
    layers = ("--layers", "-1,-2")  # a notice goes with it
    quiet = encode(NOTES, "-o", tmp_path / "q", "-q", *layers)
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    verbose = encode(NOTES, "-o", tmp_path / "v", "-v", *layers)
    assert "note: 2 layers are concatenated (--layer-agg concat)" in verbose.err
    assert f"recipe {embedkit.read(tmp_path / 'v').fingerprint}: {{" in verbose.err


def test_progress_json_is_an_object_a_line_that_ends_with_the_summary(encode, tmp_path):
    ran = encode(NOTES, "-o", tmp_path / "out", "--progress", "json", "--shard-rows", 30, "--layers", "2,3")
    events = [json.loads(line) for line in ran.err.splitlines()]
    assert Counter(event["event"] for event in events) >= Counter(notice=1, start=1, shard=3, done=1)
    assert [event["committed"] for event in events if event["event"] == "shard"] == [30, 60, 67]
    done = events[-1]
    assert (done["event"], done["rows"], done["vectors"]) == ("done", 67, 66)
    assert done["statuses"] == {"truncated": 66, "empty": 1}
    assert done["path"] == str(tmp_path / "out")
    assert ran.out == ""


def test_a_bar_ends_full_and_leaves_the_summary(encode, tmp_path):
    ran = encode(NOTES, "-o", tmp_path / "out", "--progress", "bar", "--shard-rows", 30)
    assert ran.code == 0
    assert "67/67" in ran.err
    assert "% padding" in ran.err
    assert "67 rows, 66 vectors" in ran.err


# A config file -----------------------------------------------------------------------------------------


def test_a_config_file_sets_options_and_flags_win(encode, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(
        'pool = "cls,max"\nlayers = "all"\nkeep = ["label"]\nlimit = 4\nmax-length = 16\nnormalize = true\n'
    )
    assert encode(NOTES, "--config", config, "-o", tmp_path / "a").code == 0
    assert encode(NOTES, "-o", tmp_path / "b", "--pool", "mean", "--config", config, "--no-normalize").code == 0
    by_file, by_flag = (embedkit.read(tmp_path / name) for name in "ab")
    assert by_file.vectors.shape == (4, 4 * 2 * 32)
    assert by_file.recipe["pool"] == ["cls", "max"]
    assert by_file.recipe["normalize"] is True
    assert by_flag.vectors.shape == (4, 4 * 32)
    assert by_flag.recipe["pool"] == ["mean"]
    assert by_flag.recipe["normalize"] is False
    for found in (by_file, by_flag):
        assert found.recipe["text"]["max_length"] == 16
        assert found.table.column_names[1] == "label"


# In a pipe ---------------------------------------------------------------------------------------------


def test_in_a_pipe_only_json_lines_are_on_stdout(as_jsonl, bert, notes, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pipe = f"head -n 20 '{as_jsonl}' | '{sys.executable}' -m embedkit encode - --format jsonl -m '{bert}' -o -"
    ran = subprocess.run(["bash", "-c", f"set -o pipefail; {pipe}"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in notes.rows[:20]]
    found = np.array([line["embedding"] for line in lines], np.float32)
    np.testing.assert_allclose(found, notes.vectors[:20], rtol=0, atol=1e-5)
    assert "20 rows, 20 vectors" in ran.stderr


def test_a_closed_pipe_ends_the_run_without_an_error(bert, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # 384 numbers a row are 4 KB: far more in all than the 64 KB that a pipe holds.
    wide = ["--layers", "all", "--pool", "mean,max,min", "--shard-rows", "8", "-q"]
    command = [sys.executable, "-m", "embedkit", "encode", str(NOTES), "-m", str(bert), "-o", "-", *wide]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert json.loads(run.stdout.readline())["id"] == "00101"
    run.stdout.close()
    said = run.stderr.read()
    assert (run.wait(timeout=60), said) == (0, b"")
    run.stderr.close()


@pytest.mark.parametrize("on_exists", ["error", "resume", "overwrite"])
@pytest.mark.parametrize("rows", ['{"text": "a"}\n', '{"text": 5}\n{"text": "b"}\n'])
def test_a_file_of_the_user_named_as_the_rejects_stays(encode, tmp_path, on_exists, rows):
    mine, source = tmp_path / "out.rejects.jsonl", tmp_path / "in.jsonl"
    mine.write_text('{"patient": 1}\n')
    source.write_text(rows)
    options = ("--on-bad-row", "skip", "--on-exists", on_exists)
    ran = encode(source, "-o", tmp_path / "out.parquet", *options)
    assert (ran.code, mine.read_text()) == (5, '{"patient": 1}\n')
    assert "rename or move it" in ran.err


def test_the_rejects_of_an_output_of_another_format_stay(encode, tmp_path):
    bad, good = tmp_path / "bad.jsonl", tmp_path / "good.jsonl"
    bad.write_text('{"text": 5}\n{"text": "b"}\n')
    good.write_text('{"text": "b"}\n')
    assert encode(bad, "-o", tmp_path / "out.parquet", "--on-bad-row", "skip").code == 0
    listed = (tmp_path / "out.rejects.jsonl").read_text()
    assert encode(good, "-o", tmp_path / "out.jsonl").code == 0
    assert (tmp_path / "out.rejects.jsonl").read_text() == listed
    assert encode(good, "-o", tmp_path / "out.parquet", "--on-exists", "overwrite").code == 0
    assert not (tmp_path / "out.rejects.jsonl").exists()


@pytest.mark.parametrize(("first", "second"), [("npy", "jsonl"), ("jsonl", "npy"), ("parquet", "arrow")])
def test_a_list_of_rejects_is_not_replaced_by_that_of_another_format(encode, tmp_path, first, second):
    bad, worse = tmp_path / "bad.jsonl", tmp_path / "worse.jsonl"
    bad.write_text('{"text": 5}\n{"text": "b"}\n')
    worse.write_text('{"text": "b"}\n{"text": 5}\n')
    skip = ("--on-bad-row", "skip")
    assert encode(bad, "-o", tmp_path / f"out.{first}", *skip).code == 0
    for on_exists in ("error", "resume", "overwrite"):
        ran = encode(worse, "-o", tmp_path / f"out.{second}", *skip, "--on-exists", on_exists)
        assert (ran.code, f"lists the rejects of out.{first}" in ran.err) == (5, True)
        assert "choose another name, or a folder, with -o" in ran.err
        assert not (tmp_path / f"out.{second}.partial").exists()
    assert verify_output(tmp_path / f"out.{first}").problems == []
    assert encode(worse, "-o", tmp_path / f"out.{first}", *skip, "--on-exists", "overwrite").code == 0
    assert verify_output(tmp_path / f"out.{first}").problems == []


@pytest.mark.parametrize(
    "command", [("encode",), ("sweep", "--label", "label", "--layers", "-1", "--pool", "mean")]
)
def test_an_output_may_be_the_working_folder(
    embedkit_cli,
    bert,
    tmp_path,
    monkeypatch,
    command,
):
    source = tmp_path / "in.csv"
    source.write_text("label,text\n" + "".join(f"{'ab'[row % 2]},text {row}\n" for row in range(12)))
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    ran = embedkit_cli(*command, source, "-m", bert, "-o", ".")
    assert ran.code == 0, ran.err
    again = embedkit_cli(*command, source, "-m", bert, "-o", ".", "--on-exists", "overwrite")
    assert again.code == 5
    assert "the folder that this command runs in" in again.err
    assert embedkit_cli(*command, source, "-m", bert, "-o", "/").code == 2
