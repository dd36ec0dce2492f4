"""A real Ray cluster plans an input of many segments as one process does, and sees no row of it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.cluster.ray_runs import ROOT, command, environment, started
from tests.engines.test_resume import assert_same

pytestmark = pytest.mark.timeout(900)
CANARY = "canary-77ab-text"
ROWS = 300
#: The command line, for which a segment has 4,000 bytes.
SMALL_SEGMENTS = """
import sys
from embedkit.cli import run
from embedkit.engines import segments
segments.SEGMENT_BYTES = 4000
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "rows.jsonl"
    texts = [f"{CANARY} number {row} " + "again " * (row % 5) for row in range(ROWS)]
    rows = [{"id": f"{CANARY}-{row}", "text": text} for row, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(table, model, output, *options):
    return [sys.executable, "-c", SMALL_SEGMENTS, *command(table, model, output, *options)[3:]]


def test_a_cluster_makes_the_plan_and_the_bytes_of_one_process(ray_cluster, table, bert, tmp_path):
    whole, by_ray = tmp_path / "whole", tmp_path / "ray"
    whole.mkdir()
    by_ray.mkdir()
    subprocess.run(words(table, bert, whole / "out"), env=environment(), check=True, capture_output=True, cwd=ROOT)
    options = ("--engine", "ray", "--workers", 2)
    with started(words(table, bert, by_ray / "out", *options), ray_cluster.environment) as run:
        assert run.end() == 0, run.text
    assert "4 actors of Ray look through" in run.text
    assert_same(by_ray, whole)
    assert (by_ray / "out/plan.json").read_bytes() == (whole / "out/plan.json").read_bytes()
    assert not (by_ray / "out/segments").exists()
    with_canary = [
        path for path in ray_cluster.folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()
    ]
    assert with_canary == []
