"""A tokenizer that is built without transformers has the parts that AutoTokenizer builds, or is left to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GemmaTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer

from embedkit.tokenizer.built_tokenizer import build_tokenizer
from embedkit.tokenizer.consistency import follow_files
from tests import tiny_models
from tests.tokenizer.test_bert_tokenizer import FOREIGN, edit

#: Special tokens in a text, blanks of all kinds, scripts, and texts that normalization changes.
TEXTS = [
    *tiny_models.TEXTS,
    *FOREIGN,
    "",
    " ",
    "  two  blanks\tand\ttabs\n\nand lines \r\n end  ",
    "a<s>b </s> <mask> <pad>[MASK] [CLS]x<extra_id_7> <|endoftext|>y<bos><eos>",
    "Covid covid x\u0301 covid19x <think> <start_of_image>",
    "Temp. 38.4 on 12/05/2023, 1,250 mg p.o. (q.d.) I'LL don't _x_ 10\u00a0000\u3000\U0001f637\u2581x",
    "\u1e9e\u0130 e\u0301\u0323 \u212b \uff21\uff22 \u0e33 \ud55c\uae00 \u0939\u093f",
]
#: Kinds of tiny models whose tokenizers are built, and the two that they lack.
KINDS = ("deberta-v2", "gemma3_text", "mpnet", "qwen2", "qwen3", "roberta", "t5", "xlm-roberta")


def qwen_tokenizer() -> PreTrainedTokenizerBase:
    vocab, merges = tiny_models._byte_pairs([], last=["<|endoftext|>", "<|im_start|>"])
    return Qwen2Tokenizer(vocab=vocab, merges=merges, extra_special_tokens=["<|im_start|>"])


def gemma_tokenizer() -> PreTrainedTokenizerBase:
    letters = sorted({letter for text in tiny_models.TEXTS for letter in text.replace(" ", "\u2581")})
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [("t", "h"), ("th", "e"), ("a", "t"), ("\u2581", "p"), ("i", "n")]
    vocab = {name: number for number, name in enumerate([*names, *letters, *map("".join, merges)])}
    return GemmaTokenizer(vocab=vocab, merges=merges)


@pytest.fixture
def made(tmp_path) -> Callable[[str], Path]:
    """Returns a function that makes the folder of a tiny model with its tokenizer."""

    def make(kind: str) -> Path:
        own = {"gemma3_text": gemma_tokenizer, "qwen2": qwen_tokenizer, "qwen3": qwen_tokenizer}.get(kind)
        folder = tiny_models.make("bert" if own else kind, tmp_path / kind, n_layers=1).folder
        if own is not None:
            for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
                (folder / name).unlink(missing_ok=True)
            own().save_pretrained(folder)
            edit(folder / "config.json", lambda config: config.update(model_type=kind))
        return folder

    return make


def parts(backend: Any) -> dict[str, Any]:
    """Returns all that decides the ids of a text."""
    found = json.loads(backend.to_str())
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        # "" is none.
        found["model"][affix] = found["model"].get(affix) or None
    return {key: value for key, value in found.items() if key not in {"decoder", "truncation", "padding"}}


def same(folder: Path) -> None:
    ours, theirs = build_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours is not None
    assert ours.kind == type(theirs).__name__
    assert parts(ours.backend_tokenizer) == parts(theirs.backend_tokenizer)
    for name in ("model_input_names", "model_max_length", "truncation_side"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for role in ("cls", "unk", "bos", "eos"):
        assert getattr(ours, f"{role}_token_id") == getattr(theirs, f"{role}_token_id"), role
    assert set(ours.all_special_ids) == set(theirs.all_special_ids)
    (ours, told), (theirs, expected) = follow_files(ours, folder), follow_files(theirs, folder)
    assert told == expected
    found, wanted = (t.backend_tokenizer.encode_batch(TEXTS) for t in (ours, theirs))
    for text, a, b in zip(TEXTS, found, wanted, strict=True):
        assert (a.ids, a.type_ids, a.offsets) == (b.ids, b.type_ids, b.offsets), text
        assert a.special_tokens_mask == b.special_tokens_mask


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_are_those_of_autotokenizer(kind, made):
    same(made(kind))


def state(folder: Path, changed: dict[str, Any]) -> None:
    """Changes tokenizer_config.json; a value of ... removes the key."""
    path = folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not ...}))


def add(parts: dict[str, Any], content: str, **flags: bool) -> None:
    """Adds a token at the end, as add_tokens does."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    vocab, added = parts["model"]["vocab"], parts["added_tokens"]
    last = max(len(vocab) - 1, *(token["id"] for token in added))
    added.append({"id": last + 1, "content": content, **plain, **flags})


def with_decoder(folder: Path) -> None:
    """States the added tokens in tokenizer_config.json, as transformers 4 did."""
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    decoder = {str(token.pop("id")): token for token in added}
    edit(folder / "tokenizer_config.json", lambda settings: settings.update(added_tokens_decoder=decoder))


OLD_BLANKS = {"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": True}
TWO_BLANKS = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
CHARSMAP = {"type": "Precompiled", "precompiled_charsmap": None}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("xlm-roberta", lambda parts: parts.update(pre_tokenizer=OLD_BLANKS)),
        ("xlm-roberta", lambda parts: parts.update(normalizer={"type": "Sequence", "normalizers": [TWO_BLANKS]})),
        ("t5", lambda parts: parts.update(normalizer={"type": "NFKC"}, pre_tokenizer=OLD_BLANKS)),
        ("deberta-v2", lambda parts: parts.update(normalizer={"type": "Lowercase"})),
        ("deberta-v2", lambda parts: add(parts, "covid19x")),
        # Added tokens are found in normalized texts: with which normalizer, shows in these.
        (
            "deberta-v2",
            lambda parts: (
                add(parts, "Covid"),
                add(parts, "x\u0301"),
                parts.update(normalizer={"type": "Lowercase"}),
            ),
        ),
        ("qwen3", lambda parts: add(parts, "<think>")),
        ("qwen3", lambda parts: parts["pre_tokenizer"]["pretokenizers"][1].update(trim_offsets=False)),
        ("qwen3", lambda parts: parts["model"].update(continuing_subword_prefix=None, end_of_word_suffix=None)),
        ("gemma3_text", lambda parts: add(parts, "<start_of_image>", special=True, normalized=False)),
        ("roberta", lambda parts: parts["pre_tokenizer"].update(add_prefix_space=True)),
        ("mpnet", lambda parts: parts["normalizer"].update(lowercase=False)),
        ("mpnet", lambda parts: parts["added_tokens"][-1].update(lstrip=True)),
    ],
)
def test_files_that_were_saved_otherwise(kind, change, made):
    folder = made(kind)
    edit(folder / "tokenizer.json", change)
    same(folder)
    with_decoder(folder)
    same(folder)


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("deberta-v2", {"do_lower_case": True, "split_by_punct": True, "add_prefix_space": False}),
        ("deberta-v2", {"model_input_names": ["input_ids", "attention_mask"], "vocab_type": "spm"}),
        ("deberta-v2", {"truncation_side": "left", "model_max_length": 50}),
        ("deberta-v2", {"tokenizer_class": "DebertaV2TokenizerFast"}),
        ("gemma3_text", {"add_bos_token": True, "add_eos_token": True}),
        ("gemma3_text", {"add_bos_token": False}),
        ("qwen3", {"add_eos_token": True, "bos_token": None}),
        ("qwen3", {"add_prefix_space": False, "split_special_tokens": False, "errors": "replace"}),
        ("roberta", {"add_prefix_space": True}),
        ("roberta", {"trim_offsets": False}),
        ("mpnet", {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False}),
        ("t5", {"extra_ids": 100, "sp_model_kwargs": {}, "legacy": True}),
        ("t5", {"extra_ids": 50}),
        ("t5", {"extra_ids": 100, "extra_special_tokens": ...}),
        ("t5", {"extra_ids": 0, "extra_special_tokens": None}),
        ("xlm-roberta", {"add_prefix_space": False}),
        ("xlm-roberta", {"mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True}}),
    ],
    ids=str,
)
def test_settings_that_are_followed(kind, changed, made):
    folder = made(kind)
    state(folder, changed)
    same(folder)


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        *((kind, {"a_setting_of_next_year": 1}) for kind in KINDS),
        *((kind, {"tokenizer_class": "PreTrainedTokenizerFast"}) for kind in KINDS),
        ("deberta-v2", {"do_lower_case": 1}),
        ("qwen3", {"split_special_tokens": True}),
        ("t5", {"extra_ids": 101, "extra_special_tokens": ...}),
        ("t5", {"eos_token": "<extra_id_99x>"}),
        ("xlm-roberta", {"extra_special_tokens": ["<x>"]}),
        ("xlm-roberta", {"added_tokens_decoder": {}}),
        ("xlm-roberta", {"model_max_length": 1e30}),
    ],
    ids=str,
)
def test_other_settings_leave_it_to_transformers(kind, changed, made):
    folder = made(kind)
    assert build_tokenizer(folder) is not None
    state(folder, changed)
    assert build_tokenizer(folder) is None


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("xlm-roberta", lambda parts: parts["model"].update(unk_id=2)),
        ("xlm-roberta", lambda parts: parts["model"].update(byte_fallback=True)),
        ("xlm-roberta", lambda parts: parts["added_tokens"].reverse()),
        ("xlm-roberta", lambda parts: parts["added_tokens"].pop()),
        ("qwen3", lambda parts: parts["model"].update(ignore_merges=True)),
        ("qwen3", lambda parts: parts.update(post_processor=None)),
        ("qwen3", lambda parts: parts["added_tokens"][0].update(lstrip=True)),
        ("gemma3_text", lambda parts: parts["model"].update(unk_token=None)),
        ("mpnet", lambda parts: parts["model"].update(max_input_chars_per_word=50)),
        ("t5", lambda parts: parts["added_tokens"].pop(5)),
    ],
)
def test_other_files_leave_it_to_transformers(kind, change, made):
    folder = made(kind)
    edit(folder / "tokenizer.json", change)
    assert build_tokenizer(folder) is None
