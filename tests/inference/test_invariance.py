"""Order, batches and shards are how the work is done, not what comes out of it."""

from __future__ import annotations

import json
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embedkit
from embedkit.cli.progress import make_callbacks
from embedkit.config import BatchConfig, InputConfig, ModelConfig, OutputConfig, PoolingConfig, RunConfig
from embedkit.engines.run import run
from tests import tiny_models

ROWS = [{"id": str(number), "text": text} for number, text in enumerate([*tiny_models.TEXTS, "", "   "])]


@pytest.fixture(scope="module", params=["bert", "mpnet"], ids=["packed", "padded"])
def folder(request, tmp_path_factory) -> Path:
    return tiny_models.make(request.param, tmp_path_factory.mktemp(request.param)).folder


def encoded(folder: Path, rows: list[dict[str, str]], **options: int | None) -> dict[str, np.ndarray]:
    """Vectors by id, through files and the whole engine."""
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name, "rows.jsonl"), Path(name, "out")
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        config = RunConfig(
            input=InputConfig((str(source),)),
            output=OutputConfig(str(out), "parquet", shard_rows=options.get("shard_rows")),
            model=ModelConfig(str(folder)),
            pooling=PoolingConfig(pool="mean,cls,max", layers="-1,1"),
            batch=BatchConfig(options.get("batch_tokens"), options.get("batch_size")),
        )
        run(config, make_callbacks("none", quiet=True), threading.Event())
        found = embedkit.read(out)
        assert found.table["id"].to_pylist() == [row["id"] for row in rows]
        return dict(zip(found.ids, np.array(found.vectors), strict=True))


@pytest.fixture(scope="module")
def expected(folder) -> dict[str, np.ndarray]:
    return encoded(folder, ROWS)


@settings(deadline=None, max_examples=12)
@given(
    rows=st.permutations(ROWS),
    shard_rows=st.integers(1, 40),
    batch_tokens=st.integers(1, 3000),
    batch_size=st.none() | st.integers(1, 9),
)
def test_another_order_budget_or_shard_size_gives_every_row_the_same_vector(
    folder, expected, rows, shard_rows, batch_tokens, batch_size
):
    found = encoded(folder, rows, shard_rows=shard_rows, batch_tokens=batch_tokens, batch_size=batch_size)
    assert found.keys() == expected.keys()
    for name, vector in found.items():
        assert np.abs(vector - expected[name]).max() <= 1e-5 * max(1.0, np.abs(expected[name]).max())
