"""Texts that are odd for a tokenizer: each gets the vector that plain transformers give it alone, or none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import embedkit
from tests.conftest import Ran
from tests.oracle import Oracle

#: Repeated as often as it takes to be far over any limit.
MANY = 20_000

#: By the words of issue 4: texts, and the status of each.
TEXTS: dict[str, list[tuple[str | None, str]]] = {
    "empty": [("", "empty"), (None, "empty")],
    "blank": [(" ", "empty"), ("\t\r\n", "empty"), ("\u00a0\u2003\u2028", "empty"), ("\u3000" * MANY, "empty")],
    "only what a tokenizer drops": [("\0\0", "empty"), ("\u200b\ufeff", "empty"), ("\ufffd", "empty")],
    "only unknown tokens": [("𓀀", "ok"), ("𓀀𓀁 𓀂", "ok"), ("𓀀 " * MANY, "truncated")],
    "literal `[MASK]` and `</s>`": [
        ("[MASK]", "ok"),
        ("pain [MASK] and </s> no fever", "ok"),
        ("[CLS] pain [SEP] [PAD] [UNK]", "ok"),
        ("<s>pain</s><mask>", "ok"),
        ("[SEP]", "ok"),
    ],
    "zero-width joiners": [
        ("pain\u200d" * 3, "ok"),
        ("\u200d" * MANY + "pain", "ok"),
        ("👩\u200d⚕️ " * MANY, "truncated"),
    ],
    "right-to-left": [("\u202epain\u202c", "ok"), ("كلمة " * MANY, "truncated"), ("\u202e" * MANY + "pain", "ok")],
    "combining floods": [("e" + "\u0301" * MANY, "ok"), ("pain" + "\u0489" * MANY, "ok")],
}
EVERY = [(name, text, status) for name, texts in TEXTS.items() for text, status in texts]


@pytest.fixture(scope="module")
def oracle(bert: Path) -> Oracle:
    return Oracle(bert, max_length=64)


@pytest.fixture(scope="module")
def made(
    bert: Path, one_thread: None, tmp_path_factory: pytest.TempPathFactory
) -> embedkit.output.read.Embeddings:
    """Returns all of these in one table."""
    from embedkit.cli import run

    root = tmp_path_factory.mktemp("odd")
    (root / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for _, text, _ in EVERY))
    arguments = [
        "encode",
        root / "t.jsonl",
        "-m",
        bert,
        "-o",
        root / "out",
        "--pool",
        "mean",
        "--no-normalize",
        "-q",
    ]
    assert run([str(word) for word in arguments]) == 0
    return embedkit.read(root / "out")


@pytest.mark.parametrize("row", range(len(EVERY)), ids=lambda row: f"{EVERY[row][0]}, {row}")
def test_an_odd_text_has_the_vector_that_the_model_gives_it_alone(
    made: embedkit.output.read.Embeddings, oracle: Oracle, row: int
) -> None:
    _, text, status = EVERY[row]
    found = made.table.slice(row, 1).to_pylist()[0]
    assert found["status"] == status
    if status == "empty":
        assert not made.has_vector[row]
        return
    states = oracle.states(str(text)).layers[-1]
    assert found["n_used"] == len(states)
    vector = made.vectors[made.has_vector[:row].sum()]
    np.testing.assert_allclose(vector, states.mean(axis=0), atol=2e-5)


def test_a_text_of_a_million_tokens_among_short_ones_is_cut_and_the_others_are_as_ever(
    encode: Callable[..., Ran], tmp_path: Path
) -> None:
    texts = ["pain", "no fever", "a " * 1_000_000, "short of breath"]
    for name, rows in (("with", texts), ("without", [text for text in texts if len(text) < 99])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
        ran = encode(tmp_path / f"{name}.jsonl", "-o", tmp_path / name, "--pool", "mean")
        assert ran.code == 0, ran.err
    found = embedkit.read(tmp_path / "with")
    assert found.table["n_tokens"].to_pylist()[2] == 1_000_002
    assert found.table["status"].to_pylist() == ["ok", "ok", "truncated", "ok"]
    np.testing.assert_allclose(found.vectors[[0, 1, 3]], embedkit.read(tmp_path / "without").vectors, atol=1e-6)
