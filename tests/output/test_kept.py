"""What is committed is never lost: not to a disk that refuses, nor to another run, nor to an overwrite.

And what is resumed is known by its content, wherever it lies.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedkit
from benchmarks.torture.kills import Bench, contents, look_after_end
from embedkit.engines import in_process, shard_loop
from embedkit.errors import OutputError
from embedkit.storage.checksummed_json import dump_checksummed, load_checksummed
from embedkit.verify import verify_output
from tests.conftest import Ran, last_counts

Cli = Callable[..., Ran]


pytestmark = pytest.mark.usefixtures("models_loaded_once")
#: Outputs that the fixture `bench` makes for this module.
BENCH_OUTPUTS = ("out", "npy", "out.parquet", "out.npy")


# A disk that refuses to be read -------------------------------------------------------------------------


@contextmanager
def refusing(root: Path, number: int, allowed: int) -> Iterator[None]:
    """From the n-th look at anything under a folder on, the disk answers with an error."""
    left = iter(range(allowed))

    def look(path: Any) -> None:
        if isinstance(path, int):
            path = Path(f"/proc/self/fd/{path}").readlink()
        if os.fspath(path).startswith(str(root)) and next(left, None) is None:
            raise OSError(number, os.strerror(number), os.fspath(path))

    def looked(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            mode = arguments[0] if arguments and isinstance(arguments[0], str) else options.get("mode", "r")
            if not set(mode) & set("wax+"):
                look(path)
            return real(path, *arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "read", "scandir", "listdir", "stat", "lstat"):
            patch.setattr(os, name, looked(getattr(os, name)))
        patch.setattr(io, "open", looked(io.open))
        patch.setattr(builtins, "open", looked(builtins.open))
        yield


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="tells paths of open files by /proc")
@pytest.mark.parametrize(
    ("output", "code", "step", "verify"),
    [
        ("folder", "EIO", 5, ()),
        ("folder", "EACCES", 17, ("--verify",)),
        ("parquet file", "ESTALE", 13, ()),
        ("npy files", "EMFILE", 23, ("--verify",)),
    ],
)
def test_a_disk_that_cannot_be_read_at_any_moment_of_a_resume_costs_nothing(
    embedkit_cli: Cli, bench: Bench, tmp_path: Path, output: str, code: str, step: int, verify: tuple[str, ...]
) -> None:
    name, folder = {
        "folder": ("out", "out"),
        "parquet file": ("out.parquet.partial", "out"),
        "npy files": ("out.npy.partial", "npy"),
    }[output]
    failed = 0
    for allowed in range(0, 400, step):
        place = tmp_path / f"place{allowed}"
        shutil.copytree(bench.root / "whole" / folder / folder, place / name)
        for gone in ("manifest.json", "commits/00001.json"):
            (place / name / gone).unlink()
        before = contents(place)
        with refusing(place, getattr(errno, code), allowed):
            ran = embedkit_cli(*bench.arguments(output, place), *verify)
        if ran.code:
            failed += 1
            assert ran.code == 5, (allowed, ran.err)
            assert [line.partition(" ")[0] for line in ran.told] == ["error:", "hint:"]
            assert os.strerror(getattr(errno, code)) in ran.err
            assert before.items() <= contents(place).items(), allowed
        again = embedkit_cli(*bench.arguments(output, place))
        assert again.code == 0, again.err
        look_after_end(bench, output, place)
        shutil.rmtree(place)
        if not ran.code:
            break
    assert failed > 3


@pytest.mark.parametrize("way", ["error", "resume"])
def test_shards_whose_plan_is_gone_are_left_alone(
    embedkit_cli: Cli, bench: Bench, tmp_path: Path, way: str
) -> None:
    shutil.copytree(bench.root / "whole" / "out", tmp_path / "place")
    (tmp_path / "place/out/plan.json").unlink()
    before = contents(tmp_path)
    ran = embedkit_cli(*last_counts("encode", *bench.arguments("folder", tmp_path / "place"), "--on-exists", way))
    assert (ran.code, "without its plan" in ran.err) == (5, True), ran.err
    assert contents(tmp_path) == before


# Another run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["out", "out.parquet", "out.npy", "out.jsonl"])
def test_a_run_in_whose_place_another_recipe_was_written_stops_and_leaves_that_alone(
    encode: Cli, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    """The other one does all of its work between two shards of the first."""
    ran: list[Ran] = []
    non_finite_layers = shard_loop.non_finite_layers
    other = ("--pool", "cls", "--on-exists", "overwrite")

    def overtaken(shard: Any, *arguments: Any) -> Any:
        if shard.read.index == 1 and not ran:
            ran.append(Ran(0, "", ""))
            ran[0] = encode(bench.table, "-o", tmp_path / "place" / output, "--shard-rows", 8, *other)
        return non_finite_layers(shard, *arguments)

    for name in ("place", "alone"):
        (tmp_path / name).mkdir()
    assert encode(bench.table, "-o", tmp_path / "alone" / output, "--shard-rows", 8, "--pool", "cls").code == 0
    monkeypatch.setattr(shard_loop, "non_finite_layers", overtaken)
    first = encode(bench.table, "-o", tmp_path / "place" / output, "--shard-rows", 8, "--pool", "mean")
    assert (ran[0].code, first.code) == (0, 5), (ran[0].err, first.err)
    assert "another run has" in first.err
    assert contents(tmp_path / "place") == contents(tmp_path / "alone")


@pytest.mark.parametrize("output", ["out", "out.parquet"])
def test_of_two_recipes_begun_in_one_place_the_second_stops(
    encode: Cli, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    load, ran = in_process.InProcessEngine.load, []

    def slow(self: Any) -> Any:
        if not ran:
            ran.append(None)
            ran[0] = encode(bench.table, "-o", tmp_path / output, "--pool", "cls")
        return load(self)

    monkeypatch.setattr(in_process.InProcessEngine, "load", slow)
    second = encode(bench.table, "-o", tmp_path / output, "--pool", "mean")
    assert (ran[0].code, second.code) == (0, 5), second.err
    assert embedkit.read(tmp_path / output).recipe["pool"] == ["cls"]
    assert verify_output(tmp_path / output).problems == []


def test_a_record_of_another_plan_does_not_count(encode: Cli, bench: Bench, tmp_path: Path) -> None:
    for name, pool in (("out", "mean"), ("other", "cls")):
        assert encode(bench.table, "-o", tmp_path / name, "--shard-rows", 8, "--pool", pool).code == 0
    for name in ("commits/00001.json", "embeddings/part-00001.parquet"):
        shutil.copy(tmp_path / "other" / name, tmp_path / "out" / name)
    told = [str(problem) for problem in verify_output(tmp_path / "out").problems]
    assert any("commits/00001.json: is of another run" in problem for problem in told)
    (tmp_path / "out/manifest.json").unlink()
    again = (bench.table, "-o", tmp_path / "out", "--shard-rows", 8, "--pool", "mean", "--on-exists", "resume")
    assert encode(*again).code == 0
    assert verify_output(tmp_path / "out").problems == []


# An overwrite -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["out", "out.parquet", "out.npy", "out.jsonl", "out.arrow"])
def test_an_overwrite_that_fails_leaves_the_old_output_as_it_was(
    encode: Cli, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    arguments = (bench.table, "-o", tmp_path / output, "--shard-rows", 8)
    assert encode(*arguments, "--pool", "mean").code == 0
    before = contents(tmp_path)
    write = shard_loop.finish_shard

    def failing(shard: Any, *rest: Any, **options: Any) -> Any:
        if shard.read.index == 1:
            raise OutputError("no more", hint="later")
        return write(shard, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shard_loop, "finish_shard", failing)
        assert encode(*arguments, "--pool", "cls", "--on-exists", "overwrite").code == 5
    assert before.items() <= contents(tmp_path).items()
    assert verify_output(tmp_path / output).problems == []
    # Without a word nothing is replaced; with `resume` the overwrite goes on.
    assert encode(*arguments, "--pool", "mean").code == 5
    other = encode(*arguments, "--pool", "mean", "--on-exists", "resume")
    assert (other.code, "cannot resume: recipe.pool" in other.err) == (5, True), other.err
    assert before.items() <= contents(tmp_path).items()
    assert encode(*arguments, "--pool", "cls", "--on-exists", "resume").code == 0
    assert sorted(contents(tmp_path)) == sorted(before)
    if output != "out.jsonl":
        assert embedkit.read(tmp_path / output).recipe["pool"] == ["cls"]


class _KilledError(BaseException):
    """Ends a run at once."""


@pytest.mark.parametrize("several", [(), ("--layers", "1,2", "--layer-agg", "separate")], ids=["", "several"])
def test_arrays_beside_the_ids_of_another_run_are_not_read(
    encode: Cli, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several: tuple[str, ...]
) -> None:
    out = tmp_path / "out.npy"
    arguments = (bench.table, "-o", out, "--shard-rows", 8, "--pool", "mean", *several)
    assert encode(*arguments, "--normalize").code == 0
    real = os.replace

    def killed(one: Any, other: Any, **within: Any) -> None:
        if "metadata.parquet" in os.fspath(other):
            raise _KilledError
        real(one, other, **within)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        encode(*arguments, "--no-normalize", "--on-exists", "overwrite")
    with pytest.raises(OutputError, match=r"is not the array that out\.metadata\.parquet was written"):
        embedkit.read(out)
    assert verify_output(out).problems
    again = encode(*arguments, "--no-normalize", "--on-exists", "resume")
    assert again.code == 0, again.err
    assert verify_output(out).problems == []
    assert embedkit.read(out).recipe["normalize"] is False


# The same input -----------------------------------------------------------------------------------------


def _elsewhere(table: Path) -> Path:
    (table.parent / "deeper").mkdir()
    return shutil.copy(table, table.parent / "deeper" / "copied.jsonl")


def _touched(table: Path) -> Path:
    os.utime(table, (1, 1))
    return table


def _linked(table: Path) -> Path:
    link = table.parent / "link.jsonl"
    link.symlink_to(table)
    return link


SAME = {
    "touched": _touched,
    "spelled with ./": lambda table: f"{table.parent}/./{table.name}",
    "relative": os.path.relpath,
    "a copy": _elsewhere,
    "a link": _linked,
    "a glob": lambda table: f"{table.parent}/row*.jsonl",
}


@pytest.mark.parametrize("output", ["out", "out.parquet", "groups.parquet"])
@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("change", SAME)
def test_the_same_content_is_the_same_input_wherever_it_lies(
    encode: Cli, bench: Bench, tmp_path: Path, output: str, finished: bool, change: str
) -> None:
    table = Path(shutil.copy(bench.table, tmp_path / "rows.jsonl"))
    options = ("--shard-rows", 8, *(("--group-by", "patient") if output.startswith("groups") else ()))
    if finished:
        assert encode(table, "-o", tmp_path / output, *options).code == 0
    elif output == "out":
        assert encode(table, "-o", tmp_path / output, *options).code == 0
        (tmp_path / "out/manifest.json").unlink()
        (tmp_path / "out/commits/00001.json").unlink()
    else:
        part = ("--shard-id", 0, "--num-shards", 2) if output == "out.parquet" else ()
        assert encode(table, "-o", tmp_path / output, *options, *part).code == 0
    ran = encode(SAME[change](table), "-o", tmp_path / output, *options, "--on-exists", "resume")
    assert ran.code == 0, ran.err
    assert verify_output(tmp_path / output).problems == []


def _big(path: Path, letter: str = "a") -> Path:
    """Rows of 3 MiB in all, one letter in the middle: neither the first nor the last MiB has it."""
    with path.open("w") as file:
        for row in range(24):
            text = f"pain {row} " + "x" * 2**17 + (letter if row == 12 else "a")
            file.write(json.dumps({"id": str(row), "text": text}) + "\n")
    os.utime(path, (1, 1))
    return path


def test_another_letter_in_the_middle_is_another_input_whatever_its_time(encode: Cli, tmp_path: Path) -> None:
    table = _big(tmp_path / "rows.jsonl")
    for output in ("out", "out.parquet"):
        assert encode(table, "-o", tmp_path / output, "--shard-rows", 8).code == 0
    (tmp_path / "out/manifest.json").unlink()
    before = contents(tmp_path)
    _big(table, "b")
    for output in ("out", "out.parquet"):
        ran = encode(table, "-o", tmp_path / output, "--shard-rows", 8, "--on-exists", "resume")
        assert (ran.code, "input" in ran.err) == (5, True), ran.err
        assert {**contents(tmp_path), "rows.jsonl": b""} == {**before, "rows.jsonl": b""}
    _big(table)
    assert encode(table, "-o", tmp_path / "out", "--shard-rows", 8, "--on-exists", "resume").code == 0


def test_files_in_another_order_are_another_input(encode: Cli, bench: Bench, tmp_path: Path) -> None:
    second = tmp_path / "b.jsonl"
    second.write_text(bench.table.read_text().replace("pain", "gain"))
    assert encode(bench.table, second, "-o", tmp_path / "out").code == 0
    (tmp_path / "out/manifest.json").unlink()
    ran = encode(second, bench.table, "-o", tmp_path / "out", "--on-exists", "resume")
    assert (ran.code, "input.files[0]" in ran.err) == (5, True), ran.err


def test_an_output_of_the_version_before_is_gone_on_with(encode: Cli, bench: Bench, tmp_path: Path) -> None:
    """It hashed no whole file, and its records did not name their plan."""
    out = tmp_path / "out"
    arguments = (bench.table, "-o", out, "--shard-rows", 8)
    assert encode(*arguments).code == 0
    vectors = np.array(embedkit.read(out).vectors)
    plan = load_checksummed((out / "plan.json").read_bytes())
    for file in plan["input"]["files"]:
        del file["content_sha256"]
    (out / "plan.json").write_bytes(dump_checksummed(plan))
    record = load_checksummed((out / "commits/00000.json").read_bytes())
    del record["plan_sha256"]
    (out / "commits/00000.json").write_bytes(dump_checksummed(record))
    for gone in ("manifest.json", "commits/00001.json"):
        (out / gone).unlink()
    written = (out / "embeddings/part-00000.parquet").stat().st_mtime_ns
    ran = encode(*arguments, "--on-exists", "resume")
    assert ran.code == 0, ran.err
    assert (out / "embeddings/part-00000.parquet").stat().st_mtime_ns == written
    assert np.array_equal(embedkit.read(out).vectors, vectors)
    assert verify_output(out).problems == []
