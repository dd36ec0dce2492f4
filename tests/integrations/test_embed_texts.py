"""Batches of any library come back with the vectors of their texts, which plain transformers compute as well."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from embedkit import Encoder
from embedkit.errors import InputError, UsageError
from embedkit.integrations import EmbedTexts
from embedkit.integrations.embed_texts import fixed_size_lists
from tests.oracle import Oracle, pool

TEXTS = ["chest pain", None, "no pain on exertion today", ""]
HAS_TEXT = [True, False, True, False]


@pytest.fixture(scope="module")
def expected(bert):
    """Returns the vectors of plain transformers, one text at a time; None without a text."""
    oracle = Oracle(bert, max_length=64)
    return [pool("mean", oracle.states(text).layers[-1]) if text else None for text in TEXTS]


@pytest.fixture
def embed(bert):
    return EmbedTexts("note", model=str(bert), pool="mean")


def same(found, expected):
    assert len(found) == len(expected)
    for vector, reference in zip(found, expected, strict=True):
        if reference is None:
            assert vector is None or np.isnan(vector).all()
        else:
            assert np.abs(np.asarray(vector, np.float32) - reference).max() < 1e-5


TABLE = {"id": ["a", "b", "c", "d"], "note": TEXTS}
BATCHES = {
    "table": pa.table(TABLE),
    "record batch": pa.record_batch(TABLE),
    "lists": TABLE,
    "arrays": {name: np.array(values, object) for name, values in TABLE.items()},
    "pandas": pd.DataFrame(TABLE, index=[7, 5, 3, 1]),
    "polars": pl.DataFrame(TABLE),
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_a_batch_of_any_library_gets_a_column_of_vectors(embed, batch, expected):
    found = embed(batch)
    assert type(found) is type(batch)
    names = getattr(found, "column_names", getattr(found, "columns", found))
    assert list(names) == ["id", "note", "embedding"]
    column = found["embedding"]
    same(column.to_pylist() if hasattr(column, "to_pylist") else list(column), expected)
    if isinstance(batch, pd.DataFrame):
        assert found.index.equals(batch.index)
    if isinstance(batch, pl.DataFrame):
        assert column.dtype == pl.Array(pl.Float32, 32)
    if isinstance(batch, pa.Table):
        assert column.type == pa.list_(pa.float32(), 32)


@pytest.mark.parametrize(
    "column",
    [pa.array(TEXTS), pa.chunked_array([TEXTS[:1], TEXTS[1:]]), pd.Series(TEXTS), pl.Series(TEXTS)],
    ids=["array", "chunked", "pandas", "polars"],
)
def test_a_column_gives_its_vectors(embed, column, expected):
    found = embed(column)
    same(found.to_pylist() if isinstance(found, pa.Array) else list(found), expected)


def test_polars_expressions_take_it(embed, expected):
    vectors = pl.DataFrame(TABLE).select(pl.col("note").map_batches(embed, return_dtype=pl.Array(pl.Float32, 32)))
    same(vectors["note"].to_list(), expected)


def test_spark_gets_lists(embed, expected):
    (found,) = embed.map_in_arrow(iter([pa.record_batch(TABLE)]))
    assert found.schema.field("embedding").type == pa.list_(pa.float32())
    same(found["embedding"].to_pylist(), expected)


def test_separate_layers_are_columns(bert):
    embed = EmbedTexts("note", output="v", model=str(bert), layers="1,2", layer_agg="separate", pool="cls,mean")
    found = embed(pa.table(TABLE))
    assert found.column_names == ["id", "note", "v_L01_cls_mean", "v_L02_cls_mean"]
    with pytest.raises(UsageError, match="2 vectors a text"):
        embed(pa.array(TEXTS))


def test_it_is_pickled_without_weights_and_loads_the_model_once_a_process(embed, bert, monkeypatch, expected):
    embed(pa.table(TABLE))
    content = pickle.dumps(embed)
    assert len(content) < 4_000
    monkeypatch.setattr(Encoder, "_load", lambda _: pytest.fail("the model is loaded again"))
    copy = pickle.loads(content)  # noqa: S301 - our own bytes
    same(copy(pa.table(TABLE))["embedding"].to_pylist(), expected)
    same(EmbedTexts("note", model=str(bert), pool=["mean"])(pa.table(TABLE))["embedding"].to_pylist(), expected)


def test_another_process_loads_its_own(embed, expected):
    embed(pa.table(TABLE))
    with multiprocessing.get_context("spawn").Pool(1) as workers:
        same(workers.map(embed, [pa.table(TABLE)])[0]["embedding"].to_pylist(), expected)


@pytest.mark.parametrize(
    ("options", "batch", "error", "told"),
    [
        ({"column": "text"}, pa.table(TABLE), InputError, "no column 'text'; it has 'id', 'note'"),
        ({"output": "id"}, pa.table(TABLE), UsageError, "a column 'id' already"),
        ({}, ["chest pain"], UsageError, "cannot embed a list"),
        ({}, pa.table({"note": [1, 2]}), InputError, r"texts\[0\] is an int"),
    ],
)
def test_what_cannot_be_embedded_is_an_error_that_says_so(bert, options, batch, error, told):
    embed = EmbedTexts(**{"column": "note", "model": str(bert), **options})
    with pytest.raises(error, match=told):
        embed(batch)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pooling": "mean"}, "did you mean pool"),
        ({"pool": "meen"}, "meen"),
        ({"pool": "none"}, "a vector a token"),
    ],
)
def test_options_are_checked_before_a_model_is_loaded(options, told):
    with pytest.raises(UsageError, match=told):
        EmbedTexts(model="no/such-model", **options)


def test_a_batch_without_rows_keeps_its_type(embed):
    assert embed(pa.table(TABLE).slice(0, 0)).schema.field("embedding").type == pa.list_(pa.float32(), 32)
    assert len(fixed_size_lists(np.zeros((0, 3), np.float32))) == 0
