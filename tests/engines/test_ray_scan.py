"""Planning by Ray actors, with a cluster that is not there: the plan of one process, whoever dies."""

from __future__ import annotations

import itertools
import json
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedkit.config import EngineConfig, InputConfig, OutputConfig, RunConfig
from embedkit.engines import ray_scan, segments
from embedkit.engines.node_scan import NodeScanner
from embedkit.engines.open_input import table_of
from embedkit.engines.ray_cluster import ray_address
from embedkit.engines.ray_scan import scan_by_actors
from embedkit.engines.scanning import ScanJob, scan_input
from embedkit.engines.segments import Cut
from embedkit.errors import EmbedkitError, InputError, Stopped, UsageError
from tests.engines.fake_ray import FakeCluster

MARKER = "Mr Miller of Ward 7"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Returns an input of 14 segments, with faults."""
    path = tmp_path_factory.mktemp("in") / "t.jsonl"
    lines = [json.dumps({"id": f"{MARKER} {row}", "text": f"{MARKER} {row}"}) for row in range(60)]
    lines.insert(17, "{")
    path.write_text("\n".join(lines))
    return RunConfig(InputConfig((str(path),)), OutputConfig("out", "parquet"), engine=EngineConfig("ray"))


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 300)


def scanned(config, cluster=None, stop=None, notices=None):
    table, _ = table_of(config)
    told = [] if notices is None else notices

    def scanner(tasks):
        return scan_by_actors(tasks, cluster=cluster, stop=stop or threading.Event(), notice=told.append)

    found = scan_input(table, None, config, Cut(5, 300), scanner=None if cluster is None else scanner)
    if cluster is not None:
        assert not cluster.is_open
        assert all(actor.dead for actor in cluster.actors)
    return found


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), workers=st.integers(1, 5))
def test_actors_make_the_plan_of_one_process_whichever_of_them_die(config, data, workers):
    deaths = data.draw(st.sets(st.integers(0, 40), max_size=5))
    polls, turns = itertools.count(), itertools.cycle(data.draw(st.lists(st.integers(0, 99), min_size=1)))
    cluster = FakeCluster(workers, turn=lambda n: next(turns) % n, dies=lambda *_: next(polls) // 2 in deaths)
    try:
        found = scanned(config, cluster)
    except EmbedkitError as error:
        assert "3 workers died at segment" in error.message  # noqa: PT017
        assert len(deaths) >= 2
        return
    assert found == scanned(config)
    answers = [answer for actor in cluster.actors for answer in actor.scans]
    assert len(answers) >= 12
    assert not any("Miller" in answer for answer in answers)


def test_without_room_on_the_cluster_this_process_scans(config, monkeypatch):
    assert scanned(config, FakeCluster(0)) == scanned(config)
    monkeypatch.setattr(ray_scan, "_PATIENCE_SECONDS", 0.0)
    silent = FakeCluster(2)
    silent.poll = lambda seconds: []
    assert scanned(config, silent) == scanned(config)
    lost = FakeCluster(2, dies=lambda actor, when: True)
    assert scanned(config, lost) == scanned(config)


def test_a_node_with_other_versions_or_another_input_is_refused_by_name(config, tmp_path):
    cluster = FakeCluster(2)
    cluster.versions = lambda number: {**ray_scan.Node.here().versions, "pyarrow": "0.1"}
    with pytest.raises(UsageError, match=r"node host has pyarrow 0\.1"):
        scanned(config, cluster)
    assert not cluster.is_open
    path = tmp_path / "t.jsonl"
    path.write_text("{}\n")
    moved = RunConfig(InputConfig((str(path),)), config.output)
    facts = table_of(moved)[0].facts
    path.write_text("{ }\n")
    job = ScanJob(moved, facts, Cut(5, 300), "")
    assert "was changed" in json.loads(NodeScanner(job).scan(0, 1, None, 0))["error"]
    path.unlink()
    answer = NodeScanner(job).scan(0, 1, None, 0)
    assert "No such file" in json.loads(answer)["error"]
    with pytest.raises(InputError, match=r"node host: .*t\.jsonl: No such file"):
        ray_scan._scan_of("host", answer)


def test_a_signal_ends_the_scan(config):
    stop = threading.Event()
    cluster = FakeCluster(2, turn=lambda n: stop.set() or 0)
    with pytest.raises(Stopped):
        scanned(config, cluster, stop)
    assert not cluster.is_open


@pytest.mark.parametrize(
    ("given", "variable", "joined"),
    [(None, None, False), ("local", None, False), ("auto", None, True), (None, "10.0.0.1:6379", True)],
)
def test_a_ray_that_is_started_for_the_run_is_not_asked_to_scan(given, variable, joined, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert (ray_address(EngineConfig("ray", given)) != "local") is joined
