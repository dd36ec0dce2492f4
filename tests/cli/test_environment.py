"""Defaults from environment variables: taken, announced, and weaker than the command line and a config file."""

from __future__ import annotations

import json

import pytest

from embedkit.cli import command_tree, environment
from embedkit.output.read import read


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("id,text\n1,chest pain\n2,no pain\n")
    return path


def dtype_of(ran, out):
    assert ran.code == 0, ran.err
    return read(out).recipe["dtype"]


def test_a_variable_sets_a_default_and_a_note_says_so(embedkit_cli, monkeypatch, table, tmp_path, bert):
    monkeypatch.setenv("EMBEDKIT_MODEL", str(bert))
    monkeypatch.setenv("EMBEDKIT_DTYPE", "bf16")
    monkeypatch.setenv("EMBEDKIT_OFFLINE", "")  # empty is unset
    ran = embedkit_cli("encode", table, "-o", tmp_path / "out")
    assert dtype_of(ran, tmp_path / "out") == "bf16"
    assert f"note: --model is {bert}, from EMBEDKIT_MODEL\n" in ran.err
    assert "note: --dtype is bf16, from EMBEDKIT_DTYPE\n" in ran.err
    assert "EMBEDKIT_OFFLINE" not in ran.err
    assert embedkit_cli("encode", table, "-o", tmp_path / "quiet", "-q").err == ""
    as_json = embedkit_cli("encode", table, "-o", tmp_path / "json", "--progress", "json")
    messages = [json.loads(line).get("message") for line in as_json.err.splitlines()]
    assert "--dtype is bf16, from EMBEDKIT_DTYPE" in messages


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("EMBEDKIT_MODLE", "did you mean EMBEDKIT_MODEL?"),
        ("embedkit_model", "did you mean EMBEDKIT_MODEL?"),
        ("EMBEDKIT_LAYERS", "give --layers on the command line or in a file for --config"),
        ("EMBEDKIT_TEST_DEVICE", None),
        ("_EMBEDKIT_COMPLETE", None),
    ],
)
def test_a_variable_without_effect_is_told(monkeypatch, name, hint):
    monkeypatch.setenv(name, "")
    command = command_tree().commands["encode"]
    with command.make_context("encode", ["in.csv"]) as context:
        found = environment.notes(context, {})
    assert found == ([f"{name} is ignored, since embedkit has no such variable: {hint}"] if hint else [])


def test_the_command_line_and_a_config_file_win(encode, monkeypatch, table, tmp_path):
    monkeypatch.setenv("EMBEDKIT_MODEL", "no-such-model")  # `encode` gives -m
    monkeypatch.setenv("EMBEDKIT_DTYPE", "bf16")
    config = tmp_path / "run.toml"
    config.write_text('dtype = "fp32"\n')
    ran = encode(table, "-o", tmp_path / "config", "--config", config)
    assert dtype_of(ran, tmp_path / "config") == "fp32"
    assert "EMBEDKIT_" not in ran.err
    ran = encode(table, "-o", tmp_path / "line", "--dtype", "fp32")
    assert dtype_of(ran, tmp_path / "line") == "fp32"
    assert "EMBEDKIT_" not in ran.err


def test_a_model_for_new_runs_is_not_the_one_that_an_output_is_verified_with(
    encode, embedkit_cli, monkeypatch, table, tmp_path
):
    assert encode(table, "-o", tmp_path / "out").code == 0
    monkeypatch.setenv("EMBEDKIT_MODEL", "no-such-model")
    ran = embedkit_cli("verify", tmp_path / "out", "--resample", "2")
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("OFFLINE", "perhaps", "yes or no"),
        ("WORKERS", "two", "whole number"),
        ("DTYPE", "fp33", "fp32"),
        ("PROGRESS", "loud", "json"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_it(encode, monkeypatch, table, tmp_path, name, value, allowed):
    monkeypatch.setenv(f"EMBEDKIT_{name}", value)
    ran = encode(table, "-o", tmp_path / "out")
    assert ran.code == 2
    assert f"'{value}'" in ran.err
    assert f"EMBEDKIT_{name}" in ran.err
    assert allowed in ran.err
