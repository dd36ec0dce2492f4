"""Nobody gets in by a table, a model or a link, and nobody reads along who should not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import stat
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import embedkit
from embedkit.config import InputConfig
from embedkit.errors import InputError, ModelError
from embedkit.sources import open_table
from tests.conftest import NOTES
from tests.manifest.plans import make_plan
from tests.sources.helpers import zstd

MIB = 2**20


def rows_of(*inputs: object, **options: object) -> int:
    return sum(1 for _ in open_table(InputConfig(tuple(map(str, inputs)), **options)).records())


def edited(bert: Path, folder: Path, **values: object) -> Path:
    """Returns a copy of the model whose config.json says more."""
    shutil.copytree(bert, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    return folder


@pytest.fixture
def pickled(bert, tmp_path) -> Path:
    """Returns the model with its weights as a pickle."""
    folder = shutil.copytree(bert, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


# Compressed files that grow --------------------------------------------------------------------------

#: 80 MB of 800 equal rows, in 80 kB or less: gzip grows up to 1,030 times, zstd 30,000 times.
BOMB = b"text\n" + (b"pain " * 20_000 + b"\n") * 800


@pytest.fixture(scope="module")
def bombs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bombs")
    (folder / "b.csv.zst").write_bytes(zstd.compress(BOMB))
    (folder / "b.csv.gz").write_bytes(gzip.compress(BOMB, 6))
    return folder


def test_a_decompression_bomb_is_rejected_with_its_name_and_the_option_that_allows_it(bombs):
    with pytest.raises(InputError, match=r"b\.csv\.zst: decompresses to more than 1,000 times its size") as caught:
        rows_of(bombs / "b.csv.zst")
    assert "--max-expansion" in caught.value.hint


def test_the_limits_can_be_set_both_ways(bombs, monkeypatch):
    monkeypatch.setattr("embedkit.sources.opening._HARMLESS", MIB)
    with pytest.raises(InputError, match="more than 100 times its size"):
        rows_of(bombs / "b.csv.gz", max_expansion=100)
    assert rows_of(bombs / "b.csv.gz", max_expansion=2000) == 800
    monkeypatch.setattr("embedkit.sources.opening._GB", MIB)
    with pytest.raises(InputError, match="decompresses to more than 7 GB") as caught:
        rows_of(bombs / "b.csv.gz", max_expansion=2000, max_decompressed_gb=7)
    assert "--max-decompressed-gb" in caught.value.hint


def test_a_bomb_on_stdin_and_one_in_parquet_pages_are_rejected(bombs, tmp_path):
    piped = open_table(InputConfig(("-",), format="csv"), stdin=io.BytesIO((bombs / "b.csv.zst").read_bytes()))
    with pytest.raises(InputError, match="-: decompresses to more than"):
        list(piped.records())
    (tmp_path / "b.parquet.zst").write_bytes((bombs / "b.csv.zst").read_bytes())
    with pytest.raises(InputError, match="decompresses to more than"):
        rows_of(tmp_path / "b.parquet.zst")


def test_a_parquet_file_whose_own_compression_hides_a_bomb_is_rejected(tmp_path):
    texts = pa.table({"text": ["pain " * 20_000] * 800})
    for compression, refused in (("zstd", True), ("none", False)):
        pq.write_table(texts, tmp_path / "b.parquet", compression=compression, use_dictionary=False)
        if refused:
            with pytest.raises(InputError, match="decompresses to more than 1,000 times its size"):
                rows_of(tmp_path / "b.parquet")
        else:
            assert rows_of(tmp_path / "b.parquet") == 800


def test_a_small_file_of_equal_rows_is_no_bomb(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(BOMB[: 5 + 100 * 100_001]))
    assert rows_of(tmp_path / "a.csv.gz") == 100


def test_a_bomb_ends_the_run_before_a_model_is_loaded(encode, bombs, tmp_path):
    ran = encode(bombs / "b.csv.zst", "-o", tmp_path / "out")
    assert (ran.code, len(ran.told)) == (3, 2), ran.err
    assert not (tmp_path / "out").exists()


# Links -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_exists", ["error", "resume", "overwrite"])
@pytest.mark.parametrize(
    ("output", "link"),
    [
        ("out", "out"),
        ("out", "out/embeddings"),
        ("out", "out/commits"),
        ("out", "out/plan.json"),
        ("out.parquet", "out.parquet"),
        ("out.parquet", "out.parquet.partial"),
    ],
)
def test_nothing_is_written_through_a_symbolic_link(encode, tmp_path, output, link, on_exists):
    target = tmp_path / "elsewhere"
    target.mkdir()
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(target)
    ran = encode(NOTES, "-o", tmp_path / output, "--on-exists", on_exists)
    assert (ran.code, "is a symbolic link" in ran.err) == (5, True), ran.err
    assert list(target.iterdir()) == []
    assert (tmp_path / link).is_symlink()


def test_a_link_that_appears_between_two_shards_is_not_followed(tmp_path):
    from embedkit.output.commit import OutputFolder

    output = OutputFolder(tmp_path / "out")
    output.join_plan(make_plan())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/embeddings").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(embedkit.EmbedkitError, match="symbolic link"), output.shard(0) as shard:
        shard.create("embeddings/L09_mean/part-00000.npy")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_link_in_the_path_of_the_output_is_followed(encode, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "disk")
    assert encode(NOTES, "-o", tmp_path / "here/out", "--limit", 2).code == 0
    assert (tmp_path / "disk/out/manifest.json").exists()


# Permissions -----------------------------------------------------------------------------------------


def modes(folder: Path) -> set[tuple[str, int]]:
    return {
        ("folder" if path.is_dir() else "file", stat.S_IMODE(path.stat().st_mode)) for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    ("umask", "options", "file", "folder"),
    [(0o022, (), 0o644, 0o755), (0o027, (), 0o640, 0o750), (0o022, ("--private",), 0o600, 0o700)],
    ids=["umask 022", "umask 027", "private"],
)
def test_new_files_follow_the_umask_or_are_private(encode, tmp_path, umask, options, file, folder):
    before = os.umask(umask)
    try:
        (tmp_path / "place").mkdir(0o700)
        for output in ("out", "out.npy"):
            assert encode(NOTES, "-o", tmp_path / "place" / output, "--limit", 40, *options).code == 0
        after = os.umask(umask)
    finally:
        os.umask(before)
    assert modes(tmp_path / "place") == {("file", file), ("folder", folder)}
    assert after == umask


# Models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"_attn_implementation": "someone/kernel"},
        {"attn_implementation": "kernels-community/flash-attn2:flash"},
        {"_attn_implementation_internal": "paged|someone/kernel"},
        {"attn_implementation": {"text_config": "someone/kernel"}},
        {"text_config": {"_attn_implementation": "someone/kernel"}},
        {"_attn_implementation": ["sdpa"]},
    ],
    ids=json.dumps,
)
def test_a_config_that_names_a_downloadable_attention_is_rejected(encode, bert, tmp_path, values):
    ran = encode(NOTES, "-o", tmp_path / "out", "-m", edited(bert, tmp_path / "model", **values))
    assert (ran.code, "would be downloaded as code" in ran.err) == (4, True), ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["eager", "sdpa", None])
def test_a_builtin_attention_of_transformers_is_accepted(bert, tmp_path, name):
    model = edited(bert, tmp_path / "model", _attn_implementation=name)
    assert embedkit.Encoder(model).encode(["a cat"]).shape == (1, 32)


def test_a_pickle_of_tensors_is_read_with_a_notice_and_gives_the_same_vectors(bert, pickled):
    by_pickle, by_safetensors = embedkit.Encoder(pickled), embedkit.Encoder(bert)
    assert (by_pickle.encode(["a cat"]) == by_safetensors.encode(["a cat"])).all()
    assert [notice for notice in by_pickle.notices if "pickle" in notice and "safetensors" in notice]
    assert not [notice for notice in by_safetensors.notices if "pickle" in notice]


class Runs:
    """Pickled, it makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_with_code_is_rejected_and_the_code_not_run(encode, pickled, tmp_path):
    torch.save({"weight": Runs(tmp_path / "ran")}, pickled / "pytorch_model.bin")
    ran = encode(NOTES, "-o", tmp_path / "out", "-m", pickled)
    assert (ran.code, len(ran.told)) == (4, 2), ran.err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("version", ["2.9.1", "2.5.0+cpu"])
def test_a_torch_that_reads_pickles_unsafely_does_not_read_one(bert, pickled, monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ModelError, match=r"2\.10 and newer do"):
        embedkit.Encoder(pickled)
    assert embedkit.Encoder(bert).encode(["a cat"]).shape == (1, 32)


# Cells -----------------------------------------------------------------------------------------------

FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(1)", "\t=1", '=HYPERLINK("http://x")']


@pytest.mark.parametrize("form", ["parquet", "npy", "jsonl", "arrow"])
def test_cells_that_look_like_formulas_go_through_unchanged(encode, tmp_path, form):
    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "why"])
        writer.writerows([f"={cell}", f"a note: {cell}", cell] for cell in FORMULAS)
    ran = encode(tmp_path / "t.csv", "-o", tmp_path / "out", "--output-format", form, "--keep", "why")
    assert ran.code == 0, ran.err
    out = embedkit.read(tmp_path / "out")
    assert out.ids == [f"={cell}" for cell in FORMULAS]
    assert out.table["why"].to_pylist() == FORMULAS
    if form == "parquet":
        assert pq.read_table(tmp_path / "out/embeddings")["why"].to_pylist() == FORMULAS
