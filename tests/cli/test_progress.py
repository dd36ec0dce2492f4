"""What a user sees of a run: where it runs, how fast, and how its device is used where that is measured."""

from __future__ import annotations

import json

import pytest

from embedkit.cli import progress
from embedkit.cli.progress import make_watcher
from embedkit.device_use import DeviceUse

# A quarter of eight seconds between batches.
USE = DeviceUse(busy=6.0, waited=2.0, allocated=3 << 30, reserved=5 << 30)


def shown(mode, monkeypatch, capsys, use):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_JSON_SECONDS", 0.0)
    watcher = make_watcher(mode, quiet=False)
    watcher.started(rows=4, done=0, device="cuda:0", dtype="bf16")
    for _ in range(2):
        if use is not None:
            watcher.device(use)
        watcher.batch(2, 90, 100)
    watcher.shard_done(4)
    return capsys.readouterr().err


@pytest.mark.parametrize("mode", ["auto", "bar"])
def test_people_are_told_where_it_runs_and_what_the_device_waits_for(mode, monkeypatch, capsys):
    told = shown(mode, monkeypatch, capsys, USE)
    for part in ("cuda:0", "bf16", "tokens/s, 10.0 % padding, device waits 25.0%, 3.0 GiB at most, 5.0 GiB"):
        assert part in told, part
    assert "device waits" not in shown(mode, monkeypatch, capsys, None)


def test_programs_are_told_the_same_in_numbers(monkeypatch, capsys):
    events = [json.loads(line) for line in shown("json", monkeypatch, capsys, USE).splitlines()]
    assert (events[0]["device"], events[0]["dtype"]) == ("cuda:0", "bf16")
    numbers = {name: events[2][name] for name in ("device_waiting_percent", "memory_allocated", "memory_reserved")}
    assert numbers == {
        "device_waiting_percent": 25.0,
        "memory_allocated": 3 << 30,
        "memory_reserved": 5 << 30,
    }
    assert "device_waiting_percent" not in shown("json", monkeypatch, capsys, None)
