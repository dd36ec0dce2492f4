"""A tokenizer read without transformers gives the ids that AutoTokenizer gives, or is left to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from embedkit.config import ModelConfig
from embedkit.models.repository.resolve import resolve_model
from embedkit.tokenizer.bert_tokenizer import read_bert_tokenizer
from embedkit.tokenizer.file_tokenizer import FileTokenizer
from tests import tiny_models

FOREIGN = [
    "İstanbul ǅ ß ﬁ",
    "a\u00adb\u200bc\ufeff",
    "naïve Ångström",
    "[CLS] [SEP] [MASK]x[UNK] [cls]",
    "中文text 한국어",
]


@pytest.fixture
def bert(tmp_path) -> Path:
    return tiny_models.make("bert", tmp_path / "bert").folder


def assert_same(folder: Path, read: Callable[[Path], FileTokenizer | None] = read_bert_tokenizer) -> None:
    ours, theirs = read(folder), AutoTokenizer.from_pretrained(folder)
    assert ours is not None
    for name in ("model_input_names", "model_max_length", "truncation_side", "cls_token_id"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert set(ours.all_special_ids) == set(theirs.all_special_ids)
    assert ours.get_vocab() == theirs.get_vocab()
    for backend in (ours.backend_tokenizer, theirs.backend_tokenizer):
        backend.no_truncation()
        backend.no_padding()
    texts = [*tiny_models.TEXTS, *FOREIGN]
    found, expected = (t.backend_tokenizer.encode_batch(texts) for t in (ours, theirs))
    for ids, wanted in zip(found, expected, strict=True):
        assert (ids.ids, ids.type_ids, ids.offsets) == (wanted.ids, wanted.type_ids, wanted.offsets)
        assert ids.special_tokens_mask == wanted.special_tokens_mask


@pytest.mark.parametrize("kind", ["bert", "distilbert", "electra"])
def test_the_ids_are_those_of_autotokenizer(kind, tmp_path):
    assert_same(tiny_models.make(kind, tmp_path / kind).folder)


@pytest.mark.parametrize("model_type", ["gte", "megatron-bert", "nomic_bert"])
def test_types_of_models_that_have_berts_tokenizer(model_type, bert):
    edit(bert / "config.json", lambda config: config.update(model_type=model_type))
    assert_same(bert)


def test_those_of_the_default_model_are_too():
    assert_same(resolve_model(ModelConfig("minilm")).folder)


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda settings: settings.update(truncation_side="left", model_max_length=50),
        lambda settings: settings.update(padding_side="left", clean_up_tokenization_spaces=False),
        lambda settings: settings.pop("model_max_length"),
        lambda settings: settings.update(tokenizer_class="BertTokenizerFast"),
    ],
)
def test_settings_that_are_followed(change, bert):
    edit(bert / "tokenizer_config.json", change)
    assert_same(bert)


@pytest.mark.parametrize(
    "change",
    [
        lambda settings: settings.update(do_lower_case=False),  # tokenizer.json says otherwise
        lambda settings: settings.update(strip_accents=True),
        lambda settings: settings.update(tokenizer_class="RobertaTokenizer"),
        lambda settings: settings.update({"cls_token": "[SEP]"}),
        lambda settings: settings.update(additional_special_tokens=["<x>"]),
        lambda settings: settings.update(never_split=["x"]),
        lambda settings: settings.update(model_max_length=1e30),
        lambda settings: settings.update(a_setting_of_next_year=1),
        lambda settings: settings.pop("tokenizer_class"),
    ],
)
def test_other_settings_leave_it_to_transformers(change, bert):
    edit(bert / "tokenizer_config.json", change)
    assert read_bert_tokenizer(bert) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts.update(normalizer=None),
        lambda parts: parts.update(pre_tokenizer={"type": "Whitespace"}),
        lambda parts: parts["model"].update(max_input_chars_per_word=10),
        lambda parts: parts["added_tokens"][0].update(lstrip=True),
        lambda parts: parts["added_tokens"].pop(),
        lambda parts: parts["post_processor"]["single"].pop(),
        lambda parts: parts["post_processor"]["special_tokens"]["[CLS]"].update(ids=[3]),
        lambda parts: parts.pop("model"),
    ],
)
def test_a_tokenizer_file_that_is_not_berts_leaves_it_to_transformers(change, bert):
    edit(bert / "tokenizer.json", change)
    assert read_bert_tokenizer(bert) is None


def test_without_a_tokenizer_file_or_with_more_files_it_is_left_to_transformers(bert):
    (bert / "added_tokens.json").write_text("{}")
    assert read_bert_tokenizer(bert) is None
    (bert / "added_tokens.json").unlink()
    (bert / "tokenizer.json").unlink()
    assert read_bert_tokenizer(bert) is None
