"""Groups of rows, against sums written out; through files, against the vectors of the rows."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import embedkit
from embedkit import cli
from embedkit.engines import grouping
from embedkit.errors import OutputError
from embedkit.pooling.groups import Grouping, Item, last_rows
from tests import tiny_models

ROWS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.integers(0, 9), st.none() | st.integers(-5, 5)),
    max_size=30,
)


def item(key: tuple[str, ...], weight: int, vector: Any, order: Any) -> Item:
    vectors = None if vector is None else {"": np.array([vector, 2.0 * weight], np.float32)}
    return Item(key, vectors, weight, 1, int(vector is not None), weight, weight, 1, {"ok"}, (), order)


def expected(members: list[tuple[int, Any]], how: str) -> list[float] | None:
    """Members (weight, vector) in their order → the group's vector."""
    there = [
        (max(weight, 1), np.array([vector, 2.0 * weight])) for weight, vector in members if vector is not None
    ]
    if not there:
        return None
    if how == "max":
        return list(np.max([vector for _, vector in there], axis=0))
    if how == "last":
        return list(max(there, key=lambda one: one[0])[1])
    weights = [weight if how == "mean" else 1 for weight, _ in there]
    return list(sum(w * vector for w, (_, vector) in zip(weights, there, strict=True)) / sum(weights))


@given(rows=ROWS, how=st.sampled_from(["mean", "row_mean", "max"]))
def test_a_group_is_pooled_from_its_rows_and_returned_after_the_last(rows, how):
    keys = [(fine, coarse) for fine, coarse, *_ in rows]
    fold = Grouping(last_rows(iter(keys), 1), how)
    found = list(fold.groups(item(key, w, v, None) for key, (_, _, w, v) in zip(keys, rows, strict=True)))
    by_last = sorted(set(keys), key=lambda key: max(place for place, other in enumerate(keys) if other == key))
    assert [group.key for group in found] == by_last
    for group in found:
        members = [(w, v) for key, (_, _, w, v) in zip(keys, rows, strict=True) if key == group.key]
        vector = expected(members, how)
        assert (group.rows, group.pooled) == (len(members), sum(v is not None for _, v in members))
        assert (group.vectors is None) == (vector is None)
        if vector is not None and group.vectors is not None:
            assert np.allclose(group.vectors[""], vector)


@given(rows=ROWS)
def test_nested_groups_are_pooled_from_the_groups_below(rows):
    keys = [(fine, coarse) for fine, coarse, *_ in rows]
    fold = Grouping(last_rows(iter(keys), 2), "row_mean")
    found = {
        group.key: group
        for group in fold.groups(item(key, w, v, None) for key, (_, _, w, v) in zip(keys, rows, strict=True))
    }
    assert found.keys() == {key[1:] for key in keys}
    for (coarse,), group in found.items():
        fine = defaultdict(list)
        for key, (_, _, w, v) in zip(keys, rows, strict=True):
            if key[1] == coarse and v is not None:
                fine[key].append([v, 2.0 * w])
        assert (group.vectors is None) == (not fine)
        if group.vectors is not None:
            assert np.allclose(group.vectors[""], np.mean([np.mean(of, axis=0) for of in fine.values()], axis=0))


@pytest.mark.parametrize(
    ("orders", "last"), [([3, 1, 2], 0), ([1, 3, 3], 2), ([None, None, 0], 2), ([1, None, 0], 0)]
)
def test_the_last_is_the_last_by_order_and_among_equals_the_one_that_comes_last(orders, last):
    rows = [item(("k",), 1, vector, order) for vector, order in zip((10, 20, 30), orders, strict=True)]
    (group,) = Grouping(last_rows(iter([("k",)] * 3), 1), "last").groups(rows)
    assert group.vectors[""][0] == (10, 20, 30)[last]


# Through files ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return tiny_models.make("bert", tmp_path_factory.mktemp("bert")).folder


@pytest.fixture(scope="module")
def notes(tmp_path_factory) -> Path:
    """Patients in no order; the days are such that text would sort them otherwise than numbers."""
    path = tmp_path_factory.mktemp("notes") / "notes.jsonl"
    texts = [*tiny_models.TEXTS, "", "one more"]
    rows = [
        {"id": f"n{n}", "text": text, "patient": f"p{n * n % 5}", "visit": f"v{n % 7}", "day": str(n * 7 % 23)}
        for n, text in enumerate(texts)
    ]
    path.write_text(
        "".join(json.dumps({**row, "ward": "A" if row["patient"] != "p1" else row["id"]}) + "\n" for row in rows)
    )
    return path


def ran(*arguments: object) -> int:
    return cli.run(["encode", *map(str, arguments), "-q"])


@pytest.fixture(scope="module")
def rows(bert, notes, tmp_path_factory):
    """Returns the output of the notes, one by one."""
    out = tmp_path_factory.mktemp("rows") / "rows"
    assert ran(notes, "-m", bert, "--pool", "mean", "-o", out) == 0
    return embedkit.read(out)


@pytest.mark.parametrize(
    ("how", "output"),
    [
        *((how, "out") for how in ("mean", "row_mean", "max", "last")),
        *(("row_mean", "out.jsonl"), ("max", "out.parquet"), ("last", "out.npy")),
    ],
)
def test_vectors_of_patients_are_those_of_their_notes_pooled(bert, notes, rows, tmp_path, how, output):
    ordered = ("--order-by", "day") if how == "last" else ()
    asked = (notes, "-m", bert, "--pool", "mean", "--group-by", "patient", "--group-pool", how, *ordered)
    assert ran(*asked, "--keep", "ward", "--normalize", "-o", tmp_path / output, "--shard-rows", 3) == 0
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    groups = embedkit.read(tmp_path / output)
    patients = {row["id"]: row for row in map(json.loads, notes.read_text().splitlines())}
    tokens = dict(zip(rows.table["id"].to_pylist(), rows.table["n_used"].to_pylist(), strict=True))
    vectors = dict(zip(rows.ids, rows.vectors, strict=True))
    assert cli.run(["verify", str(tmp_path / output)]) == 0
    for patient, vector in zip(groups.ids, groups.vectors, strict=True):
        members = [name for name, row in patients.items() if row["patient"] == patient and name in vectors]
        if how == "last":
            pooled = vectors[max(members, key=lambda name: int(patients[name]["day"]))]
        elif how == "max":
            pooled = np.max([vectors[name] for name in members], axis=0)
        else:
            weights = [tokens[name] if how == "mean" else 1 for name in members]
            pooled = np.average([vectors[name] for name in members], axis=0, weights=weights)
        assert np.abs(vector - pooled / np.linalg.norm(pooled)).max() < 1e-6
    table = {row["id"]: row for row in groups.table.to_pylist()}
    assert sum(row["n_rows"] for row in table.values()) == len(patients)
    assert sum(row["n_pooled"] for row in table.values()) == len(vectors)
    assert {name: row["ward"] for name, row in table.items()} == dict.fromkeys(table, "A") | {"p1": None}


def test_a_run_stopped_between_rows_and_groups_resumes_to_the_same_bytes(bert, notes, tmp_path, monkeypatch):
    asked = (notes, "-m", bert, "--pool", "cls", "--group-by", "patient", "--shard-rows", 4)
    assert ran(*asked, "-o", tmp_path / "whole.parquet") == 0
    with monkeypatch.context() as patch:
        patch.setattr(grouping, "Grouping", lambda *_: 1 / 0)
        assert ran(*asked, "-o", tmp_path / "out.parquet") == 1
    assert not (tmp_path / "out.parquet").exists()
    assert ran(*asked, "-o", tmp_path / "out.parquet", "--on-exists", "resume") == 0
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert ran(*asked, "-o", tmp_path / "out.parquet") == 5
    assert ran(*asked, "-o", tmp_path / "out.parquet", "--on-exists", "resume") == 0
    assert ran(*asked, "--normalize", "-o", tmp_path / "out.parquet", "--on-exists", "resume") == 5
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "whole.parquet"]


@pytest.mark.parametrize("output", ["out", "out.parquet", "out.npy"])
def test_a_complete_output_is_kept_and_no_row_is_encoded_again(bert, notes, tmp_path, monkeypatch, capsys, output):
    table = tmp_path / "notes.jsonl"
    table.write_bytes(notes.read_bytes())
    asked = (table, "-m", bert, "--pool", "cls", "--group-by", "patient", "--shard-rows", 4, "--truncate-dim", 5)
    asked = (*asked, "--keep", "ward", "-o", tmp_path / "place" / output, "--on-exists", "resume")
    (tmp_path / "place").mkdir()
    assert ran(*asked) == 0
    made = {path: path.read_bytes() for path in (tmp_path / "place").rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(grouping, "encode_rows", lambda *_: pytest.fail("rows are encoded"))
        assert cli.run(["encode", *map(str, asked)]) == 0
        printed = capsys.readouterr().err
        assert "is already complete" in printed
        assert "3 rows, 3 vectors of 5 dimensions" in printed
        assert "nothing was left to compute" in printed
        assert ran(*asked, "--normalize") == 5
        table.write_bytes(
            b'{"id": "new", "text": "a note", "patient": "p9", "ward": "A", "visit": "", "day": ""}\n'
        )
        assert ran(*asked) == 5
    table.write_bytes(notes.read_bytes())
    assert {path: path.read_bytes() for path in (tmp_path / "place").rglob("*") if path.is_file()} == made


def test_a_folder_of_groups_that_lacks_a_shard_is_rebuilt(bert, notes, tmp_path):
    asked = (notes, "-m", bert, "--group-by", "patient", "--shard-rows", 2, "-o", tmp_path / "out")
    assert ran(*asked) == 0
    part = tmp_path / "out" / "embeddings" / "part-00001.parquet"
    before = part.read_bytes()
    part.unlink()
    assert ran(*asked, "--on-exists", "resume") == 0
    assert part.read_bytes() == before


def test_a_table_without_rows_has_no_groups(bert, tmp_path):
    table = tmp_path / "notes.csv"
    table.write_text("text,patient\n")
    asked = (table, "-m", bert, "--group-by", "patient", "--keep", "text", "-o", tmp_path / "out.parquet")
    assert ran(*asked) == 0
    assert len(embedkit.read(tmp_path / "out.parquet").table) == 0


@pytest.mark.parametrize(("on_bad_row", "code"), [("fail", 3), ("null", 0), ("skip", 0)])
def test_a_row_without_a_group_is_a_faulty_one(bert, tmp_path, capsys, on_bad_row, code):
    table = tmp_path / "notes.csv"
    table.write_text("text,patient\none note,p1\nanother,\nthird,p1\n")
    out = tmp_path / "out"
    asked = (table, "-m", bert, "--group-by", "patient", "--on-bad-row", on_bad_row, "-o", out)
    assert ran(*asked) == code
    printed = capsys.readouterr().err
    if code:
        assert "row 1" in printed
        assert "no_group" in printed
        assert not out.exists()
        return
    assert embedkit.read(out).table.select(["id", "n_rows"]).to_pylist() == [{"id": "p1", "n_rows": 2}]
    (listed,) = (tmp_path / "out.rows.rejects.jsonl").read_text().splitlines()
    assert json.loads(listed) | {"file": ""} == {"row": 1, "file": "", "offset": None, "code": "no_group"}


def test_the_list_of_rows_without_a_group_is_written_atomically(bert, tmp_path, monkeypatch):
    table = tmp_path / "notes.csv"
    table.write_text("text,patient\none note,p1\nanother,\n")
    asked = (table, "-m", bert, "--group-by", "patient", "--on-bad-row", "skip", "-o", tmp_path / "out")

    def failing(*_):
        raise OutputError("no space is left", hint="free some")

    with monkeypatch.context() as patch:
        patch.setattr(grouping, "write_file", failing)
        assert ran(*asked) == 5
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"notes.csv", "out", "out.rows.partial"}
    assert ran(*asked, "--on-exists", "resume") == 0
    assert len((tmp_path / "out.rows.rejects.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "out.rows.partial").exists()


def test_a_group_whose_values_do_not_fit_float16_is_refused_like_a_row(bert, notes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grouping, "finish", lambda vectors, **_: vectors * np.float32(1e9))
    asked = (notes, "-m", bert, "--group-by", "patient", "--precision", "float16", "-o", tmp_path / "out")
    assert ran(*asked) == 5
    assert "largest of float16" in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()
