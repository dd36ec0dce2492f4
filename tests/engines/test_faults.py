"""What goes wrong under a run: disks that fill and fail, files that change, weights that give no numbers.

Each ends in the right exit code with one `error:` and one `hint:` line, leaves only whole files, and is resumed to
the bytes of an undisturbed run. Runs that are killed at every system call are in benchmarks/torture/kills.py; its
short form, every third call, runs here.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import embedkit
from benchmarks.torture.calls import KINDS, OnCall, watched
from benchmarks.torture.kills import (
    SHARD_ROWS,
    Bench,
    contents,
    look_after_end,
    look_after_kill,
)
from embedkit.engines import shard_loop
from embedkit.engines.accounting import account_for_rows
from embedkit.errors import EmbedkitError
from embedkit.manifest.schema import ShardRecord
from embedkit.types import TextCounts
from tests.conftest import Ran, last_counts
from tests.manifest.plans import make_plan, make_record

MODEL, INPUT, OUTPUT = 4, 3, 5
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="tells paths of open files by /proc")

Cli = Callable[..., Ran]


pytestmark = pytest.mark.usefixtures("models_loaded_once")


def in_two_lines(ran: Ran) -> tuple[str, str]:
    """Returns the error and the hint, and nothing else."""
    assert [line.partition(" ")[0] for line in ran.told] == ["error:", "hint:"], ran.err
    error, hint = ran.told
    return error, hint


def failing(kind: str, number: int, allowed: int) -> OnCall:
    """Fails at every call of a kind but the first few; `torn` is a write of which half is written."""
    left = iter(range(allowed))
    is_broken = False

    def on_call(called: str, where: str) -> bool:
        nonlocal is_broken
        if called == "torn" or (is_broken and called == "write"):
            raise OSError(number, os.strerror(number), where)
        if called == ("write" if kind == "torn" else kind) and next(left, None) is None:
            is_broken = kind == "torn" and called == "write"
            if not is_broken:
                raise OSError(number, os.strerror(number), where)
        return is_broken and called == "write"

    return on_call


def temporaries(folder: Path) -> list[str]:
    return [name for name in contents(folder) if Path(name).name.startswith(".")]


# Disks ---------------------------------------------------------------------------------------------------


@LINUX
@pytest.mark.parametrize(
    ("output", "code", "step"),
    [
        ("folder", "ENOSPC", 1),
        ("folder", "EDQUOT", 3),
        ("folder", "EIO", 2),
        ("parquet file", "ENOSPC", 3),
        ("npy files", "EIO", 4),
    ],
)
@pytest.mark.parametrize("kind", ["write", "torn", "fsync", "rename"])
def test_a_disk_that_fails_at_any_call_ends_the_run_with_5_and_resume_goes_on(
    embedkit_cli: Cli, bench: Bench, tmp_path: Path, output: str, code: str, step: int, kind: str
) -> None:
    """A full disk stays full: from its n-th call on, every call of this kind fails. A torn write wrote half."""
    number = getattr(errno, code)
    for allowed in range(0, 100, step):
        place = tmp_path / f"place{allowed}"
        place.mkdir()
        with watched(place, failing(kind, number, allowed)):
            ran = embedkit_cli(*bench.arguments(output, place))
        if ran.code == 0:
            break
        assert ran.code == OUTPUT, ran.err
        error, hint = in_two_lines(ran)
        assert os.strerror(number) in error
        assert ("free some space" in hint) == (code != "EIO")
        assert temporaries(place) == []
        look_after_kill(bench, output, place)
        again = embedkit_cli(*bench.arguments(output, place))
        assert again.code == 0, again.err
        look_after_end(bench, output, place)
    assert 4 <= allowed < 99


@LINUX
@pytest.mark.parametrize(
    ("output", "code"), [("folder", "EROFS"), ("parquet file", "EACCES"), ("npy files", "EROFS")]
)
def test_an_output_that_became_read_only_ends_the_run_with_5_and_resume_goes_on(
    embedkit_cli: Cli, bench: Bench, tmp_path: Path, output: str, code: str
) -> None:
    """From its n-th change on, none is allowed: not even temporary files can be removed."""
    number = getattr(errno, code)
    for allowed in range(0, 100, 6):
        place = tmp_path / f"place{allowed}"
        place.mkdir()
        made = count()

        def on_call(called: str, where: str, made: Any = made, allowed: int = allowed) -> None:
            if called in KINDS and next(made) >= allowed:
                raise OSError(number, os.strerror(number), where)

        with watched(place, on_call):
            ran = embedkit_cli(*bench.arguments(output, place))
        if ran.code == 0:
            break
        assert ran.code == OUTPUT, (allowed, ran.err)
        error, _ = in_two_lines(ran)
        assert os.strerror(number) in error
        look_after_kill(bench, output, place)
        again = embedkit_cli(*bench.arguments(output, place))
        assert again.code == 0, again.err
        look_after_end(bench, output, place)
    assert 10 <= allowed < 99


@LINUX
@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("encode ROWS -m MODEL -o closed/out", OUTPUT),
        ("encode ROWS -m MODEL -o closed/out --on-exists overwrite", OUTPUT),
        ("encode ROWS -m MODEL -o closed/out.npy", OUTPUT),
        ("encode ROWS -m MODEL -o closed/out.parquet --group-by patient", OUTPUT),
        ("fit ROWS -m MODEL --pooler idf -o closed/p.safetensors", OUTPUT),
        ("sweep ROWS -m MODEL --label patient -o closed/sw", OUTPUT),
        ("verify closed/out", OUTPUT),
        ("inspect closed/out.npy", OUTPUT),
        ("report closed/out", OUTPUT),
        ("report closed/out -o closed/page.html", OUTPUT),
        ("encode closed/rows.jsonl -m MODEL -o new", INPUT),
        ("encode closed -m MODEL -o new", INPUT),
        ("encode closed/*.jsonl -m MODEL -o new", INPUT),
    ],
)
def test_a_place_that_may_not_be_looked_at_is_named_with_the_reason(
    embedkit_cli: Cli,
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    code: int,
    number: int,
) -> None:
    """Another user's folder, or one on a server that was started anew: all that is asked of it is refused."""

    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            if "closed" in str(path).split("/"):
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *arguments, **options)

        return call

    for of, name in ((os, "stat"), (os, "lstat"), (os, "open"), (os, "scandir"), (os, "listdir"), (io, "open")):
        monkeypatch.setattr(of, name, refusing(getattr(of, name)))
    monkeypatch.setattr(builtins, "open", refusing(open))
    monkeypatch.chdir(tmp_path)
    given = {"ROWS": bench.table, "MODEL": bench.model}
    ran = embedkit_cli(*(given.get(word, word) for word in words.split()))
    assert ran.code == code, ran.err
    assert ran.told[-2].startswith("error: ")
    assert re.search(f"closed.*{os.strerror(number)}", ran.told[-2]), ran.err
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_an_output_in_a_folder_that_is_read_only_is_an_output_error(
    embedkit_cli: Cli, bench: Bench, tmp_path: Path
) -> None:
    tmp_path.chmod(0o500)
    for output in ("folder", "parquet file"):
        ran = embedkit_cli(*bench.arguments(output, tmp_path))
        assert ran.code == OUTPUT, ran.err
        assert "Permission denied" in in_two_lines(ran)[0]
    tmp_path.chmod(0o700)


def test_clocks_that_were_set_back_do_not_matter(embedkit_cli: Cli, bench: Bench, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(bench.root / "whole" / "out", place)
    (place / "out" / "manifest.json").unlink()
    (place / "out" / "commits" / "00001.json").unlink()
    for path in place.rglob("*"):
        os.utime(path, (4e9, 4e9))
    ran = embedkit_cli(*bench.arguments("folder", place))
    assert ran.code == 0, ran.err
    look_after_end(bench, "folder", place)


@pytest.mark.parametrize("rule", ["error", "resume", "overwrite"])
@pytest.mark.parametrize("mine", ["embeddings/mine.npy", "metadata/deep/er.txt", "commits/notes.md", "rejects/.x"])
def test_a_folder_of_somebody_elses_files_under_embedkits_names_is_left_alone(
    embedkit_cli: Cli, bench: Bench, tmp_path: Path, rule: str, mine: str
) -> None:
    path = tmp_path / "out" / mine
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    ran = embedkit_cli(*last_counts("encode", *bench.arguments("folder", tmp_path), "--on-exists", rule))
    assert ran.code == OUTPUT
    assert "not embedkit's" in in_two_lines(ran)[0]
    assert contents(tmp_path) == {f"out/{mine}": b"mine"}


# Damage --------------------------------------------------------------------------------------------------


def torn(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def half_zeroed(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


@pytest.mark.parametrize("damage", [torn, zeroed, emptied, half_zeroed])
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_record_is_made_again(
    embedkit_cli: Cli, bench: Bench, tmp_path: Path, damage: Callable[[Path], None], finished: bool
) -> None:
    place = tmp_path / "place"
    shutil.copytree(bench.root / "whole" / "out", place)
    if not finished:
        (place / "out" / "manifest.json").unlink()
    damage(place / "out" / "commits" / "00001.json")
    ran = embedkit_cli(*bench.arguments("folder", place))
    assert ran.code == 0, ran.err
    look_after_end(bench, "folder", place)


@pytest.mark.parametrize("damage", [torn, zeroed, emptied, half_zeroed])
@pytest.mark.parametrize("output", ["folder", "folder of npy"])
def test_damaged_data_is_made_again_by_size_alone_or_with_verify_by_its_hash(
    embedkit_cli: Cli, bench: Bench, tmp_path: Path, damage: Callable[[Path], None], output: str
) -> None:
    name = "out" if output == "folder" else "npy"
    place = tmp_path / "place"
    for part in contents(bench.root / "whole" / name):
        if "part-00000" not in part:
            continue
        shutil.copytree(bench.root / "whole" / name, place)
        damage(place / part)
        changes_size = damage in (torn, emptied)
        ran = embedkit_cli(*bench.arguments(output, place), *(() if changes_size else ("--verify",)))
        assert ran.code == 0, ran.err
        look_after_end(bench, output, place)
        shutil.rmtree(place)


@pytest.mark.parametrize("damage", [torn, zeroed, emptied, half_zeroed])
def test_a_damaged_plan_is_reported_and_not_guessed(
    embedkit_cli: Cli, bench: Bench, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    place = tmp_path / "place"
    shutil.copytree(bench.root / "whole" / "out", place)
    damage(place / "out" / "plan.json")
    before = contents(place)
    ran = embedkit_cli(*bench.arguments("folder", place))
    assert ran.code == OUTPUT
    error, hint = in_two_lines(ran)
    assert "plan.json is damaged" in error
    assert "--on-exists overwrite" in hint
    assert contents(place) == before


@pytest.mark.parametrize("damage", [torn, zeroed, emptied, half_zeroed])
@pytest.mark.parametrize("output", ["parquet file", "npy files", "jsonl file", "arrow file"])
def test_damaged_parts_never_end_up_in_a_single_file(
    embedkit_cli: Cli, bench: Bench, tmp_path: Path, damage: Callable[[Path], None], output: str
) -> None:
    """The parts are those of a run that was stopped before it joined them."""
    name, folder = {
        "parquet file": ("out.parquet", "out"),
        "npy files": ("out.npy", "npy"),
        "jsonl file": ("out.jsonl", "jsonl"),
        "arrow file": ("out.arrow", "arrow"),
    }[output]
    place = tmp_path / "place"
    shutil.copytree(bench.root / "whole" / folder / folder, place / f"{name}.partial")
    (place / f"{name}.partial" / "manifest.json").unlink()
    damage(next(path for path in sorted((place / f"{name}.partial" / "embeddings").iterdir())))
    ran = embedkit_cli(*bench.arguments(output, place))
    if ran.code == OUTPUT:
        in_two_lines(ran)
        assert not (place / name).exists()
        ran = embedkit_cli(*bench.arguments(output, place), "--verify")
    assert ran.code == 0, ran.err
    look_after_end(bench, output, place)


# The input, the model, the count -------------------------------------------------------------------------


@pytest.fixture
def table(bench: Bench, tmp_path: Path) -> Path:
    return shutil.copy(bench.table, tmp_path / "rows.jsonl")


def _grown(path: Path) -> None:
    with path.open("a") as file:
        file.write('{"id": "new", "text": "one more"}\n')


def _shrunk(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _other_content(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"pain", b"gain"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [_grown, _shrunk, _other_content, Path.touch, Path.unlink])
@pytest.mark.parametrize("output", ["out", "out.parquet"])
def test_an_input_that_changes_under_a_run_is_an_input_error(
    encode: Cli,
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    output: str,
) -> None:
    changes = iter([change])
    finish_shard = shard_loop.finish_shard

    def changing(*arguments: Any, **options: Any) -> Any:
        next(changes, lambda _: None)(table)
        return finish_shard(*arguments, **options)

    monkeypatch.setattr(shard_loop, "finish_shard", changing)
    arguments = (table, "-o", tmp_path / output, "--shard-rows", SHARD_ROWS)
    ran = encode(*arguments, "-q")
    assert ran.code == INPUT, ran.err
    # A reader that comes upon the change says so first: in terms of rows.
    error, _ = in_two_lines(ran)
    assert "rows.jsonl" in error or "when the run was planned" in error
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not (tmp_path / "out.parquet").exists()
    # What was committed is of an input that is no more; where the reader was first, nothing was.
    nothing_left = not any(there.name.startswith("out") for there in tmp_path.iterdir())
    again = encode(*arguments, "--on-exists", "resume")
    # A file that was only touched has the content that it had.
    goes_on = nothing_left or change is Path.touch
    assert again.code in {INPUT, OUTPUT} or (goes_on and again.code == 0), again.err


@pytest.fixture(scope="module")
def spoiled(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Returns a model that gives NaN for texts with one certain token, and texts of which the third has it."""
    from transformers import AutoTokenizer

    texts = ["pain", "short of breath", "the quetiapine was held", "no fever", ""]
    tokenizer = AutoTokenizer.from_pretrained(bert)
    ids = [set(tokenizer(text)["input_ids"]) for text in (*texts, "a cat the dog did not see it one two three")]
    (token, *_) = ids.pop(2) - set.union(*ids)
    folder = tmp_path_factory.mktemp("spoiled") / "model"
    shutil.copytree(bert, folder)
    weights = load_file(folder / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name][token] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, texts


@pytest.mark.parametrize("rule", [None, "null", "skip"])
@pytest.mark.parametrize("output", ["out", "out.npy"])
def test_a_model_that_gives_nan_fails_by_row_or_costs_that_row_alone(
    encode: Cli, bert: Path, spoiled: tuple[Path, list[str]], tmp_path: Path, rule: str | None, output: str
) -> None:
    folder, texts = spoiled
    table = tmp_path / "rows.jsonl"
    table.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    arguments = (table, "-m", folder, "-o", tmp_path / output, "--pool", "mean", "--no-normalize")
    ran = encode(*arguments, *(("--on-bad-row", rule) if rule else ()))
    if rule is None:
        assert ran.code == MODEL
        error, hint = in_two_lines(ran)
        assert error.endswith("a vector is not finite (NaN or infinite) from layer 0 on: row 2")
        assert "--on-bad-row null" in hint
        assert not (tmp_path / output).exists()
        assert not (tmp_path / f"{output}.partial").exists()
        return
    assert ran.code == 0, ran.err
    found = embedkit.read(tmp_path / output)
    assert found.ids == ["0", "1", "3"]
    assert np.isfinite(found.vectors).all()
    clean = embedkit.Encoder(str(bert), pool="mean").encode(["pain", "short of breath", "no fever"])
    np.testing.assert_allclose(found.vectors, clean, atol=2e-6)
    if output == "out":
        statuses = dict(zip(found.table["id"].to_pylist(), found.table["status"].to_pylist(), strict=True))
        assert statuses.get("2") == ("non_finite" if rule == "null" else None)
    listed = (tmp_path / ("out/rejects/part-00000.jsonl" if output == "out" else "out.rejects.jsonl")).read_text()
    codes = {line["row"]: line["code"] for line in map(json.loads, listed.splitlines())}
    assert codes == ({2: "non_finite"} if output == "out" else {2: "non_finite", 4: "empty"})


def record_of(index: int, statuses: dict[str, int], **changes: Any) -> ShardRecord:
    """Of eight rows of the input; `statuses` count the rows of the output."""
    rows = TextCounts(sum(statuses.values()), statuses, 0, 0)
    return make_record(index, 8, **{"vectors": 6, "rejects": 1, "by_row": rows, "by_text": rows, **changes})


STATUSES = {"ok": 5, "truncated": 1, "empty": 1, "short_row": 1}
SKIPPED = {"ok": 6, "empty": 1}
RECORD, NEXT = record_of(0, STATUSES), record_of(1, STATUSES)
NINE = TextCounts(9, STATUSES, 0, 0)


@pytest.mark.parametrize(
    ("records", "rule", "form", "sound"),
    [
        ([RECORD, NEXT], "null", "parquet", True),
        ([replace(RECORD, rejects=2), NEXT], "null", "npy", True),
        ([RECORD, record_of(1, SKIPPED)], "null", "parquet", False),
        ([record_of(0, SKIPPED)], "skip", "parquet", True),
        ([record_of(0, SKIPPED, rejects=2)], "skip", "npy", True),
        ([RECORD], "null", "parquet", False),
        ([NEXT, RECORD], "null", "parquet", False),
        ([RECORD, RECORD], "null", "parquet", False),
        ([RECORD, replace(NEXT, start=9)], "null", "parquet", False),
        ([RECORD, replace(NEXT, vectors=7)], "null", "parquet", False),
        ([RECORD, replace(NEXT, by_row=NINE, by_text=NINE)], "null", "parquet", False),
    ],
)
def test_rows_in_are_vectors_nulls_and_rejects(
    records: list[ShardRecord], rule: str, form: str, sound: bool
) -> None:
    plan = make_plan(8 if rule == "skip" else 16, 8, on_bad_row=rule, format=form)
    told = contextlib.nullcontext() if sound else pytest.raises(EmbedkitError, match="not every row is accounted")
    with told:
        account_for_rows(records, plan)


@pytest.mark.parametrize("output", ["folder", "parquet file", "npy files"])
def test_a_row_that_got_lost_within_embedkit_is_noticed_before_the_output_is_called_whole(
    embedkit_cli: Cli, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    """The stage that computes drops the last row of a shard, with its vector and its receipt."""
    finish_shard = shard_loop.finish_shard

    def losing(*arguments: Any, **options: Any) -> Any:
        shard = finish_shard(*arguments, **options)
        if shard.index == 0:
            return shard
        return replace(
            shard,
            ids=shard.ids[:-1],
            n_tokens=shard.n_tokens[:-1],
            n_used=shard.n_used[:-1],
            n_chunks=shard.n_chunks[:-1],
            status=shard.status[:-1],
            has_vector=shard.has_vector[:-1],
            vectors={name: vectors[:-1] for name, vectors in shard.vectors.items()},
        )

    monkeypatch.setattr(shard_loop, "finish_shard", losing)
    ran = embedkit_cli(*bench.arguments(output, tmp_path))
    assert ran.code == 1
    assert "not every row is accounted for in shard 1, rows 8 to 16" in in_two_lines(ran)[0]
    assert not {"out/manifest.json", "out.parquet", "out.npy"} & contents(tmp_path).keys()


@pytest.mark.parametrize("name", ["manifest.json", "plan.json"])
def test_a_manifest_or_a_plan_of_another_run_is_not_believed(
    embedkit_cli: Cli, bench: Bench, tmp_path: Path, name: str
) -> None:
    for place, layer in (("one", "2"), ("other", "1")):
        ran = embedkit_cli(*bench.arguments("folder", tmp_path / place), "--layers", layer)
        assert ran.code == 0, ran.err
    shutil.copy(tmp_path / "other" / "out" / name, tmp_path / "one" / "out" / name)
    with pytest.raises(EmbedkitError, match="not of one run"):
        embedkit.read(tmp_path / "one" / "out")


# Killed --------------------------------------------------------------------------------------------------


@LINUX
@pytest.mark.long
def test_a_run_may_be_killed_at_calls_that_change_a_file_and_at_any_time() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.torture.kills", "--short"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "0 rows lost, 0 doubled, 0 reordered, bytes identical" in ran.stdout
