"""`embedkit plan` against the manifest of `encode`."""

from __future__ import annotations

import csv
import io
import json
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from embedkit.estimate.cost import operations
from embedkit.estimate.counts import InputCounts, LengthBin
from embedkit.models.repository.config_facts import ConfigFacts
from embedkit.storage.checksummed_json import load_checksummed
from tests.conftest import NOTES
from tests.tiny_models import CORPUS, make, make_bio_clinicalbert_layout


@pytest.fixture
def plan(embedkit_cli, bert):
    """`embedkit plan ARGUMENTS --json`, as an object."""

    def ran(*arguments, model=bert):
        out = embedkit_cli("plan", "-m", model, *arguments, "--json")
        assert out.code == 0, out.err
        return json.loads(out.out)

    return ran


def of_files(out) -> int:
    records = [load_checksummed(path.read_bytes()) for path in (out / "commits").glob("*.json")]
    return sum(file["bytes"] for of in records for file in of["files"] if "rejects" not in file["path"])


def test_neither_torch_nor_transformers_is_imported(bert):
    code = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # importing them fails
from embedkit import cli
sys.exit(cli.run(sys.argv[1:]))
"""
    command = [
        "plan",
        str(NOTES),
        "-m",
        str(bert),
        "--layers",
        "all",
        "--layer-agg",
        "separate",
        "--pool",
        "cls,mean",
    ]
    done = subprocess.run([sys.executable, "-c", code, *command], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "L00_cls_mean: " in done.stdout


# Against the output ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """300 rows with labels, some of them longer than the tiny model reads, one empty."""
    choice = random.Random(0)
    words = " ".join(CORPUS).split()
    path = tmp_path_factory.mktemp("table") / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label"])
        for row in range(300):
            length = 90 if row % 30 == 0 else 0 if row == 7 else choice.randrange(1, 12)
            writer.writerow([f"note-{row}", " ".join(choice.choices(words, k=length)), choice.choice("ab")])
    return path


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--shard-rows", "25", "--keep", "label"),  # more shards than are measured
        ("--layers", "1,2", "--layer-agg", "separate", "--pool", "cls,mean", "--output-format", "arrow"),
        ("--output-format", "npy", "--normalize", "--truncate-dim", "8"),
        ("--output-format", "jsonl"),
        ("--precision", "float16", "--max-length", "20"),
        ("--precision", "int8"),
        ("--precision", "binary", "--pool", "cls,mean,max,min,lasttoken"),
        ("--pool", "none"),
        ("--on-long", "chunk", "--stride", "5"),
        ("--level", "chunk", "--on-long", "chunk"),
        ("--level", "word"),
        ("--level", "token", "--output-format", "npy"),
        ("--lowercase", "no", "--prompt", "note: "),
    ],
    ids=" ".join,
)
def test_rows_tokens_shards_and_bytes_are_those_of_the_manifest(encode, plan, table, tmp_path, options):
    found = plan(table, *options)
    assert encode(table, "-o", tmp_path / "out", *options).code == 0
    manifest = load_checksummed((tmp_path / "out/manifest.json").read_bytes())
    assert {name: found[name] for name in ("n_tokens", "n_used", "n_content", "n_unknown", "shards")} == {
        name: manifest[name] for name in ("n_tokens", "n_used", "n_content", "n_unknown", "shards")
    }
    assert found["truncated"] == manifest["statuses"].get("truncated", 0)
    assert found["dims"] == {variant["name"]: variant["dims"] for variant in manifest["variants"]}
    left_out = manifest["rows"] - manifest["vectors"] if "npy" in options else 0
    assert (found["input_rows"], found["rows"]) == (manifest["input_rows"], manifest["rows"] - left_out)
    assert found["bytes"] == pytest.approx(of_files(tmp_path / "out"), rel=0.1)


@pytest.mark.parametrize("form", ["parquet", "npy", "jsonl", "arrow"])
def test_the_bytes_of_single_files_are_those_that_plan_gives_in_any_format(encode, plan, table, tmp_path, form):
    out = tmp_path / f"out.{form}"
    assert encode(table, "-o", out).code == 0
    written = sum(path.stat().st_size for path in tmp_path.glob("out.*") if "rejects" not in path.name)
    assert plan(table, "-o", out)["bytes"] == pytest.approx(written, rel=0.1)
    other = "npy" if form == "parquet" else "parquet"
    assert plan(table, "-o", tmp_path / f"out.{other}")["other_bytes"][form] == pytest.approx(written, rel=0.1)


@pytest.mark.parametrize(
    ("kind", "spells_bytes"),
    [
        ("roberta", True),
        ("distilbert", False),
        ("xlnet", False),
        ("t5", False),
        ("gpt2", True),
        ("modernbert", True),
    ],
)
def test_other_kinds_of_models_are_known_by_their_config_alone(
    embedkit_cli, plan, table, tmp_path, kind, spells_bytes
):
    model = make(kind, tmp_path / kind).folder
    found = plan(table, "--pool", "mean", model=model)
    assert embedkit_cli("encode", "-m", model, table, "--pool", "mean", "-o", tmp_path / "out").code == 0
    manifest = load_checksummed((tmp_path / "out/manifest.json").read_bytes())
    recipe = manifest["recipe"]
    assert (found["fits"], found["layers"], found["lowercase"]) == (
        recipe["text"]["max_length"],
        recipe["layers"],
        recipe["text"]["lowercase"],
    )
    assert (found["n_tokens"], found["n_unknown"]) == (manifest["n_tokens"], manifest["n_unknown"])
    if spells_bytes:
        assert (found["n_unknown"], found["spelled"]["unknown_share"], manifest["unknown_share"]) == (None,) * 3


def test_lengths_are_those_that_transformers_counts(plan, bert):
    tokenizer = AutoTokenizer.from_pretrained(bert)
    with NOTES.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    lengths = Counter(len(tokenizer(text)["input_ids"]) for text in texts if text.strip())
    assert dict(plan(NOTES)["lengths"]) == lengths


def test_stdin_is_read_once_and_faults_are_counted_without_an_end(embedkit_cli, bert, monkeypatch):
    lines = b'{"text": "pain"}\n{"text": 7}\n{"text": ""}\n{"text": "pain"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    ran = embedkit_cli("plan", "-", "-m", bert)
    assert ran.code == 0, ran.err
    assert "rows       4: 2 with a text, 1 empty, 1 unreadable" in ran.out
    assert "row 1 of -: " in ran.out
    assert "repeated   1 " in ran.out


def test_nothing_is_written_and_no_weight_is_read(embedkit_cli, tmp_path, monkeypatch):
    model = make("bert", tmp_path / "model").folder
    # A file of weights by its header alone, and none of the model's: whoever read them would say so.
    save_file({"nothing": torch.zeros(1)}, model / "model.safetensors")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    ran = embedkit_cli("plan", NOTES, "-m", model)
    assert ran.code == 0, ran.err
    assert list(work.iterdir()) == []
    assert all(len(line) <= 80 for line in ran.out.splitlines()[1:]), ran.out


def test_the_time_follows_from_the_rate_or_names_its_basis(plan):
    found = plan(NOTES, "--rate", "1000")
    assert found["duration"]["seconds"] == pytest.approx(found["computed"] / 1000)
    found = plan(NOTES)["duration"]
    assert found["products_only"]
    assert "GFLOP/s" in found["basis"]
    assert plan(NOTES, "--device", "cuda")["duration"]["seconds"] is None


@pytest.mark.parametrize("rate", ["0", "-3"])
def test_an_invalid_rate_is_refused(embedkit_cli, rate):
    assert embedkit_cli("plan", NOTES, "--rate", rate).code == 2


def test_no_text_is_printed(embedkit_cli, bert, tmp_path):
    table = tmp_path / "table.jsonl"
    table.write_text('{"id": "name", "text": "secret"}\n{"id": "name", "text": 7, "more": "secret"}\n')
    ran = embedkit_cli("plan", table, "-m", bert)
    assert ran.code == 0
    assert "secret" not in ran.out + ran.err
    assert "name" not in ran.out + ran.err


# Unknown tokens and casing ---------------------------------------------------------------------------


def test_unknown_tokens_are_counted_in_plan_record_manifest_and_summary(encode, embedkit_cli, plan, tmp_path):
    table = tmp_path / "table.jsonl"
    # The vocabulary of the tiny model has no Greek: 2 words of 5 are unknown, and 1 of 1, and 0 of 2.
    texts = ["pain αβγ and δ ,", "λόγος", "the patient"]
    table.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = plan(table)
    ran = encode(table, "-o", tmp_path / "out", "--shard-rows", "2")
    assert ran.code == 0
    manifest = load_checksummed((tmp_path / "out/manifest.json").read_bytes())
    record = load_checksummed((tmp_path / "out/commits/00000.json").read_bytes())
    assert (found["n_unknown"], manifest["n_unknown"], record["vocabulary"]["n_unknown"]) == (3, 3, 3)
    assert manifest["unknown_share"] == pytest.approx(3 / manifest["n_content"], abs=1e-6)
    assert f"unknown tokens: 3 ({300 / manifest['n_content']:.1f} %)" in ran.err
    assert "of the tokens are unknown to the model's vocabulary" in ran.err


def test_few_unknown_tokens_give_no_note(encode, tmp_path):
    ran = encode(NOTES, "-o", tmp_path / "out")
    assert ran.code == 0
    assert "unknown to the model's vocabulary" not in ran.err


def test_both_commands_report_a_casing_that_the_vocabulary_lacks(embedkit_cli, plan, bert, tmp_path):
    table = tmp_path / "table.jsonl"
    table.write_text(json.dumps({"text": "THE PATIENT WAS DISCHARGED HOME"}) + "\n")
    found = plan(table, "--lowercase", "no")
    assert found["spelled"]["unknown_share"] == 1.0
    assert found["flipped"]["unknown_share"] == 0.0
    for command in ("plan", "encode"):
        out = () if command == "plan" else ("-o", tmp_path / "out")
        ran = embedkit_cli(command, table, "-m", bert, "--lowercase", "no", *out)
        assert ran.code == 0
        assert "100.0 % of the tokens in the first 1 texts are unknown" in ran.err
        assert "0.0 % would be with --lowercase yes" in ran.err


def test_capitals_that_inflate_a_cased_vocabulary_show_in_tokens_a_word(plan, tmp_path):
    model = make_bio_clinicalbert_layout(tmp_path / "model")
    table = tmp_path / "table.jsonl"
    table.write_text(json.dumps({"text": "THE PATIENT WAS DISCHARGED HOME"}) + "\n")
    found = plan(table, model=model)
    assert not found["lowercase"]
    assert found["spelled"]["tokens_per_word"] > 1.5 * found["flipped"]["tokens_per_word"]


# The arithmetic --------------------------------------------------------------------------------------


def test_length_bins_double_and_have_a_boundary_at_the_limit():
    counts = InputCounts()
    counts.add_texts(np.int32([3, 8, 9, 20, 21, 40, 0]), np.int32([3, 8, 9, 20, 20, 20, 0]))
    assert list(counts.histogram(20)) == [
        LengthBin(1, 8, 2, is_over=False),
        LengthBin(9, 16, 1, is_over=False),
        LengthBin(17, 20, 1, is_over=False),
        LengthBin(21, 32, 1, is_over=True),
        LengthBin(33, 40, 1, is_over=True),
    ]
    assert (counts.texts, counts.n_tokens, counts.truncated) == (6, 101, 2)
    assert [counts.quantile(share) for share in (0.5, 0.99)] == [9, 40]


def test_windows_with_equal_tokens_are_computed_once():
    counts = InputCounts()
    counts.add_windows(np.int64([5, 3, 5]), np.int64([0, 1, 0]))
    assert (counts.windows, counts.repeated, counts.computed, counts.squares) == (3, 1, 8, 25 + 9)


def test_operations_are_two_a_weight_and_token_and_the_square_of_the_length_in_attention():
    counts = InputCounts(computed=10, squares=60)
    shape = ConfigFacts(None, hidden_size=2, n_layers=3, intermediate_size=8, positions=None, layer_weights=48)
    # a layer: 2 x 10 x 48 = 960, and 4 x 60 x 2 = 480
    assert operations(counts, shape, deepest=2) == 2 * (960 + 480)
