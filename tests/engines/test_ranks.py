"""Several ranks at one plan: each does its part, the last one finishes, and the bytes are those of one process."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

import embedkit
from embedkit.config import ShareConfig
from embedkit.engines.ranks import device_for, shards_of, share_of
from embedkit.errors import UsageError
from embedkit.manifest.schema import Sharding
from tests.conftest import NOTES
from tests.engines.test_resume import SHARDS, assert_same, tree

# Whose part -------------------------------------------------------------------------------------------


@given(characters=st.lists(st.integers(0, 99), max_size=300), world_size=st.integers(1, 80), alone=st.booleans())
def test_every_shard_is_the_part_of_exactly_one_rank(characters, world_size, alone):
    starts = tuple(range(len(characters)))
    stretches = None if alone or not starts else (0,)
    sharding = Sharding(1, 100, len(starts), starts, tuple(characters), stretches=stretches)
    parts = [shards_of(ShareConfig(rank, world_size), sharding) for rank in range(world_size)]
    assert sorted(shard for part in parts for shard in part) == list(starts)
    if stretches is None:
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    else:
        sizes = [sum(max(1, characters[shard]) for shard in part) for part in parts]
        assert max(sizes) <= sum(sizes) / world_size + max([*characters, 1])


TORCHRUN = {"RANK": "2", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}
ONE_TASK = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}
#: A batch script, whose allocation has four tasks, before any srun; and a shell that salloc opened on a node.
BATCH = {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
SALLOC = BATCH | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}
ARRAY = {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_COUNT": "5", "SLURM_ARRAY_TASK_MIN": "10"}
STEPS = ARRAY | {"SLURM_ARRAY_TASK_ID": "16", "SLURM_ARRAY_TASK_STEP": "2"}


@pytest.mark.parametrize(
    ("environ", "rank", "world_size", "place"),
    [
        ({}, 0, 1, None),
        (TORCHRUN, 2, 8, 1),
        (TORCHRUN | SRUN | ARRAY, 2, 8, 1),
        (SRUN | ARRAY, 3, 4, 1),
        (ONE_TASK, 0, 1, None),
        (BATCH, 0, 1, None),
        (SALLOC, 0, 1, None),
        (BATCH | ARRAY, 2, 5, None),
        (SRUN | {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "4"}, 3, 4, 1),  # srun -n 4 in an allocation of 8
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 0, 1, None),
        # srun -n 1 in an allocation of 4, whose number a batch script has exported
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, 0, 1, None),
        (SRUN | TORCHRUN | {"SLURM_STEP_NUM_TASKS": "4"}, 2, 8, 1),  # torchrun, started by srun on each node
        (SRUN | {"RANK": "3", "WORLD_SIZE": "4"}, 3, 4, None),
        (ONE_TASK | ARRAY, 2, 5, None),
        (ARRAY | {"SLURM_ARRAY_TASK_MAX": "14"}, 2, 5, None),
        (STEPS | {"SLURM_ARRAY_TASK_MAX": "18"}, 3, 5, None),
        (STEPS, 3, 5, None),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"} | ARRAY, 2, 5, 0),
        ({"RANK": "2"}, 0, 1, None),
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "1"}, 0, 1, None),
    ],
)
def test_the_environment_decides_the_rank(environ, rank, world_size, place):
    share = share_of(None, None, None, environ)
    assert (share.rank, share.world_size, share.place) == (rank, world_size, place)
    assert bool(share.source) == (world_size > 1)


@pytest.mark.parametrize(
    ("environ", "has_notice"), [(BATCH, True), (SALLOC, True), (ONE_TASK, False), ({}, False)]
)
def test_tasks_that_srun_did_not_start_get_a_notice(environ, has_notice):
    assert ("has 4 tasks" in share_of(None, None, None, environ).note) == has_notice


def test_options_win_over_the_environment():
    assert share_of(1, 3, None, TORCHRUN | SRUN | ARRAY) == ShareConfig(1, 3, place=1)
    assert share_of(None, 1, 4, SRUN) == ShareConfig(0, 1, workers=4)


@pytest.mark.parametrize(
    ("shard_id", "num_shards", "environ"),
    [
        (0, None, {}),
        (None, 4, {}),
        (4, 4, {}),
        (-1, 4, {}),
        (0, 0, {}),
        (None, None, {"RANK": "4", "WORLD_SIZE": "4"}),
        (None, None, {"RANK": "zero", "WORLD_SIZE": "4"}),
        (None, None, {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "²"}),
        (None, None, ARRAY | {"SLURM_ARRAY_TASK_ID": "15"}),  # --array=10-13,15 has a hole
        (None, None, ARRAY | {"SLURM_ARRAY_TASK_MAX": "15"}),  # and its other tasks get the error, too
        (None, None, STEPS | {"SLURM_ARRAY_TASK_ID": "13"}),
        (None, None, SRUN | {"RANK": "0", "WORLD_SIZE": "4"}),  # left in the environment: four would be rank 0
        (None, None, SRUN | {"SLURM_STEP_NUM_TASKS": "1"}),  # a part of a job of several kinds of nodes
        (None, None, ARRAY | {"SLURM_ARRAY_TASK_ID": "9"}),
    ],
)
def test_numbers_that_do_not_fit_are_refused(shard_id, num_shards, environ):
    with pytest.raises(UsageError):
        share_of(shard_id, num_shards, None, environ)


@pytest.mark.parametrize(
    ("name", "place", "gpus", "device"),
    [
        ("auto", 2, 4, "cuda:2"),
        ("cuda", 2, 4, "cuda:2"),
        ("cuda", 5, 4, "cuda:1"),
        ("auto", 3, 1, "cuda:0"),  # each task sees its own GPU alone
        ("auto", 2, 0, "auto"),
        ("auto", None, 4, "auto"),
        ("cuda:1", 0, 4, "cuda:1"),
        ("cpu", 2, 4, "cpu"),
    ],
)
def test_each_process_of_a_machine_takes_its_own_gpu(name, place, gpus, device):
    assert device_for(name, place, gpus) == device


# What comes out ---------------------------------------------------------------------------------------


@pytest.fixture
def rank(encode, tmp_path):
    """Returns a function that does one rank's part of the notes, in shards of 8 rows."""

    def rank(number, of, output="out", *options):
        part = ("--shard-id", number, "--num-shards", of)
        return encode(NOTES, "-o", tmp_path / "place" / output, "--shard-rows", 8, *part, *options)

    (tmp_path / "place").mkdir()
    return rank


@pytest.fixture
def whole(encode, tmp_path):
    """Returns a function that gives the folder with an output made by one process."""

    def whole(output="out", *options):
        (tmp_path / "whole").mkdir()
        ran = encode(NOTES, "-o", tmp_path / "whole" / output, "--shard-rows", 8, *options)
        assert ran.code == 0, ran.err
        return tmp_path / "whole"

    return whole


@pytest.mark.parametrize(
    ("output", "options"),
    [
        ("out", ()),
        ("out", ("--output-format", "npy", "--precision", "int8")),
        ("out.parquet", ()),
        ("out.npy", ()),
        ("out.jsonl", ()),
    ],
    ids=str,
)
def test_three_ranks_make_what_one_process_makes_and_the_last_one_finishes(rank, whole, tmp_path, output, options):
    for number in (2, 0):
        ran = rank(number, 3, output, *options)
        assert ran.code == 0, ran.err
        assert f"rank {number} of 3: its shards are done; the output is complete when all are" in ran.err
        with pytest.raises(embedkit.EmbedkitError):
            embedkit.read(tmp_path / "place" / output)
    ran = rank(1, 3, output, *options)
    assert (ran.code, "67 rows, 66 vectors" in ran.err) == (0, True), ran.err
    assert_same(tmp_path / "place", whole(output, *options))


@pytest.mark.parametrize("output", ["out", "out.parquet", "out.jsonl"])
def test_another_number_of_processes_goes_on_with_the_same_plan(rank, encode, whole, tmp_path, output):
    assert rank(1, 4, output).code == 0
    assert rank(0, 3, output).code == 0
    ran = encode(NOTES, "-o", tmp_path / "place" / output, "--shard-rows", 8, "--on-exists", "resume")
    assert ran.code == 0, ran.err
    assert_same(tmp_path / "place", whole(output))


def test_more_ranks_than_shards_is_no_fault_not_even_after_the_end(rank, whole, tmp_path):
    for number in range(SHARDS):
        assert rank(number, 12).code == 0
    before = tree(tmp_path / "place")
    ran = rank(11, 12)
    assert (ran.code, "rank 11 of 12" in ran.err) == (0, True), ran.err
    assert tree(tmp_path / "place") == before
    assert_same(tmp_path / "place", whole())


@pytest.mark.parametrize("output", ["out", "out.parquet"])
def test_a_finished_output_is_not_replaced_by_ranks_unasked(rank, tmp_path, output):
    for number in range(2):
        assert rank(number, 2, output).code == 0
    before = tree(tmp_path / "place")
    again = rank(0, 2, output)
    assert (again.code, "--on-exists resume" in again.err) == (5, True), again.err
    assert rank(0, 2, output, "--on-exists", "resume").code == 0
    assert tree(tmp_path / "place") == before


def test_a_rank_with_other_options_is_refused_by_name(rank, tmp_path):
    assert rank(0, 2).code == 0
    before = tree(tmp_path / "place")
    ran = rank(1, 2, "out", "--max-length", 32)
    assert (ran.code, "max_length was 64" in ran.err) == (5, True), ran.err
    assert tree(tmp_path / "place") == before


def test_ranks_do_not_write_among_shards_without_a_plan(rank, tmp_path):
    assert rank(0, 2).code == 0
    (tmp_path / "place/out/plan.json").unlink()
    assert rank(0, 2).code == 5


RANKS, WORKERS = ("--shard-id", 0, "--num-shards", 2), ("--workers", 2)


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (NOTES, (*RANKS, "-o", "-")),
        (NOTES, (*WORKERS, "-o", "-")),
        ("-", (*RANKS, "-o", "out")),
        ("-", (*WORKERS, "-o", "out")),
        (NOTES, (*RANKS, "-o", "out", "--on-exists", "overwrite")),
    ],
)
def test_what_several_processes_cannot_share_is_refused(encode, tmp_path, monkeypatch, inputs, options):
    monkeypatch.chdir(tmp_path)
    ran = encode(inputs, *options)
    assert (ran.code, "hint: " in ran.err) == (2, True), ran.err
    assert list(tmp_path.glob("out*")) == []


@pytest.mark.parametrize("output", ["out", "out.parquet", "out.npy", "out.jsonl"])
def test_two_processes_at_the_same_shards_do_no_harm(rank, encode, whole, tmp_path, monkeypatch, output):
    """A second process does everything, from start to end, between two steps of the first."""
    from embedkit.engines import shard_loop

    expected, ran, non_finite_layers = whole(output), [], shard_loop.non_finite_layers

    def overtaken(shard, *arguments):
        if shard.read.index == 4 and not ran:
            ran.append(None)
            ran[0] = encode(
                *(NOTES, "-o", tmp_path / "place" / output, "--shard-rows", 8, "--on-exists", "resume")
            )
        return non_finite_layers(shard, *arguments)

    monkeypatch.setattr(shard_loop, "non_finite_layers", overtaken)
    first = rank(0, 1, output)
    assert (first.code, ran[0].code) == (0, 0), first.err
    assert_same(tmp_path / "place", expected)


@pytest.mark.parametrize("output", ["out.parquet", "out.npy", "out.jsonl"])
def test_two_processes_that_finish_the_same_file_do_no_harm(rank, encode, whole, tmp_path, monkeypatch, output):
    from embedkit.output.destination.single_file import SingleFile

    expected, finish, ran = whole(output), SingleFile.finish, []

    def overtaken(self, *arguments):
        if not ran:
            ran.append(None)
            options = ("-o", tmp_path / "place" / output, "--shard-rows", 8, "--on-exists", "resume")
            ran[0] = encode(NOTES, *options)
        finish(self, *arguments)

    monkeypatch.setattr(SingleFile, "finish", overtaken)
    assert rank(0, 2, output).code == 0
    last = rank(1, 2, output)
    assert (last.code, ran[0].code) == (0, 0), last.err
    assert_same(tmp_path / "place", expected)


@pytest.mark.parametrize("on_exists", ["error", "resume"])
def test_a_run_that_another_one_came_before_does_not_remove_its_work(
    rank, encode, whole, tmp_path, monkeypatch, on_exists
):
    """The other one does all of it while this one loads its model."""
    from embedkit.engines.in_process import InProcessEngine

    load, ran = InProcessEngine.load, []

    def slow(self):
        if not ran:
            ran.append(None)
            ran[0] = encode(NOTES, *("-o", tmp_path / "place/out", "--shard-rows", 8))
        return load(self)

    expected = whole()
    monkeypatch.setattr(InProcessEngine, "load", slow)
    second = encode(NOTES, "-o", tmp_path / "place/out", "--shard-rows", 8, "--on-exists", on_exists)
    assert (ran[0].code, second.code) == (0, 5 if on_exists == "error" else 0), second.err
    assert_same(tmp_path / "place", expected)


def test_a_rank_takes_its_part_from_the_environment_and_reports_it(encode, tmp_path, monkeypatch):
    for name, value in SRUN.items():
        monkeypatch.setitem(os.environ, name, value)
    ran = encode(NOTES, "-o", tmp_path / "out", "--shard-rows", 8)
    assert ran.code == 0, ran.err
    assert "note: rank 3 of 4, as SLURM_PROCID and SLURM_NTASKS say" in ran.err
    assert sorted(path.name for path in (tmp_path / "out/commits").iterdir()) == ["00003.json", "00007.json"]
    shutil.rmtree(tmp_path / "out")
    assert encode(NOTES, "-o", tmp_path / "out", "--num-shards", 1, "-q").code == 0
