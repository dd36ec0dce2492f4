"""`EmbedTexts` in the real pipelines: `make test-integrations` runs them in an environment of their own."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedkit import Encoder
from embedkit.integrations import EmbedTexts

pytestmark = pytest.mark.integrations
NOTES = [f"note {number}: {'no ' * (number % 5)}chest pain" for number in range(60)]


@pytest.fixture(scope="module")
def expected(bert):
    return dict(zip(NOTES, Encoder(str(bert), pool="mean").encode(NOTES), strict=True))


@pytest.fixture
def embed(bert):
    return EmbedTexts("note", model=str(bert), pool="mean")


def same(texts, vectors, expected):
    assert sorted(texts) == sorted(NOTES)
    for text, vector in zip(texts, vectors, strict=True):
        assert np.array_equal(np.asarray(vector, np.float32), expected[text])


@pytest.mark.parametrize("batch_format", ["numpy", "pyarrow", "pandas"])
def test_ray_data(embed, expected, batch_format, ray_session):
    data = ray_session.data.from_arrow(pa.table({"note": NOTES})).repartition(3)
    rows = data.map_batches(embed, batch_format=batch_format, batch_size=16).take_all()
    same([row["note"] for row in rows], [row["embedding"] for row in rows], expected)


def test_ray_data_makes_it_in_actors(bert, expected, ray_session):
    data = ray_session.data.from_arrow(pa.table({"note": NOTES})).repartition(3)
    arguments = {"fn_constructor_args": ("note",), "fn_constructor_kwargs": {"model": str(bert), "pool": "mean"}}
    rows = data.map_batches(EmbedTexts, **arguments, batch_format="pyarrow", concurrency=2).take_all()
    same([row["note"] for row in rows], [row["embedding"] for row in rows], expected)


def test_datasets(embed, expected):
    import datasets

    rows = datasets.Dataset.from_dict({"note": NOTES}).map(embed, batched=True, batch_size=16)
    same(rows["note"], rows["embedding"], expected)


def test_daft(embed, expected):
    import daft

    vectors = daft.DataType.fixed_size_list(daft.DataType.float32(), 32)
    batch = daft.func.batch(return_dtype=vectors)(embed)
    found = daft.from_pydict({"note": NOTES}).with_column("embedding", batch(daft.col("note"))).to_pydict()
    same(found["note"], found["embedding"], expected)


def test_spark(embed, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    from pyspark import sql

    pq.write_table(pa.table({"note": NOTES}), tmp_path / "notes.parquet")
    builder = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.sql.warehouse.dir", str(tmp_path)).getOrCreate()
    try:
        table = spark.read.parquet(str(tmp_path / "notes.parquet"))
        rows = table.mapInArrow(embed.map_in_arrow, "note string, embedding array<float>").collect()
    finally:
        spark.stop()
    same([row.note for row in rows], [row.embedding for row in rows], expected)


def test_duckdb(embed, expected):
    import duckdb

    notes = pa.table({"note": NOTES})
    vectors = embed(duckdb.sql("SELECT * FROM notes WHERE length(note) > 0").to_arrow_table())
    found = duckdb.sql("SELECT note, embedding FROM vectors").fetchall()
    assert len(notes) == len(vectors)
    same(*zip(*found, strict=True), expected)


@pytest.fixture(scope="module")
def ray_session():
    import ray.data

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()
