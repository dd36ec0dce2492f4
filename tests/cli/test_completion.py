"""Completion in shells: commands, options and values, asked for in the way in which the printed scripts ask."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from embedkit.cli import command_tree
from embedkit.cli.option_values import VALUES
from embedkit.config.poolings import POOLER_KINDS

BASH = shutil.which("bash")


def completed(embedkit_cli, monkeypatch, line):
    """Returns the completions of the last word of a line, as bash asks for them."""
    words = line.split(" ")
    monkeypatch.setenv("_EMBEDKIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    ran = embedkit_cli()
    assert (ran.code, ran.err) == (0, "")
    return ran.out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("embedkit en", ["encode"]),
        ("embedkit encode notes.csv --text", ["--text-column"]),
        ("embedkit encode notes.csv --pool las", ["lasttoken"]),
        ("embedkit encode notes.csv --pool mean,m", ["mean,mean", "mean,max", "mean,min", "mean,mean_sqrt_len"]),
        ("embedkit plan notes.csv -m Bio_ClinicalB", ["Bio_ClinicalBERT"]),
        ("embedkit completion ", ["bash", "zsh", "fish"]),
        ("embedkit encode no", []),  # the shell completes files
    ],
)
def test_commands_options_and_values_are_completed(embedkit_cli, monkeypatch, line, expected):
    assert completed(embedkit_cli, monkeypatch, line) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_calls_the_command(embedkit_cli, shell):
    ran = embedkit_cli("completion", shell)
    assert (ran.code, ran.err) == (0, "")
    assert f"_EMBEDKIT_COMPLETE=complete_{shell}" in ran.out
    assert "embedkit" in ran.out


def test_another_shell_is_an_error_that_names_those_there_are(embedkit_cli):
    ran = embedkit_cli("completion", "tcsh")
    assert (ran.code, ran.out) == (2, "")
    assert "bash, zsh, fish" in ran.err


@pytest.mark.skipif(BASH is None, reason="there is no bash on this machine")
def test_bash_completes_with_the_script(tmp_path):
    command = tmp_path / "embedkit"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m embedkit "$@"\n')
    command.chmod(0o755)
    script = (
        f'PATH="{tmp_path}:$PATH"; eval "$(embedkit completion bash)"; COMP_WORDS=(embedkit verify out --resa); '
        'COMP_CWORD=3; _embedkit_completion embedkit; echo "${COMPREPLY[@]}"'
    )
    ran = subprocess.run([str(BASH), "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["--resample"]


def test_the_completed_values_are_those_that_the_help_lists():
    commands = command_tree().commands
    first = ("encode", *(commands.keys() - {"encode"}))
    parameters = {p.name: p for command in reversed(first) for p in commands[command].params}
    for name, values in VALUES.items():
        listed = set(re.findall(r"[\w-]+", parameters[name].help))
        kinds = {kind.partition(":")[0] for kind in POOLER_KINDS} if name == "pooler" else set()
        assert set(values) <= listed | kinds, name
