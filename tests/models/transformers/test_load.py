"""What loads, with which casing and length, and what is refused because it would be a wrong number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embedkit import Encoder
from embedkit.errors import InputError, ModelError, UsageError
from tests import tiny_models
from tests.oracle import Oracle, pool


@pytest.fixture
def bert(tmp_path) -> Path:
    return tiny_models.make("bert", tmp_path / "bert").folder


@pytest.fixture(scope="module")
def bio_clinicalbert(tmp_path_factory) -> Path:
    return tiny_models.make_bio_clinicalbert_layout(tmp_path_factory.mktemp("bio"))


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_layout_of_bio_clinicalbert_keeps_its_capitals_and_is_cut_at_its_positions(bio_clinicalbert, capfd):
    assert {file.name for file in bio_clinicalbert.iterdir()} == {"config.json", "vocab.txt", "pytorch_model.bin"}
    encoder = Encoder(str(bio_clinicalbert), pool="mean,pooler")
    assert encoder.recipe["text"]["lowercase"] is False
    assert encoder.recipe["text"]["max_length"] == 64
    assert any("have capitals" in notice for notice in encoder.notices)
    found = encoder.encode(tiny_models.TEXTS)
    # The library's load report lists the pretraining heads that nobody needs; the user never sees it.
    assert capfd.readouterr() == ("", "")
    cased = Oracle(bio_clinicalbert, max_length=64, do_lower_case=False)
    states = [cased.states(text) for text in tiny_models.TEXTS]
    expected = np.stack([np.concatenate([pool("mean", s.layers[-1]), s.pooler]) for s in states])
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def test_lowercasing_it_is_another_recipe_with_other_numbers(bio_clinicalbert):
    lowered = Encoder(str(bio_clinicalbert), pool="mean", lowercase="yes")
    cased = Encoder(str(bio_clinicalbert), pool="mean", lowercase="no")
    assert lowered.fingerprint != cased.fingerprint
    text = ["The patient was discharged"]
    assert np.abs(lowered.encode(text) - cased.encode(text)).max() > 1e-3
    assert np.array_equal(lowered.encode(text), lowered.encode([text[0].lower()]))
    assert all("pickle" in notice for notice in cased.notices)  # and none of casing


def test_a_stated_casing_is_kept_and_a_mismatch_told_with_numbers(bio_clinicalbert, tmp_path):
    folder = shutil.copytree(bio_clinicalbert, tmp_path / "stated")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    encoder = Encoder(str(folder), pool="mean")
    assert encoder.recipe["text"]["lowercase"] is True
    assert any("--lowercase no changes that" in notice for notice in encoder.notices)


def test_a_name_in_the_alias_table_settles_the_casing(bio_clinicalbert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bio_clinicalbert, tmp_path / "Bio_ClinicalBERT")
    encoder = Encoder("Bio_ClinicalBERT", pool="mean")
    assert encoder.recipe["text"]["lowercase"] is False
    assert all("pickle" in notice for notice in encoder.notices)  # and none of casing


def test_lowercasing_can_be_put_before_a_tokenizer_that_keeps_capitals(tmp_path):
    folder = str(tiny_models.make("roberta", tmp_path / "roberta").folder)
    lowered, plain = Encoder(folder, pool="mean", lowercase="yes"), Encoder(folder, pool="mean")
    assert np.array_equal(lowered.encode(["The PATIENT"]), plain.encode(["the patient"]))
    assert lowered.recipe["text"]["lowercase"] is True
    assert plain.recipe["text"]["lowercase"] is False


def test_missing_weights_outside_the_pooler_are_an_error(bert):
    edit_weights(bert, lambda weights: weights.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(ModelError, match=r"lacks 1 of the encoder's weights.*encoder\.layer\.1\.output\.dense"):
        Encoder(str(bert), pool="mean")


def test_weights_of_another_shape_are_an_error(bert):
    edit_json(bert / "config.json", intermediate_size=48)
    with pytest.raises(ModelError):
        Encoder(str(bert), pool="mean")


def test_a_pooler_without_weights_is_refused_and_everything_else_works(bert, capfd):
    def drop(weights):
        for name in [name for name in weights if name.startswith("pooler.")]:
            del weights[name]

    edit_weights(bert, drop)
    with pytest.raises(ModelError, match="no weights for a pooling head"):
        Encoder(str(bert), pool="pooler")
    assert np.isfinite(Encoder(str(bert), pool="cls").encode(["pain"])).all()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["distilbert", "electra", "modernbert"])
def test_models_without_a_pooling_head_say_so(kind, tmp_path):
    with pytest.raises(ModelError, match="pooling head"):
        Encoder(str(tiny_models.make(kind, tmp_path / kind).folder), pool="pooler")


def test_the_pooler_goes_with_the_last_layer_only(bert):
    with pytest.raises(UsageError, match="last layer only"):
        Encoder(str(bert), pool="pooler,mean", layers="1")


def test_a_damaged_file_is_told_in_one_line(bert):
    (bert / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="is not a safetensors file, and cannot be read") as caught:
        Encoder(str(bert), pool="mean")
    assert "\n" not in caught.value.message


def test_half_precision_is_near_fp32_and_another_recipe(bert):
    exact = Encoder(str(bert), pool="mean").encode(tiny_models.TEXTS)
    half = Encoder(str(bert), pool="mean", dtype="bf16")
    assert half.recipe["dtype"] == "bf16"
    found = half.encode(tiny_models.TEXTS)
    cosine = (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.99


def test_a_shallow_layer_frees_the_layers_above_it(tmp_path):
    encoder = Encoder(str(tiny_models.make("gpt2", tmp_path).folder), pool="mean", layers="1")
    # Layer 1 and the one behind it, where the forward pass is stopped.
    assert len(encoder._embedder.encoder.model.h) == 2


def test_a_device_that_is_not_there_says_which_are(bert):
    with pytest.raises(UsageError) as caught:
        Encoder(str(bert), device="cuda:99")
    assert "cpu" in caught.value.hint


# --- lengths, prompts, receipts -------------------------------------------------------------------------


def test_more_tokens_than_positions_are_refused(bert):
    with pytest.raises(UsageError, match="64 positions"):
        Encoder(str(bert), max_length=65)
    with pytest.raises(UsageError, match="special tokens"):
        Encoder(str(bert), max_length=2)


@pytest.mark.parametrize("kind", ["bert", "roberta", "t5", "gpt2", "xlnet"])
def test_a_cut_text_keeps_its_special_tokens(kind, tmp_path):
    model = tiny_models.make(kind, tmp_path / kind)
    oracle = Oracle(model.folder, max_length=9)
    tokenizer = Encoder(str(model.folder), pool="mean", max_length=9)._embedder.tokenizer
    texts = [text for text in tiny_models.TEXTS if oracle.tokenizer(text)["input_ids"]]
    found = tokenizer.tokenize(texts)
    plain = [oracle.tokenizer(text)["input_ids"] for text in texts]
    assert found.n_tokens.tolist() == [len(ids) for ids in plain]
    assert found.n_used.tolist() == [min(9, len(ids)) for ids in plain]
    cut = [oracle.tokenizer(text, truncation=True, max_length=9)["input_ids"] for text in texts]
    assert found.tokens.input_ids.tolist() == [token for ids in cut for token in ids]


def test_a_text_cut_on_the_left_keeps_its_end(tmp_path):
    folder = tiny_models.make("bert", tmp_path / "bert").folder
    edit_json(folder / "tokenizer_config.json", truncation_side="left")
    oracle = Oracle(folder, max_length=7)
    text = tiny_models.TEXTS[6]
    found = Encoder(str(folder), pool="mean", max_length=7)._embedder.tokenizer.tokenize([text])
    assert found.tokens.input_ids.tolist() == oracle.tokenizer(text, truncation=True, max_length=7)["input_ids"]


def test_on_long_error_names_the_row_and_the_length(bert):
    encoder = Encoder(str(bert), pool="mean", on_long="error")
    with pytest.raises(InputError, match=r"row 1 has \d+ tokens; --on-long error allows 64") as caught:
        encoder.encode(["pain", "secretword " * 100])
    assert "secretword" not in caught.value.message


def test_a_prompt_stands_before_every_text_and_before_no_empty_one(bert):
    prompted = Encoder(str(bert), pool="mean", prompt="query: ")
    plain = Encoder(str(bert), pool="mean")
    found = prompted.encode(["pain", ""])
    assert np.array_equal(found[:1], plain.encode(["query: pain"]))
    assert np.isnan(found[1]).all()


# --- the recipe that a model ships ------------------------------------------------------------------------


def ship(
    folder: Path, *, pooling: dict, modules: tuple[str, ...] = ("Transformer", "Pooling", "Normalize")
) -> None:
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    entries = [
        {"idx": i, "name": str(i), "path": paths[kind], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20, "do_lower_case": False}))
    settings = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "passage"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "cls,mean"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": ["mean_sqrt_len_tokens", "max"]}, "mean_sqrt_len,max"),
    ],
)
def test_auto_is_what_the_authors_ship(bert, pooling, pool):
    plain = Encoder(str(bert), pool=pool, normalize=True, max_length=20, prompt="passage: ")
    ship(bert, pooling=pooling)
    auto = Encoder(str(bert))
    assert any("follows the recipe of the model" in notice for notice in auto.notices)
    assert np.array_equal(auto.encode(tiny_models.TEXTS), plain.encode(tiny_models.TEXTS))
    named = Encoder(str(bert), pool=pool, prompt_name="query")
    assert named.recipe["text"]["prompt"] == "query: "
    assert named.recipe["normalize"] is False
    with pytest.raises(UsageError, match="query, passage"):
        Encoder(str(bert), prompt_name="other")


def test_without_a_shipped_recipe_auto_is_the_mean(bert):
    assert Encoder(str(bert)).recipe["pool"] == ["mean"]


@pytest.mark.parametrize("modules", [("Transformer", "Pooling", "Dense"), ("Pooling", "Transformer")])
def test_a_recipe_that_cannot_be_carried_out_is_refused_by_name(bert, modules):
    ship(bert, pooling={"pooling_mode": "mean"}, modules=modules)
    with pytest.raises(ModelError, match=r"'Dense'|order"):
        Encoder(str(bert))
    assert Encoder(str(bert), pool="mean").recipe["pool"] == ["mean"]
