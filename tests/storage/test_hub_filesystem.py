"""Data sets of the hub as input. The hub is simulated: a server on loopback with the answers of its API."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedkit
from benchmarks.torture.calls import watched
from benchmarks.torture.kills import ended, forked, run
from embedkit.storage import filesystem
from embedkit.storage.hub_filesystem import HubFileSystem
from tests.conftest import Ran
from tests.models.fake_hub import FakeHub, fake_hub

pytestmark = pytest.mark.usefixtures("models_loaded_once")
Cli = Callable[..., Ran]

OLD, NEW = "1" * 40, "2" * 40
TEXTS = [f"Quillfeather was seen on day {day}" for day in range(9)]
SET = "hf://datasets/owner/notes"


class DataSet:
    """The data set owner/notes: its files by commit, and the commit of its branch main."""

    def __init__(self, hub: FakeHub, files: dict[str, bytes]) -> None:
        self.commits = {OLD: files}
        self.main = OLD
        self.hub = hub
        self.damaged = False
        hub.answer = self.answer

    def answer(self, handler: Any) -> bool:
        path = unquote(urlsplit(handler.path).path)
        if path.startswith("/api/datasets/owner/notes"):
            kind, _, rest = path.removeprefix("/api/datasets/owner/notes").strip("/").partition("/")
            revision, _, folder = rest.partition("/")
            commit = self.main if revision in {"", "main"} else revision
            if commit not in self.commits:
                handler.reply(404, X_Error_Code="RevisionNotFound")
            elif kind == "tree":
                self.list(handler, self.commits[commit], folder)
            else:
                handler.reply(200, json.dumps({"id": "owner/notes", "sha": commit}).encode())
        elif path.startswith("/datasets/owner/notes/resolve/"):
            commit, _, name = path.removeprefix("/datasets/owner/notes/resolve/").partition("/")
            body = self.commits[commit][name]
            handler.reply(200, body[:-1] + b"?" if self.damaged else body)
        else:
            handler.reply(401, X_Error_Code="RepoNotFound")
        return True

    @staticmethod
    def list(handler: Any, files: dict[str, bytes], folder: str) -> None:
        entries: dict[str, dict[str, object]] = {}
        for name, data in files.items():
            inside = name.removeprefix(f"{folder}/") if folder else name
            if inside == name and folder:
                continue
            first, slash, _ = inside.partition("/")
            whole = f"{folder}/{first}" if folder else first
            # As Git and Git LFS name them.
            oid = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}
            large = {"lfs": lfs} if name.endswith(".parquet") else {}
            entries[whole] = (
                {"type": "directory", "path": whole, "oid": "0" * 40, "size": 0}
                if slash
                else {"type": "file", "path": whole, "oid": oid, "size": len(data), **large}
            )
        if not entries and folder:
            handler.reply(404, X_Error_Code="EntryNotFound")
        else:
            handler.reply(200, json.dumps(list(entries.values())).encode())


def parquet(texts: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": [str(place) for place in range(len(texts))], "text": texts}), sink)
    return bytes(sink.getvalue().to_pybytes())


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DataSet]:
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    with fake_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setitem(filesystem._REMOTE, "hf", HubFileSystem())
        lines = "".join(json.dumps({"id": str(at), "text": text}) + "\n" for at, text in enumerate(TEXTS[4:], 4))
        yield DataSet(
            hub,
            {
                "README.md": b"# Notes",
                "data/a.parquet": parquet(TEXTS[:4]),
                "data/b.jsonl.gz": gzip.compress(lines.encode()),
                "other/c.csv": b"id,text\n1,c\n",
            },
        )


def table(out: str) -> list[tuple[str, bytes]]:
    read = embedkit.read(out)
    return [(name, vector.tobytes()) for name, vector in zip(read.ids, read.vectors, strict=True)]


def left_texts(folder: Path) -> list[Path]:
    """Returns the temporary and cached files that hold a text."""
    left = [path for place in ("tmp", "home") for path in (folder / place).rglob("*") if path.is_file()]
    return [path for path in left if b"Quillfeather" in path.read_bytes()]


@pytest.mark.parametrize("typed", ["data", "data/*", "data/?.*"])
def test_files_of_a_data_set_are_read_as_local_ones(
    encode: Cli, data_set: DataSet, tmp_path: Path, typed: str
) -> None:
    (tmp_path / "data").mkdir()
    for name in ("data/a.parquet", "data/b.jsonl.gz"):
        (tmp_path / name).write_bytes(data_set.commits[OLD][name])
    assert encode("data", "-o", "local").code == 0
    ran = encode(f"{SET}/{typed}", "-o", "remote", "--shard-rows", 3)
    assert ran.code == 0, ran.err
    assert table("remote") == table("local")
    plan = json.loads(Path("remote/plan.json").read_text())
    assert [file["name"] for file in plan["input"]["files"]] == [
        f"{SET}@{OLD}/data/a.parquet",
        f"{SET}@{OLD}/data/b.jsonl.gz",
    ]
    downloads = [each for each in data_set.hub.requests if "/resolve/" in each]
    assert len(downloads) == 2
    assert left_texts(tmp_path) == []


def test_a_resumed_run_reads_the_commit_that_it_began_with(
    encode: Cli, embedkit_cli: Cli, data_set: DataSet, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (f"{SET}/data/a.parquet", "-o", "out", "--shard-rows", 2, "--pool", "mean")
    assert encode(*asked).code == 0
    whole = table("out")
    data_set.commits[NEW] = {"data/a.parquet": parquet(["other", *TEXTS])}
    data_set.main = NEW
    monkeypatch.setitem(filesystem._REMOTE, "hf", HubFileSystem())
    for name in ("manifest.json", "commits/00001.json"):
        (Path("out") / name).unlink()
    ran = encode(*asked, "--on-exists", "resume")
    assert ran.code == 0, ran.err
    assert table("out") == whole
    assert embedkit_cli("verify", "out", "--resample", 4, "-m", bert).code == 0
    ran = encode(f"{SET}@{NEW}/data/a.parquet", *asked[1:], "--on-exists", "resume")
    assert ran.code == 5
    assert "input.files[0]" in ran.err


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (f"{SET}/data/none.csv", "No such file in the data set"),
        (f"{SET}@{NEW}/data/a.parquet", "has no revision"),
        ("hf://datasets/owner/none/a.csv", "is private"),
        (f"{SET}/data/*.txt", "matches no file"),
        ("hf://owner/model/a.csv", "only data sets"),
        ("hf://datasets/owner", "names no data set"),
        ("nope://bucket/a.csv", "nope:// is not known"),
    ],
)
def test_what_is_not_there_is_told(encode: Cli, data_set: DataSet, typed: str, message: str) -> None:
    ran = encode(typed, "-o", "out")
    assert ran.code in {2, 3}
    assert message in ran.err
    assert len(ran.told) == 2, ran.err


def test_a_damaged_download_is_told_and_offline_is_refused(
    encode: Cli, data_set: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_set.damaged = True
    for name in ("a.parquet", "b.jsonl.gz"):
        ran = encode(f"{SET}/data/{name}", "-o", "out")
        assert (ran.code, "arrived incomplete or damaged" in ran.err) == (3, True), ran.err
    assert "--offline forbids" in encode(f"{SET}/data/a.parquet", "-o", "out", "--offline").err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids" in encode(f"{SET}/data/a.parquet", "-o", "out").err


@pytest.mark.parametrize("refused", ["/api/", "/resolve/"])
def test_a_data_set_that_the_hub_refuses_is_one_error_and_leaves_no_text(
    encode: Cli, data_set: DataSet, tmp_path: Path, refused: str
) -> None:
    def answer(handler: Any) -> bool:
        if refused in handler.path:
            handler.reply(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
            return True
        return data_set.answer(handler)

    data_set.hub.answer = answer
    ran = encode(f"{SET}/data/a.parquet", "-o", "out")
    assert ran.code == 3, ran.err
    assert len(ran.told) == 2, ran.err
    assert "owner/notes" in ran.err
    assert left_texts(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process with threads")
def test_a_killed_download_leaves_no_text(data_set: DataSet, tmp_path: Path, bert: Path) -> None:
    words = ["encode", f"{SET}/data/a.parquet", "-m", str(bert), "-o", str(tmp_path / "out"), "-q"]

    def killed() -> int:
        def on_call(kind: str, path: str) -> None:
            if kind == "open" and "embeddings" in path:
                os.kill(os.getpid(), signal.SIGKILL)

        with watched(tmp_path / "out", on_call):
            return run(words)

    said = tmp_path / "said"
    assert ended(forked(killed, said)) == -signal.SIGKILL, said.read_text()
    assert left_texts(tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []
    assert ended(forked(partial(run, [*words, "--on-exists", "resume"]), said)) == 0, said.read_text()
