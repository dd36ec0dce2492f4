"""`embedkit diff`: rows are matched by id, and every kind of difference is found and counted."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedkit
from embedkit.cli import run
from embedkit.comparison import vectors
from embedkit.pooling.heads import PredictionHead
from embedkit.pooling.pooler_files import probe_bytes
from tests.conftest import write_rows
from tests.previous_outputs import FOLDER

ROWS = [
    *({"id": f"n{number}", "text": f"words of note {number} " * (number % 5 + 1)} for number in range(40)),
    {"id": "twice", "text": "first of two"},
    {"id": "twice", "text": "second of two, longer"},
    {"id": None, "text": "no id"},
    {"id": "empty", "text": ""},
    {"id": "long", "text": "secret " * 90},
]


@pytest.fixture(scope="module")
def outputs(bert, one_thread, tmp_path_factory):
    """The output of ROWS, and a function that encodes rows with other options into the same folder, once each."""
    folder = tmp_path_factory.mktemp("outputs")
    made = {}

    def encoded(*options, rows=ROWS):
        key = (options, json.dumps(rows))
        if key not in made:
            name = next((word for word in options if word.startswith("as.")), f"out{len(made)}")
            out = folder / name.replace("as.", f"file{len(made)}.")
            given = [word for word in options if not word.startswith("as.")]
            table = write_rows(folder / f"table{len(made)}.jsonl", rows)
            assert run(["encode", str(table), "-m", str(bert), "-o", str(out), "-q", *given]) == 0
            made[key] = out
        return made[key]

    return encoded


@pytest.fixture
def diff(embedkit_cli):
    """`embedkit diff A B --json OPTIONS...`: the exit code and the object."""

    def ran(*arguments):
        result = embedkit_cli("diff", *arguments, "--json")
        assert len(result.told) == (0 if result.code == 0 else 2), result.err
        return result.code, json.loads(result.out)

    return ran


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--shard-rows", "7"),
        ("as.parquet",),
        ("as.arrow",),
        ("as.jsonl",),
        ("as.npy",),
        ("--output-format", "npy", "--shard-rows", "9"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("order", [1, -1], ids=["same order", "reversed"])
def test_the_same_rows_are_the_same_in_any_format_and_order(options, order, outputs, diff, monkeypatch):
    monkeypatch.setattr(vectors, "_BYTES", 4 * 32 * 11)  # so that an output in another order is read several times
    # Of a repeated id, the first belongs to the first.
    twice = [row for row in ROWS if row["id"] == "twice"]
    others = [row for row in ROWS if row["id"] != "twice"]
    code, found = diff(
        outputs(),
        outputs(*options, rows=[*twice, *others][::order] if order == 1 else [*others[::-1], *twice]),
        "--tolerance",
        "1e-6",
    )
    assert (code, found["same"], found["differing"]) == (0, True, 0)
    has_npy = "npy" in " ".join(options)
    assert found["matched"] == len(ROWS) - has_npy  # .npy has no row without a vector
    assert found["variants"][0]["cosine"]["min"] == pytest.approx(1, abs=1e-6)
    assert found["variants"][0]["linear_cka"] == pytest.approx(1, abs=1e-6)
    assert found["variants"][0]["shared_neighbours"] > 0.99
    assert found["recipe"] == (None if "as.jsonl" in options else [])


@pytest.mark.parametrize("form", [".parquet", ".jsonl", ".npy"])
def test_scores_of_a_head_are_compared(form, bert, embedkit_cli, diff, tmp_path, vectors_and_probes):
    """The same vectors, and the scores of two probes."""
    table, probes = vectors_and_probes
    outs = [tmp_path / f"{number}{of}" for number, of in enumerate((".parquet", form, form, form))]
    pools = [["--pool", str(probes[number]), "--with-head"] for number in (0, 0, 1)] + [["--pool", "mean"]]
    for out, pool in zip(outs, pools, strict=True):
        assert embedkit_cli("encode", table, "-m", bert, "-o", out, "-q", *pool).code == 0
    code, found = diff(outs[0], outs[1])
    assert (code, found["columns"]) == (0, {"scores": 0})
    code, found = diff(outs[0], outs[2])
    assert (code, found["variants"][0]["differing"], found["columns"]) == (5, 0, {"scores": 3})
    assert diff(outs[0], outs[2], "--tolerance", "1")[0] == 0  # the same classes
    code, found = diff(outs[0], outs[3])
    assert (code, found["columns_only_first"]) == (5, {"scores": 3})


@pytest.fixture
def vectors_and_probes(bert, tmp_path):
    """Three texts, and the files of two probes on their mean vectors, the second of twice the first's logits."""
    rows = [{"id": str(number), "text": text} for number, text in enumerate(("chest pain", "no pain", "cough"))]
    table = write_rows(tmp_path / "three.jsonl", rows)
    out = tmp_path / "vectors"
    assert run(["encode", str(table), "-m", str(bert), "-o", str(out), "-q", "--pool", "mean"]) == 0
    found = embedkit.read(out)
    weight = found.vectors[:2] - found.vectors[2]
    recipe, paths = found.recipe, []
    for number in range(2):
        bias = np.zeros(2, np.float32)
        head = PredictionHead(weight * (1 + number), bias, ("flu", "none"), "classification")
        paths.append(tmp_path / f"probe{number}.safetensors")
        chosen = {"layers": recipe["layers"], "layer_agg": "concat", "poolings": ["mean"]}
        paths[-1].write_bytes(probe_bytes(head, recipe, **chosen, facts={}))
    return table, paths


def changed(out, tmp_path, change):
    """Returns a copy of a .parquet output with its table changed."""
    table = change(pq.read_table(out))
    pq.write_table(table, tmp_path / "changed.parquet")
    return tmp_path / "changed.parquet"


def with_column(table, name, values):
    place = table.column_names.index(name)
    return table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))


def test_a_changed_row_is_found_with_its_difference_and_cosine(outputs, diff, tmp_path):
    out = outputs("as.parquet")
    rows = pq.read_table(out)["embedding"].to_pylist()
    before = np.array(rows[17])
    rows[17] = list(before + np.eye(32)[3] * 0.25)
    rows[9] = list(np.array(rows[9]) * (1 + 1e-6))
    other = changed(out, tmp_path, lambda table: with_column(table, "embedding", rows))
    code, found = diff(out, other)
    [variant] = found["variants"]
    assert (code, found["differing"], variant["differing"]) == (5, 2, 2)
    assert [row["first"] for row in variant["rows"]] == [17, 9]
    assert variant["rows"][0]["difference"] == pytest.approx(0.25, abs=1e-6)
    after = before + np.eye(32)[3] * 0.25
    cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
    assert variant["rows"][0]["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert variant["difference"]["max"] == pytest.approx(0.25, abs=1e-6)
    assert variant["difference"]["median"] == 0
    assert diff(out, other, "--tolerance", "1e-3")[1]["differing"] == 1
    assert diff(out, other, "--tolerance", "0.26")[0] == 0
    assert diff(out, other, "--min-cosine", "0.9999999")[1]["differing"] == 1
    assert diff(out, other, "--min-cosine", "0.5")[0] == 0
    assert diff(out, other, "--min-cosine", "0.5", "--tolerance", "0.1")[0] == 5


def test_rows_receipts_and_vectors_of_one_output_only_are_counted_by_row(outputs, diff, tmp_path, embedkit_cli):
    out = outputs("as.parquet")

    def change(table):
        status, used = table["status"].to_pylist(), table["n_used"].to_pylist()
        cells, ids = table["embedding"].to_pylist(), table["id"].to_pylist()
        status[3], used[4], cells[5], ids[6] = "truncated", 1, None, "renamed"
        for name, values in (("status", status), ("n_used", used), ("embedding", cells), ("id", ids)):
            table = with_column(table, name, values)
        return table.slice(0, 41)  # without the second row of the repeated id, and all after it

    other = changed(out, tmp_path, change)
    code, found = diff(out, other)
    assert (code, found["matched"], found["differing"]) == (5, 40, 3)
    assert found["only_first"] == {"count": 5, "rows": [6, 41, 42, 43, 44]}
    assert found["only_second"] == {"count": 1, "rows": [6]}
    assert found["receipts"] == {"n_tokens": 0, "n_used": 1, "n_chunks": 0, "status": 1}
    assert found["variants"][0]["vector_only_first"] == 1
    assert found["variants"][0]["rows"] == [{"first": 5, "second": 5, "difference": None, "cosine": None}]
    printed = embedkit_cli("diff", out, other, "--limit-rows-shown", 2)
    assert "5 only in the first: rows 6, 41, 3 more" in printed.out
    assert "renamed" not in printed.out + printed.err
    assert "3 of 40 rows in both, 6 rows in only one of them" in printed.told[0]


@pytest.mark.parametrize(
    ("options", "field", "least"),
    [
        (("as.parquet", "--precision", "float16"), "precision", 0.99999),
        (("as.parquet", "--precision", "int8"), "precision", 0.99),
        (("as.parquet", "--precision", "binary"), "precision", 0.6),
        (("as.parquet", "--normalize"), "normalize", 0.99999),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_other_precisions_are_compared_as_numbers(options, field, least, outputs, diff):
    other = outputs(*options)
    code, found = diff(outputs(), other, "--min-cosine", least)
    assert (code, field in [one["field"] for one in found["recipe"]]) == (0, True)
    [variant] = found["variants"]
    assert variant["differing"] == 0
    ours, theirs = embedkit.read(outputs()).vectors, embedkit.read(other).vectors
    theirs = 2 * theirs - 1 if "binary" in options else theirs
    expected = np.abs(ours - theirs).max(axis=1)
    assert variant["difference"]["max"] == pytest.approx(expected.max(), rel=1e-5)
    assert variant["difference"]["median"] == pytest.approx(np.median(expected), rel=1e-5)


def test_vectors_of_other_dimensions_are_compared_as_spaces(outputs, diff):
    code, found = diff(outputs(), outputs("--layers", "2,3"))
    [variant] = found["variants"]
    assert (code, variant["dims"], variant["differing"], variant["difference"]) == (5, [32, 64], 44, None)
    assert 0.5 < variant["linear_cka"] <= 1
    assert 0 < variant["shared_neighbours"] <= 1
    assert {"field": "layers", "values": [[3], [2, 3]]} in found["recipe"]


def test_columns_are_matched_by_name(outputs, diff):
    separate = ("--layer-agg", "separate", "--layers")
    code, found = diff(outputs(*separate, "1,2"), outputs(*separate, "2,3"))
    assert [variant["names"] for variant in found["variants"]] == [["embedding_L02_mean"] * 2]
    assert found["variants"][0]["differing"] == 0
    assert (found["variants_only_first"], found["variants_only_second"]) == (
        ["embedding_L01_mean"],
        ["embedding_L03_mean"],
    )
    assert code == 5


@pytest.mark.parametrize(
    "options", [("--pool", "none"), ("--level", "word"), ("--level", "chunk", "--on-long", "chunk")], ids=" ".join
)
def test_token_vectors_and_units_are_matched(options, outputs, diff):
    once = [row for row in ROWS if row["text"] != "second of two, longer"]
    one = outputs(*options, rows=once)
    code, found = diff(one, outputs(*options, rows=once[::-1]), "--tolerance", 1e-5)
    assert (code, found["matched"], found["differing"]) == (0, len(embedkit.read(one).table), 0)
    assert found["variants"][0]["cosine"]["min"] == pytest.approx(1, abs=1e-6)
    # A text of more words: its row has another shape, or its units come on top.
    longer = [row | {"text": row["text"] * 9} if row["id"] == "twice" else row for row in once]
    code, found = diff(one, outputs(*options, rows=longer), "--tolerance", 1e-5)
    assert code == 5
    assert found["variants"][0]["other_shape"] == (1 if "none" in options else 0)
    assert (found["only_second"]["count"] > 0) == ("none" not in options)


@pytest.mark.parametrize(
    ("one", "other", "code", "message"),
    [
        ("windows.parquet", "chunks.parquet", 2, "a row for each text, and"),
        ("windows.parquet", "groups.parquet", 2, "a row for each group of texts: their rows cannot be compared"),
        ("shards-parquet", "shards-arrow", 2, "a row for each text, with a vector for each token"),
        ("half-parquet", "shards-parquet", 5, "half-parquet is not finished"),
        ("shards-parquet", "damaged.parquet", 5, "damaged"),
        ("shards-parquet", "nothing", 5, "nothing does not exist"),
        ("shards-parquet", "shards-parquet --tolerance nan", 2, "--tolerance cannot be nan"),
        ("shards-parquet", "shards-parquet --min-cosine 2", 2, "--min-cosine cannot be 2"),
        ("shards-parquet", "shards-parquet --sample 1", 2, "--sample cannot be 1"),
        ("shards-parquet", "shards-parquet --limit-rows-shown -1", 2, "--limit-rows-shown cannot be -1"),
    ],
)
def test_outputs_that_cannot_be_compared_give_one_error(
    one, other, code, message, embedkit_cli, tmp_path, monkeypatch
):
    shutil.copytree(FOLDER, tmp_path / "old", copy_function=shutil.copyfile)
    monkeypatch.chdir(tmp_path / "old")
    whole = (FOLDER / "windows.parquet").read_bytes()
    (tmp_path / "old" / "damaged.parquet").write_bytes(whole[: len(whole) // 2] + b"\0" * 99 + whole[-200:])
    result = embedkit_cli("diff", one, *other.split())
    assert (result.code, len(result.told), result.out) == (code, 2, "")
    assert message in result.told[0]
    assert result.told[1].startswith("hint: ")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("shards-parquet", "shards-jsonl"),
        ("groups.parquet", "groups"),
        ("words.npy", "words.npy"),
        ("spans.jsonl", "spans.jsonl"),
    ],
)
def test_outputs_of_earlier_versions_are_compared(one, other, diff):
    code, found = diff(FOLDER / one, FOLDER / other, "--min-cosine", "0.99")
    assert found["matched"] > 3
    assert code == (5 if one == "groups.parquet" else 0)
