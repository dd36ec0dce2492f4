"""An output says which model it is of, in words; the words decide no number and no fingerprint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import embedkit
from embedkit.manifest.recipe import model_name
from tests.conftest import NOTES
from tests.engines.test_resume import assert_same


@pytest.mark.parametrize("output", ["out", "out.parquet", "out.arrow", "out.npy"])
def test_the_models_name_is_in_the_schema_the_plan_the_manifest_and_inspect(
    embedkit_cli, encode, bert, tmp_path, output
):
    assert encode(NOTES, "--limit", 4, "-o", tmp_path / output).code == 0
    assert f"\nmodel      {bert.name}\n" in embedkit_cli("inspect", tmp_path / output).out
    if output == "out":
        for name in ("plan.json", "manifest.json"):
            assert json.loads((tmp_path / output / name).read_text())["source"]["model"] == bert.name
    if output == "out.parquet":
        metadata = pq.read_schema(tmp_path / output).metadata
        assert json.loads(metadata[b"embedkit.model"]) == {"hub": None, "model": bert.name, "revision": None}
        # A file that is handed on tells nobody's folders.
        assert str(bert.parent).encode() not in (tmp_path / output).read_bytes()


def test_a_run_that_is_resumed_under_another_name_of_the_model_ends_with_the_same_bytes(encode, bert, tmp_path):
    other = shutil.copytree(bert, tmp_path / "another-name")
    for place in ("place", "whole"):
        assert encode(NOTES, "-o", tmp_path / place / "out", "--shard-rows", 30).code == 0
    for gone in ("manifest.json", "commits/00001.json", "commits/00002.json"):
        (tmp_path / "place/out" / gone).unlink()
    resumed = encode(NOTES, "-m", other, "-o", tmp_path / "place/out", "--on-exists", "resume")
    assert resumed.code == 0, resumed.err
    assert_same(tmp_path / "place", tmp_path / "whole")
    under_another = encode(NOTES, "-m", other, "-o", tmp_path / "other")
    assert under_another.code == 0
    found, expected = (embedkit.read(tmp_path / name) for name in ("other", "whole/out"))
    assert found.fingerprint == expected.fingerprint


def test_the_report_names_the_model(embedkit_cli, encode, bert, tmp_path):
    pytest.importorskip("plotly", reason="in the dev extra")
    assert encode(NOTES, "-o", tmp_path / "out").code == 0
    assert embedkit_cli("report", tmp_path / "out", "-o", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"<td>{bert.name}</td>" in page
    assert str(bert) not in page


@pytest.mark.parametrize(
    ("typed", "folder", "hub", "name"),
    [
        ("BioBERT", "/cache/models--dmis-lab--biobert/snapshots/0a", "dmis-lab/biobert", "BioBERT"),
        ("owner/name", "/cache/models--owner--name/snapshots/0a", "owner/name", "owner/name"),
        ("./here/model/", "/home/jane/here/model", None, "model"),
        ("/cache/models--owner--name/snapshots/0a", "/cache/models--owner--name/snapshots/0a", None, "owner/name"),
        ("caf\udce9", "/home/jane/caf\udce9", None, "caf\\xe9"),
    ],
)
def test_a_model_is_called_as_typed_or_as_its_folder_is(typed, folder, hub, name):
    assert model_name(typed, Path(folder), hub) == name
