"""What others make of our files: a format is what its other readers read."""

from __future__ import annotations

import numpy as np
import pytest

from tests.output.shards import layout, make_shard, write_output

ROWS = ([True, False, True], [True] * 4)


@pytest.fixture(params=["float32", "int8"])
def output(request, tmp_path):
    like = layout(precision=request.param)
    shards = [make_shard(like, has, index=i) for i, has in enumerate(ROWS)]
    write_output(tmp_path / "out", "parquet", like, shards)
    expected = [list(v) for shard in shards for v in shard.vectors[""].tolist()]
    ids = [id_ for shard in shards for id_ in shard.ids]
    return tmp_path / "out" / "embeddings", ids, expected


def test_pandas_reads_a_folder_of_parquet(output):
    pandas = pytest.importorskip("pandas", reason="in the dev extra")
    folder, ids, expected = output
    frame = pandas.read_parquet(folder)
    assert [None if pandas.isna(name) else name for name in frame["id"]] == ids
    assert [list(v) for v in frame["embedding"].dropna()] == expected
    assert frame["embedding"].isna().tolist() == [False, True, False, False, False, False, False]


def test_polars_reads_a_folder_of_parquet_as_arrays(output):
    polars = pytest.importorskip("polars", reason="in the dev extra")
    folder, ids, expected = output
    frame = polars.read_parquet(folder / "*.parquet")
    assert frame["id"].to_list() == ids
    assert frame["embedding"].drop_nulls().to_list() == expected


def test_duckdb_reads_a_folder_of_parquet(output):
    duckdb = pytest.importorskip("duckdb", reason="in the dev extra")
    folder, ids, expected = output
    rows = duckdb.sql(f"SELECT id, embedding FROM read_parquet('{folder}/*.parquet')").fetchall()  # noqa: S608
    assert [row[0] for row in rows] == ids
    assert [list(row[1]) for row in rows if row[1] is not None] == expected


def test_numpy_alone_reads_an_npy_shard_and_maps_it(tmp_path):
    like = layout()
    shard = make_shard(like, ROWS[0])
    write_output(tmp_path / "out", "npy", like, [shard])
    array = np.load(tmp_path / "out/embeddings/part-00000.npy", mmap_mode="r", allow_pickle=False)
    assert array.dtype.str == "<f4"
    assert array.flags.c_contiguous
    assert array.tobytes() == shard.vectors[""].tobytes()
