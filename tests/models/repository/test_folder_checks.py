"""What is given as a model and is none is called by its name, with the way out; before any weight is read."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from embedkit.config import ModelConfig
from embedkit.errors import ModelError
from embedkit.models.repository import hub_fetch
from embedkit.models.repository.resolve import resolve_model
from tests.conftest import NOTES

MODULES = "sentence_transformers.models."
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 90868376\n"


@pytest.fixture(autouse=True)
def _no_hub(tmp_path, monkeypatch):
    def asked(*_):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_fetch, "fetch", asked)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def model(bert, tmp_path):
    """Returns a copy of the tiny BERT, to be damaged."""
    shutil.copytree(bert, tmp_path / "here/model")
    return tmp_path / "here/model"


def refusal(name):
    with pytest.raises(ModelError) as caught:
        resolve_model(ModelConfig(str(name)))
    return caught.value


def recipe(folder, *modules):
    folder.mkdir(exist_ok=True)
    entries = [{"idx": at, "path": path, "type": kind} for at, (path, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(entries))
    for path, _ in modules:
        (folder / path).mkdir(exist_ok=True)
    return folder


# What a folder is ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modules", "says"),
    [
        ([("", MODULES + "StaticEmbedding")], "a static model"),
        ([("", "sentence_transformers.sparse_encoder.models.SparseStaticEmbedding")], "a static model"),
        ([("0_CLIPModel", MODULES + "CLIPModel")], "images and texts"),
        ([("", MODULES + "Router")], "a Router"),
        ([("", MODULES + "Asym")], "a Router"),
        ([("0_BoW", MODULES + "BoW"), ("1_Dense", MODULES + "Dense")], "a bag of words"),
        ([("0_WordEmbeddings", MODULES + "WordEmbeddings"), ("1_LSTM", MODULES + "LSTM")], "word vectors"),
        ([("0_Dense", MODULES + "Dense")], "made of Dense, without a transformer"),
        ([("", "custom_st.Embedder")], "its own code ('custom_st.Embedder')"),
    ],
)
def test_a_recipe_without_a_transformer_is_called_what_it_is(tmp_path, modules, says):
    folder = recipe(tmp_path / "here/model", *modules)
    save_file({"embedding.weight": torch.ones(4, 2)}, folder / "model.safetensors")
    assert says in refusal(folder).message
    # Some have a config.json of their own, which says nothing of an encoder.
    (folder / "config.json").write_text("{}")
    if modules[0][0] == "" and "custom" not in modules[0][1]:
        assert says in refusal(folder).message


def test_a_router_names_the_encoders_in_it(bert, tmp_path):
    folder = recipe(tmp_path / "here/model", ("", MODULES + "Router"))
    shutil.copytree(bert, folder / "document_0_Transformer")
    assert "--model model/document_0_Transformer" in refusal("model").hint


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "model2vec", "architectures": ["StaticModel"]}, "a static model"),
        ({"model_type": "clip"}, "reads texts together with images"),
        ({"model_type": "vit"}, "reads images"),
        ({"model_type": "whisper"}, "reads sound"),
        ([], "is not a JSON object"),
        ({"hidden_size": 3}, "has no model_type"),
    ],
)
def test_a_config_of_something_else_than_text_is_called_what_it_is(model, config, says):
    (model / "config.json").write_text(json.dumps(config))
    assert says in refusal(model).message


@pytest.mark.parametrize("beside", [(), ("config.json",), ("modules.json",), ("tokenizer.json",)])
def test_an_adapter_alone_is_one_and_names_its_model(model, beside):
    kept = {name: (model / name).read_bytes() for name in beside if (model / name).exists()}
    shutil.rmtree(model)
    model.mkdir()
    for name, content in kept.items():
        (model / name).write_bytes(content)
    if beside == ("modules.json",):
        recipe(model, ("", MODULES + "Transformer"))
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    (model / "adapter_model.safetensors").write_bytes(b"")
    error = refusal(model)
    assert "is an adapter (adapter_config.json) without its base model 'owner/base'" in error.message
    assert "merge" in error.hint


@pytest.mark.parametrize(
    ("file", "whose"),
    [
        ("tf_model.h5", "TensorFlow"),
        ("bert_model.ckpt.index", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
        ("onnx/model.onnx", "ONNX"),
        ("model.onnx", "ONNX"),
        ("model-Q8_0.gguf", "GGUF"),
        ("openvino_model.xml", "OpenVINO"),
    ],
)
@pytest.mark.parametrize("has_config", [True, False])
def test_weights_of_another_library_are_named(model, file, whose, has_config):
    (model / "model.safetensors").unlink()
    if not has_config:
        (model / "config.json").unlink()
    (model / file).parent.mkdir(exist_ok=True)
    (model / file).write_bytes(b"0")
    error = refusal(model)
    assert f"has weights for {whose}" in error.message
    assert file in error.message
    assert "model.safetensors" in error.hint


def test_weights_under_another_name_are_named(model):
    (model / "model.safetensors").rename(model / "weights.safetensors")
    (model / "training_args.bin").write_bytes(b"0")
    assert "but weights.safetensors" in refusal(model).message
    (model / "weights.safetensors").rename(model / "model-00001-of-00002.safetensors")
    assert "without model.safetensors.index.json" in refusal(model).message


def test_an_index_whose_parts_are_missing_says_how_many_and_the_first(model):
    (model / "model.safetensors").rename(model / "model-00001-of-00003.safetensors")
    parts = [f"model-0000{part}-of-00003.safetensors" for part in (1, 2, 3)]
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"w{at}": part for at, part in enumerate(parts)}}))
    assert f"in 3 files, by its {index.name}, and 2 of these are missing, the first is {parts[1]}" in (
        refusal(model).message
    )
    index.write_text("{}")
    assert "does not say which file each weight is in" in refusal(model).message
    index.write_text(POINTER)
    assert "is a Git LFS pointer" in refusal(model).message


def test_the_encoder_that_a_recipe_names_and_that_is_not_there_is_told(model):
    recipe(model, ("0_Transformer", MODULES + "Transformer"))
    assert "has no config.json in 0_Transformer" in refusal(model).message


# Whether its files are whole --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    [
        *("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "modules.json", "spiece.model"),
        *("model.safetensors", "pytorch_model.bin"),
    ],
)
def test_a_git_lfs_pointer_is_called_one(model, file):
    if file == "pytorch_model.bin":
        (model / "model.safetensors").unlink()
    (model / file).write_text(POINTER)
    error = refusal(model)
    assert error.message.startswith(f"{file} of model '{model}' is a Git LFS pointer, not the file itself")
    assert "git lfs pull" in error.hint


def test_a_file_that_no_run_reads_may_be_anything(model):
    (model / "train_data.json").write_text(POINTER)
    (model / "eval.json").touch()
    (model / "pytorch_model.bin").write_text(POINTER)
    assert resolve_model(ModelConfig(str(model))).model_type == "bert"


def test_a_module_that_is_a_pointer_is_told_when_the_recipe_is_followed_and_only_then(encode, model, tmp_path):
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"))
    recipe(model, *((path, MODULES + kind) for path, kind in kinds))
    (model / "1_Pooling/config.json").write_text(POINTER)
    dense = {"in_features": 32, "out_features": 2, "activation_function": "torch.nn.Tanh"}
    (model / "2_Dense/config.json").write_text(json.dumps(dense))
    (model / "2_Dense/model.safetensors").write_text(POINTER)
    arguments = (NOTES, "--limit", "2", "-m", model, "-o", tmp_path / "a.parquet")
    ran = encode(*arguments)
    assert (ran.code, "is a Git LFS pointer" in ran.err, "config.json" in ran.err) == (4, True, True)
    (model / "1_Pooling/config.json").write_text('{"pooling_mode": "mean"}')
    ran = encode(*arguments)
    assert (ran.code, "2_Dense/model.safetensors of model" in ran.err, "--pool mean" in ran.err) == (4, True, True)
    assert encode(*arguments, "--pool", "mean").code == 0


def test_a_web_page_instead_of_a_file_is_called_one(model):
    (model / "model.safetensors").write_text("\n<!DOCTYPE html>\n<html>")
    error = refusal(model)
    assert "is a web page" in error.message
    assert "/resolve/" in error.hint


@pytest.mark.parametrize(
    ("length", "says"),
    [
        (0, "is empty (0 bytes)"),
        (5, "is truncated"),
        (100, "is truncated"),
        (-1, "is truncated"),
        (-5000, "is truncated"),
    ],
)
def test_weights_that_are_cut_say_so(model, length, says):
    weights = model / "model.safetensors"
    os.truncate(weights, length if length >= 0 else weights.stat().st_size + length)
    assert f"model.safetensors of model '{model}' {says}" in refusal(model).message


def test_weights_that_are_no_tensors_say_so(model):
    (model / "model.safetensors").write_bytes(b"\x00" * 4000)
    assert "is not a safetensors file" in refusal(model).message
    (model / "model.safetensors").write_bytes((10).to_bytes(8, "little") + b'{"a": 12}\x00' + b"\x00" * 4000)
    assert "is not a safetensors file" in refusal(model).message
    (model / "model.safetensors").unlink()
    torch.save({"weight": torch.ones(1000)}, model / "pytorch_model.bin")
    os.truncate(model / "pytorch_model.bin", 3000)
    assert "is truncated" in refusal(model).message


def test_a_file_that_may_not_be_read_is_told(model, monkeypatch):
    read_text = type(model).read_text

    def refuse(path, *arguments, **options):
        if path.name == "config.json":
            raise PermissionError(13, "Permission denied")
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(type(model), "read_text", refuse)
    assert "config.json of model" in refusal(model).message
    assert "cannot be read: Permission denied" in refusal(model).message


@pytest.mark.parametrize("stated", [0, 2, -1, "512"])
def test_a_length_that_leaves_no_room_is_the_models_fault_and_not_the_options(encode, model, tmp_path, stated):
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": stated}))
    ran = encode(NOTES, "--limit", "2", "-m", model, "-o", tmp_path / "a.parquet")
    assert ran.code == 4
    assert f"tokenizer_config.json of model '{model}' says model_max_length '{stated}'" in ran.err
    assert "hint: give --max-length 64" in ran.err
    assert encode(NOTES, "--limit", "2", "-m", model, "--max-length", 64, "-o", tmp_path / "a.parquet").code == 0


# Names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["./modle", "modle/", "../here/modle", "~/modle", "{here}/modle", "a/b/c", ".\\modle", "C:\\models\\bert"],
)
def test_a_path_that_is_not_there_is_a_missing_folder_and_no_hub_id(model, monkeypatch, name):
    monkeypatch.setenv("HOME", str(model.parent))
    error = refusal(name.format(here=model.parent))
    assert error.exit_code == 4
    assert "is missing" in error.message
    assert "hub" not in error.message
    if "modle" in name and "\\" not in name:
        assert "did you mean --model " in error.hint
        assert error.hint.endswith("model?")


def test_a_path_says_which_of_its_folders_is_missing(model):
    error = refusal("./modle/checkpoint-500")
    assert "there is no 'modle'" in error.message
    assert "--model model/checkpoint-500" in error.hint
    (model.parent / "link").symlink_to("nowhere")
    assert "is a link to nowhere" in refusal("./link").message
    assert "is a file" in refusal("./model/config.json/x").message


def test_a_folder_beside_the_one_meant_is_named_and_the_hub_not_asked(model):
    (model.parent / "models").mkdir()
    model.rename(model.parent / "models/clinical")
    error = refusal("models/clincal")
    assert "there is no such folder in models/" in error.message
    assert error.hint.startswith("did you mean models/clinical?")
    with pytest.raises(
        ModelError, match="forbids to download it, and there is no such folder in models/"
    ) as caught:
        resolve_model(ModelConfig("models/clincal", offline=True))
    assert caught.value.hint.startswith("did you mean models/clinical?")
    (model.parent / "models/clinical").rename(model.parent / "my_model")
    assert "did you mean my_model?" in refusal("my_modle").hint


@pytest.mark.parametrize("name", ["a model", "owner/na--me", "owner/na..me", "-x", "owner/ümlaut", "x" * 300])
def test_a_name_that_can_be_no_hub_id_is_told(name):
    assert "cannot be a hub id" in refusal(name).message


def test_a_very_long_path_and_an_unknown_home_are_missing_folders():
    assert "is missing" in refusal("./" + "x" * 300).message
    assert "is missing" in refusal("~nobody-of-that-name/model").message


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("https://huggingface.co/owner/name", "use --model owner/name"),
        ("https://huggingface.co/owner/name/tree/v2", "use --model owner/name --revision v2"),
        ("hf://owner/name@v2", "use --model owner/name --revision v2"),
        ("s3://bucket/model", "copy the model here"),
    ],
)
def test_an_address_is_no_model_and_its_hub_id_is_named(name, hint):
    error = refusal(name)
    assert "is an address" in error.message
    assert hint in error.hint


def test_an_empty_name_is_not_the_folder_one_is_in(bert, monkeypatch):
    monkeypatch.chdir(bert)
    assert "--model is empty" in refusal("").message
    assert resolve_model(ModelConfig(".")).folder == bert


def test_a_file_is_told_to_be_one_and_its_folder_named(model):
    error = refusal("model/model.safetensors")
    assert "is a file; a model is a folder" in error.message
    assert error.hint == "give its folder: --model model"
    shutil.copy(model / "model.safetensors", model.parent / "pooler.safetensors")
    assert "--pool" in refusal("./pooler.safetensors").hint


def test_other_folders_are_called_what_they_are(model, encode):
    assert encode(NOTES, "--limit", "2", "-o", "vectors").code == 0
    assert "is an output of embedkit" in refusal("vectors").message
    (model.parent / "nothing").mkdir()
    assert "it is empty" in refusal("nothing").message
    (model.parent / "run").mkdir()
    model.rename(model.parent / "run/checkpoint-500")
    assert "--model run/checkpoint-500" in refusal("run").hint
    cached = model.parent / "models--owner--name"
    (cached / "snapshots/0123").mkdir(parents=True)
    error = refusal(cached)
    assert "the hub's cache" in error.message
    assert "use --model owner/name" in error.hint
