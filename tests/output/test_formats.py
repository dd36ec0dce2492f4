from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from embedkit.errors import OutputError, UsageError
from embedkit.output.formats import FORMATS, Layout, jsonl_lines, make_sink, shard_name
from embedkit.types import EncodedShard, Variant
from tests.output.shards import (
    METADATA,
    ONE,
    PRECISIONS,
    SEVERAL,
    Folder,
    formats,
    layout,
    layouts,
    make_shard,
    masks,
    vector_page,
)


def written(path: Path, form: str, like: Layout, *shards: EncodedShard) -> dict[str, bytes]:
    folder = Folder(path)
    for shard in shards:
        make_sink(form, like).write(shard, folder.create)
    return folder.files()


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@given(form=formats, like=layouts, has_vector=masks, seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=150)
def test_what_is_written_is_read_back_to_the_bit(form, like, has_vector, seed):
    assume(not (form == "npy" and like.token_vectors))
    shard = make_shard(like, has_vector, seed)
    stored_rows = shard.has_vector if form == "npy" else np.ones(len(has_vector), np.bool_)
    with TemporaryDirectory() as path:
        written(Path(path), form, like, shard)
        sink = make_sink(form, like)
        pieces = list(sink.read([Path(path) / file for file in sink.files(0)], like.variants))
        for variant in like.variants:
            expected = shard.vectors[variant.name]
            found = [vector for piece in pieces for vector in piece.vectors[variant.name]]
            assert [bits(vector) for vector in found] == [bits(vector) for vector in expected]
            assert all(vector.dtype == like.dtype for vector in found)
        has = [bool(x) for piece in pieces for x in piece.has_vector]
        assert has == shard.has_vector[stored_rows].tolist()
        for name in ("n_tokens", "n_used", "n_chunks", "status"):
            assert [x for piece in pieces for x in piece.facts[name].to_pylist()] == list(
                np.asarray(getattr(shard, name))[stored_rows]
            )
        ids = [id_ for id_, is_stored in zip(shard.ids, stored_rows, strict=True) if is_stored]
        assert [x for piece in pieces for x in piece.facts["id"].to_pylist()] == ids


@given(form=formats, like=layouts, has_vector=masks)
@settings(deadline=None, max_examples=40)
def test_the_same_shard_gives_the_same_bytes(form, like, has_vector):
    assume(not (form == "npy" and like.token_vectors))
    with TemporaryDirectory() as one, TemporaryDirectory() as two:
        first = written(Path(one), form, like, make_shard(like, has_vector))
        assert first == written(Path(two), form, like, make_shard(like, has_vector))
        assert set(first) == set(make_sink(form, like).files(0))


def test_strided_and_fortran_ordered_vectors_give_the_bytes_of_plain_ones(tmp_path):
    like = layout()
    shard = make_shard(like, [True] * 6)
    plain = shard.vectors[""]
    every_other = np.repeat(plain, 2, axis=0)[::2]
    for form in FORMATS:
        expected = written(tmp_path / form, form, like, shard)
        for i, odd in enumerate((np.asfortranarray(plain), every_other, plain.astype(">f4"))):
            again = written(tmp_path / f"{form}{i}", form, like, replace(shard, vectors={"": odd}))
            assert again == expected


@pytest.mark.parametrize("variants", [ONE, SEVERAL], ids=["one", "several"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("form", FORMATS)
def test_a_single_file_holds_the_rows_of_its_shards_one_after_another(tmp_path, form, precision, variants):
    like = layout(variants, precision)
    rows = ([True, False, True], [False, False], [], [True] * 4)
    shards = [make_shard(like, has, index=i) for i, has in enumerate(rows)]
    written(tmp_path / "parts", form, like, *shards)
    sink, name = make_sink(form, like), f"x{make_sink(form, like).suffix}"
    sink.merge(tmp_path / "parts", range(4), name, Folder(tmp_path / "one").create)
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == sorted(sink.merged_files(name))
    pieces = list(sink.read([tmp_path / "one" / file for file in sink.merged_files(name)], variants))
    parts = [
        piece
        for i in range(4)
        for piece in sink.read([tmp_path / "parts" / file for file in sink.files(i)], variants)
    ]
    for variant in variants:
        merged = np.concatenate([piece.vectors[variant.name] for piece in pieces])
        assert bits(merged) == b"".join(bits(shard.vectors[variant.name]) for shard in shards)
    assert np.array_equal(
        np.concatenate([p.has_vector for p in pieces]), np.concatenate([p.has_vector for p in parts])
    )
    facts = pa.concat_tables([p.facts for p in pieces], promote_options="permissive")
    assert facts.to_pylist() == [row for part in parts for row in part.facts.to_pylist()]


@pytest.mark.parametrize("form", ["parquet", "arrow", "npy"])
def test_kept_columns_keep_their_types_and_values(tmp_path, form):
    like = layout()
    shard = make_shard(like, [True] * 40)
    folder = tmp_path / ("metadata" if form == "npy" else "embeddings")
    written(tmp_path, form, like, shard)
    file = next(folder.iterdir())
    table = pa.ipc.open_file(file).read_all() if form == "arrow" else pq.read_table(file)
    types = [table.schema.field(name).type for name in ("age", "weight", "died", "tags", "ward", "seen")]
    assert types == [pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.string(), pa.timestamp("ms")]
    for name in ("age", "weight", "died", "ward", "seen"):
        assert table[name].to_pylist() == list(shard.kept[name])
    tags = [None if text is None else json.loads(text) for text in table["tags"].to_pylist()]
    assert tags == list(shard.kept["tags"])
    assert '{"é":[1,null,"\\n"]}' in table["tags"].to_pylist()
    assert {
        key.decode(): value.decode() for key, value in table.schema.metadata.items()
    }.items() >= METADATA.items()


def test_a_timestamp_of_seconds_comes_through_a_merge_although_parquet_has_none(tmp_path):
    like = layout(kept_types={"seen": "timestamp[s]", "zoned": "timestamp[us, tz=UTC]"})
    shard = replace(make_shard(layout(kept_types={}), [True, True]), kept={"seen": [0, None], "zoned": [None, 5]})
    written(tmp_path, "parquet", like, shard)
    make_sink("parquet", like).merge(tmp_path, [0], "x.parquet", Folder(tmp_path).create)
    expected = pq.read_table(tmp_path / "embeddings/part-00000.parquet")
    assert pq.read_table(tmp_path / "x.parquet").equals(expected)


def test_json_lines_hold_natural_values_and_the_shortest_text_of_a_float32(tmp_path):
    like = layout(kept_types={"seen": "timestamp[ms]", "tags": "json", "weight": "double"})
    full = make_shard(layout(), [True, False])
    shard = replace(
        full,
        ids=["007", None],
        kept={"seen": [full.kept["seen"][0], None], "tags": [{"a": [1]}, None], "weight": [float("nan"), 0.1]},
        vectors={"": np.array([[0.1] * 11], np.float32)},
    )
    first, second = (json.loads(line) for line in jsonl_lines(shard, like))
    assert list(first) == [
        *("id", "seen", "tags", "weight"),
        *("n_tokens", "n_used", "n_chunks", "status", "embedding"),
    ]
    assert (first["id"], first["tags"], second["id"], second["weight"]) == ("007", {"a": [1]}, None, 0.1)
    assert first["weight"] is None  # JSON has no NaN
    assert second["embedding"] is None
    assert b'"embedding":[0.1,0.1,' in next(jsonl_lines(shard, like))  # as a double: 0.10000000149011612


@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_any_float32_reads_back_from_its_json_text_to_the_same_bits(values):
    array = np.array([values], np.float32)
    like = layout([Variant("", len(values))], kept_types={})
    shard = replace(make_shard(like, [True]), vectors={"": array})
    line = json.loads(next(jsonl_lines(shard, like)))
    assert bits(np.array([line["embedding"]], np.float64).astype(np.float32)) == bits(array)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_flipped_bit_in_a_page_of_vectors_is_found_when_it_is_read(tmp_path, precision):
    like = layout([Variant("", 64)], precision, kept_types={})
    written(tmp_path, "parquet", like, make_shard(like, [True, True, False] * 50))
    sink = make_sink("parquet", like)
    path = tmp_path / sink.files(0)[0]
    whole = path.read_bytes()
    start, stop = vector_page(path, "embedding")
    for place in np.linspace(start + 80, stop - 1, 25, dtype=int):  # past the page header, which Thrift checks
        other_casing = bytearray(whole)
        other_casing[place] ^= 1 << (place % 8)
        path.write_bytes(other_casing)
        with pytest.raises(OSError, match="CRC"):
            list(sink.read([path], like.variants))


def test_vector_columns_have_no_statistics_and_floats_no_dictionary(tmp_path):
    like = layout(SEVERAL)
    written(tmp_path, "parquet", like, make_shard(like, [True, False, True]))
    file = pq.ParquetFile(tmp_path / "embeddings/part-00000.parquet")
    columns = [file.metadata.row_group(0).column(i) for i in range(file.metadata.num_columns)]
    vectors = [c for c in columns if c.path_in_schema.startswith("embedding_")]
    assert len(vectors) == 2
    for column in vectors:
        assert not column.is_stats_set
        assert not column.has_dictionary_page
        assert column.compression == "UNCOMPRESSED"
    for field in (file.schema_arrow.field(v.column) for v in SEVERAL):
        assert pa.types.is_fixed_size_list(field.type)
        assert not field.type.value_field.nullable


def test_a_large_shard_is_several_row_groups_with_all_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("embedkit.output.formats.parquet_format.ROW_GROUP_BYTES", 1000)
    like = layout(kept_types={})
    shard = make_shard(like, [True, False, True] * 30)
    written(tmp_path, "parquet", like, shard)
    file = pq.ParquetFile(tmp_path / "embeddings/part-00000.parquet")
    assert file.num_row_groups > 3
    pieces = list(make_sink("parquet", like).read([tmp_path / "embeddings/part-00000.parquet"], like.variants))
    assert bits(np.concatenate([piece.vectors[""] for piece in pieces])) == bits(shard.vectors[""])


def test_a_value_that_does_not_fit_its_column_is_told_by_place_and_never_by_content(tmp_path):
    like = layout(kept_types={"age": "int64"})
    content = "Jane Doe, HIV"
    shard = replace(make_shard(like, [True] * 3), kept={"age": [1, content, 3]})
    with pytest.raises(OutputError, match="position 1 of the shard") as caught:
        written(tmp_path, "parquet", like, shard)
    error = caught.value
    assert content not in error.message + error.hint
    assert error.__context__ is None


def test_half_a_character_is_told_by_place_and_never_by_content():
    like = layout(kept_types={"ward": "string"})
    shard = replace(make_shard(like, [True] * 2), kept={"ward": ["a", "Jane \ud800"]})
    with pytest.raises(OutputError, match="position 1") as caught:
        list(jsonl_lines(shard, like))
    assert "Jane" not in caught.value.message + caught.value.hint
    assert caught.value.__context__ is None


def test_token_vectors_are_refused_by_npy():
    with pytest.raises(UsageError, match="--pool none"):
        make_sink("npy", layout(token_vectors=True))


def test_an_unknown_format_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="parquet, npy, jsonl, arrow"):
        make_sink("hdf5", layout())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kept_types": {"status": "string"}}, "--keep status"),
        ({"kept_types": {"embedding": "string"}}, "--keep embedding"),
        ({"kept_types": {"a": "int65"}}, "int65"),
        ({"precision": "float8"}, "float8"),
        ({"variants": [*ONE, *ONE]}, "one name"),
    ],
)
def test_a_layout_that_cannot_be_written_is_refused_when_it_is_made(change, sentence):
    with pytest.raises(UsageError, match=sentence):
        layout(**change)


def test_vectors_that_are_not_of_the_layout_never_reach_a_file(tmp_path):
    like = layout()
    shard = make_shard(like, [True, True])
    for wrong in (np.zeros((2, 10), np.float32), np.zeros((3, 11), np.float32), np.zeros((2, 11), np.float64)):
        with pytest.raises(ValueError, match="embedding"):
            written(tmp_path, "parquet", like, replace(shard, vectors={"": wrong}))


def test_shard_names_sort_as_their_numbers_up_to_99999():
    names = [shard_name(i, ".npy") for i in (0, 9, 10, 99999)]
    assert names == sorted(names)
    assert names[0] == "part-00000.npy"
    assert shard_name(100000, ".npy") == "part-100000.npy"
