from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedkit.config import InputConfig
from embedkit.errors import EmbedkitError, InputError, UsageError
from embedkit.sources import Table, open_table
from embedkit.sources.locate import SUFFIXES
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
        path.write_text(json.dumps({"version": 1, "recipe": {}, "fingerprint": "", "variants": []}))
        (path.parent / "rejects").mkdir()
        (path.parent / "rejects" / "part-00000.jsonl").write_text('{"row": 1}')
    return tmp_path


def notes_on_files(found: Table) -> list[str]:
    """Returns the notices on files, without those on columns."""
    return [note for note in found.take_notes() if not note.startswith("columns: ")]


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


@pytest.mark.parametrize(("name", "way_out"), [("a.xlsx", "save it as .csv"), ("a.dat", "--format")])
def test_a_file_of_another_kind_is_an_error_with_a_hint(tmp_path: Path, name: str, way_out: str) -> None:
    (tmp_path / name).write_text("text\na\n")
    with pytest.raises(UsageError, match="unknown suffix") as caught:
        open_table(InputConfig((str(tmp_path / name),)))
    assert way_out in caught.value.hint


@pytest.mark.parametrize(
    ("typed", "kind", "words"),
    [
        ("none.csv", InputError, "No such file"),
        ("*.parquet", InputError, "matches no file"),
        ("deep/x", InputError, "contains no file that ends in .csv"),
        ("notes.pdf", UsageError, "unknown suffix; known are .csv"),
        ("nope://bucket/a.csv", UsageError, "nope:// is not known"),
    ],
)
def test_a_missing_input_is_an_error(
    tree: Path, monkeypatch: pytest.MonkeyPatch, typed: str, kind: type[EmbedkitError], words: str
) -> None:
    monkeypatch.chdir(tree)
    with pytest.raises(kind, match=words):
        open_table(InputConfig((typed,)))


def test_a_pipe_with_a_name_is_refused_because_it_is_read_twice(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.csv")
    with pytest.raises(InputError, match="not a regular file"):
        open_table(InputConfig((str(tmp_path / "p.csv"),)))


def test_the_format_of_the_user_wins_over_the_name(tmp_path: Path) -> None:
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


def _names(*typed: Path) -> list[str]:
    found = open_table(InputConfig(tuple(map(str, typed))))
    return sorted(text or "" for text in texts(list(found.records())))


def test_linked_folders_are_read_once_and_links_in_circles_end(tmp_path: Path) -> None:
    for name in ("data/a.csv", "data/2020/b.csv", "archive/c.csv", "archive/deep/d.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text\n{name}\n")
    data = tmp_path / "data"
    (data / "2019").symlink_to("../archive")
    (tmp_path / "archive/back").symlink_to("../data")
    (data / "again").symlink_to("2020")
    (data / "up").symlink_to("..")
    (data / ".hidden").symlink_to("/")
    expected = ["archive/c.csv", "archive/deep/d.csv", "data/2020/b.csv", "data/a.csv"]
    assert _names(data) == expected
    assert _names(tmp_path / "da*") == expected


def test_a_link_to_a_file_that_is_read_anyway_is_left_out_with_a_notice(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "2024.csv").write_text("text\na\n")
    (data / "latest.csv").symlink_to("2024.csv")
    (tmp_path / "far.csv").write_text("text\nb\n")
    (data / "far.csv").symlink_to("../far.csv")
    found = open_table(InputConfig((str(data),)))
    assert texts(list(found.records())) == ["a", "b"]
    assert notes_on_files(found) == [f"{data}: left out 1 link to a file that is read anyway"]


@pytest.mark.parametrize("name", ["2019", "a.csv", "b.csv.gz"])
def test_a_link_to_a_missing_file_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.csv").write_text("text\na\n")
    (tmp_path / name).symlink_to("gone")
    with pytest.raises(InputError, match=f"{name}: a link to a missing file"):
        open_table(InputConfig((str(tmp_path),)))
    with pytest.raises(InputError, match="No such file"):
        open_table(InputConfig((f"{tmp_path}/{name[0]}*",)))


def test_a_folder_that_may_not_be_listed_is_an_error_and_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever tests may be root, who may list everything: so the refusals are made up."""
    (tmp_path / "data/closed").mkdir(parents=True)
    (tmp_path / "data/t.csv").write_text("text\na\n")
    real_list, real_access = os.scandir, os.access

    def listed(path: str = ".") -> object:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_list(path)

    monkeypatch.setattr(os, "scandir", listed)
    monkeypatch.setattr(os, "access", lambda path, mode: "closed" not in str(path) and real_access(path, mode))
    for typed in (tmp_path / "data", tmp_path / "*", tmp_path / "data/*/*.csv", tmp_path / "**/*.csv"):
        with pytest.raises(InputError, match="closed: Permission denied"):
            open_table(InputConfig((str(typed),)))


def test_other_files_of_a_folder_are_counted(tree: Path) -> None:
    found = open_table(InputConfig((str(tree),)))
    assert notes_on_files(found) == [
        f"{tree}: left out 2 folders with an output of embedkit, first {tree}/a.embeddings",
        f"{tree}: left out 1 file with a suffix other than {' '.join(SUFFIXES)}",
    ]


def test_a_folder_that_a_glob_matches_is_read(tmp_path: Path) -> None:
    """Spark writes a folder where others write a file."""
    for name in ("a.csv", "b.csv/part-0.csv", "b.csv/part-1.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text\n{name}\n")
    assert _names(tmp_path / "*.csv") == ["a.csv", "b.csv/part-0.csv", "b.csv/part-1.csv"]
    assert _names(tmp_path / "**/*.csv") == ["a.csv", "b.csv/part-0.csv", "b.csv/part-1.csv"]


def test_a_file_that_is_named_twice_is_reported(tree: Path) -> None:
    found = open_table(InputConfig((f"{tree}/a.csv", f"{tree}/*.csv")))
    assert texts(list(found.records())) == ["a.csv", "a.csv", "b.csv"]
    assert notes_on_files(found) == ["1 file named more than once in the input, and read each time"]


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".jsonl", ".parquet", ".arrow", ".txt"])
def test_a_name_that_is_not_utf8_is_read_and_shown_with_escapes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9" + suffix.encode())
    plain = pa.table({"text": ["a"]})
    with path.open("wb") as file:
        if suffix == ".parquet":
            pq.write_table(plain, file)
        elif suffix == ".arrow":
            with pa.ipc.new_file(file, plain.schema) as writer:
                writer.write_table(plain)
        else:
            data = {".jsonl": b'{"text": "a"}\n', ".txt": b"a\n"}.get(suffix, b"text\na\n")
            file.write(gzip.compress(data) if suffix.endswith(".gz") else data)
    for typed in (path, tmp_path):
        found = open_table(InputConfig((str(typed),)))
        assert texts(list(found.records())) == ["a"]
        assert found.files[0].shown == f"{tmp_path}/caf\\xe9{suffix}"
    with pytest.raises(InputError, match=r"there is no column b") as caught:
        list(open_table(InputConfig((str(path),), keep=("b",))).records())
    assert f"caf\\xe9{suffix}" in caught.value.message
    caught.value.message.encode()


@pytest.mark.parametrize("name", ["plan.json", "manifest.json"])
@pytest.mark.parametrize("content", ["{}", '{"version": 1, "files": ["a.csv"]}', "[1]", "no JSON"])
def test_a_folder_with_a_manifest_of_another_program_is_read(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "sub").mkdir()
    for folder in (tmp_path, tmp_path / "sub"):
        (folder / "a.csv").write_text(f"text\n{(folder / 'a.csv').relative_to(tmp_path)}\n")
        (folder / name).write_text(content)
    assert _names(tmp_path) == ["a.csv", "sub/a.csv"]


@pytest.mark.parametrize("pattern", ["**/*.csv", "**", "**/", "*/**/*.csv", "**/**/*.csv"])
def test_a_glob_of_any_depth_follows_each_link_once(tmp_path: Path, pattern: str) -> None:
    data = tmp_path / "in/data"
    data.mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (data / "a.csv").write_text("text\na\n")
    (tmp_path / "out/b.csv").write_text("text\nb\n")
    for name, target in {"self": ".", "up": "..", "root": tmp_path / "in", "out": tmp_path / "out"}.items():
        (data / name).symlink_to(target)
    found = open_table(InputConfig((str(tmp_path / "in" / pattern),)))
    assert sorted(os.path.realpath(file.name) for file in found.files) == [
        str(data / "a.csv"),
        str(tmp_path / "out/b.csv"),
    ]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_compressed_output_of_json_lines_is_left_out(tmp_path: Path, mark: bytes) -> None:
    own = {"id": "1", "text": "b", "n_tokens": 1, "n_used": 1, "n_chunks": 1, "status": "ok", "embedding": [1]}
    (tmp_path / "a.csv").write_text("text\na.csv\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(mark + json.dumps(own).encode() + b"\n"))
    assert _names(tmp_path) == ["a.csv"]
