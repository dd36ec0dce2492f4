from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from embedkit.errors import OutputError
from embedkit.output.formats import FORMATS, make_sink
from embedkit.output.inspect import inspect_output, lines
from embedkit.output.read import read
from embedkit.types import Variant
from tests.manifest.plans import make_plan
from tests.output.shards import (
    ONE,
    RECIPE,
    SEVERAL,
    Folder,
    layout,
    make_shard,
    vector_page,
    write_output,
    write_record,
)

ROWS = ([True, False, True], [False, False], [True] * 4)
FLOATS = ("float32", "float16")


def shards_of(like):
    return [make_shard(like, has, index=i) for i, has in enumerate(ROWS)]


def one_file(tmp_path, form, like, shards):
    write_output(tmp_path / "parts", form, like, shards)
    sink = make_sink(form, like)
    sink.merge(tmp_path / "parts", range(len(shards)), f"x{sink.suffix}", Folder(tmp_path).create)
    return tmp_path / f"x{sink.suffix}"


def same_bits(found, expected):
    return (
        found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()
    )


@pytest.mark.parametrize("single", [False, True], ids=["folder", "file"])
@pytest.mark.parametrize("variants", [ONE, SEVERAL], ids=["one", "several"])
@pytest.mark.parametrize("precision", FLOATS)
@pytest.mark.parametrize("form", FORMATS)
def test_ids_and_vectors_are_aligned_and_the_table_hides_no_row(tmp_path, form, precision, variants, single):
    like = layout(variants, precision)
    shards = shards_of(like)
    if single:
        path = one_file(tmp_path, form, like, shards)
    else:
        path = tmp_path / "out"
        write_output(path, form, like, shards)
    found = read(path)
    ids = [id_ for shard in shards for id_, has in zip(shard.ids, shard.has_vector, strict=True) if has]
    assert found.ids == ids
    assert found.variants == tuple(v.name for v in variants)
    for v in variants:
        expected = np.concatenate([shard.vectors[v.name] for shard in shards]).astype(np.float32)
        assert same_bits(found.variant(v.name), expected)
    assert found.vectors is found.variant(variants[0].name)
    assert found.table.filter(found.has_vector)["id"].to_pylist() == ids
    assert found.table.num_rows == (6 if form == "npy" else 9)
    assert "ward" in found.table.column_names
    assert not any(name.startswith("embedding") for name in found.table.column_names)
    knows_recipe = not (single and form == "jsonl")
    assert found.recipe == (RECIPE if knows_recipe else {})
    assert found.fingerprint == ("f00d" if knows_recipe else None)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rows", [[], [False, False]], ids=["no rows", "no vectors"])
def test_an_output_without_vectors_has_0_of_the_right_length(tmp_path, form, rows):
    like = layout()
    write_output(tmp_path / "out", form, like, [make_shard(like, rows)])
    found = read(tmp_path / "out")
    assert (found.vectors.shape, found.ids) == ((0, 11), [])
    assert found.table.num_rows == (0 if form == "npy" else len(rows))
    assert inspect_output(tmp_path / "out").norms == {}


@pytest.mark.parametrize("form", FORMATS)
def test_int8_comes_back_as_floats_within_the_ranges_it_was_made_with(tmp_path, form):
    like = layout([Variant("", 2)], "int8")
    stored = np.array([[-128, 127], [0, 0]], np.int8)
    shard = replace(make_shard(like, [True, False, True]), vectors={"": stored})
    ranges = {"": {"min": [-1.0, 0.0], "max": [1.0, 10.0]}}
    write_output(tmp_path / "out", form, like, [shard], int8_ranges=ranges)
    # (q + 128) / 255 = 0, 1 and 128/255
    expected = np.array([[-1, 10], [-1 + 2 * 128 / 255, 10 * 128 / 255]], np.float32)
    np.testing.assert_allclose(read(tmp_path / "out").vectors, expected, atol=1e-6)


def test_int8_without_its_ranges_is_an_error_and_not_raw_numbers(tmp_path):
    like = layout(precision="int8")
    write_output(tmp_path / "out", "parquet", like, shards_of(like))
    with pytest.raises(OutputError, match="ranges"):
        _ = read(tmp_path / "out").vectors


@pytest.mark.parametrize("single", [False, True], ids=["folder", "file"])
@pytest.mark.parametrize("form", ["parquet", "npy", "arrow"])
def test_binary_comes_back_a_bit_a_value_without_the_padding(tmp_path, form, single):
    like = layout(precision="binary")  # 11 bits in 2 bytes
    shard = replace(make_shard(like, [True]), vectors={"": np.array([[0b10100000, 0b00100000]], np.uint8)})
    path = tmp_path / "out"
    if single:
        path = one_file(tmp_path, form, like, [shard])
    else:
        write_output(path, form, like, [shard])
    assert read(path).vectors.tolist() == [[1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize("single", [False, True], ids=["folder", "file"])
@pytest.mark.parametrize("form", ["parquet", "arrow", "jsonl"])
def test_token_vectors_are_a_list_of_arrays_and_vectors_says_so(tmp_path, form, single):
    like = layout(SEVERAL, token_vectors=True)
    shards = shards_of(like)
    path = tmp_path / "out"
    if single:
        path = one_file(tmp_path, form, like, shards)
    else:
        write_output(path, form, like, shards)
    found = read(path)
    expected = [tokens for shard in shards for tokens in shard.vectors["L12_cls"]]
    assert all(map(same_bits, found.token_variant("L12_cls"), expected))
    assert len(found.token_vectors) == len(found.ids) == len(expected) == 6
    with pytest.raises(OutputError, match="a vector per token") as caught:
        _ = found.vectors
    assert ".token_vectors" in caught.value.hint


@pytest.mark.parametrize("form", ["parquet", "arrow", "jsonl"])
def test_token_vectors_are_known_by_the_files_where_the_manifest_does_not_say(tmp_path, form):
    like = layout(token_vectors=True)
    shard = make_shard(like, [False, True, True])
    write_output(tmp_path, form, like, [shard])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["token_vectors"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert all(map(same_bits, read(tmp_path).token_vectors, shard.vectors[""]))


def test_one_npy_or_arrow_file_is_mapped_and_not_read(tmp_path):
    like = layout()
    shard = make_shard(like, [True] * 5)
    for form in ("npy", "arrow"):
        write_output(tmp_path / form, form, like, [shard])
    assert isinstance(read(tmp_path / "npy").vectors, np.memmap)
    vectors = read(tmp_path / "arrow").vectors
    assert not vectors.flags.owndata
    assert not vectors.flags.writeable


def test_kept_values_of_many_kinds_in_json_lines_become_text_and_not_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("embedkit.output.formats.jsonl_format._LINES", 2)
    like = layout(kept_types={"tags": "json"})
    tags = [1, 2, "x", None, {"a": 1}]
    shard = replace(make_shard(like, [True] * 5), kept={"tags": tags})
    write_output(tmp_path / "out", "jsonl", like, [shard])
    texts = read(tmp_path / "out").table["tags"].to_pylist()
    assert texts == ["1", "2", "x", None, '{"a":1}']


def test_a_folder_without_a_manifest_says_how_to_go_on(tmp_path):
    like = layout()
    write_output(tmp_path / "out", "parquet", like, shards_of(like))
    (tmp_path / "out/manifest.json").unlink()
    with pytest.raises(OutputError, match="not finished") as caught:
        read(tmp_path / "out")
    assert "--on-exists resume" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("gone.parquet", None, "does not exist"),
        ("gone.npy", None, "does not exist"),
        ("x.csv", b"a,b\n", "ends in .parquet, .npy, .jsonl, .arrow"),
        ("x.parquet", b"PAR1 not really PAR1", "damaged"),
        ("x.arrow", b"ARROW1", "damaged"),
        ("x.npy", b"", "x.metadata.parquet, which goes with x.npy, does not exist"),
        ("x.jsonl", b'{"text": "Jane Doe"}\n', "line 1 is not a row that embedkit wrote"),
        ("x.jsonl", b'{"Jane Doe\n', "line 1 is not a row that embedkit wrote"),
        ("folder/other.txt", b"", "is not an output of embedkit"),
        ("folder/manifest.json", b"[]", "not a manifest as embedkit writes it"),
        ("folder/manifest.json", b"{}", "damaged"),
    ],
)
def test_what_is_not_an_output_is_named_without_its_content(tmp_path, name, content, sentence):
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    for opens in (read, inspect_output):
        with pytest.raises(OutputError, match=sentence) as caught:
            opens(path.parent if name.startswith("folder/") else path)
        assert "Jane" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("opens", [inspect_output, lambda path: read(path).vectors], ids=["inspect", "read"])
def test_a_flipped_bit_is_an_error_that_names_the_file(tmp_path, opens):
    like = layout([Variant("", 64)])
    write_output(tmp_path / "out", "parquet", like, [make_shard(like, [True] * 50)])
    path = tmp_path / "out/embeddings/part-00000.parquet"
    other_casing = bytearray(path.read_bytes())
    other_casing[vector_page(path, "embedding")[1] - 9] ^= 4
    path.write_bytes(other_casing)
    with pytest.raises(OutputError, match=r"part-00000.parquet .*checksum"):
        opens(tmp_path / "out")


def test_a_shard_that_is_gone_is_an_error_that_names_it(tmp_path):
    like = layout()
    write_output(tmp_path / "out", "npy", like, shards_of(like))
    (tmp_path / "out/embeddings/part-00001.npy").unlink()
    with pytest.raises(OutputError, match=r"part-00001.npy is missing"):
        _ = read(tmp_path / "out").vectors


def test_an_unknown_variant_is_refused_with_the_known_ones(tmp_path):
    like = layout(SEVERAL)
    write_output(tmp_path / "out", "parquet", like, shards_of(like))
    with pytest.raises(OutputError, match="'L09_mean', 'L12_cls'"):
        read(tmp_path / "out").variant("L13")


@pytest.mark.parametrize("form", FORMATS)
def test_inspect_counts_rows_statuses_tokens_and_norms(tmp_path, form):
    like = layout([Variant("", 2)])
    vectors = np.array([[3, 4], [0, 1], [0, 2], [6, 8], [0, 0]], np.float32)  # norms 5, 1, 2, 10, 0
    shard = replace(
        make_shard(like, [True, True, False, True, True, True]),
        vectors={"": vectors},
        status=["ok", "truncated", "empty", "ok", "ok", "ok"],
        n_tokens=np.array([10, 600, 0, 10, 10, 10], np.int32),
        n_used=np.array([10, 500, 0, 10, 10, 10], np.int32),
    )
    write_output(tmp_path / "out", form, like, [shard])
    seen = inspect_output(tmp_path / "out")
    assert (seen.complete, seen.rows, seen.totals.vectors, seen.variants) == (True, 6, 5, (Variant("", 2),))
    assert seen.totals.statuses == {"ok": 4, "truncated": 1, "empty": 1}
    assert (seen.totals.n_tokens, seen.totals.n_used) == (640, 540)
    assert seen.totals.truncated_share == pytest.approx(1 / 6)
    assert seen.totals.lost_share == pytest.approx(100 / 640)
    norms = seen.norms[""]
    assert (norms.minimum, norms.maximum) == (0, 10)
    assert norms.median == pytest.approx(2, rel=3e-4)
    assert seen.files == (2 if form == "npy" else 1)
    assert seen.bytes == sum(p.stat().st_size for p in (tmp_path / "out").glob("*/part-*"))
    text = "\n".join(lines(seen))
    assert "16.7 % of rows truncated, 15.6 % of tokens lost" in text
    assert "ok 4, truncated 1, empty 1" in text


def test_inspect_of_an_unfinished_folder_tells_which_rows_are_done(tmp_path):
    like = layout()
    sink = write_output(tmp_path / "out", "parquet", like, [])
    (tmp_path / "out/manifest.json").unlink()
    (tmp_path / "out/plan.json").write_bytes(make_plan(12, 3).serialize())
    for index in (0, 1, 3):
        shard = make_shard(like, [True, False, True], index=index)
        sink.write(shard, Folder(tmp_path / "out").create)
        write_record(tmp_path / "out", sink, shard)
    seen = inspect_output(tmp_path / "out")
    assert (seen.complete, seen.rows, seen.shards, seen.totals.vectors) == (False, 12, (3, 4), 6)
    assert seen.done == ((0, 6), (9, 12))
    text = "\n".join(lines(seen))
    assert "NOT FINISHED, 3 of 4 shards done" in text
    assert "9 rows: 0 to 5, 9 to 11" in text


def test_the_median_norm_is_close_whatever_the_scale(tmp_path):
    like = layout([Variant("", 4)], kept_types={})
    shard = make_shard(like, [True] * 999)
    vectors = np.random.default_rng(0).lognormal(sigma=9, size=(999, 4)).astype(np.float32)
    write_output(tmp_path / "out", "npy", like, [replace(shard, vectors={"": vectors})])
    norms = inspect_output(tmp_path / "out").norms[""]
    assert norms.median == pytest.approx(np.median(np.linalg.norm(vectors, axis=1)), rel=3e-4)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("precision", FLOATS)
def test_pandas_and_polars_frames_have_the_rows_of_the_table_and_their_vectors(tmp_path, form, precision):
    like = layout(SEVERAL, precision)
    write_output(tmp_path / "out", form, like, shards_of(like))
    found = read(tmp_path / "out")
    assert repr(found).startswith(f"<Embeddings '{tmp_path / 'out'}': ")
    pandas, polars = found.to_pandas(), found.to_polars()
    for variant in like.variants:
        expected = found.variant(variant.name)
        cells = pandas[variant.column][found.has_vector]
        assert same_bits(np.stack(cells), expected)
        assert same_bits(polars[variant.column].drop_nulls().to_numpy(), expected)
        assert pandas[variant.column].isna().tolist() == (~found.has_vector).tolist()
        assert polars[variant.column].is_null().to_list() == (~found.has_vector).tolist()
    ids = found.table["id"].to_pylist()
    assert polars["id"].to_list() == ids
    assert pandas["id"].dropna().tolist() == [id_ for id_ in ids if id_ is not None]


def test_frames_of_token_vectors_hold_a_list_for_each_row(tmp_path):
    like = layout(ONE, "float32", token_vectors=True)
    write_output(tmp_path / "out", "parquet", like, shards_of(like))
    found = read(tmp_path / "out")
    column = found.to_polars()[like.variants[0].column]
    assert column.is_null().to_list() == (~found.has_vector).tolist()
    for cell, expected in zip(column.drop_nulls(), found.token_vectors, strict=True):
        assert same_bits(cell.to_numpy(), expected)
