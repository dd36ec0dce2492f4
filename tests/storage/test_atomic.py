"""Temporary files: what a dead process left goes, what a live one writes stays."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time

import pytest

from embedkit.output.commit import OutputFolder
from embedkit.storage.atomic import is_leftover, is_temporary, temporary_name
from embedkit.storage.filesystem import new_files
from embedkit.storage.hash_key import HashKey, join_key
from tests.manifest.plans import make_plan

NOBODY = 2**22 + 1  # more than Linux numbers processes to
DAY = 24 * 3600


def of_process(name: str, pid: int, machine: str | None = None) -> str:
    ours = temporary_name(name)
    here = ours.removeprefix(f".{name}.").partition("-")[0]
    return f".{name}.{machine or here}-{pid}.tmp"


@pytest.mark.parametrize(
    ("pid", "machine", "age", "is_one"),
    [
        (NOBODY, None, 0, True),
        (os.getpid(), None, 10 * DAY, False),
        (os.getppid(), None, 0, False),
        (NOBODY, "01234567", 0, False),
        (NOBODY, "01234567", 2 * DAY, True),
        (os.getpid(), "01234567", -2 * DAY, False),
    ],
    ids=["dead", "own, old", "alive", "elsewhere", "elsewhere, old", "elsewhere, from a clock ahead"],
)
def test_a_leftover_is_a_file_that_no_process_writes(tmp_path, pid, machine, age, is_one):
    path = tmp_path / of_process("part-00000.npy", pid, machine)
    path.touch()
    os.utime(path, (time.time() - age,) * 2)
    assert is_temporary(path.name)
    assert is_leftover(path) == is_one


@pytest.mark.parametrize("name", ["part-00000.npy", ".hidden", ".notes.csv.tmp", ".part-00000.npy.999.tmp"])
def test_other_files_are_no_leftovers(tmp_path, name):
    (tmp_path / name).touch()
    assert not is_temporary(name)
    assert not is_leftover(tmp_path / name)


def test_two_processes_write_the_same_file_under_two_names_and_both_end_well(tmp_path):
    files = new_files(tmp_path)
    with files.create("a.npy") as file:
        file.write(b"vectors")
    other = (
        "import sys; from pathlib import Path; from embedkit.storage.filesystem import new_files\n"
        "files = new_files(Path(sys.argv[1]))\n"
        "with files.create('a.npy') as file: file.write(b'vectors')\n"
        "files.publish()"
    )
    subprocess.run([sys.executable, "-c", other, tmp_path], check=True)
    assert (tmp_path / "a.npy").read_bytes() == b"vectors"
    files.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_of_two_plans_the_first_one_counts_for_both(tmp_path):
    one, other = OutputFolder(tmp_path / "out"), OutputFolder(tmp_path / "out")
    assert one.join_plan(make_plan(10)) == make_plan(10)
    assert other.join_plan(make_plan(11)) == make_plan(10)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["commits", "plan.json"]


@pytest.fixture
def no_links(monkeypatch):
    """The files are on a file system without hard links."""

    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))  # as of FAT

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("no_links")
def test_ranks_join_a_plan_where_there_are_no_links_too(tmp_path):
    one, other = OutputFolder(tmp_path / "out"), OutputFolder(tmp_path / "out")
    assert one.join_plan(make_plan()) == other.join_plan(make_plan()) == make_plan()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["commits", "plan.json"]


@pytest.mark.usefixtures("no_links")
def test_ranks_join_a_key_where_there_are_no_links_too_and_others_cannot_read_it(tmp_path):
    path, first = tmp_path / "out.key", HashKey.new()
    assert join_key(path, first) == join_key(path, HashKey.new()) == first
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (first.secret + b"\n", 0o600)
    assert list(tmp_path.iterdir()) == [path]
