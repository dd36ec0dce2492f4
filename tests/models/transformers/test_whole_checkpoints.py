"""Every weight and setting of a checkpoint decides the numbers, or the model is refused; every file is hashed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from embedkit import Encoder
from embedkit.config import ModelConfig
from embedkit.errors import ModelError, UsageError
from embedkit.models.native.native_model import NativeModel
from embedkit.models.repository.config_keys import check_unread, unread_keys
from embedkit.models.repository.resolve import resolve_model
from embedkit.models.select_backend import load_model
from tests import tiny_models
from tests.oracle import Oracle, pool

pytestmark = pytest.mark.usefixtures("one_thread")

Weights = dict[str, torch.Tensor]
TEXT = ["The patient was discharged home in stable condition."]
QUERY = "encoder.layer.1.attention.self.query"


@pytest.fixture
def bert(bases, tmp_path) -> Path:
    return Path(shutil.copytree(bases("bert"), tmp_path / "bert"))


def edit_weights(folder: Path, change: Callable[[Weights], Weights]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


def vector(folder: Path, **options: Any) -> np.ndarray:
    return Encoder(str(folder), pool="mean", **options).encode(TEXT)


def in_parts(folder: Path, where: str, *, shift: float = 0.0, index: str = "model.safetensors.index.json") -> None:
    """Puts the weights into a file that only an index names, each of them larger by `shift`."""
    weights = load_file(folder / "model.safetensors")
    (folder / where).parent.mkdir(exist_ok=True, parents=True)
    shifted = {name: tensor + shift for name, tensor in weights.items()}
    if where.endswith(".bin"):
        torch.save(shifted, folder / where)
    else:
        save_file(shifted, folder / where, {"format": "pt"})
    content = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, where)}
    (folder / index).write_text(json.dumps(content))
    (folder / "model.safetensors").unlink()


# Weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("bert.", f"{QUERY}.lora_A.weight"),
        ("", f"{QUERY}.scales"),
        ("", f"{QUERY}.weight_scale"),
        ("bert.", f"{QUERY}.weight.absmax"),
        ("", "encoder.layer.1.attention.self.distance_embedding.weight"),
        ("bert.", "encoder.layer.1.attention.self.distance_embedding.weight"),
        ("bert.", "encoder.layer.3.attention.self.query.weight"),
        ("", "encoder.layer.1.output.adapters.a.adapter_down.0.weight"),
        ("bert.", "embeddings.LayerNorm.gamma"),
        ("", "embeddings.extra.weight"),
        ("", "pooler.lora_A.weight"),
        ("bert.", "pooler.lora_A.weight"),
        ("", "prompt_encoder.embedding.weight"),
        ("bert.", "unheard_of.weight"),
    ],
)
def test_a_weight_that_no_code_uses_is_refused_by_its_name(bert, name, prefix):
    outside = name.startswith(("prompt_encoder", "unheard_of"))
    added = name if outside else prefix + name
    edit_weights(bert, lambda w: {prefix + old: tensor for old, tensor in w.items()} | {added: torch.ones(32)})
    with pytest.raises(ModelError) as caught:
        vector(bert)
    assert name in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["modernbert", "gpt2", "t5"])
def test_a_model_that_transformers_runs_is_held_to_the_same_rule(bases, tmp_path, kind):
    folder = Path(shutil.copytree(bases(kind), tmp_path / kind))
    before = vector(folder)
    first = next(name for name in load_file(folder / "model.safetensors") if ".0." in name)
    heads = {
        "lm_head.weight": torch.ones(3, 3),
        "score.weight": torch.ones(3),
        "classifier.dense.bias": torch.ones(2),
    }
    edit_weights(folder, lambda w: w | heads)
    assert np.array_equal(vector(folder), before)
    edit_weights(folder, lambda w: w | {first.rpartition(".")[0] + ".lora_B.default.weight": torch.ones(3)})
    with pytest.raises(ModelError, match=r"1 weights that its model would leave unused.*lora_B"):
        vector(folder)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_heads_and_computed_tables_may_be_left_unused(bert, prefix):
    before = vector(bert)
    beside = {
        "cls.predictions.decoder.weight": torch.ones(5, 32),
        "cls.seq_relationship.bias": torch.ones(2),
        "classifier.weight": torch.ones(2, 32),
        "qa_outputs.bias": torch.ones(2),
        f"{prefix}embeddings.position_ids": torch.arange(64)[None],
    }
    edit_weights(bert, lambda w: {prefix + name: tensor for name, tensor in w.items()} | beside)
    assert np.array_equal(vector(bert), before)
    assert isinstance(load_model(resolve_model(ModelConfig(str(bert))), ModelConfig(str(bert))), NativeModel)


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn], ids=str)
def test_weights_that_are_no_plain_numbers_are_refused(bases, tmp_path, kind, dtype):
    folder = Path(shutil.copytree(bases(kind), tmp_path / kind))
    name = next(one for one, tensor in load_file(folder / "model.safetensors").items() if tensor.ndim == 2)
    edit_weights(folder, lambda w: w | {name: (w[name] * 100).to(dtype)})
    with pytest.raises(ModelError, match="not as plain numbers") as caught:
        vector(folder)
    assert name in caught.value.message


def test_what_else_a_pickle_holds_is_seen_too(tmp_path):
    folder = tiny_models.make_bio_clinicalbert_layout(tmp_path / "bio")
    vector(folder)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(state | {f"bert.{QUERY}.lora_A.weight": torch.ones(4, 32)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="lora_A"):
        vector(folder)


def test_more_layers_than_config_says_are_told_as_that(bert):
    edit_json(bert / "config.json", num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"encoder\.layer\.2\.") as caught:
        vector(bert)
    assert "config.json says 2 layers" in caught.value.hint


# Settings ---------------------------------------------------------------------------------------------


FOLLOWED_BY_NO_CODE = [
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "bitsandbytes"),
    ({"compression_config": {"quantization_status": "frozen"}}, "quantised"),
    ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "awq"),
    ({"transformers_weights": "other.safetensors"}, "other.safetensors"),
    ({"fusion_config": {"patch_embeddings": True}}, "fusion_config"),
    ({"adapters": {"adapters": {"a": "x"}}}, "adapters"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ({"position_embedding_type": "relative_key"}, "relative_key"),
    ({"position_embedding_type": "relative_key_query"}, "relative_key_query"),
    ({"position_embedding_type": "alibi"}, "alibi"),
    ({"rope_theta": 10000.0}, "rope_theta"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_parameters"),
    ({"use_rms_norm": True}, "use_rms_norm"),
    ({"logit_softcap": 30.0}, "logit_softcap"),
    ({"attention_window": 12}, "attention_window"),
]


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [("bert", *case) for case in FOLLOWED_BY_NO_CODE] + [("electra", *case) for case in FOLLOWED_BY_NO_CODE[::4]],
    ids=str,
)
def test_a_setting_that_no_code_follows_is_refused_by_its_name(bases, tmp_path, kind, settings, says):
    folder = Path(shutil.copytree(bases(kind), tmp_path / kind))
    edit_json(folder / "config.json", **settings)
    with pytest.raises(ModelError) as caught:
        vector(folder)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bert", {"gradient_checkpointing": True, "pooler_type": "first_token_transform", "pruned_heads": {}}),
        ("bert", {"quantization_config": None, "position_embedding_type": "absolute", "_num_labels": 3}),
        ("distilbert", {"layer_norm_eps": 1e-12}),
        ("albert", {"down_scale_factor": 1, "net_structure_type": 0, "inner_group_num": 1}),
        ("modernbert", {"position_embedding_type": "absolute", "layer_norm_eps": 1e-5, "unsloth_version": "1"}),
        ("gpt2", {"n_ctx": 64, "task_specific_params": {"text-generation": {"do_sample": True}}}),
        ("t5", {"n_positions": 512, "output_past": True}),
    ],
)
def test_settings_that_published_models_have_are_no_reason_to_refuse(bases, tmp_path, kind, settings):
    folder = Path(shutil.copytree(bases(kind), tmp_path / kind))
    before = vector(folder)
    edit_json(folder / "config.json", **settings)
    encoder = Encoder(str(folder), pool="mean")
    # Another backend may compute it.
    assert np.abs(encoder.encode(TEXT) - before).max() <= 1e-5
    assert not any("nothing reads" in notice for notice in encoder.notices)


def test_the_same_setting_with_another_value_than_the_code_has_is_refused(bases, tmp_path):
    folder = Path(shutil.copytree(bases("distilbert"), tmp_path / "d"))
    edit_json(folder / "config.json", layer_norm_eps=1e-5)
    with pytest.raises(ModelError, match="layer_norm_eps"):
        vector(folder)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, None),
        ({"rope_scaling": {"rope_type": "default"}}, None),
        # Transformers reads the older name "type" for other models only.
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling"),
        ({"rope_theta": 50.0}, "rope_theta"),
    ],
    ids=str,
)
def test_settings_of_rotary_positions_are_followed_or_refused(bases, tmp_path, settings, says):
    folder = Path(shutil.copytree(bases("modernbert"), tmp_path / "m"))
    if says is None:
        before = vector(folder)
    edit_json(folder / "config.json", **settings)
    if says is None:
        scaled = "factor" in settings["rope_scaling"]
        assert (np.abs(vector(folder) - before).max() > 1e-3) == scaled
        return
    with pytest.raises(ModelError, match=says):
        vector(folder)


@pytest.mark.parametrize(("kind", "is_followed"), [("gpt2", True), ("openai-gpt", False)])
def test_a_decoder_that_is_to_read_both_ways_does_or_is_refused(bases, tmp_path, kind, is_followed):
    folder = Path(shutil.copytree(bases("gpt2"), tmp_path / kind))
    if kind != "gpt2":
        config = transformers.OpenAIGPTConfig(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=64)
        transformers.OpenAIGPTModel(config).save_pretrained(folder)
    edit_json(folder / "config.json", is_causal=False)
    if not is_followed:
        with pytest.raises(ModelError, match="is_causal"):
            vector(folder)
        return
    both_ways = vector(folder)
    edit_json(folder / "config.json", is_causal=True)
    assert np.abs(both_ways - vector(folder)).max() > 1e-3


def test_a_setting_that_is_switched_off_is_refused_where_the_code_has_it_switched_on():
    config = transformers.PegasusConfig(normalize_before=False)
    raw = {"model_type": "pegasus", "normalize_before": False, "scale_embedding": False}
    assert unread_keys(raw, config, ["scale_embedding"], "") == {"normalize_before": False}
    raw["normalize_before"] = True
    assert unread_keys(raw, config, ["scale_embedding"], "") == {}


def test_a_key_that_nobody_knows_and_that_names_no_number_is_told(bert):
    edit_json(bert / "config.json", favourite_colour="blue")
    notices = Encoder(str(bert), pool="mean").notices
    assert any("keys that nothing reads: favourite_colour" in notice for notice in notices)
    assert check_unread("m", "bert", {}) is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("adapter_config.json", "merge_and_unload"),
        ("adapter_model.safetensors", "merge_and_unload"),
        ("quantize_config.json", "the checkpoint that it was made from"),
        ("shard-00000-model-00001-of-00001.safetensors", "save_pretrained"),
    ],
)
def test_files_that_would_change_the_weights_are_refused_before_anything_is_read(bert, name, says):
    (bert / name).write_text("{}")
    with pytest.raises(ModelError) as caught:
        resolve_model(ModelConfig(str(bert), offline=True))
    assert name in caught.value.message
    assert says in caught.value.hint


@pytest.mark.parametrize(
    ("module", "settings"),
    [("Dense", {"alpha": 2.0}), ("Pooling", {"pooling_mode_newest": True}), ("Normalize", {"p": 1})],
)
def test_a_setting_of_a_shipped_module_that_is_not_known_is_refused(bert, module, settings):
    ship(bert)
    edit_json(bert / module / "config.json", **settings)
    with pytest.raises(ModelError, match=next(iter(settings))):
        Encoder(str(bert))


def ship(folder: Path) -> None:
    """Adds a recipe: mean, a dense layer, scaled to length 1."""
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    modules = [
        {
            "idx": place,
            "name": str(place),
            "path": kind if place else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for place, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for kind in kinds[1:]:
        (folder / kind).mkdir()
    edit_json(folder / "Pooling/config.json", word_embedding_dimension=32, pooling_mode_mean_tokens=True)
    edit_json(folder / "Dense/config.json", in_features=32, out_features=4, activation_function="torch.nn.Tanh")
    weights = {"linear.weight": torch.full((4, 32), 0.1), "linear.bias": torch.ones(4)}
    save_file(weights, folder / "Dense/model.safetensors")


def test_a_shipped_dense_layer_of_int8_is_not_read_as_plain_numbers(bert):
    ship(bert)
    Encoder(str(bert))
    weights = load_file(bert / "Dense/model.safetensors")
    save_file({name: tensor.to(torch.int8) for name, tensor in weights.items()}, bert / "Dense/model.safetensors")
    with pytest.raises(ModelError, match=r"is quantised to torch\.int8"):
        Encoder(str(bert))


# Files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_that_an_index_names_in_a_subfolder_are_in_the_fingerprint(bert, kind, tmp_path):
    index = "model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json"
    other = Path(shutil.copytree(bert, tmp_path / "other"))
    in_parts(bert, f"parts/w.{kind}", index=index)
    in_parts(other, f"parts/w.{kind}", index=index, shift=0.05)
    one, two = (Encoder(str(folder), pool="mean") for folder in (bert, other))
    assert np.abs(one.encode(TEXT) - two.encode(TEXT)).max() > 1e-3
    assert f"parts/w.{kind}" in one.recipe["model"]["files"]
    assert one.fingerprint != two.fingerprint


@pytest.mark.parametrize(
    "name",
    ["../w.safetensors", "parts/../../w.safetensors", "/w.safetensors", "..\\w.safetensors", "C:\\w.safetensors"],
)
def test_weights_outside_of_the_models_folder_are_refused(bert, name):
    in_parts(bert, "w.safetensors")
    index = json.loads((bert / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    (bert / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="outside of the model's folder"):
        resolve_model(ModelConfig(str(bert), offline=True))


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"weight_map": {"a": "absent.safetensors"}}, r"absent\.safetensors"),
        ({"weight_map": {"a": "w.bin"}}, "another kind of file"),
        ({"weight_map": {"a": 1}}, "does not say which file"),
        ({"weight_map": {}}, "does not say which file"),
        ([], "does not say which file"),
    ],
    ids=str,
)
def test_an_index_that_names_no_weights_is_refused_before_anything_is_read(bert, index, says):
    (bert / "model.safetensors").rename(bert / "w.bin")
    (bert / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=says):
        resolve_model(ModelConfig(str(bert), offline=True))


def test_a_weight_that_two_files_have_is_refused(bert):
    weights = load_file(bert / "model.safetensors")
    in_parts(bert, "a.safetensors")
    save_file({"pooler.dense.bias": weights["pooler.dense.bias"] + 1}, bert / "b.safetensors", {"format": "pt"})
    index = json.loads((bert / "model.safetensors.index.json").read_text())
    index["weight_map"]["pooler.dense.bias"] = "b.safetensors"
    (bert / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"pooler\.dense\.bias twice"):
        vector(bert)


@pytest.mark.parametrize(
    "name", ["added_tokens.json", "vocab.tiktoken", "tokenizer.model.v3", "prophetnet.tokenizer", "dict.txt"]
)
def test_every_file_that_a_tokenizer_may_read_is_hashed(bert, name):
    (bert / name).write_text("{}")
    assert name in resolve_model(ModelConfig(str(bert), offline=True)).hashes()


def test_a_tokenizer_outside_of_the_models_folder_is_refused(bert):
    edit_json(bert / "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.4.0.0.json"])
    with pytest.raises(ModelError, match="outside of the model's folder"):
        resolve_model(ModelConfig(str(bert), offline=True))


def test_the_files_of_a_plain_model_are_hashed_as_ever(bert):
    (bert / "README.md").write_text("about it")
    (bert / "tf_model.h5").write_text("of another framework")
    (bert / "pytorch_model.bin").write_text("not read where there are safetensors")
    names = {file.name for file in bert.iterdir()} - {"README.md", "tf_model.h5", "pytorch_model.bin"}
    found = resolve_model(ModelConfig(str(bert), offline=True))
    assert set(found.hashes()) == set(found.sizes()) == names


def test_links_such_as_the_hubs_cache_has_are_followed_and_hashed_by_content(bert, tmp_path):
    plain = Encoder(str(bert), pool="mean")
    linked = tmp_path / "models--a--b/snapshots/0"
    linked.mkdir(parents=True)
    for file in bert.iterdir():
        (linked / file.name).symlink_to(file)
    assert Encoder(str(linked), pool="mean").fingerprint == plain.fingerprint


def test_a_resume_with_other_weights_in_a_subfolder_is_refused(embedkit_cli, bert, tmp_path):
    rows, out = tmp_path / "t.txt", tmp_path / "out"
    rows.write_text("pain\nfever\n")
    original = Path(shutil.copytree(bert, tmp_path / "original"))
    in_parts(bert, "parts/w.safetensors")
    command = ("encode", rows, "-m", bert, "-o", out, "--shard-rows", "1", "--on-exists", "resume", "-q")
    assert embedkit_cli(*command).code == 0
    (out / "manifest.json").unlink()
    (out / "commits/00001.json").unlink()
    shutil.copy(original / "model.safetensors", bert)
    in_parts(bert, "parts/w.safetensors", shift=0.05)
    refused = embedkit_cli(*command)
    assert refused.code == 5
    assert "parts/w.safetensors" in refused.err


# Positions that go on ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rotary(bases, tmp_path_factory) -> Path:
    """ModernBERT that states 16 positions."""
    folder = Path(shutil.copytree(bases("modernbert"), tmp_path_factory.mktemp("rotary") / "m"))
    edit_json(folder / "config.json", max_position_embeddings=16)
    return folder


def test_computed_positions_go_on_beyond_max_position_embeddings_where_the_user_asks(rotary):
    encoder = Encoder(str(rotary), pool="mean", max_length=60)
    oracle = Oracle(rotary, max_length=60)
    expected = np.stack([pool("mean", oracle.states(text).layers[-1]) for text in tiny_models.TEXTS])
    assert np.abs(encoder.encode(tiny_models.TEXTS) - expected).max() <= 1e-5 * np.abs(expected).max()
    assert any("states 16 positions" in notice for notice in encoder.notices)


def test_auto_keeps_to_what_the_model_states_unless_the_recipe_asks_for_more(rotary, tmp_path):
    folder = Path(shutil.copytree(rotary, tmp_path / "m"))
    ship(folder)
    assert Encoder(str(folder), pool="mean").recipe["text"]["max_length"] == 16
    assert Encoder(str(folder)).recipe["text"]["max_length"] == 16
    edit_json(folder / "sentence_bert_config.json", max_seq_length=48)
    encoder = Encoder(str(folder))
    assert encoder.recipe["text"]["max_length"] == 48
    assert any("states 16 positions" in notice for notice in encoder.notices)


def test_esm_goes_on_where_its_positions_are_rotary_and_not_where_they_are_a_table(tmp_path):
    letters = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO", "<mask>"]
    protein = "MKTAYIAKQRQISFVKSHFSRQ" * 3
    for kind in ("rotary", "absolute"):
        folder = tmp_path / kind
        config = transformers.EsmConfig(
            vocab_size=32,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            pad_token_id=1,
            mask_token_id=29,
            max_position_embeddings=34,
            position_embedding_type=kind,
        )
        torch.manual_seed(0)
        transformers.EsmModel(config).save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(letters))
        edit_json(folder / "tokenizer_config.json", tokenizer_class="EsmTokenizer")
    found = Encoder(str(tmp_path / "rotary"), pool="mean", max_length=80).encode([protein])
    expected = pool("mean", Oracle(tmp_path / "rotary", max_length=80).states(protein).layers[-1])
    assert np.abs(found[0] - expected).max() <= 1e-5
    with pytest.raises(UsageError, match="more than the model's 32 positions"):
        Encoder(str(tmp_path / "absolute"), pool="mean", max_length=80)
    edit_json(tmp_path / "absolute/config.json", position_embedding_type="relative_key")
    with pytest.raises(ModelError, match="relative_key"):
        Encoder(str(tmp_path / "absolute"), pool="mean")


def test_rotary_positions_that_depend_on_what_was_read_before_do_not_go_on(tmp_path, bases):
    folder = Path(shutil.copytree(bases("bert"), tmp_path / "llama"))
    config = transformers.LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    )
    transformers.LlamaModel(config).save_pretrained(folder)
    assert Encoder(str(folder), pool="mean").recipe["text"]["max_length"] == 16
    with pytest.raises(UsageError, match="'dynamic'"):
        Encoder(str(folder), pool="mean", max_length=40)
