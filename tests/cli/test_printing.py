"""Streams as shells leave them: a stderr that nobody reads ends no run, a stdout that is full is an error."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import embedkit
from tests.conftest import NOTES

INPUT, OUTPUT = 3, 5
FULL = Path("/dev/full")
full = pytest.mark.skipif(not FULL.exists(), reason="a device that is always full")


class Broken(io.TextIOBase):
    """A stream that takes nothing."""

    def __init__(self, fault):
        self.fault = fault

    def write(self, text):
        raise self.fault

    def flush(self):
        raise self.fault


@pytest.mark.parametrize("progress", ["auto", "bar", "json"])
@pytest.mark.parametrize(
    "fault", [BrokenPipeError(), OSError(28, "full"), OSError(5, "gone"), ValueError("closed")]
)
def test_a_notice_that_cannot_be_written_does_not_end_the_run(
    bert, one_thread, tmp_path, monkeypatch, progress, fault
):
    from embedkit.cli import run

    monkeypatch.setattr(sys, "stderr", Broken(fault))
    options = ("--shard-rows", "8", "--progress", progress, "--layers", "2,3")
    assert run(["encode", str(NOTES), "-m", str(bert), "-o", str(tmp_path / "out"), *options]) == 0
    assert len(embedkit.read(tmp_path / "out").table) == 67
    # An error keeps its code, whoever reads it.
    assert run(["encode", str(NOTES), "-m", str(bert), "-o", str(tmp_path / "out")]) == OUTPUT


def test_the_reader_of_stderr_may_close_it_at_any_time(bert, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ["--shard-rows", "2", "--progress", "json", "--offline"]
    command = [sys.executable, "-m", "embedkit", "encode", str(NOTES), "-m", str(bert), "-o", "out", *options]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path)
    run.stderr.readline()
    run.stderr.close()
    assert run.wait(timeout=100) == 0
    assert len(embedkit.read(tmp_path / "out").table) == 67


@full
@pytest.mark.parametrize("command", ["inspect", "verify", "doctor", "--version", "encode --help"])
def test_a_full_stdout_is_an_output_error(embedkit_cli, encode, tmp_path, monkeypatch, command):
    words = command.split()
    if command in {"inspect", "verify"}:
        assert encode(NOTES, "--limit", 2, "-o", tmp_path / "out").code == 0
        words.append(tmp_path / "out")
    with FULL.open("wb", buffering=0) as device, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(device)))
        ran = embedkit_cli(*words)
        patched.undo()
    assert ran.code == OUTPUT
    assert ran.told[0] == "error: cannot write to stdout: No space left on device"
    assert len(ran.told) == 2


def test_a_closed_pipe_on_stdout_is_no_failure(embedkit_cli, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Broken(BrokenPipeError()))
        ran = embedkit_cli("encode", "--help")
    assert (ran.code, ran.err) == (0, "")


def test_a_closed_pipe_does_not_hide_a_damaged_output(embedkit_cli, encode, tmp_path, monkeypatch):
    assert encode(NOTES, "--limit", 2, "-o", tmp_path / "out").code == 0
    (tmp_path / "out/manifest.json").write_text("{}")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Broken(BrokenPipeError()))
        assert embedkit_cli("verify", tmp_path / "out").code == OUTPUT


def shell(bert, folder, script):
    """Runs a script that calls `$EK` on `$NOTES`; returns its exit code and what it said."""
    environ = os.environ | {
        "EK": f"{sys.executable} -m embedkit",
        "NOTES": str(NOTES),
        "M": str(bert),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(["bash", "-c", script], env=environ, cwd=folder, capture_output=True, check=False)


@pytest.mark.parametrize(
    ("script", "code", "told"),
    [
        ("$EK encode - -m $M -o out <&-", INPUT, b"error: stdin is closed"),
        ("$EK encode $NOTES -m $M -o - >&-", OUTPUT, b"error: stdout is closed"),
        ("$EK doctor --help >&-", OUTPUT, b"error: cannot write to stdout"),
    ],
)
def test_a_needed_stream_that_is_closed_is_an_error_before_the_run(bert, tmp_path, script, code, told):
    ran = shell(bert, tmp_path, script)
    assert ran.returncode == code
    assert told in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_text_for_closed_streams_ends_up_in_no_file(bert, tmp_path):
    ran = shell(bert, tmp_path, "$EK encode $NOTES -m $M -o out.parquet <&- >&- 2>&-")
    assert ran.returncode == 0
    assert len(embedkit.read(tmp_path / "out.parquet").table) == 67
    ran = shell(bert, tmp_path, "$EK encode $NOTES -m $M -o - --limit 3 2>&-")
    assert ran.returncode == 0
    assert [json.loads(line)["id"] for line in ran.stdout.splitlines()] == ["00101", "00102", "00103"]


def test_characters_that_the_terminal_lacks_are_escaped(embedkit_cli, encode, tmp_path, monkeypatch):
    assert encode(NOTES, "--limit", 2, "-o", tmp_path / "é").code == 0
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    assert embedkit_cli("inspect", tmp_path / "é").code == 0
    assert b"\\xe9: complete" in ascii_only.buffer.getvalue()


# Signals -----------------------------------------------------------------------------------------------

SWALLOWS = """
import os, signal, sys, time
from embedkit.engines import signals
signals._LEAVE_SECONDS = 0.05
signals.leave_on_signal(lambda: print("told", flush=True))
for _ in range(int(sys.argv[2])):
    try:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        time.sleep(30)
    except KeyboardInterrupt:
        pass
time.sleep(30)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("name", "times"), [("SIGINT", 1), ("SIGTERM", 1), ("SIGINT", 2)])
def test_a_signal_ends_a_command_though_a_library_swallows_the_interrupt(name, times):
    ran = subprocess.run([sys.executable, "-c", SWALLOWS, name, str(times)], capture_output=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (75, b"told")


def test_an_interrupt_during_imports_prints_two_lines(monkeypatch, capsys):
    from embedkit import __main__ as entry

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "leave_on_signal", lambda _: None)
    monkeypatch.setattr("embedkit.cli.main", interrupted)
    monkeypatch.setattr("os._exit", sys.exit)
    with pytest.raises(SystemExit) as end:
        entry.main()
    assert end.value.code == 75
    assert capsys.readouterr().err == "error: stopped by a signal\nhint: run the command again\n"


@pytest.mark.parametrize(
    ("arguments", "way_out"),
    [
        (["encode", "a.csv", "-o", "out"], "--on-exists resume to continue"),
        (["encode", "a.csv", "-o", "-"], "run the command again"),
        (["plan", "a.csv"], "run the command again"),
    ],
)
def test_an_interrupted_command_suggests_resuming_only_if_possible(embedkit_cli, monkeypatch, arguments, way_out):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("embedkit.cli._invoke", interrupted)
    ran = embedkit_cli(*arguments)
    assert ran.code == 75
    assert ran.told[0] == "error: stopped by a signal"
    assert way_out in ran.told[1]
