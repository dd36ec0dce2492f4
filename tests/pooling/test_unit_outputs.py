"""Units through files: all formats alike, every row accounted for, the same bytes however the run went."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import embedkit
from embedkit.errors import ModelError
from embedkit.manifest.shards import SHARD_CHARACTERS, default_shard_characters
from embedkit.output.inspect import inspect_output
from embedkit.tokenizer import TextTokenizer
from tests import tiny_models

INPUT, MODEL, OUTPUT = 3, 4, 5
TEXTS = ["Pain in the left arm.", "", "no " * 80 + "fever", "pain", "  ", "SOB, T 38.2", "pain"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [
        {
            "id": n,
            "text": text,
            "ward": f"w{n % 2}",
            "ents": [] if len(text) < 5 else [[0, 4], [len(text) - 3, len(text), "end"]],
        }
        for n, text in enumerate(TEXTS)
    ]
    path = tmp_path / "notes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


UNITS = {
    "chunk": ("--level", "chunk", "--on-long", "chunk"),
    "word": ("--level", "word"),
    "token": ("--level", "token", "--on-long", "chunk", "--stride", "5"),
    "span": ("--spans-column", "ents"),
}
COLUMNS = {"chunk": (), "word": (), "token": ("token_id",), "span": ("label",)}


@pytest.mark.parametrize("level", UNITS)
def test_all_formats_have_the_same_rows_and_verify_and_inspect_agree(encode, embedkit_cli, table, tmp_path, level):
    names = ["id", "ward", level, *COLUMNS[level], "start", "end", "n_tokens", "n_used", "n_chunks", "status"]
    outputs = ["out.parquet", "out.arrow", "out.jsonl", "out.npy", "folder", "folder_npy"]
    found = {}
    for name in outputs:
        more = ("--output-format", "npy") if name == "folder_npy" else ()
        ran = encode(table, *UNITS[level], "--keep", "ward", "--shard-rows", "3", *more, "-o", tmp_path / name)
        assert ran.code == 0, ran.err
        assert embedkit_cli("verify", tmp_path / name).code == 0
        read = embedkit.read(tmp_path / name)
        kept = read.table.select(names).to_pylist()
        if "npy" in name:
            assert len(kept) == len(read.vectors)
        else:
            assert {row["id"] for row in kept} == {str(n) for n in range(len(TEXTS))}
        found[name] = ([row for row in kept if row["n_chunks"]], read.vectors)
    printed = encode(table, *UNITS[level], "--keep", "ward", "-o", "-")
    lines = [json.loads(line) for line in printed.out.splitlines()]
    first, vectors = found["out.parquet"]
    for name, (rows, others) in found.items():
        assert rows == first, name
        np.testing.assert_allclose(others, vectors, atol=1e-5 if name == "out.jsonl" else 0)
    assert [{name: line[name] for name in names} for line in lines if line["n_chunks"]] == first
    # Each text counts once, whatever tells of it: the records of a folder, or the rows of a file.
    expected = {"empty": 2, "ok": 4, "chunked" if "--on-long" in UNITS[level] else "truncated": 1}
    if level == "span":
        expected |= {"ok": 2, "no_unit": 2}
    by_text = {row["id"]: row for row in embedkit.read(tmp_path / "out.parquet").table.to_pylist()}.values()
    for name in ("folder", "folder_npy", "out.parquet", "out.arrow", "out.jsonl"):
        totals = inspect_output(tmp_path / name).totals
        assert totals.statuses == expected, name
        assert totals.n_tokens == sum(row["n_tokens"] for row in by_text)
        assert totals.n_used == sum(row["n_used"] for row in by_text)
        assert totals.truncated_share == expected.get("truncated", 0) / len(TEXTS)


def files_of(folder: Path) -> dict[str, bytes]:
    parts = ("embeddings", "metadata", "rejects", "commits", "manifest.json", "plan.json")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for part in parts
        for path in ([folder / part] if (folder / part).is_file() else sorted((folder / part).rglob("*")))
        if path.is_file()
    }


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_a_run_of_words_that_was_killed_between_shards_ends_with_the_same_bytes(encode, table, tmp_path, form):
    arguments = (table, "--level", "word", "--shard-rows", "2", "--output-format", form)
    assert encode(*arguments, "-o", tmp_path / "whole").code == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for name in ("manifest.json", "commits/00002.json", "commits/00001.json"):
        (tmp_path / "killed" / name).unlink()
    ran = encode(*arguments, "-o", tmp_path / "killed", "--on-exists", "resume")
    assert ran.code == 0, ran.err
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


@pytest.mark.usefixtures("quick_workers")
def test_two_workers_give_the_same_bytes(encode, table, tmp_path):
    arguments = (table, "--spans-column", "ents", "--shard-rows", "2")
    assert encode(*arguments, "-o", tmp_path / "one").code == 0
    ran = encode(*arguments, "-o", tmp_path / "two", "--workers", "2")
    assert ran.code == 0, ran.err
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


def spans_file(path: Path, rows: list[dict[str, object]]) -> Path:
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case ".csv":
            names = list(rows[0])
            cells = [names, *([str(row[name]) for name in names] for row in rows)]
            path.write_text("".join(",".join(row) + "\n" for row in cells))
        case _:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("labels", [True, False])
def test_spans_come_from_any_file_by_id_and_its_integers_are_ids(encode, table, tmp_path, suffix, labels):
    rows = [{"id": 5, "start": 0, "end": 3}, {"id": 0, "start": 12, "end": 16}, {"id": 0, "start": 0, "end": 4}]
    if labels:
        rows = [{**row, "label": f"l{n}"} for n, row in enumerate(rows)]
    spans = spans_file(tmp_path / f"spans{suffix}", rows)
    ran = encode(table, "--spans", spans, "-o", tmp_path / "out.parquet")
    assert ran.code == 0, ran.err
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    with_vectors = [
        (row["id"], row["span"], row["start"], row["end"], row["label"]) for row in found if row["embedding"]
    ]
    names = ["l2", "l1", "l0"] if labels else [None, None, None]
    assert with_vectors == [("0", 0, 0, 4, names[0]), ("0", 1, 12, 16, names[1]), ("5", 0, 0, 3, names[2])]
    assert [row["id"] for row in found] == ["0", "0", "1", "2", "3", "4", "5", "6"]


def test_other_spans_are_not_mixed_into_a_run_that_is_resumed(encode, table, tmp_path):
    spans = spans_file(tmp_path / "spans.csv", [{"id": 5, "start": 0, "end": 3}])
    arguments = (table, "--spans", spans, "--shard-rows", "2", "-o", tmp_path / "out")
    assert encode(*arguments).code == 0
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / "commits" / "00002.json").unlink()
    spans_file(spans, [{"id": 5, "start": 0, "end": 4}])
    ran = encode(*arguments, "--on-exists", "resume")
    assert ran.code == OUTPUT
    assert "input.spans" in ran.err


def test_spans_of_unknown_ids_are_an_error_unless_a_row_that_cannot_be_read_may_have_them(encode, table, tmp_path):
    spans = spans_file(tmp_path / "spans.csv", [{"id": 5, "start": 0, "end": 3}, {"id": 77, "start": 0, "end": 3}])
    ran = encode(table, "--spans", spans, "-o", tmp_path / "out")
    assert ran.code == INPUT
    assert "1 ids that no row" in ran.err
    with table.open("a") as file:
        file.write('{"id": 77, "text": "pain"\n')
    ran = encode(table, "--spans", spans, "-o", tmp_path / "out", "--on-bad-row", "skip")
    assert ran.code == 0, ran.err


BAD = [
    "[[0, 99]]",
    "[[3, 3]]",
    "[[-1, 2]]",
    '["12"]',
    '{"start": 0, "end": 2}',
    "[[0, 1.5]]",
    "[[true, 2]]",
    "[[0]]",
    '[[0, 1, "x", 2]]',
    '[{"start": 0}]',
    "[0, 2",
    "7",
    "[" * 5000,
    '[[0, 2, "\\ud800"]]',
]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("rule", ["fail", "null", "skip"])
def test_invalid_spans_make_a_faulty_row(encode, tmp_path, form, rule):
    cells = ["", "  ", "[]", "[[0, 2]]", '[{"start": 1, "end": 4, "label": "dose"}]', *BAD]
    if form == "jsonl":
        # A cell may be JSON text here too; what is a list already is taken as it is.
        cells[3] = [[0, 2]]
    path = tmp_path / f"notes.{form}"
    with path.open("w", newline="") as file:
        if form == "csv":
            csv.writer(file).writerows([["text", "ents"], *(["pain", cell] for cell in cells)])
        else:
            file.writelines(json.dumps({"text": "pain", "ents": cell}) + "\n" for cell in cells)
    # The spans' column may be kept, too, among others.
    out = tmp_path / "out"
    ran = encode(
        path, "--spans-column", "ents", "--keep", "ents", "--keep", "text", "-o", out, "--on-bad-row", rule
    )
    if rule == "fail":
        assert ran.code == INPUT
        assert "bad_span" in ran.err
        assert "pain" not in ran.err
        return
    assert ran.code == 0, ran.err
    rows = embedkit.read(out).table.to_pylist()
    status = [(row["id"], row["status"]) for row in rows]
    good = [("0", "no_unit"), ("1", "no_unit"), ("2", "no_unit"), ("3", "ok"), ("4", "ok")]
    assert status == good + ([(None, "bad_span")] * len(BAD) if rule == "null" else [])
    assert [(row["start"], row["end"], row["label"]) for row in rows[3:5]] == [(0, 2, None), (1, 4, "dose")]
    listed = [json.loads(line) for line in (out / "rejects" / "part-00000.jsonl").read_text().splitlines()]
    assert [(line["row"], line["code"]) for line in listed] == [(5 + n, "bad_span") for n in range(len(BAD))]


def test_int8_is_calibrated_on_the_units(encode, embedkit_cli, table, tmp_path):
    ran = encode(table, "--spans-column", "ents", "--precision", "int8", "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert embedkit_cli("verify", tmp_path / "out").code == 0
    assert encode(table, "--spans-column", "ents", "-o", tmp_path / "exact").code == 0
    exact, stored = embedkit.read(tmp_path / "exact").vectors, embedkit.read(tmp_path / "out").vectors
    assert np.abs(exact - stored).max() <= (exact.max() - exact.min()) / 255
    assert "outside" in pq.read_table(tmp_path / "out" / "embeddings")["status"].to_pylist()


@pytest.mark.parametrize("level", [(), ("--level", "word"), ("--on-long", "chunk")])
def test_a_row_with_non_finite_states_is_reported_with_the_layer(embedkit_cli, tmp_path, level):
    folder = tiny_models.make("bert", tmp_path / "model").folder
    weights = load_file(folder / "model.safetensors")
    # A word that the check at load does not have breaks the embeddings' output, which is layer 0.
    broken = AutoTokenizer.from_pretrained(folder)("fever", add_special_tokens=False)["input_ids"][0]
    weights["embeddings.word_embeddings.weight"][broken, 3] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    path = tmp_path / "notes.jsonl"
    path.write_text(json.dumps({"text": "no fever"}) + "\n")
    ran = embedkit_cli("encode", path, "-m", folder, *level, "-o", tmp_path / "out")
    assert ran.code == MODEL, ran.err
    assert "row 0" in ran.err
    assert "from layer 0 on" in ran.err
    for rule, rows in (("null", 1), ("skip", 0)):
        out = tmp_path / rule
        ran = embedkit_cli("encode", path, "-m", folder, *level, "-o", out, "--on-bad-row", rule)
        assert ran.code == 0, ran.err
        assert pq.read_table(out / "embeddings")["status"].to_pylist() == ["non_finite"] * rows
        listed = json.loads((out / "rejects" / "part-00000.jsonl").read_text())
        assert (listed["row"], listed["code"], listed["layer"]) == (0, "non_finite", 0)
        assert embedkit_cli("verify", out).code == 0


def test_a_shard_of_units_is_bounded_by_its_text(encode, tmp_path):
    assert default_shard_characters(100 * 384) == 666_666
    assert default_shard_characters(1) == SHARD_CHARACTERS
    path = tmp_path / "notes.jsonl"
    path.write_text(json.dumps({"text": "pain"}) + "\n")
    assert encode(path, "--level", "token", "-o", tmp_path / "tokens").code == 0
    assert encode(path, "-o", tmp_path / "texts").code == 0
    plans = [json.loads((tmp_path / of / "plan.json").read_text()) for of in ("tokens", "texts")]
    limits = [plan["shard_characters"] for plan in plans]
    assert limits[0] < limits[1] == SHARD_CHARACTERS


def test_a_tokenizer_without_offsets_is_refused():
    class SlowTokenizer:
        model_input_names = ("input_ids",)

    for asked in ({"with_offsets": True}, {"overlap": 0, "prompt": "note: "}):
        with pytest.raises(ModelError, match="SlowTokenizer"):
            TextTokenizer(SlowTokenizer(), max_length=16, **asked)
