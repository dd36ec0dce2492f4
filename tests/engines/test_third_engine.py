"""The protocol of an engine suffices for one that is neither in this process's loop nor a pool of workers."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest

import embedkit
from embedkit.engines.base import EngineStats, ShardJob
from embedkit.engines.encode_rows import ENGINES
from embedkit.engines.in_process import InProcessEngine
from embedkit.engines.open_input import table_of
from embedkit.errors import ModelError
from tests.conftest import NOTES
from tests.engines.test_resume import assert_same


class Scattered:
    """Each shard by an engine that opens the input for itself, the last shard first, as remote actors would."""

    made: ClassVar[list[Scattered]] = []

    def __init__(self, setup):
        self.setup = setup
        self.stats = EngineStats()
        self.order = []
        self.open = False
        self.made.append(self)

    def __enter__(self):
        self.open = True
        return self

    def __exit__(self, *_):
        self.open = False

    def actor(self):
        return InProcessEngine(replace(self.setup, table=table_of(self.setup.config)[0]))

    def load(self):
        return self.actor().load()

    def calibrate(self):
        return self.actor().calibrate()

    def run(self, job):
        assert self.open
        for shard in sorted(job.shards, reverse=True):
            actor = self.actor()
            actor.run(ShardJob(job.plan, job.destination, {}, [shard]))
            self.order.append(shard)
            self.stats.rows += actor.stats.rows
            self.stats.tokens += actor.stats.tokens
        return job.destination.committed()


@pytest.fixture
def scattered(monkeypatch):
    monkeypatch.setattr(Scattered, "made", [])
    monkeypatch.setitem(ENGINES, "in_process", Scattered)
    return Scattered.made


@pytest.mark.parametrize(("output", "options"), [("out", ()), ("out.parquet", ("--precision", "int8"))])
def test_a_third_engine_makes_the_same_bytes(encode, tmp_path, scattered, monkeypatch, output, options):
    arguments = (NOTES, "--shard-rows", 20, *options)
    for place in ("third", "usual"):
        (tmp_path / place).mkdir()
    ran = encode(*arguments, "-o", tmp_path / "third" / output, "-v")
    assert ran.code == 0, ran.err
    assert [(engine.order, engine.open) for engine in scattered] == [([3, 2, 1, 0], False)]
    assert f"{scattered[0].stats.rows} rows" in ran.err.replace(",", "")
    monkeypatch.undo()
    assert encode(*arguments, "-o", tmp_path / "usual" / output).code == 0
    assert_same(tmp_path / "third", tmp_path / "usual")
    assert len(embedkit.read(tmp_path / "third" / output).table) == 67


def test_an_error_of_a_third_engine_ends_the_run_and_leaves_it_closed(encode, tmp_path, scattered, monkeypatch):
    def fail(self, job):
        raise ModelError("an actor is gone", hint="start it again")

    monkeypatch.setattr(Scattered, "run", fail)
    ran = encode(NOTES, "-o", tmp_path / "out")
    assert (ran.code, ran.told) == (4, ["error: an actor is gone", "hint: start it again"])
    assert [engine.open for engine in scattered] == [False]
