"""Poolers of installed packages: the documentation's example, as a real entry point, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import embedkit
from embedkit import Encoder
from embedkit.errors import ModelError, UsageError
from tests.oracle import Oracle
from tests.tiny_models import TEXTS

GUIDE = (Path(__file__).parents[2] / "docs/guides/training.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"<!-- pooler -->\n```python\n(.*?)```", GUIDE, re.DOTALL)[1]
DECLARED = re.search(r'```toml\n(\[project\.entry-points\."embedkit\.poolers"\]\n.*?)```', GUIDE, re.DOTALL)[1]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package with poolers where Python finds it, with the files that pip would leave."""

    def put(code, entries, *, package="own-poolers", module="norm_weighted"):
        site = tmp_path / package
        info = site / f"{package.replace('-', '_')}-1.2.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(code, encoding="utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[embedkit.poolers]\n{entries}\n", encoding="utf-8")
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(sys.modules, module, raising=False)
        return site

    return put


def test_the_pooler_of_the_documentation_works(install, bert):
    install(EXAMPLE, "\n".join(DECLARED.splitlines()[1:]).replace('"', ""))
    encoder = Encoder(str(bert), pool="mean,norm-weighted", layers="1,3", batch_tokens=200)
    vectors = encoder.encode(TEXTS)
    oracle = Oracle(bert, max_length=64)
    for text, vector in zip(TEXTS, vectors, strict=True):
        states = oracle.states(text).layers
        weights = np.linalg.norm(states[3], axis=1, keepdims=True)
        expected = np.concatenate(
            [states[1].mean(0), states[3].mean(0), (weights * states[3]).sum(0) / weights.sum()]
        )
        assert np.abs(vector - expected).max() <= 1e-5
        # The states themselves differ by 1e-6 from batch to batch.
        assert np.abs(encoder.encode([text])[0] - vector).max() <= 5e-6
    assert encoder.recipe["pool"] == ["mean", "norm-weighted"]
    assert encoder.recipe["poolers"] == {"norm-weighted": {"package": "own-poolers", "version": "1.2"}}


def test_with_and_without_special_tokens_packed_or_padded_and_a_column_a_layer(
    install, bert, tmp_path, embedkit_cli
):
    install(EXAMPLE, "norm-weighted = norm_weighted:NormWeighted")
    texts = [text for text in TEXTS if text.strip()]
    rows = tmp_path / "in.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    ran = embedkit_cli(
        *("encode", rows, "-m", bert, "--pool", "norm-weighted", "--layers", "2,3", "--layer-agg", "separate"),
        *("--exclude-special", "-o", tmp_path / "out", "-q"),
    )
    assert ran.code == 0, ran.err
    out = embedkit.read(tmp_path / "out")
    assert out.variants == ("L02_norm-weighted", "L03_norm-weighted")
    oracle = Oracle(bert, max_length=64)
    for row, text in enumerate(texts):
        found = oracle.states(text)
        for layer in (2, 3):
            states = found.layers[layer][~found.special]
            weights = np.linalg.norm(states, axis=1, keepdims=True)
            expected = (weights * states).sum(0) / weights.sum()
            assert np.abs(out.variant(f"L{layer:02d}_norm-weighted")[row] - expected).max() <= 1e-5


@pytest.mark.usefixtures("quick_workers")
def test_workers_make_a_pooler_that_cannot_be_pickled_themselves(install, bert, tmp_path, embedkit_cli):
    code = f"{EXAMPLE}\n\ndef make():\n    class Local(NormWeighted): pass\n    return Local()\n"
    install(code, "norm-weighted = norm_weighted:make")
    rows = tmp_path / "in.txt"
    rows.write_text("".join(f"{text}\n" for text in TEXTS if text.strip() and "\n" not in text), encoding="utf-8")
    for workers in (1, 2):
        ran = embedkit_cli(
            *("encode", rows, "-m", bert, "--pool", "norm-weighted", "--workers", workers, "--shard-rows", "2"),
            *("-o", tmp_path / f"out{workers}", "-q"),
        )
        assert ran.code == 0, ran.err
    one, two = (embedkit.read(tmp_path / f"out{workers}") for workers in (1, 2))
    assert np.array_equal(one.vectors, two.vectors)


def test_a_pooler_declares_the_layers_it_needs(install, bert):
    install(EXAMPLE.replace("layers = None", 'layers = "1:3"'), "norm-weighted = norm_weighted:NormWeighted")
    assert Encoder(str(bert), pool="norm-weighted").recipe["layers"] == [1, 2]
    with pytest.raises(UsageError, match="needs --layers 1:3"):
        Encoder(str(bert), pool="norm-weighted", layers="3")


WORKS = "norm-weighted = norm_weighted:NormWeighted"


@pytest.mark.parametrize(
    ("code", "entries", "pool", "kind", "what"),
    [
        (
            EXAMPLE,
            "mean = norm_weighted:NormWeighted",
            "mean",
            UsageError,
            "own-poolers 1.2 declares a pooler 'mean'",
        ),
        (EXAMPLE, "a/b = norm_weighted:NormWeighted", "a/b", UsageError, "cannot name a column"),
        (EXAMPLE, "x = norm_weighted:Missing", "x", ModelError, "cannot be made .AttributeError"),
        ("raise OSError('secret')", "x = norm_weighted:NormWeighted", "x", ModelError, "cannot be made .OSError"),
        ("class P: layers = None", "x = norm_weighted:P", "x", ModelError, "must be callable and have layers"),
        (
            EXAMPLE.replace("None", "[1]"),
            "x = norm_weighted:NormWeighted",
            "x",
            ModelError,
            "must be callable and have layers",
        ),
        (
            EXAMPLE.replace("return hidden_size", "return 5"),
            WORKS,
            "norm-weighted",
            ModelError,
            r"float32 \[\d+, 5\]",
        ),
    ],
)
def test_invalid_poolers_are_refused(install, bert, code, entries, pool, kind, what):
    install(code, entries)
    with pytest.raises(kind, match=what) as refused:
        Encoder(str(bert), pool=pool).encode(["a text"])
    assert "secret" not in refused.value.message + refused.value.hint


def test_two_packages_with_one_name_are_refused_and_a_similar_name_is_suggested(install, bert):
    install(EXAMPLE, WORKS)
    with pytest.raises(UsageError) as unknown:
        Encoder(str(bert), pool="norm-weigthed")
    assert unknown.value.hint == "did you mean --pool norm-weighted?"
    install(EXAMPLE, WORKS, package="more-poolers")
    with pytest.raises(UsageError, match="two packages declare a pooler 'norm-weighted'"):
        Encoder(str(bert), pool="norm-weighted")


def test_help_imports_no_pooler(install):
    site = install("raise SystemExit('was imported')", WORKS)
    code = (
        "import sys; from embedkit.cli import run; code = run(['encode', '--help']) + run(['fit', '--help']);"
        "sys.exit(code or 'torch' in sys.modules or 'norm_weighted' in sys.modules)"
    )
    path = f"{site}:{':'.join(filter(None, sys.path))}"
    ran = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr
