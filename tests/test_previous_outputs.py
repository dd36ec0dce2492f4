"""Outputs of an earlier version (`tests/previous_outputs.py`) are read, verified, resumed and used.

Their vectors are compared with those of plain transformers, one text at a time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import embedkit
from embedkit.models.native.compile_kernels import find_compiler
from embedkit.storage.checksummed_json import dump_checksummed, load_checksummed
from tests.oracle import Oracle, pool
from tests.previous_outputs import (
    FINISHED,
    FINISHED_FIRST,
    FITTED,
    FOLDER,
    MAX_LENGTH,
    SHARD_ROWS,
    SWEPT,
    UNFINISHED,
    encoding,
    notes,
    sweeping,
)

NOTES = {row["id"]: row for row in notes()}
WITH_TEXT = [id_ for id_, row in NOTES.items() if row["text"]]
LONG_AGO = 946_684_800  # seconds: the year 2000

#: A run is resumed only by the code that began it, and in fp32 on a CPU that was compiled kernels.
needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler is here")


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    """Returns a copy of the outputs, for tests that write nothing."""
    return shutil.copytree(FOLDER, tmp_path_factory.mktemp("previous"), dirs_exist_ok=True)


@pytest.fixture
def stored(copied, monkeypatch) -> Path:
    """That copy, as the working folder."""
    monkeypatch.chdir(copied)
    return copied


@pytest.fixture
def previous(tmp_path, monkeypatch) -> Path:
    """Returns a copy of its own, as the working folder; its files seem to be of a time long ago."""
    folder = shutil.copytree(FOLDER, tmp_path / "previous", copy_function=shutil.copyfile)
    for path in folder.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    monkeypatch.chdir(folder)
    return folder


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Returns every file in a folder: inode, when it was changed, and bytes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


# What the vectors should be ----------------------------------------------------------------------------


class Expected:
    """Vectors of the stored rows by plain transformers; each method takes a row of the output's table."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.oracle = Oracle(folder / "model", max_length=MAX_LENGTH)

    def layers(self, id_: str) -> list[np.ndarray]:
        return self.oracle.states(NOTES[id_]["text"]).layers

    def tokens(self, row: dict[str, Any]) -> np.ndarray:
        return self.layers(row["id"])[-1]

    def mean(self, row: dict[str, Any]) -> np.ndarray:
        return pool("mean", self.tokens(row))

    def bits(self, row: dict[str, Any]) -> np.ndarray:
        return self.mean(row) > 0

    def cls_mean_of(self, *numbers: int) -> Callable[[dict[str, Any]], np.ndarray]:
        def joined(row: dict[str, Any]) -> np.ndarray:
            layers = self.layers(row["id"])
            return np.concatenate([pool(name, layers[number]) for name in ("cls", "mean") for number in numbers])

        return joined

    def places(self, id_: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the first character of each token and the one after its last; none of special tokens."""
        encoded = self.oracle.tokenizer(
            NOTES[id_]["text"], truncation=True, max_length=MAX_LENGTH, return_offsets_mapping=True
        )
        start, stop = np.array(encoded["offset_mapping"]).T
        return start, stop

    def span(self, row: dict[str, Any]) -> np.ndarray:
        start, stop = self.places(row["id"])
        return pool("mean", self.tokens(row)[(start < row["end"]) & (stop > row["start"])])

    def first_token(self, row: dict[str, Any]) -> np.ndarray:
        """Of a word, or of the one token that a row is of."""
        start, stop = self.places(row["id"])
        return self.tokens(row)[(start == row["start"]) & (stop > start)][0]

    @torch.no_grad()
    def window(self, row: dict[str, Any]) -> np.ndarray:
        """Returns the row's window, of as many tokens as fit between [CLS] and [SEP], by itself."""
        ids = self.oracle.tokenizer(NOTES[row["id"]]["text"], add_special_tokens=False)["input_ids"]
        room = MAX_LENGTH - 2
        inside = ids[room * row["chunk"] : room * (row["chunk"] + 1)]
        bounds = (self.oracle.tokenizer.cls_token_id, self.oracle.tokenizer.sep_token_id)
        output = self.oracle.model(torch.tensor([[bounds[0], *inside, bounds[1]]]))
        return pool("mean", output.last_hidden_state[0].double().numpy())

    def windows(self, row: dict[str, Any]) -> np.ndarray:
        """The mean of two layers, scaled to length 1 and cut to 8; NaN where a text has more than one window."""
        if row["n_chunks"] > 1:
            return np.full(8, np.nan)
        layers = self.layers(row["id"])
        whole = pool("mean", (layers[-1] + layers[-2]) / 2)
        return (whole / np.linalg.norm(whole))[:8]

    def of_patient(self, row: dict[str, Any]) -> np.ndarray:
        """Returns the mean of a patient's visits, each the mean of its texts."""
        rows = [NOTES[id_] for id_ in WITH_TEXT if NOTES[id_]["patient"] == row["id"]]
        visits = [
            np.mean([self.mean(of) for of in texts], axis=0) for _, texts in groupby(rows, itemgetter("visit"))
        ]
        return np.mean(visits, axis=0)

    def last_of_patient(self, row: dict[str, Any]) -> np.ndarray:
        rows = [NOTES[id_] for id_ in WITH_TEXT if NOTES[id_]["patient"] == row["id"]]
        return self.mean(max(rows, key=itemgetter("seen")))

    def idf(self, row: dict[str, Any]) -> np.ndarray:
        """Tokens weighed by the logarithm of how few texts have them, as scikit-learn smooths it."""
        texts = [set(self.oracle.tokenizer(NOTES[id_]["text"], truncation=True)["input_ids"]) for id_ in WITH_TEXT]
        ids = self.oracle.tokenizer(NOTES[row["id"]]["text"], truncation=True)["input_ids"]
        weights = [math.log((1 + len(texts)) / (1 + sum(token in of for of in texts))) + 1 for token in ids]
        return np.average(self.tokens(row), axis=0, weights=weights)

    @torch.no_grad()
    def attention(self, row: dict[str, Any]) -> np.ndarray:
        """Tokens weighed by the stored network: Linear, LayerNorm, GELU, Linear, softmax."""
        stored = {name: of.double() for name, of in load_file(self.folder / "attention.safetensors").items()}
        tokens = torch.from_numpy(self.tokens(row))
        inner = tokens @ stored["score.0.weight"].T + stored["score.0.bias"]
        inner = torch.nn.functional.layer_norm(inner, (8,), stored["score.1.weight"], stored["score.1.bias"])
        scores = torch.nn.functional.gelu(inner) @ stored["score.3.weight"].T + stored["score.3.bias"]
        return (torch.softmax(scores, dim=0) * tokens).sum(dim=0).numpy()

    def of(self, output: str) -> dict[str, Callable[[dict[str, Any]], np.ndarray]]:
        """For each variant of an output, the method that computes its vectors."""
        several = {"L01_cls_mean": self.cls_mean_of(1), "L02_cls_mean": self.cls_mean_of(2)}
        plain = {"": self.mean}
        return {
            "shards-npy": several,
            "half-npy": several,
            "shards-arrow": {"": self.tokens},
            "spans.jsonl": {"": self.span},
            "bits.arrow": {"": self.bits},
            "plain.jsonl": {"": self.cls_mean_of(2, 1)},
            "windows.parquet": {"": self.windows},
            "chunks.parquet": {"": self.window},
            "words.npy": {"": self.first_token},
            "tokens.parquet": {"": self.first_token},
            "groups.parquet": {"": self.of_patient},
            "half-groups.parquet": {"": self.of_patient},
            "groups": {"": self.last_of_patient},
            "idf.npy": {"": self.idf},
            "scored.parquet": {"": self.attention},
        }.get(output, plain)


@pytest.fixture(scope="module")
def expected(one_thread) -> Expected:
    return Expected(FOLDER)


def assert_vectors(out: Any, name: str, expected: Expected) -> None:
    """The output has the vectors that it should have, within the rounding of what they are stored in."""
    rows = out.table.filter(pa.array(out.has_vector)).to_pylist()
    assert [row["id"] for row in rows] == out.ids
    assert set(out.variants) == set(expected.of(name))
    for variant, of_row in expected.of(name).items():
        wanted = [of_row(row) for row in rows]
        if out.recipe and out.recipe["pool"] == ["none"]:
            pairs = zip(out.token_variant(variant), wanted, strict=True)
        else:
            pairs = zip(out.variant(variant), wanted, strict=True)
        step = np.ptp(wanted, axis=0) / 255 if out.precision == "int8" else 0
        for found, exact in pairs:
            assert found.shape == exact.shape
            known = ~np.isnan(np.asarray(exact, float))
            if out.recipe and out.recipe["dtype"] == "bf16":
                cosine = found @ exact / np.linalg.norm(found) / np.linalg.norm(exact)
                assert cosine > 0.999
                continue
            relative = 1e-3 if out.precision == "float16" else 0
            allowed = 1e-5 * max(1, np.abs(exact[known]).max(initial=0)) + step + relative * np.abs(exact)
            assert (np.abs(found - exact) <= allowed)[known].all()


# Finished outputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_output_reads_as_the_vectors_of_transformers(name, stored, expected):
    out = embedkit.read(name)
    assert_vectors(out, name, expected)
    if "--group-by" not in FINISHED[name]:
        limit = re.search(r"--limit (\d+)", FINISHED[name])
        rows = list(NOTES.values())[: int(limit[1]) if limit else None]
        if name == "spans.jsonl":
            rows = [row for row in rows if row["spans"] and row["id"] != "00110"]  # whose span is not in its text
        assert list(dict.fromkeys(out.ids)) == [row["id"] for row in rows if row["text"]]


#: In groups.parquet they are null: each patient was on several wards.
WITH_KEPT = [name for name, options in FINISHED.items() if "--keep" in options and "--group-by" not in options]


@pytest.mark.parametrize("name", WITH_KEPT)
def test_kept_columns_keep_values_and_types_of_the_input(name, stored):
    table = embedkit.read(name).table
    words = FINISHED[name].split()
    kept = [words[place + 1] for place, word in enumerate(words) if word == "--keep"]
    assert set(kept) <= set(table.column_names)
    if words[0] == "notes.parquet":
        typed = pq.read_table("notes.parquet")
        for column in kept:
            known = dict(zip(typed["id"].to_pylist(), typed[column].to_pylist(), strict=True))
            assert table[column].type == typed[column].type
            assert table[column].to_pylist() == [known[id_] for id_ in table["id"].to_pylist()]
    else:
        rows = [row for row in table.to_pylist() if row["status"] != "invalid_json"]
        assert [[row[column] for column in kept] for row in rows] == [
            [NOTES[row["id"]][column] for column in kept] for row in rows
        ]


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_output_is_verified_and_inspected(name, stored, embedkit_cli):
    before = state_of(stored)
    verified = embedkit_cli("verify", name)
    assert (verified.code, verified.told) == (0, [])
    inspected = embedkit_cli("inspect", name)
    assert (inspected.code, inspected.told) == (0, [])
    assert state_of(stored) == before


#: `verify --resample` covers neither units and groups nor single files of JSON Lines or of a fitted pooler.
RECOMPUTED = (
    *("shards-parquet", "shards-npy", "shards-jsonl", "shards-arrow"),
    *("int8.parquet", "float16.npy", "bits.arrow", "windows.parquet"),
)


@pytest.mark.parametrize("name", RECOMPUTED)
def test_recomputed_vectors_equal_those_of_a_finished_output(name, stored, embedkit_cli):
    # What plan.json says of the model's place is not so here.
    given = ("--model", "model", "--input", FINISHED[name].split()[0])
    ran = embedkit_cli("verify", name, "--resample", 6, *given)
    assert (ran.code, ran.told, "pass: " in ran.out) == (0, [], True)


@needs_compiler
@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_output_is_resumed_with_nothing_to_do(name, previous, embedkit_cli):
    before = state_of(previous)
    ran = embedkit_cli(*encoding(name, FINISHED[name]), "--on-exists", "resume", "--progress", "json")
    if name in {"spans.jsonl", "plain.jsonl"}:  # JSON Lines alone hold neither recipe nor input
        assert ran.code == 5
    else:
        assert ran.code == 0, ran.err
        assert done(ran.err)["computed_rows"] == 0
        assert embedkit_cli("verify", name).code == 0
    assert_untouched(before, state_of(previous))


def assert_untouched(before: dict[str, tuple[int, int, bytes]], after: dict[str, tuple[int, int, bytes]]) -> None:
    """No file was written but manifests, which a resumed run writes again."""
    assert before.keys() == after.keys()
    assert [path for path in before if after[path] != before[path] and Path(path).name != "manifest.json"] == []


def done(said: str) -> dict[str, Any]:
    """What a run says at its end."""
    (event,) = (json.loads(line) for line in said.splitlines() if '"event": "done"' in line)
    return event


# Outputs of a newer version ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "commands"),
    [
        ("plan.json", ("verify", "encode")),
        ("commits/00001.json", ("verify", "inspect", "encode")),
        ("manifest.json", ("verify", "inspect", "report")),
    ],
)
def test_a_newer_format_version_is_rejected_with_a_hint(file, commands, previous, embedkit_cli):
    name = "shards-parquet"
    path = Path(name, file)
    path.write_bytes(dump_checksummed({**load_checksummed(path.read_bytes()), "version": 2}))
    before = state_of(previous)
    for command in commands:
        arguments = {
            "encode": (*encoding(name, FINISHED[name]), "--on-exists", "resume"),
            "report": ("report", name, "-o", "page.html"),
        }.get(command, (command, name))
        ran = embedkit_cli(*arguments)
        assert ran.code == 5
        assert f"error: {name}/{file} has format version 2, and this embedkit reads versions up to 1" in ran.told
        assert "hint: upgrade embedkit, or write to another output" in ran.told
    assert state_of(previous) == before


# Unfinished ones ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNFINISHED)
def test_an_unfinished_output_is_reported_as_unfinished(name, stored, embedkit_cli):
    run = UNFINISHED[name]
    folder = Path(run.folder)
    assert len(list(folder.glob("commits/*.json"))) == run.done
    ran = embedkit_cli("verify", folder)
    assert ran.code == 5
    with pytest.raises(embedkit.EmbedkitError) as refused:
        embedkit.read(folder)
    assert refused.value.hint


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if "bf16" in name else needs_compiler) for name in UNFINISHED]
)
def test_resuming_computes_only_the_missing_shards(name, previous, expected, embedkit_cli, monkeypatch):
    # Earlier versions left bf16 to transformers on every CPU.
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    run = UNFINISHED[name]
    folder, before = previous / run.folder, state_of(previous)
    numbers = sorted(path.stem for path in folder.glob("commits/*.json"))
    committed = {
        path.relative_to(folder)
        for number in numbers
        for path in (folder / f"commits/{number}.json", *folder.rglob(f"part-{number}.*"))
    }
    assert len(committed) >= 2 * run.done
    options = run.options.replace("--on-exists overwrite", "")
    ran = embedkit_cli(*encoding(name, options), "--on-exists", "resume", "--progress", "json")
    assert ran.code == 0, ran.err
    n_rows = len(NOTES) + ("--on-bad-row null" in options)  # one that cannot be read, which `skip` leaves out
    assert done(ran.err)["computed_rows"] == n_rows - SHARD_ROWS * run.done
    out = embedkit.read(name)
    assert_vectors(out, name, expected)
    assert embedkit_cli("verify", name).code == 0
    after = state_of(previous)
    changed = {path for path, of in after.items() if before.get(path) != of} | (before.keys() - after.keys())
    assert {Path(path).parts[0].partition(".")[0] for path in changed} == {Path(name).stem}
    if run.folder in {name, f"{name}.next"}:
        for path in committed:
            assert after[f"{name}/{path}"] == before[f"{run.folder}/{path}"]
    else:
        assert not folder.exists()
    whole = {"half-parquet": "shards-parquet", "half-npy": "shards-npy", "half-groups.parquet": "groups.parquet"}
    if name in whole:
        assert out.fingerprint == embedkit.read(whole[name]).fingerprint
        assert out.table.equals(embedkit.read(whole[name]).table)


def test_an_output_being_replaced_still_reads_as_the_old_one(stored, expected, embedkit_cli):
    (name,) = FINISHED_FIRST
    assert embedkit_cli("verify", name).code == 0
    assert embedkit.read(name).table.num_rows == SHARD_ROWS
    assert_vectors(embedkit.read(name), name, expected)


# Poolers, sweeps, reports ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FITTED)
def test_a_fitted_pooler_is_used(name, previous, embedkit_cli):
    pooler = f"idf:{name}" if name.startswith("idf") else name
    ran = embedkit_cli(*encoding("new.parquet", f"notes.parquet --pool {pooler}"))
    assert ran.code == 0, ran.err
    new = embedkit.read("new.parquet")
    if name == "pca.safetensors":
        stored = {key: of.numpy() for key, of in load_file(name).items()}
        plain = embedkit.read("shards-parquet").vectors
        wanted = (plain - stored["center"]) @ stored["rotation"]
    else:
        wanted = embedkit.read({"idf.safetensors": "idf.npy"}.get(name, "scored.parquet")).vectors
    assert np.abs(new.vectors - wanted).max() < 1e-5


@needs_compiler
def test_a_finished_sweep_is_resumed_with_nothing_to_do(previous, embedkit_cli):
    before = state_of(previous)
    ran = embedkit_cli(*sweeping("sweep", SWEPT["sweep"]), "--on-exists", "resume")
    assert ran.code == 0, ran.err
    assert_untouched(before, state_of(previous))


@needs_compiler
def test_a_sweep_without_its_summary_is_evaluated_again(previous, embedkit_cli):
    was = pq.read_table("sweep/results.parquet")
    Path("sweep/summary.json").unlink()  # it is written last
    before = state_of(previous / "sweep/vectors")
    ran = embedkit_cli(*sweeping("sweep", SWEPT["sweep"]), "--on-exists", "resume")
    assert ran.code == 0, ran.err
    assert_untouched(before, state_of(previous / "sweep/vectors"))
    now = pq.read_table("sweep/results.parquet")
    assert now["name"].to_pylist() == [*was["name"].to_pylist(), "majority class"]
    candidates = now.slice(0, len(was)).select(["name", "dims", "is_baseline"])
    assert candidates.equals(was.select(["name", "dims", "is_baseline"]))
    assert np.allclose(now["accuracy"][: len(was)], was["accuracy"])


def test_a_report_reads_previous_outputs_and_sweeps(previous, embedkit_cli):
    pytest.importorskip("plotly", reason="in the report extra")
    ran = embedkit_cli("report", "shards-parquet", "float16.npy", "sweep", "-o", "page.html")
    assert (ran.code, Path("page.html").stat().st_size > 0) == (0, True), ran.err


# Later versions -----------------------------------------------------------------------


def test_a_plan_of_a_later_version_is_not_resumed(previous, embedkit_cli):
    plan = Path("half-parquet/plan.json")
    # Its last line is the SHA-256 of the bytes before it.
    body = plan.read_bytes().rpartition(b',\n"sha256"')[0].replace(b'"version": 1', b'"version": 99', 1)
    plan.write_bytes(body + b',\n"sha256": "%s"}\n' % hashlib.sha256(body).hexdigest().encode())
    before = state_of(previous)
    ran = embedkit_cli(*encoding("half-parquet", UNFINISHED["half-parquet"].options), "--on-exists", "resume")
    error, hint = ran.told[-2:]
    assert (ran.code, error.startswith("error: "), hint.startswith("hint: ")) == (5, True, True)
    assert "version" in error
    assert "99" in error
    assert state_of(previous) == before
