"""`--json` prints one JSON object with the numbers of the text; the exit code stays."""

from __future__ import annotations

import json

import pytest

from tests.conftest import NOTES


@pytest.fixture
def out(encode, tmp_path):
    assert encode(NOTES, "-o", tmp_path / "out", "--shard-rows", "40", "--limit", "50", "-q").code == 0
    return tmp_path / "out"


def read_json(ran, code=0):
    assert ran.code == code, ran.err
    assert ran.out.count("\n") == 1
    return json.loads(ran.out)


def test_inspect(embedkit_cli, out):
    found = read_json(embedkit_cli("inspect", out, "--json"))
    assert (found["complete"], found["rows"], found["shards"]) == (True, 50, {"done": 2, "planned": 2})
    assert found["vectors"]["embedding"]["dims"] == 32
    manifest = json.loads((out / "manifest.json").read_text())
    names = ("rows", "vectors", "statuses", "n_tokens", "n_used", "input_rows", "n_unknown")
    assert {name: found["counts"][name] for name in names} == {name: manifest[name] for name in names}
    assert found["recipe"]["pool"] == ["mean"]
    (out / "manifest.json").unlink()
    (out / "commits/00001.json").unlink()
    found = read_json(embedkit_cli("inspect", out, "--json"))
    assert (found["complete"], found["done"], found["shards"]["done"]) == (False, [[0, 40]], 1)


def test_verify(embedkit_cli, out):
    found = read_json(embedkit_cli("verify", out, "--resample", "5", "--json"))
    assert (found["ok"], found["rows"], found["problems"]) == (True, 50, [])
    assert (found["resample"]["rows"], found["resample"]["passed"]) == (5, True)
    assert 0 <= found["resample"]["max_difference"] < 1e-5
    data = next((out / "embeddings").iterdir())
    data.write_bytes(data.read_bytes()[:-1])
    found = read_json(embedkit_cli("verify", out, "--resample", "5", "--json"), code=5)
    assert found["ok"] is False
    assert data.name in found["problems"][0]["path"]
    assert found["resample"] is None


def test_plan(embedkit_cli, bert):
    found = read_json(embedkit_cli("plan", NOTES, "-m", bert, "--limit", "50", "--json"))
    assert (found["input_rows"], found["dims"], found["shards"]) == (50, {"": 32}, 1)
    assert sum(rows for _, rows in found["lengths"]) == found["texts"]


def test_doctor(embedkit_cli):
    found = read_json(embedkit_cli("doctor", "--json"))
    text = embedkit_cli("doctor").out
    assert f"torch                  {found['packages']['torch']}\n" in text
    marked = {alias["name"] for alias in found["aliases"] if alias["on_this_machine"]}
    assert marked == {line.split()[1] for line in text.splitlines() if line.startswith("* ")}
    assert ("supported: this" in text) != found["cpu"]["int8"]
