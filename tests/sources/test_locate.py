from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from embedkit.config import InputConfig
from embedkit.errors import EmbedkitError, InputError, UsageError
from embedkit.sources import open_table
from tests.sources.helpers import table, texts


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.csv", "a.csv", "deep/er/c.tsv", "deep/d.CSV", ".hidden.csv", ".git/e.csv", "notes.pdf"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text\n{name}\n")
    for name in ("a.embeddings/plan.json", "deep/x/manifest.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        (path.parent / "rejects").mkdir()
        (path.parent / "rejects" / "part-00000.jsonl").write_text('{"row": 1}')
    return tmp_path


def test_a_folder_is_all_its_tables_sorted_without_hidden_files_and_own_results(tree: Path) -> None:
    found = open_table(InputConfig((str(tree),)))
    assert [os.path.relpath(file.name, tree) for file in found.files] == [
        "a.csv",
        "b.csv",
        "deep/d.CSV",
        "deep/er/c.tsv",
    ]
    assert texts(list(found.records())) == ["a.csv", "b.csv", "deep/d.CSV", "deep/er/c.tsv"]
    assert [item.row for item in found.records()] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("*.csv", ["a.csv", "b.csv"]), ("**/?.tsv", ["deep/er/c.tsv"]), ("[ab].csv", ["a.csv", "b.csv"])],
)
def test_a_glob_is_its_files_sorted(tree: Path, pattern: str, expected: list[str]) -> None:
    assert texts(list(open_table(InputConfig((f"{tree}/{pattern}",))).records())) == expected


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    assert table(tmp_path, "a[1].csv", b"text\n").files[0].name.endswith("a[1].csv")


@pytest.mark.parametrize(
    ("typed", "kind", "words"),
    [
        ("none.csv", InputError, "No such file"),
        ("*.parquet", InputError, "matches no file"),
        ("deep/x", InputError, "holds no file that ends in .csv"),
        ("notes.pdf", UsageError, "the name does not tell the format; known are .csv"),
        ("s3://bucket/a.csv", UsageError, "only local files"),
    ],
)
def test_what_cannot_be_found_is_said(
    tree: Path, monkeypatch: pytest.MonkeyPatch, typed: str, kind: type[EmbedkitError], words: str
) -> None:
    monkeypatch.chdir(tree)
    with pytest.raises(kind, match=words):
        open_table(InputConfig((typed,)))


def test_a_pipe_with_a_name_is_refused_because_it_is_read_twice(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.csv")
    with pytest.raises(InputError, match="not a regular file"):
        open_table(InputConfig((str(tmp_path / "p.csv"),)))


def test_the_format_that_is_said_wins_over_the_name(tmp_path: Path) -> None:
    found = table(tmp_path, "t.txt", b'{"text": "a"}', format="ndjson")
    assert found.files[0].format == "jsonl"
    assert texts(list(found.records())) == ["a"]


@pytest.mark.parametrize("size", [10, 2**20, 2**20 + 5, 3 * 2**20])
def test_a_file_is_known_by_its_head_and_tail(tmp_path: Path, size: int) -> None:
    data = (b"text\n" + os.urandom(size).replace(b"\n", b"x").hex().encode())[:size]
    (file,) = table(tmp_path, "t.csv", data).files
    sampled = data if size <= 2 * 2**20 else data[: 2**20] + data[-(2**20) :]
    assert file.sha256 == hashlib.sha256(sampled).hexdigest()
    assert (file.size, file.format, file.compression) == (size, "csv", None)
