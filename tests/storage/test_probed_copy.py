"""A single file that was copied to a store is read by ranges: the footer and the columns that are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import embedkit
from embedkit.errors import OutputError
from embedkit.storage import partial_copy, ranged_reader
from tests.conftest import Ran
from tests.storage.memory_store import MemoryStore

URI = "s3://bucket/notes.parquet"


@pytest.fixture
def single(encode: Callable[..., Ran], tmp_path: Path) -> Path:
    """Returns an output whose vectors are nine tenths of its bytes."""
    table, out = tmp_path / "notes.csv", tmp_path / "notes.parquet"
    table.write_text("id,text\n" + "".join(f"n{row},day {row % 7}\n" for row in range(2000)))
    assert encode(table, "-o", out, "--layers", "all").code == 0
    return out


def test_of_a_single_parquet_file_the_columns_that_are_asked_for_are_fetched(
    single: Path, bucket: MemoryStore, monkeypatch: pytest.MonkeyPatch, embedkit_cli: Callable[..., Ran]
) -> None:
    content = single.read_bytes()
    for module, name in ((partial_copy, "_TAIL"), (partial_copy, "_NEAR"), (ranged_reader, "FIRST_BYTES")):
        monkeypatch.setattr(module, name, 4096)
    monkeypatch.setattr(ranged_reader, "WHOLE_BYTES", 8192)
    bucket.write("notes.parquet", content)
    local, remote = embedkit.read(single), embedkit.read(URI)
    assert bucket.sent < len(content) / 8
    assert remote.table.equals(local.table)
    assert remote.ids == local.ids
    assert bucket.sent < len(content) / 4
    assert np.array_equal(remote.vectors, local.vectors)
    assert bucket.sent >= remote.vectors.nbytes
    assert (
        embedkit_cli("inspect", URI).out.splitlines()[1:] == embedkit_cli("inspect", single).out.splitlines()[1:]
    )
    # A flipped bit of the vectors is found when they are read, and not before.
    at = content.index(np.ascontiguousarray(remote.vectors[200, :4]).tobytes())
    bucket.write("notes.parquet", content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    damaged = embedkit.read(URI)
    assert damaged.table.equals(local.table)
    with pytest.raises(OutputError, match="page checksum differs"):
        _ = damaged.vectors
    bucket.write("notes.parquet", content[: len(content) // 2])
    with pytest.raises(OutputError, match="is damaged"):
        embedkit.read(URI)
