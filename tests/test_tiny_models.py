"""The tiny models are what embedkit is held against: here they are held against plain transformers."""

from __future__ import annotations

import socket
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)

from tests.tiny_models import HIDDEN_SIZE, MAX_LENGTH, MODEL_TYPES, TEXTS, make, make_bio_clinicalbert_layout

if TYPE_CHECKING:
    from pathlib import Path

    from tests.tiny_models import TinyModel

TEXT = "Labs: WBC 12.4, Hgb 9.8; c/o SOB and chest pain."
VISIBLE = 1e-3  # what a test of embedkit may be trusted to see

#: What stands before and after a text, and the id of the padding.
FRAMES = {
    "bert": (["[CLS]"], ["[SEP]"], 0),
    "roberta": (["<s>"], ["</s>"], 1),
    "distilbert": (["[CLS]"], ["[SEP]"], 0),
    "albert": (["[CLS]"], ["[SEP]"], 0),
    "electra": (["[CLS]"], ["[SEP]"], 0),
    "xlm-roberta": (["<s>"], ["</s>"], 1),
    "camembert": (["<s>"], ["</s>"], 1),
    "mpnet": (["<s>"], ["</s>"], 1),
    "deberta-v2": (["[CLS]"], ["[SEP]"], 0),
    "modernbert": (["[CLS]"], ["[SEP]"], 339),  # 256 bytes, 80 merges, [UNK], [CLS], [SEP], [PAD]
    "t5": ([], ["</s>"], 0),
    "gpt2": ([], [], None),
    "xlnet": ([], ["<sep>", "<cls>"], 5),
}
NAMES_TOKEN_TYPES = {"bert", "electra", "deberta-v2", "xlnet"}
STATES_LENGTH_IN_TOKENIZER = {"bert", "roberta", "distilbert", "mpnet", "modernbert", "t5", "gpt2"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyModel]:
    root = tmp_path_factory.mktemp("tiny")
    return {model_type: make(model_type, root / model_type) for model_type in MODEL_TYPES}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a tiny model asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def load(tiny: TinyModel) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    tokenizer = AutoTokenizer.from_pretrained(tiny.folder)
    model_class = T5EncoderModel if tiny.model_type == "t5" else AutoModel
    model, info = model_class.from_pretrained(tiny.folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    return tokenizer, model.eval()


@torch.no_grad()
def run(model: PreTrainedModel, **inputs: torch.Tensor) -> torch.Tensor:
    """Returns the last hidden states [B, T, D]."""
    return model(**inputs).last_hidden_state


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_folder_loads_with_plain_transformers(model_type: str, folders: dict[str, TinyModel]) -> None:
    tiny = folders[model_type]
    assert {path.name for path in tiny.folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    tokenizer, model = load(tiny)
    assert model.config.model_type == model_type
    assert model.config.num_hidden_layers == tiny.n_layers == (4 if model_type == "modernbert" else 3)
    assert model.config.hidden_size == tiny.hidden_size == HIDDEN_SIZE
    assert 280 <= len(tokenizer) <= 400
    assert len(tokenizer) <= model.get_input_embeddings().num_embeddings
    assert tokenizer.is_fast


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_special_tokens_are_where_the_real_model_has_them(model_type: str, folders: dict[str, TinyModel]) -> None:
    tokenizer, model = load(folders[model_type])
    before, after, pad_id = FRAMES[model_type]
    body = tokenizer.tokenize(TEXT)
    encoded = tokenizer(TEXT)
    assert len(body) > 10
    assert encoded.tokens() == [*before, *body, *after]
    assert tokenizer.pad_token_id == pad_id
    assert model.config.pad_token_id == pad_id
    assert set(encoded) - {"token_type_ids"} == {"input_ids", "attention_mask"}
    assert ("token_type_ids" in encoded) == (model_type in NAMES_TOKEN_TYPES)
    assert tokenizer.padding_side == ("left" if model_type == "xlnet" else "right")
    if model_type == "xlnet":
        assert encoded["token_type_ids"] == [0] * (len(body) + 1) + [2]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_length_limit_is_that_of_the_files(model_type: str, folders: dict[str, TinyModel]) -> None:
    tiny = folders[model_type]
    tokenizer, model = load(tiny)
    stated = tokenizer.model_max_length
    if model_type in STATES_LENGTH_IN_TOKENIZER:
        assert stated == tiny.max_length
    else:
        assert stated > 1e29  # transformers' word for "not stated"
    if model_type == "t5":
        assert not hasattr(model.config, "max_position_embeddings")
    elif model_type == "xlnet":
        assert tiny.max_length is None
    else:
        # 66 - 2: RoBERTa's kind counts positions from 2.
        offset = 2 if model_type in {"roberta", "xlm-roberta", "camembert", "mpnet"} else 0
        assert model.config.max_position_embeddings - offset == tiny.max_length == MAX_LENGTH
        longest = torch.full((1, MAX_LENGTH), 7)
        assert run(model, input_ids=longest).shape == (1, MAX_LENGTH, HIDDEN_SIZE)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_layer_changes_the_hidden_states(model_type: str, folders: dict[str, TinyModel]) -> None:
    tiny = folders[model_type]
    tokenizer, model = load(tiny)
    inputs = tokenizer(TEXT, return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    states = out.hidden_states
    assert len(states) == tiny.n_layers + 1
    for state in states:
        assert state.shape == (1, inputs["input_ids"].shape[1], HIDDEN_SIZE)
        assert 0.5 < float(state.std()) < 10
    assert 0.8 < float(out.last_hidden_state.std()) < 1.5
    for shallow, deep in pairwise(states):
        assert float((shallow - deep).abs().mean()) > 0.3
    # Tokens of one text stay apart, or every pooling would give the same: two independent vectors of
    # 32 values with standard deviation 1 are sqrt(2 * 32) = 8 apart.
    assert float(torch.pdist(out.last_hidden_state[0]).mean()) > 0.15 * 8


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_wrong_positions_change_the_states(model_type: str, folders: dict[str, TinyModel]) -> None:
    tokenizer, model = load(folders[model_type])
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    turned = ids.flip(1)
    # the same token in the other order: a model without positions gives it the same vector
    assert distance(run(model, input_ids=turned).flip(1), run(model, input_ids=ids)) > 100 * VISIBLE


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_wrong_mask_changes_the_states(model_type: str, folders: dict[str, TinyModel]) -> None:
    tokenizer, model = load(folders[model_type])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # GPT-2, as everyone does
    alone = tokenizer("SOB and chest pain", return_tensors="pt")
    padded = tokenizer(["SOB and chest pain", TEXT], padding=True, return_tensors="pt")
    mask = padded["attention_mask"]
    assert int(mask[0].sum()) == alone["input_ids"].shape[1] < mask.shape[1]
    expected = run(model, **alone)[0]
    masked = run(model, **padded)[0][mask[0].bool()]
    assert distance(masked, expected) < 1e-5
    unmasked = run(model, **{**padded, "attention_mask": torch.ones_like(mask)})[0][mask[0].bool()]
    if model_type == "gpt2":
        assert distance(unmasked, expected) < 1e-5  # causal: what stands on the right is never seen
    else:
        assert distance(unmasked, expected) > 100 * VISIBLE


@pytest.mark.parametrize("model_type", ["bert", "albert", "electra", "xlnet"])
def test_wrong_token_types_change_the_states(model_type: str, folders: dict[str, TinyModel]) -> None:
    tokenizer, model = load(folders[model_type])
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    zeros, mixed = torch.zeros_like(ids), torch.zeros_like(ids)
    mixed[0, -1] = 1
    expected = run(model, input_ids=ids, token_type_ids=zeros)
    assert distance(run(model, input_ids=ids, token_type_ids=mixed), expected) > 100 * VISIBLE


def test_modernbert_reads_texts_through_several_windows(folders: dict[str, TinyModel]) -> None:
    tokenizer, model = load(folders["modernbert"])
    kinds = model.config.layer_types
    assert kinds == ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert model.config.local_attention == 8
    ids = tokenizer(" ".join(TEXTS), truncation=True, return_tensors="pt")["input_ids"]
    assert ids.shape[1] == 64  # 8 windows
    narrow = run(model, input_ids=ids)
    model.config.local_attention = 2 * MAX_LENGTH  # every layer sees all
    for layer in model.layers:
        layer.attn.sliding_window = None if layer.attn.sliding_window is None else MAX_LENGTH
    assert distance(run(model, input_ids=ids), narrow) > 100 * VISIBLE


def test_t5_has_its_decoder_in_the_file(folders: dict[str, TinyModel]) -> None:
    names = load_file(folders["t5"].folder / "model.safetensors")
    assert any(name.startswith("decoder.") for name in names)
    assert any(name.startswith("encoder.") for name in names)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_same_seed_gives_the_same_files(
    model_type: str, folders: dict[str, TinyModel], tmp_path: Path
) -> None:
    first = folders[model_type]
    again = make(model_type, tmp_path / "again")
    for path in first.folder.iterdir():
        assert (again.folder / path.name).read_bytes() == path.read_bytes(), path.name
    other = make(model_type, tmp_path / "other", seed=1)
    weights = "model.safetensors"
    assert (other.folder / weights).read_bytes() != (first.folder / weights).read_bytes()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_some_texts_are_shorter_and_some_far_longer_than_the_limit(
    model_type: str, folders: dict[str, TinyModel]
) -> None:
    tiny = folders[model_type]
    tokenizer, _ = load(tiny)
    lengths = [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]
    limit = tiny.max_length or MAX_LENGTH
    assert min(lengths) <= 5
    assert sum(length <= limit for length in lengths) >= 15
    assert sum(limit < length <= 2 * limit for length in lengths) >= 1
    assert sum(length > 4 * limit for length in lengths) >= 2
    assert len(set(TEXTS)) == len(TEXTS) - 1  # one text comes twice


def test_the_bio_clinicalbert_layout_is_three_files_without_casing(tmp_path: Path) -> None:
    folder = make_bio_clinicalbert_layout(tmp_path / "model")
    assert {path.name for path in folder.iterdir()} == {"config.json", "vocab.txt", "pytorch_model.bin"}
    vocab = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert 280 <= len(vocab) == len(set(vocab)) <= 400
    assert {"The", "BP", "CABG", "##S"} <= set(vocab)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    assert "bert.embeddings.position_ids" in state
    assert "cls.predictions.decoder.weight" in state
    assert "cls.seq_relationship.weight" in state
    assert all(name.startswith(("bert.", "cls.")) for name in state)


def test_the_bio_clinicalbert_layout_loads_whole_and_is_lowercased_unasked(tmp_path: Path) -> None:
    folder = make_bio_clinicalbert_layout(tmp_path / "model")
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "BertModel"
    assert not info["missing_keys"]
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    loaded = model.state_dict()
    for name in (
        "embeddings.word_embeddings.weight",
        "encoder.layer.2.output.dense.bias",
        "pooler.dense.weight",
    ):
        assert torch.equal(loaded[name], state[f"bert.{name}"]), name
    # What embedkit has to set right (transformers issues 343 and 3823): nothing in the folder says
    # "cased", so transformers lowercases. If this ever fails, transformers has mended it.
    assert AutoTokenizer.from_pretrained(folder).tokenize("The patient") == ["the", "patient"]
    cased = AutoTokenizer.from_pretrained(folder, do_lower_case=False)
    assert cased.tokenize("The patient") == ["The", "patient"]
