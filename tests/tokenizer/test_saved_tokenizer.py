"""A tokenizer.json that is taken as it was saved gives the ids that AutoTokenizer gives, or is left to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from embedkit.tokenizer.saved_tokenizer import read_saved_tokenizer
from tests import tiny_models
from tests.tokenizer.test_bert_tokenizer import assert_same, edit


@pytest.fixture
def modernbert(tmp_path) -> Path:
    """As its files are published: settings name each added token, some of them special and without a role."""
    folder = tiny_models.make("modernbert", tmp_path / "modernbert").folder
    parts = json.loads((folder / "tokenizer.json").read_text())
    first = 1 + max(*parts["model"]["vocab"].values(), *(token["id"] for token in parts["added_tokens"]))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    for number, (content, flags) in enumerate(
        [("|||EMAIL_ADDRESS|||", {}), ("<|padding|>", {"special": True, "normalized": False}), ("    ", {})]
    ):
        parts["added_tokens"].append({"id": first + number, "content": content, **plain, **flags})
    next(token for token in parts["added_tokens"] if token["content"] == "[MASK]")["lstrip"] = True
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    decoder = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in parts["added_tokens"]
    }
    edit(
        folder / "tokenizer_config.json",
        lambda settings: settings.update(
            added_tokens_decoder=decoder,
            extra_special_tokens={},
            model_input_names=["input_ids", "attention_mask"],
            model_max_length=8192,
            tokenizer_class="PreTrainedTokenizerFast",
        ),
    )
    roles = ("cls_token", "mask_token", "pad_token", "sep_token", "unk_token")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    special = {role: {"content": settings[role], "lstrip": role == "mask_token"} for role in roles}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return folder


def same(folder: Path) -> None:
    assert_same(folder, read_saved_tokenizer)
    ours, theirs = read_saved_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    texts = ["a [MASK] b", "x|||EMAIL_ADDRESS|||y <|padding|>    [PAD][CLS]", ""]
    assert [ours(text)["input_ids"] for text in texts] == [theirs(text)["input_ids"] for text in texts]


@pytest.mark.parametrize(
    "model_type",
    [
        *("eurobert", "gemma3_text", "gte", "llama", "megatron-bert", "mistral", "modernbert", "nomic_bert"),
        *("qwen3", "umt5"),
    ],
)
def test_the_ids_are_those_of_autotokenizer(model_type, modernbert):
    edit(modernbert / "config.json", lambda config: config.update(model_type=model_type))
    same(modernbert)


@pytest.mark.parametrize(
    ("model_type", "declared"),
    [("llama", "LlamaTokenizer"), ("mistral", "LlamaTokenizerFast"), ("umt5", "T5Tokenizer")],
)
def test_a_class_that_transformers_does_not_use_for_the_type_changes_nothing(model_type, declared, modernbert):
    edit(modernbert / "config.json", lambda config: config.update(model_type=model_type))
    edit(modernbert / "tokenizer_config.json", lambda settings: settings.update(tokenizer_class=declared))
    same(modernbert)


def test_llamas_own_class_and_mistrals_own_file_are_left_to_transformers(modernbert):
    edit(modernbert / "config.json", lambda config: config.update(model_type="mistral"))
    (modernbert / "tekken.json").write_text("{}")
    assert read_saved_tokenizer(modernbert) is None
    edit(modernbert / "config.json", lambda config: config.update(model_type="llama"))
    edit(modernbert / "tokenizer_config.json", lambda settings: settings.update(tokenizer_class="LlamaTokenizer"))
    (modernbert / "tekken.json").unlink()
    assert read_saved_tokenizer(modernbert) is not None
    blanks = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": False}
    edit(modernbert / "tokenizer.json", lambda parts: parts.update(pre_tokenizer=blanks, decoder=blanks))
    assert read_saved_tokenizer(modernbert) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda settings: settings.update(tokenizer_class="TokenizersBackend"),
        lambda settings: settings.update(truncation_side="left"),
        lambda settings: settings.update(extra_special_tokens=["<|padding|>"]),
        lambda settings: settings.update(mask_token={"content": "[MASK]", "__type": "AddedToken"}),
        lambda settings: settings.pop("added_tokens_decoder"),
        lambda settings: settings.update(add_bos_token=True, legacy=False, sp_model_kwargs={}),
    ],
)
def test_settings_that_are_followed(change, modernbert):
    edit(modernbert / "tokenizer_config.json", change)
    same(modernbert)


@pytest.mark.parametrize(
    "change",
    [
        lambda settings: settings.update(tokenizer_class="LlamaTokenizer"),
        lambda settings: settings.update(add_prefix_space=True),
        lambda settings: settings.update(split_special_tokens=True),
        lambda settings: settings.update({"bos_token": "<s>"}),
        lambda settings: settings.update(extra_special_tokens=["|||EMAIL_ADDRESS|||"]),
        lambda settings: next(iter(settings["added_tokens_decoder"].values())).update(rstrip=True),
        lambda settings: settings.update(a_setting_of_next_year=1),
        lambda settings: settings.pop("tokenizer_class"),
    ],
)
def test_other_settings_leave_it_to_transformers(change, modernbert):
    assert read_saved_tokenizer(modernbert) is not None
    edit(modernbert / "tokenizer_config.json", change)
    assert read_saved_tokenizer(modernbert) is None


@pytest.mark.parametrize("model_type", ["qwen2", "bert", "phi3"])
def test_a_type_whose_class_is_not_the_one_named_is_left_to_transformers(model_type, modernbert):
    edit(modernbert / "config.json", lambda config: config.update(model_type=model_type))
    assert read_saved_tokenizer(modernbert) is None
