"""A run that is killed at any moment, and resumed, ends with the bytes of one that was not.

Runs are killed for good, by SIGKILL, at a chosen rename or removal of a file: these are the steps from one
state on disk to the next. They are forked from one process that has imported everything and used nothing.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import embedkit
from tests.conftest import NOTES, last_counts

SHARDS = 9  # of 8 rows: 67 notes
NPY = ("--output-format", "npy")


class Kill(NamedTuple):
    """A run, and where it is killed.

    Attributes:
        output: what `-o` names.
        call: what is counted: renames, or removals of files by shutil.rmtree.
        times: how many of these the run makes before it is killed.
        options: of the run.
        former: what is there already is from a run of all 67 notes.
    """

    output: str
    call: str
    times: int
    options: tuple[str, ...] = ()
    former: bool = False


#: Renames: plan.json, then each shard's files and its record (a shard of .npy has two files; shard 7, with
#: the empty text, a third), then manifest.json; of a single file, its own files in the place of a manifest.
#: Removals: the records and parts of a folder that is no longer wanted.
KILLS = {
    "before the plan": Kill("out", "rename", 0),
    "before the first shard": Kill("out", "rename", 1),
    "between a shard's file and its record": Kill("out", "rename", 2),
    "between two shards": Kill("out", "rename", 11),
    "before the manifest": Kill("out", "rename", 1 + 2 * SHARDS),
    "between the two files of a shard": Kill("out", "rename", 1 + 3 * 2 + 1, NPY),
    "file: before the plan": Kill("out.parquet", "rename", 0),
    "file: between two shards": Kill("out.parquet", "rename", 11),
    "file: before it is there": Kill("out.parquet", "rename", 1 + 2 * SHARDS),
    "file: one of its parts removed": Kill("out.parquet", "removal", 1),
    "file: half of its parts removed": Kill("out.parquet", "removal", 10),
    "file: nearly all of its parts removed": Kill("out.parquet", "removal", 2 * SHARDS),
    "two files: before both": Kill("out.npy", "rename", 1 + 3 * SHARDS + 1),
    "two files: between them": Kill("out.npy", "rename", 1 + 3 * SHARDS + 2),
}
FEWER = ("--limit", "20", "--on-exists", "overwrite")  # three shards
OVERWRITES = {
    "half of the old records removed": Kill("out", "removal", 5, FEWER, former=True),
    "one of the old parts removed": Kill("out", "removal", SHARDS + 1, FEWER, former=True),
    "before the new plan": Kill("out", "rename", 0, FEWER, former=True),
    "between two new shards": Kill("out", "rename", 3, FEWER, former=True),
    "file: before the new plan": Kill("out.parquet", "rename", 0, FEWER, former=True),
    "file: between two new shards": Kill("out.parquet", "rename", 3, FEWER, former=True),
    "file: before it is replaced": Kill("out.parquet", "rename", 1 + 2 * 3, FEWER, former=True),
}
SIGNALS = {
    "SIGINT": (signal.SIGINT,),
    "SIGTERM": (signal.SIGTERM,),
    "SIGUSR1, as Slurm sends it": (signal.SIGUSR1,),
    "SIGTERM twice": (signal.SIGTERM, signal.SIGTERM),
}


# In a process of its own -------------------------------------------------------------------------------


def run_forked():
    """Runs commands in forks of this process; a line is [arguments, file for messages, *of send_at].

    A first run warms it up, in one thread, because threads do not survive a fork.
    """
    import torch

    from embedkit.cli import main, run

    torch.set_num_threads(1)
    assert run(json.loads(sys.stdin.readline())) == 0
    for line in sys.stdin:
        arguments, said, call, times, signals = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                file = os.open(said, os.O_CREAT | os.O_WRONLY)
                os.dup2(file, 1)
                os.dup2(file, 2)
                send_at(call, times, signals)
                sys.argv = ["embedkit", *arguments]
                main()
            finally:
                os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def send_at(call, times, signals):
    """Sends this process the signals once files were renamed (or removed from folders) so many times."""
    left = iter(range(times))

    def count():
        if next(left, None) is None:
            while signals:
                os.kill(os.getpid(), signals.pop())

    unlink = os.unlink

    def counted(rename):
        def call(*arguments, **within):
            count()
            return rename(*arguments, **within)

        return call

    def counted_unlink(*arguments, dir_fd=None):
        unlink(*arguments, dir_fd=dir_fd)
        if dir_fd is not None:  # as shutil.rmtree calls it
            count()

    if call == "rename":
        os.replace, os.link = counted(os.replace), counted(os.link)
    else:
        next(left)  # counted after it is done
        os.unlink = counted_unlink


# What is compared --------------------------------------------------------------------------------------


def tree(folder):
    """Returns every file under a folder and its bytes; every folder too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(Path(folder).rglob("*"))
    }


def assert_same(found, expected):
    found, expected = tree(found), tree(expected)
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []


def arguments_of(bert, output, *options):
    return ["encode", NOTES, "-m", bert, "-o", output, "--shard-rows", 8, "--pool", "mean", *options]


@pytest.fixture(scope="module")
def whole(bert, one_thread, tmp_path_factory):
    """Folders that hold the outputs of runs that nothing stopped, by output and options."""
    from embedkit.cli import run

    made = {}
    wanted = {(kill.output, kill.options) for kill in (*KILLS.values(), *OVERWRITES.values())}
    for output, options in {*wanted, ("out", ()), ("out.parquet", ())}:
        folder = tmp_path_factory.mktemp("whole")
        assert run([str(word) for word in arguments_of(bert, folder / output, *options)]) == 0
        made[output, options] = folder
    return made


@pytest.fixture(scope="module")
def stopped(bert, whole, tmp_path_factory):
    """By name: the folder that a stopped run left, its exit code, and what it said."""
    root = tmp_path_factory.mktemp("stopped")
    runs = {name: (kill, [signal.SIGKILL]) for name, kill in {**KILLS, **OVERWRITES}.items()}
    runs |= {name: (Kill("out", "rename", 4), list(signals)) for name, signals in SIGNALS.items()}
    lines = [json.dumps([str(word) for word in arguments_of(bert, root / "warm", "-q")])]
    for name, (kill, signals) in runs.items():
        if kill.former:
            shutil.copytree(whole[kill.output, ()], root / name)
        (root / name).mkdir(exist_ok=True)
        arguments = [str(word) for word in arguments_of(bert, root / name / kill.output, *kill.options)]
        lines.append(json.dumps([arguments, str(root / f"{name}.said"), kill.call, kill.times, signals]))
    forked = [sys.executable, "-c", "from tests.engines.test_resume import run_forked; run_forked()"]
    ended = subprocess.run(
        forked,
        input="\n".join(lines),
        cwd=NOTES.parents[2],
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    codes = [int(code) for code in ended.stdout.split()]
    return {
        name: (root / name, code, (root / f"{name}.said").read_text())
        for name, code in zip(runs, codes, strict=True)
    }


@pytest.fixture
def unfinished(stopped, tmp_path):
    """Returns a copy of what a run left that was killed between two shards: folder, then single file."""
    for name in ("between two shards", "file: between two shards"):
        shutil.copytree(stopped[name][0], tmp_path, dirs_exist_ok=True)
    return tmp_path


# Stopped and resumed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KILLS)
def test_a_killed_run_that_is_resumed_leaves_the_files_of_one_that_was_not(
    embedkit_cli, bert, whole, stopped, tmp_path, name
):
    kill = KILLS[name]
    left, code, _ = stopped[name]
    assert code == -signal.SIGKILL
    shutil.copytree(left, tmp_path / "place")
    arguments = arguments_of(bert, tmp_path / "place" / kill.output, *kill.options)
    ran = embedkit_cli(*arguments, "--on-exists", "resume")
    assert ran.code == 0, ran.err
    assert_same(tmp_path / "place", whole[kill.output, kill.options])


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_ends_the_run_with_75_and_resume_goes_on(embedkit_cli, bert, whole, stopped, tmp_path, name):
    left, code, said = stopped[name]
    assert code == 75
    if len(SIGNALS[name]) == 1:  # a second signal leaves no time for words
        error, hint = (line for line in said.splitlines() if not line.startswith("note: "))
        assert re.fullmatch(r"error: stopped by a signal; \d shards are committed", error)
        assert hint.startswith("hint: ")
        assert "--on-exists resume" in hint
    shutil.copytree(left, tmp_path / "place")
    with pytest.raises(embedkit.EmbedkitError, match="not finished"):
        embedkit.read(tmp_path / "place" / "out")
    ran = embedkit_cli(*arguments_of(bert, tmp_path / "place" / "out", "--on-exists", "resume"))
    assert ran.code == 0, ran.err
    assert_same(tmp_path / "place", whole["out", ()])


@pytest.mark.parametrize("output", ["out", "out.parquet"])
@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("--pool", "cls"), "pool"),
        (("--layers", "2"), "layers"),
        (("--max-length", "32"), "max_length"),
        (("--normalize",), "normalize"),
        (("--precision", "float16"), "precision"),
        (("--prompt", "a note: "), "prompt"),
        (("--shard-rows", "9"), "shard_rows"),
        (("--keep", "label"), "keep"),
        (("--template", "{text}"), "template"),
        (("--limit", "60"), "limit"),
        (("--on-bad-row", "null"), "on_bad_row"),
        (("-m", "ANOTHER"), "files"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_resume_with_another_option_is_refused_by_the_name_of_what_changed(
    embedkit_cli, bert, unfinished, change, field, output
):
    if "ANOTHER" in change:
        from tests.tiny_models import make

        change = ("-m", make("bert", unfinished / "model", seed=1).folder)
    before = tree(unfinished)
    ran = embedkit_cli(
        *last_counts("encode", *arguments_of(bert, unfinished / output, "--on-exists", "resume", *change))
    )
    assert ran.code == 5
    refused = re.match(r"error: cannot resume: (\S+) was .* when the run was planned and is .* now$", ran.told[0])
    assert field in refused[1], ran.err
    assert tree(unfinished) == before


def test_resume_with_another_input_is_refused(embedkit_cli, bert, tmp_path):
    table = tmp_path / "notes.csv"
    table.write_bytes(NOTES.read_bytes())
    arguments = ["encode", table, "-m", bert, "-o", tmp_path / "out", "--shard-rows", 8]
    assert embedkit_cli(*arguments).code == 0
    (tmp_path / "out" / "manifest.json").unlink()
    changed = table.read_bytes().replace(b"cardiology", b"Cardiology", 1)  # as long, and one letter differs
    table.write_bytes(changed)
    ran = embedkit_cli(*arguments, "--on-exists", "resume")
    assert (ran.code, "cannot resume: input.files[0]" in ran.err) == (5, True), ran.err


def test_without_a_word_an_unfinished_run_is_left_alone(embedkit_cli, bert, unfinished):
    before = tree(unfinished)
    for output in ("out", "out.parquet"):
        ran = embedkit_cli(*arguments_of(bert, unfinished / output))
        assert ran.code == 5
        assert "--on-exists resume" in ran.err
    assert tree(unfinished) == before


def test_stdin_cannot_be_resumed(encode, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "pain"}\n')))
    ran = encode("-", "--format", "jsonl", "-o", tmp_path / "out", "--on-exists", "resume")
    assert ran.code == 2
    assert "stdin cannot be resumed" in ran.err


# Finished, damaged, replaced ---------------------------------------------------------------------------


SEVERAL = ("--layers", "1,2", "--layer-agg", "separate")


@pytest.mark.parametrize(
    ("output", "options"),
    [("out", ()), ("out.parquet", ()), ("out.npy", ()), ("out.arrow", ()), ("out.npy", SEVERAL)],
    ids=lambda value: "several columns" if value == SEVERAL else str(value or ""),
)
def test_a_finished_output_is_not_replaced_unasked_and_resuming_it_does_nothing(
    encode, tmp_path, monkeypatch, output, options
):
    def refuse(*_, **__):
        raise AssertionError("a shard was computed")

    arguments = (NOTES, "-o", tmp_path / output, "--shard-rows", 8, *options)
    assert encode(*arguments).code == 0
    before = tree(tmp_path)
    monkeypatch.setattr("embedkit.engines.shard_loop.finish_shard", refuse)
    again = encode(*arguments)
    assert (again.code, "--on-exists resume" in again.err) == (5, True), again.err
    resumed = encode(*arguments, "--on-exists", "resume")
    assert resumed.code == 0, resumed.err
    assert "66 vectors of 32 dimensions" in resumed.err
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("output", "change"),
    [
        ("out.parquet", ("--pool", "cls")),
        ("out.npy", ("--pool", "cls")),
        ("out.arrow", ("--limit", "60")),
        ("out.parquet", ("--keep", "label")),
        ("out.jsonl", ()),  # JSON Lines have no place to say what made them
    ],
)
def test_a_finished_file_of_another_recipe_or_input_is_not_taken_for_this_one(encode, tmp_path, output, change):
    assert encode(NOTES, "-o", tmp_path / output).code == 0
    before = tree(tmp_path)
    ran = encode(NOTES, "-o", tmp_path / output, *change, "--on-exists", "resume")
    assert ran.code == 5
    assert "--on-exists overwrite" in ran.err
    assert "another input" not in ran.err, "all are of the same file"
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: os.truncate(out / "embeddings" / "part-00003.parquet", 1000),
        lambda out: (out / "embeddings" / "part-00000.parquet").unlink(),
        lambda out: (out / "commits" / "00008.json").unlink(),
        lambda out: os.truncate(out / "commits" / "00004.json", 20),
        lambda out: (out / "commits" / "00004.json").write_text("[]"),
        lambda out: shutil.rmtree(out / "embeddings"),
    ],
    ids=["part cut off", "part gone", "record gone", "record cut off", "record of another kind", "all parts gone"],
)
def test_resume_makes_damaged_shards_again(embedkit_cli, bert, whole, tmp_path, damage):
    shutil.copytree(whole["out", ()], tmp_path / "place")
    damage(tmp_path / "place" / "out")
    ran = embedkit_cli(*arguments_of(bert, tmp_path / "place" / "out", "--on-exists", "resume"))
    assert ran.code == 0, ran.err
    assert_same(tmp_path / "place", whole["out", ()])


@pytest.mark.parametrize(
    ("output", "options"),
    [("out", NPY), ("out.npy", ()), ("out.npy", SEVERAL)],
    ids=["folder", "two files", "several columns"],
)
def test_overwrite_leaves_nothing_of_the_former_run_and_all_that_is_not_embedkits(
    encode, tmp_path, output, options
):
    """The former run has more shards or columns, and a list of rejects, which the first 10 rows have not."""
    for folder in ("place", "fresh"):
        (tmp_path / folder).mkdir()
    ours = tmp_path / "place" / ("out" if output == "out" else "") / "README.md"
    assert encode(NOTES, "-o", tmp_path / "place" / output, "--shard-rows", 8, *options).code == 0
    ours.write_text("mine")
    for folder in ("place", "fresh"):
        ran = encode(NOTES, "-o", tmp_path / folder / output, "--limit", 10, "--on-exists", "overwrite")
        assert ran.code == 0, ran.err
    ours.unlink()  # which fails where it is gone
    assert_same(tmp_path / "place", tmp_path / "fresh")


@pytest.mark.parametrize("name", OVERWRITES)
def test_an_overwrite_that_was_killed_can_be_repeated(embedkit_cli, bert, whole, stopped, tmp_path, name):
    kill = OVERWRITES[name]
    left, code, _ = stopped[name]
    assert code == -signal.SIGKILL
    if kill.output == "out.parquet":
        assert (left / kill.output).read_bytes() == (whole[kill.output, ()] / kill.output).read_bytes()
    else:
        found = {name: data for name, data in tree(left / "out").items() if not name.startswith(".former")}
        assert found in [tree(whole["out", options] / "out") for options in ((), FEWER)]
    shutil.copytree(left, tmp_path / "place")
    ran = embedkit_cli(*arguments_of(bert, tmp_path / "place" / kill.output, *FEWER))
    assert ran.code == 0, ran.err
    assert_same(tmp_path / "place", whole[kill.output, FEWER])


@pytest.mark.parametrize(
    "name", ["between two new shards", "file: between two new shards", "file: before it is replaced"]
)
def test_an_overwrite_that_was_killed_after_its_plan_can_be_resumed(
    embedkit_cli, bert, whole, stopped, tmp_path, name
):
    output = OVERWRITES[name].output
    shutil.copytree(stopped[name][0], tmp_path / "place")
    arguments = arguments_of(bert, tmp_path / "place" / output, "--limit", "20")
    ran = embedkit_cli(*arguments, "--on-exists", "resume")
    assert ran.code == 0, ran.err
    assert_same(tmp_path / "place", whole[output, FEWER])
