"""Signals belong to the command: a program that calls the package keeps its own handlers."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.conftest import NOTES

CALLER = """
import os, signal, sys
from embedkit.cli import run
from embedkit.engines import encode_rows as encoding

begin = encoding.table_of
def signalled(config):
    os.kill(os.getpid(), signal.SIGTERM)
    return begin(config)

encoding.table_of = signalled
sys.exit(run(sys.argv[1:]))
"""
HANDLED = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]


def test_a_run_that_a_program_starts_leaves_its_handlers_alone(encode, tmp_path, monkeypatch):
    during = []
    from embedkit.engines import encode_rows as encoding

    table_of = encoding.table_of
    monkeypatch.setattr(
        encoding, "table_of", lambda config: (during.extend(map(signal.getsignal, HANDLED)), table_of(config))[1]
    )
    before = [signal.getsignal(number) for number in HANDLED]
    assert encode(NOTES, "-o", tmp_path / "out").code == 0
    assert during == before == [signal.getsignal(number) for number in HANDLED]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_signal_ends_a_program_that_has_called_the_command_line(bert, tmp_path):
    arguments = ["encode", NOTES, "-m", bert, "-o", tmp_path / "out"]
    ran = subprocess.run([sys.executable, "-c", CALLER, *arguments], capture_output=True, check=False)
    assert ran.returncode == -signal.SIGTERM, ran.stderr
