"""What a user sees of a run: where it runs, how fast, and how its device is used where that is measured."""

from __future__ import annotations

import io
import json
import re

import pytest

from embedkit.cli import progress
from embedkit.cli.progress import make_callbacks
from embedkit.engines.base import RunStart
from embedkit.types import DeviceStats

# A quarter of eight seconds between batches.
USE = DeviceStats(busy=6.0, waited=2.0, allocated=3 << 30, reserved=5 << 30)


def shown(mode, monkeypatch, capsys, use):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_JSON_SECONDS", 0.0)
    watcher = make_callbacks(mode, quiet=False)
    watcher.started(RunStart(rows=4, done=0, device="cuda:0", dtype="bf16"))
    for _ in range(2):
        if use is not None:
            watcher.device(use)
        watcher.batch(2, 90, 100)
    watcher.shard_done(4)
    return capsys.readouterr().err


@pytest.mark.parametrize("mode", ["auto", "bar"])
def test_the_bar_and_lines_show_device_dtype_speed_and_memory(mode, monkeypatch, capsys):
    told = shown(mode, monkeypatch, capsys, USE)
    for part in ("cuda:0", "bf16", "tokens/s, 10.0 % padding, device idle 25.0 %, peak memory 3.0 GiB, 5.0 GiB"):
        assert part in told, part
    assert "device idle" not in shown(mode, monkeypatch, capsys, None)


def test_json_events_hold_the_same_numbers(monkeypatch, capsys):
    events = [json.loads(line) for line in shown("json", monkeypatch, capsys, USE).splitlines()]
    assert (events[0]["device"], events[0]["dtype"]) == ("cuda:0", "bf16")
    numbers = {name: events[2][name] for name in ("device_waiting_percent", "memory_allocated", "memory_reserved")}
    assert numbers == {
        "device_waiting_percent": 25.0,
        "memory_allocated": 3 << 30,
        "memory_reserved": 5 << 30,
    }
    assert "device_waiting_percent" not in shown("json", monkeypatch, capsys, None)


class Terminal(io.StringIO):
    """A terminal of 80 columns."""

    def isatty(self):
        return True


@pytest.mark.parametrize(("rows", "device"), [(10_000_000, "4 workers, cuda:0"), (67, "cpu"), (None, "cpu")])
def test_the_bar_fits_into_80_columns_and_shows_the_time_left(monkeypatch, rows, device):
    terminal = Terminal()
    monkeypatch.setattr(progress, "_BAR_SECONDS", 0.0)
    monkeypatch.setattr("sys.stderr", terminal)
    watcher = make_callbacks("auto", quiet=False)
    watcher.started(
        RunStart(rows=rows, done=0, device=device, dtype="bf16", characters={0: 4_000, 1: 400_000_000})
    )
    watcher.tokenized(0, 1_000)
    clock = watcher.began
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock + 0.01)
    watcher.notice("two layers")
    watcher.batch(20, 500, 520)
    watcher.close()
    lines = [line for line in re.split(r"[\r\n]+", terminal.getvalue()) if line.strip()]
    assert max(map(len, lines)) <= 80
    assert "note: two layers" in lines
    assert any(("min left" in line) == (rows is not None) and "50k tokens/s" in line for line in lines), lines
    assert terminal.getvalue().endswith("\n")


def test_the_time_left_follows_the_tokens_left_and_does_not_jump(monkeypatch):
    """Ten short shards, then ten whose texts are a hundred times as long; tokens go by at one pace."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    tokens = {shard: 1_000 if shard < 10 else 100_000 for shard in range(20)}
    watcher = make_callbacks("none", quiet=False)
    characters = {shard: 4 * count for shard, count in tokens.items()}
    watcher.started(RunStart(rows=200, done=0, device="cpu", dtype="fp32", characters=characters))
    ends = []
    for shard, count in tokens.items():
        watcher.tokenized(shard, count)
        for _ in range(10):
            clock[0] += count / 10 / 1_000
            watcher.batch(1, count // 10, count // 10)
            ends.append(clock[0] + watcher.left)
    assert ends == pytest.approx([sum(tokens.values()) / 1_000] * len(ends))


def test_a_second_run_of_a_command_is_counted_from_its_own_start(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_JSON_SECONDS", 0.0)
    watcher = make_callbacks("json", quiet=False)
    for _ in range(2):
        watcher.started(RunStart(rows=4, done=1, device="cpu", dtype="fp32"))
        watcher.batch(3, 30, 30)
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(event["rows"], event["total"]) for event in events if event["event"] == "progress"] == [
        (4, 4),
        (4, 4),
    ]


@pytest.mark.parametrize("progress_mode", ["auto", "json"])
def test_input_and_columns_are_printed_before_the_model_is_loaded(encode, tmp_path, progress_mode):
    table = tmp_path / "in.jsonl"
    table.write_text('{"note": "pain", "label": "x"}\n')
    ran = encode(table, "-o", tmp_path / "out", "--progress", progress_mode)
    said = ran.err.splitlines()
    if progress_mode == "json":
        said = [f"note: {json.loads(line).get('message')}" for line in said]
    assert said[0] == f"note: reading {table}"
    assert said[1] == "note: columns: the texts are those of 'note', the ids are row numbers"
    assert said[2].startswith("note: 1 rows; loading the model ")
    named = encode(table, "-o", tmp_path / "named", "--text-column", "note", "--id-column", "label")
    assert "columns:" not in named.err
    assert encode(table, "-o", tmp_path / "quiet", "-q").err == ""


def test_truncation_is_reported_with_a_hint_if_half_of_the_tokens_are_lost(encode, tmp_path):
    (tmp_path / "short.jsonl").write_text('{"text": "pain"}\n')
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "pain " * 126}) + "\n")  # 128 tokens, of which 64 fit
    (tmp_path / "less.jsonl").write_text(json.dumps({"text": "pain " * 125}) + "\n")
    told = {
        name: encode(tmp_path / f"{name}.jsonl", "-o", tmp_path / name).err for name in ("short", "long", "less")
    }
    assert "truncated" not in told["short"]
    assert "truncated: 1 rows" in told["long"]
    assert {name: "--on-long chunk" in err for name, err in told.items()} == {
        "short": False,
        "long": True,
        "less": False,
    }
