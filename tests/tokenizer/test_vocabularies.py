"""Vocabularies that do not fit a model or a text: told with numbers, and never a fault of embedkit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from embedkit import Encoder
from embedkit.errors import InputError, ModelError
from tests import tiny_models

PROTEIN = "ACDEFGHIKLMNPQRSTVWY"
ALPHABETS = {"capitals": PROTEIN, "small letters": PROTEIN.lower(), "digits": "0123456789"}
UNKNOWN = "<unk>"
WORD = {"capitals": "MKTAYIAK", "small letters": "mktayiak", "digits": "20230105"}


@pytest.fixture
def table(tmp_path):
    def of(*texts: str) -> Path:
        path = tmp_path / "table.jsonl"
        path.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts)))
        return path

    return of


def resized(folder: Path, rows: int) -> None:
    """Gives the model an embedding of so many rows."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder)
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.save_pretrained(folder)


@pytest.fixture
def bert_with(tmp_path):
    """Returns a function that puts another tokenizer into the folder of a tiny BERT."""

    def make(backend: Tokenizer, rows: int | None = None, **settings: object) -> Path:
        folder = tiny_models.make("bert", tmp_path / "bert", n_layers=1).folder
        backend.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", **settings}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        resized(folder, rows or backend.get_vocab_size())
        return folder

    return make


def alphabet(kind: str, letters: str, *, unknown: bool) -> Tokenizer:
    names = ["<pad>", "<cls>", "<eos>", *(["<unk>"] if unknown else []), *letters]
    vocab = {name: number for number, name in enumerate(names)}
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")])
    match kind:
        case "WordLevel":
            backend = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
        case "BPE":
            backend = Tokenizer(models.BPE(vocab, [], unk_token=UNKNOWN if unknown else None))
        case "WordPiece":
            backend = Tokenizer(models.WordPiece(vocab, unk_token=UNKNOWN))
        case _:
            scores = [(name, -1.0) for name in vocab]
            backend = Tokenizer(models.Unigram(scores, unk_id=vocab.get("<unk>")))
    backend.pre_tokenizer = split
    backend.post_processor = processors.TemplateProcessing(
        single="<cls> $A <eos>", pair="<cls> $A <eos> $B", special_tokens=[("<cls>", 1), ("<eos>", 2)]
    )
    return backend


@pytest.mark.parametrize("letters", ALPHABETS)
@pytest.mark.parametrize("unknown", [True, False], ids=["with unk", "without unk"])
@pytest.mark.parametrize("kind", ["WordLevel", "BPE", "WordPiece", "Unigram"])
def test_alphabets_of_all_kinds_are_spelled_and_nothing_else_fails(kind, unknown, letters, bert_with):
    special = {"unk_token": "<unk>"} if unknown else {}
    folder = bert_with(alphabet(kind, ALPHABETS[letters], unknown=unknown), **special)
    encoder = Encoder(str(folder), pool="mean")
    vectors = encoder.encode([WORD[letters], WORD[letters][::-1], ""])
    assert np.isfinite(vectors[:2]).all()
    assert np.isnan(vectors[2]).all()
    # No alphabet is lowercased, and none is said to be.
    assert encoder.recipe["text"]["lowercase"] is False
    told = " ".join(encoder.notices)
    if unknown:
        assert "no token for unknown characters" not in told
        assert np.isfinite(encoder.encode(["é!"])).all()
        return
    assert "no token for unknown characters" in told
    if kind == "BPE":  # leaves out what it does not know
        assert "left out" in told
        np.testing.assert_array_equal(encoder.encode([f"{WORD[letters]}é"]), vectors[:1])
    else:
        with pytest.raises(InputError, match=r"texts\[1\] .*unknown_character"):
            encoder.encode([WORD[letters], "é!"])


@pytest.mark.parametrize("rule", ["fail", "null", "skip"])
def test_a_text_that_cannot_be_spelled_is_a_bad_row(rule, bert_with, table, embedkit_cli, tmp_path):
    folder = bert_with(alphabet("WordLevel", PROTEIN, unknown=False))
    out = tmp_path / "o.parquet"
    ran = embedkit_cli("encode", table("MKT", "mkt", "ACD"), "-m", folder, "-o", out, "--on-bad-row", rule)
    if rule == "fail":
        assert ran.code == 3
        assert "row 1 (unknown_character)" in ran.err
        assert "mkt" not in ran.err
        assert not out.exists()
        return
    assert ran.code == 0, ran.err
    found = pq.read_table(out)
    expected = ["ok", "unknown_character", "ok"] if rule == "null" else ["ok", "ok"]
    assert found["status"].to_pylist() == expected
    assert [vector is None for vector in found["embedding"].to_pylist()] == [word != "ok" for word in expected]
    assert "rejects listed: 1" in ran.err


def test_lowercasing_an_alphabet_of_capitals_is_refused_where_nothing_could_be_spelled(bert_with):
    folder = bert_with(alphabet("WordLevel", PROTEIN, unknown=False))
    with pytest.raises(ModelError, match="when they are lowercased"):
        Encoder(str(folder), lowercase="yes")


@pytest.fixture
def oversized(tmp_path) -> tuple[Path, int]:
    """Returns a BERT whose tokenizer got two more tokens than its embedding has rows; and the number of rows."""
    folder = tiny_models.make("bert", tmp_path / "bert", n_layers=1).folder
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = backend.get_vocab_size()
    backend.add_tokens(["covid19x", "sarscov2"])
    backend.save(str(folder / "tokenizer.json"))
    return folder, rows


@pytest.mark.parametrize("rule", ["fail", "null", "skip"])
def test_tokens_that_were_added_to_the_tokenizer_alone_are_told_at_load_and_make_bad_rows(
    rule, oversized, table, embedkit_cli, tmp_path
):
    folder, rows = oversized
    texts, out = table("chest pain", "no covid19x", "fever"), tmp_path / "o.parquet"
    ran = embedkit_cli("encode", texts, "-m", folder, "-o", out, "--on-bad-row", rule, "--pool", "mean")
    assert f"2 of the tokenizer's {rows + 2:,} (ids {rows} to {rows + 1}); the model has {rows}" in ran.err
    if rule == "fail":
        assert ran.code == 3
        assert "row 1 (no_embedding)" in ran.err
        assert "covid" not in ran.err
        return
    assert ran.code == 0, ran.err
    expected = ["ok", "no_embedding", "ok"] if rule == "null" else ["ok", "ok"]
    assert pq.read_table(out)["status"].to_pylist() == expected


def test_plan_tells_of_them_and_counts_the_rows(oversized, table, embedkit_cli):
    folder, rows = oversized
    ran = embedkit_cli("plan", table("chest pain", "no covid19x", "fever"), "-m", folder, "--pool", "mean")
    assert ran.code == 0, ran.err
    assert f"the model has {rows}" in ran.err
    assert "3: 2 with a text, 0 empty, 1 unreadable" in ran.out


@pytest.mark.parametrize("without", ["vocabulary", "ends"])
def test_a_tokenizer_of_another_model_is_refused_with_numbers(without, oversized):
    folder, rows = oversized
    path = folder / "tokenizer.json"
    parts = json.loads(path.read_text())
    if without == "vocabulary":
        parts["model"]["vocab"] |= {"covid19x": rows, "sarscov2": rows + 1}
        parts["added_tokens"] = [of for of in parts["added_tokens"] if of["id"] < rows]
    else:
        for name in ("covid19x", "sarscov2"):
            parts["post_processor"]["special_tokens"][name] = {"id": name, "ids": [rows], "tokens": [name]}
        parts["post_processor"]["single"].append({"SpecialToken": {"id": "covid19x", "type_id": 0}})
    path.write_text(json.dumps(parts))
    with pytest.raises(ModelError, match=f"2 of the tokenizer's {rows + 2:,}"):
        Encoder(str(folder))
