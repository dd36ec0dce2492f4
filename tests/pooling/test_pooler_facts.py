"""`embedkit inspect FILE.safetensors`: what a pooler's file says of itself."""

from __future__ import annotations

import json

import numpy as np
import pytest

from embedkit.errors import ModelError
from embedkit.pooling.pooler_facts import layer_weights
from embedkit.pooling.pooler_files import pooler_bytes, read_pooler
from tests.previous_outputs import FOLDER

RECIPE = {
    "kind": "weighted-layers",
    "shape": {"n_layers": 3, "hidden_size": 4, "width": 0, "heads": 0, "of_tokens": "mean"},
    "dims": 4,
    "input": {"layers": [1, 2, 5], "layer_agg": "concat", "exclude_special": False, "dtype": "fp32"},
    "model": {"type": "bert", "files": {"config.json": "00", "model.safetensors": "ab"}},
    "text": {"lowercase": True, "prompt": "", "max_length": 24, "on_long": "truncate"},
    "task": "classification",
    "classes": ["no", "yes"],
    "label": "smoker",
    "scores": {"test": {"accuracy": 0.875}},
    "versions": {"embedkit": "0.1.0"},
}
HEAD = {"head.weight": np.zeros((2, 4), np.float32), "head.bias": np.zeros(2, np.float32)}


@pytest.fixture
def written(tmp_path):
    def write(weights, **change):
        tensors = {"weights": np.array(weights, np.float32), **HEAD}
        path = tmp_path / "p.safetensors"
        path.write_bytes(pooler_bytes({**RECIPE, **change}, tensors))
        return str(path)

    return write


def test_learned_weights_of_layers_are_shown_as_a_table_and_in_json(written, embedkit_cli):
    path = written(np.log([1, 2, 5]))  # the softmax of ln 1, ln 2, ln 5 is 1/8, 2/8, 5/8
    shown = embedkit_cli("inspect", path).out
    for line in (
        f"{path}: pooler of kind weighted-layers, with a head",
        "vectors    4 dimensions",
        "size       13 numbers: head.bias [2], head.weight [2, 4], weights [3]",
        "        1  0.1250 ########",
        "        2  0.2500 ################",
        "        5  0.6250 ########################################",
        'task       classification, 2 classes: "no", "yes"',
        "scores     test: accuracy 0.875",
        "model      bert, 2 files; model.safetensors ab",
        "label      smoker",
    ):
        assert line in shown.splitlines()
    facts = json.loads(embedkit_cli("inspect", path, "--json").out)
    assert facts["layer_weights"] == pytest.approx({"1": 0.125, "2": 0.25, "5": 0.625})
    assert (facts["kind"], facts["classes"], facts["label"]) == ("weighted-layers", ["no", "yes"], "smoker")
    assert facts["text"]["max_length"] == 24


@pytest.mark.parametrize("name", ["attention", "idf", "pca"])
def test_files_of_an_earlier_version_are_described(name, embedkit_cli):
    path = FOLDER / f"{name}.safetensors"
    shown = embedkit_cli("inspect", path)
    assert (shown.code, shown.out.partition("\n")[0][: len(f"{path}: pooler")]) == (0, f"{path}: pooler")
    facts = json.loads(embedkit_cli("inspect", path, "--json").out)
    assert facts["parameters"] == sum(int(np.prod(shape)) for shape in facts["tensors"].values())
    assert layer_weights(read_pooler(str(path))) is None


@pytest.mark.parametrize(
    ("weights", "change"),
    [
        ([0, 1], {}),
        ([0, 1, np.nan], {}),
        ([0, 1, 2], {"input": {}}),
        ([0, 1, 2], {"input": [1]}),
        ([0, 1, 2], {"classes": ["no"]}),
        ([0, 1, 2], {"model": "bert"}),
        ([0, 1, 2], {"text": 7}),
    ],
)
def test_a_damaged_file_is_one_error(weights, change, written, embedkit_cli):
    ran = embedkit_cli("inspect", written(weights, **change))
    assert (ran.code, ran.out, len(ran.told)) == (4, "", 2), ran.err


def test_the_weights_of_a_model_are_no_pooler(bert, embedkit_cli, tmp_path):
    ran = embedkit_cli("inspect", bert / "model.safetensors")
    assert (ran.code, "no recipe of a pooler" in ran.err) == (4, True)
    with pytest.raises(ModelError, match="cannot read"):
        read_pooler(str(tmp_path / "nowhere.safetensors"))
