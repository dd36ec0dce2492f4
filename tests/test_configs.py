"""The presets in configs/ do what they say, and the constraints fit the package's own ranges."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from embedkit import cli
from embedkit.config import RunConfig
from embedkit.errors import Stopped
from embedkit.models.repository.aliases import find_alias

ROOT = Path(__file__).parents[1]
PRESETS = sorted((ROOT / "configs").glob("*.toml"))


@pytest.fixture
def config_of(monkeypatch):
    """Returns a function from arguments of `embedkit encode` to the RunConfig that they make; nothing is run."""
    made = []

    def run(config, *_):
        made.append(config)
        raise Stopped("far enough", hint="none")

    def config_of(*arguments: str) -> RunConfig:
        made.clear()
        assert cli.run(["encode", *arguments]) == Stopped.exit_code
        return made[0]

    monkeypatch.setattr("embedkit.engines.run.run", run)
    return config_of


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.stem)
def test_a_preset_sets_known_options_and_a_known_model(config_of, preset):
    config = config_of("notes.csv", "--config", str(preset))
    flags = []
    for name, value in tomllib.loads(preset.read_text(encoding="utf-8")).items():
        flags += [f"--{name}"] if value is True else [f"--{name}={value}"]
    assert config == config_of("notes.csv", *flags)
    assert config != config_of("notes.csv")
    assert find_alias(config.model.model) is not None


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.stem)
def test_the_command_in_a_presets_comment_works_as_typed(config_of, preset, monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"^#     embedkit encode (.*)$", preset.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == 1
    assert f"configs/{preset.name}" in commands[0]
    config_of(*commands[0].split())


def test_a_flag_wins_over_a_preset(config_of):
    preset = str(ROOT / "configs/clinical-mean.toml")
    config = config_of("notes.csv", "--pool", "max", "--config", preset)
    assert (config.pooling.pool, config.model.model) == ("max", "Bio_ClinicalBERT")


def test_constraints_are_within_the_ranges_of_the_package():
    packaging = pytest.importorskip("packaging.requirements", reason="comes with pytest")
    pinned = {}
    for line in (ROOT / "configs/constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = re.fullmatch(r"([a-z0-9-]+)==([0-9a-z.]+)", line).groups()
            assert name not in pinned
            pinned[name] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    for text in (*project["dependencies"], *(text for extra in extras for text in extra)):
        asked = packaging.Requirement(text)
        assert asked.specifier.contains(pinned[asked.name]), text
