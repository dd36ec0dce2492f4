"""Runs of `embedkit encode --engine ray` in processes of their own, and what tests do to them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Of a run on a busy machine.
SECONDS = 400


def command(table: Path, model: Path, output: Path, *options: object) -> list[str]:
    arguments = ("encode", table, "-m", model, "-o", output, "--shard-rows", 8, "--progress", "json", *options)
    return [sys.executable, "-m", "embedkit", *map(str, arguments)]


def environment(variables: Mapping[str, str] = {}) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join(filter(None, (variables.get("PYTHONPATH"), str(ROOT))))
    return {**inherited, "OMP_NUM_THREADS": "1", **variables, "PYTHONPATH": path}


class Run:
    """A run that has started, whose events are read one by one."""

    def __init__(self, words: list[str], variables: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(variables),
            cwd=ROOT,
            start_new_session=True,
        )
        self.lines: list[str] = []

    def shards(self) -> Iterator[int]:
        """Yields the rows that are committed, at each event of a shard; ends with the process."""
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line)
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "shard":
                yield event["committed"]

    def after(self, shards: int) -> None:
        """Waits until so many shards are committed."""
        for number, _ in enumerate(self.shards(), 1):
            if number == shards:
                return
        raise AssertionError(f"the run ended before: {self.text}")

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> int:
        """Waits for the end; returns the exit code."""
        for _ in self.shards():
            pass
        return self.process.wait(SECONDS)

    @property
    def text(self) -> str:
        return "".join(self.lines)


@contextlib.contextmanager
def started(words: list[str], variables: Mapping[str, str]) -> Iterator[Run]:
    run = Run(words, variables)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.kill()
        run.process.wait()
        for pipe in (run.process.stdout, run.process.stderr):
            assert pipe
            pipe.close()
