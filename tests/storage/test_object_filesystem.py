"""An object store lists, finds and describes files as the local file system does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from embedkit.config import InputConfig
from embedkit.errors import InputError, OutputError, UsageError
from embedkit.sources import open_table
from embedkit.storage.filesystem import (
    exists,
    file_names,
    is_folder,
    list_files,
    match_files,
    new_files,
    open_file,
    read_file,
    remove_tree,
    stat_file,
    walk_folder,
    write_file,
)
from embedkit.storage.object_store import StoredObject
from embedkit.storage.remote_path import RemotePath
from embedkit.storage.store_errors import StoreError
from tests.conftest import Ran
from tests.storage.memory_store import MemoryStore

FILES = ["a.csv", "b.csv", "b[1].csv", ".hidden.csv", "sub/c.csv", "sub/deep/d.csv", "sub/.e.csv", ".dot/f.csv"]
FILES += ["x/y"]
TOP = "s3://bucket/top"


@pytest.fixture
def both(tmp_path: Path, bucket: MemoryStore) -> str:
    """Returns the same files in a local folder and in the bucket."""
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        bucket.write(f"top/{name}", name.encode())
    return str(tmp_path)


@pytest.mark.parametrize(
    "pattern",
    [
        *("*.csv", "*", "?.csv", "[ab].csv", "[!a].csv", "b[[]1].csv", ".*", "*/*.csv", "sub/*", "s*", "**"),
        *("**/*.csv", "sub/**", "sub/**/*.csv", "**/deep/*", "*/deep/d.csv", "none/*", "[", "x/[y", "*.CSV"),
        "su?/c.csv",
    ],
)
def test_globs_find_what_they_find_in_a_local_folder(both: str, pattern: str) -> None:
    local = {name.removeprefix(both) for name in match_files(f"{both}/{pattern}")}
    assert {name.removeprefix(TOP) for name in match_files(f"{TOP}/{pattern}")} == local


def test_folders_are_walked_as_local_ones_are(both: str) -> None:
    def walked(top: str) -> list[tuple[str, list[str], list[str]]]:
        return sorted(
            (root.removeprefix(top), sorted(inner), sorted(files)) for root, inner, files in walk_folder(top)
        )

    assert walked(TOP) == walked(both)
    assert sorted(list_files(TOP, "p/")) == sorted(list_files(both, "p/"))
    assert sorted(file_names(TOP)) == sorted(file_names(both))
    assert [is_folder(f"{TOP}/{name}") for name in ("sub", "sub/", "a.csv", "none")] == [True, True, False, False]


def test_names_that_are_taken_out_of_a_walk_are_not_visited(both: str) -> None:
    seen = []
    for root, folders, _ in walk_folder(TOP):
        seen.append(root.removeprefix(TOP))
        folders[:] = [name for name in folders if name != "deep"]
    assert seen == ["", "/sub", "/x"]


def test_new_files_appear_when_all_are_there_and_the_first_writer_wins(bucket: MemoryStore) -> None:
    folder = RemotePath("s3://bucket/out")
    files = new_files(folder)
    for name in ("last", "first"):
        with files.create(name) as file:
            file.write(name.encode())
    assert not bucket.objects
    made = files.publish(last="last")
    assert [(file.path, file.bytes, file.sha256) for file in made] == [
        (name, len(name), hashlib.sha256(name.encode()).hexdigest()) for name in ("first", "last")
    ]
    assert not write_file(folder, "first", b"other", replace=False)
    assert read_file(folder / "first") == b"first"
    assert write_file(folder, "first", b"other")
    files = new_files(folder)
    files.create("dropped").write(b"x")
    files.discard()
    assert {name for name, _ in list_files(folder)} == {"first", "last"}
    remove_tree(folder)
    assert not exists(folder)


def test_a_file_above_the_limit_goes_by_the_disk_and_arrives_whole(
    bucket: MemoryStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("embedkit.storage.spool._IN_MEMORY", 1000)
    content = bytes(range(256)) * 20
    assert write_file(RemotePath("s3://bucket/out"), "big", content)
    assert bucket.content["out/big"] == content


def test_an_open_file_is_of_one_version(bucket: MemoryStore) -> None:
    bucket.write("k", b"1" * 3 * 2**20)
    known = stat_file("s3://bucket/k")
    with open_file("s3://bucket/k") as file:
        assert file.read(10) == b"1" * 10
        bucket.write("k", b"2" * 3 * 2**20)
        with pytest.raises(StoreError, match="was changed"):
            file.read()
    with pytest.raises(StoreError, match="was changed"), open_file("s3://bucket/k", known) as file:
        file.seek(2**20 + 1)
        file.read()


def test_an_object_that_changes_while_its_rows_are_read_is_an_error(bucket: MemoryStore) -> None:
    bucket.write("k.csv", b"text\n" + b"one text\n" * 400_000)
    table = open_table(InputConfig(("s3://bucket/k.csv",)))
    rows = table.records()
    next(rows)
    bucket.write("k.csv", bucket.content["k.csv"].replace(b"one", b"two"))
    with pytest.raises(InputError, match="was changed while it was read"):
        list(rows)


def test_a_changed_object_of_equal_size_head_and_tail_is_found_by_its_etag(bucket: MemoryStore) -> None:
    content = b"text\n" + b"one text\n" * 400_000
    bucket.write("k.csv", content)
    table = open_table(InputConfig(("s3://bucket/k.csv",)))
    bucket.write("k.csv", content[: 2**21] + b"X" + content[2**21 + 1 :])
    assert hashlib.sha256(content[: 2**20] + content[-(2**20) :]).hexdigest() == table.files[0].sha256
    again = open_table(InputConfig(("s3://bucket/k.csv",)))
    assert again.files[0].sha256 == table.files[0].sha256
    with pytest.raises(InputError, match="was changed while it was read"):
        table.check_unchanged()


def test_planning_reads_a_small_object_once(bucket: MemoryStore) -> None:
    for number in range(3):
        bucket.write(f"in/{number}.jsonl", b'{"text": "a"}\n' * (number + 1))
    table = open_table(InputConfig(("s3://bucket/in",)))
    assert table.scan().rows == len(list(table.records())) == 6
    assert bucket.requests["get"] == 3


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", b"text\nfever\n"), ("a.jsonl", b'{"text": "fever"}\n'), ("a.txt", b"fever\n")]
)
def test_an_object_is_described_and_read_by_one_request_each(
    bucket: MemoryStore, name: str, content: bytes
) -> None:
    bucket.write(name, content)
    table = open_table(InputConfig((f"s3://bucket/{name}",)))
    assert table.scan().rows == 1
    assert bucket.requests == {"head": 1, "get": 1}
    bucket.write(name, content.replace(b"fever", b"cough"))
    with pytest.raises(InputError, match="was changed while it was read"):
        table.check_unchanged()


def test_a_private_output_is_refused(bucket: MemoryStore) -> None:
    with pytest.raises(UsageError, match="access rules"):
        write_file(RemotePath("s3://bucket/out"), "key", b"secret", private=True)


def test_a_failing_store_is_an_error_of_the_output(
    bucket: MemoryStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> StoredObject:
        raise StoreError("the store refuses access (HTTP 403)", "check it", "s3://bucket/out/a")

    monkeypatch.setattr(MemoryStore, "put", fail)
    with pytest.raises(OutputError, match="cannot write s3://bucket/out/a: the store refuses access") as caught:
        write_file(RemotePath("s3://bucket/out"), "a", b"x")
    assert caught.value.hint == "check it"


@pytest.mark.parametrize(("n_rows", "is_known"), [(20, True), (200_000, False)])
def test_an_input_whose_bytes_were_put_again_is_the_same_if_a_hash_of_all_of_them_says_so(
    n_rows: int, is_known: bool, bucket: MemoryStore, encode: Callable[..., Ran], tmp_path: Path
) -> None:
    bucket.etags = "unique"  # another one with each put
    content = b"id,text\n" + b"".join(b"%d,has fever\n" % row for row in range(n_rows))
    bucket.write("a.csv", content)
    words = ("s3://bucket/a.csv", "-o", tmp_path / "out", "--shard-rows", 10, "--limit", 20)
    assert encode(*words).code == 0
    names = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    def resumed() -> Ran:
        (tmp_path / "out" / "manifest.json").unlink(missing_ok=True)
        return encode(*words, "--on-exists", "resume")

    bucket.write("a.csv", content)
    again = resumed()
    assert again.code == (0 if is_known else 5), again.err
    if is_known:
        assert {path: path.read_bytes() for path in names} == names
    else:
        assert "input.files[0].etag" in again.err
    bucket.write("a.csv", content[:-2] + b"X\n")
    changed = resumed()
    assert (changed.code, "input.files[0]" in changed.err) == (5, True)
