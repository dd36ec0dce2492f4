"""Ranks that share scans of segments make one plan, whichever of them die; so do processes of one machine."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedkit.config import InputConfig, OutputConfig, RunConfig, ShareConfig
from embedkit.engines import scanning, segments
from embedkit.engines.open_input import table_of
from embedkit.engines.scan_pool import scanner_of
from embedkit.engines.scanning import Shared, scan_input
from embedkit.engines.segments import Cut, SegmentScan
from embedkit.errors import EmbedkitError, InputError, Stopped
from embedkit.output.commit import OutputFolder

CUT = Cut(5, 300)
MARKER = "Mr Miller of Ward 7"


class DiedError(Exception):
    """A rank was killed."""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Returns an input of about 20 segments, with faults."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 400)
    monkeypatch.setattr(scanning, "_SLOW", 4_000)
    (tmp_path / "in").mkdir()
    for file in range(3):
        rows = [{"id": f"{MARKER} {row}", "text": f"{MARKER} {row}", "k": row / 2} for row in range(30)]
        lines = [json.dumps(row) for row in rows]
        lines.insert(17, "{")
        (tmp_path / "in" / f"{file}.jsonl").write_text("\n".join(lines))
    return RunConfig(InputConfig((str(tmp_path / "in"),), keep=("k",)), OutputConfig("out", "parquet"))


def scanned(config, folder=None, share=None, scanner=None, stop=None):
    table, _ = table_of(config)
    shared = None if folder is None else Shared(OutputFolder(folder), share or ShareConfig())
    return scan_input(table, None, config, CUT, scanner=scanner, shared=shared, stop=stop)


def here(tasks):
    return (task.run() for task in tasks)


@pytest.mark.parametrize("seed", range(4))
def test_ranks_agree_on_the_plan_of_one_process_whichever_of_them_die(config, tmp_path, seed):
    chance, world_size = random.Random(seed), 4
    alone = scanned(config)
    lives = [chance.choice([0, 1, 3, 99]) for _ in range(world_size - 1)] + [99]
    chance.shuffle(lives)
    scans = itertools.count()

    def rank(number):
        left = iter(range(lives[number]))

        def scanner(tasks):
            for task in tasks:
                if next(left, None) is None:
                    raise DiedError
                next(scans)
                yield task.run()

        try:
            return scanned(config, tmp_path / "out", ShareConfig(number, world_size), scanner)
        except DiedError:
            return None

    with ThreadPoolExecutor(world_size) as pool:
        found = list(pool.map(rank, range(world_size)))
    survivors = [of for of in found if of is not None]
    assert survivors
    assert all(of == alone for of in survivors)
    # One that comes later reads what is there.
    assert scanned(config, tmp_path / "out", ShareConfig(2, world_size), scanner=None) == alone
    files = sorted((tmp_path / "out/segments").iterdir())
    assert [path.name for path in files] == [f"{index:05d}.json" for index in range(len(files))]
    assert not any("Miller" in path.read_text() for path in files)


def test_scans_that_are_there_are_used_and_those_of_another_input_or_damaged_ones_are_not(config, tmp_path):
    alone = scanned(config, tmp_path / "out")
    run = []

    def scanner(tasks):
        run.extend(task.index for task in tasks)
        return here(tasks)

    assert scanned(config, tmp_path / "out", scanner=scanner) == alone
    assert run == []
    names = sorted((tmp_path / "out/segments").iterdir())
    names[3].write_bytes(names[3].read_bytes()[:-9])
    names[5].write_bytes(names[4].read_bytes())
    assert scanned(config, tmp_path / "out", scanner=scanner) == alone
    assert run == [3, 5]
    run.clear()
    path = tmp_path / "in/1.jsonl"
    path.write_text(path.read_text().replace("Ward 7", "Ward 9"))
    assert scanned(config, tmp_path / "out", scanner=scanner).scan == alone.scan
    assert len(run) == len(names)
    assert {SegmentScan.parse(name.read_bytes(), "").index for name in names} == set(range(len(names)))


def test_an_error_is_that_of_one_pass_and_a_later_run_reads_the_file_again(config, tmp_path):
    (tmp_path / "in/3.csv").write_text('id,text,k\n1,a,2\n2,"b\n')
    with pytest.raises(InputError, match=r"3\.csv: row 94, at byte 16, has a quote that is never closed"):
        scanned(config, tmp_path / "out", ShareConfig(1, 2), here)
    with pytest.raises(InputError, match="row 94, at byte 16"):
        scanned(config)


def test_a_rank_that_waits_for_another_can_be_stopped(config, tmp_path, monkeypatch):
    monkeypatch.setattr(scanning, "_SLOW", 1e-3)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(Stopped):
        scanned(config, tmp_path / "out", ShareConfig(1, 2), here, stop)


def test_several_processes_scan_what_one_does_and_the_death_of_one_is_told(config):
    stop = threading.Event()
    scanner = scanner_of(2, stop)
    assert scanned(config, scanner=scanner) == scanned(config)

    def killing(tasks):
        for number, scan in enumerate(scanner(tasks)):
            if number == 0:
                import multiprocessing

                for child in multiprocessing.active_children():
                    os.kill(child.pid, signal.SIGKILL)
            yield scan

    with pytest.raises(EmbedkitError, match="a process that read the input ended with exit code -9"):
        scanned(config, scanner=killing)


def test_two_ranks_of_several_segments_make_the_output_of_one_process(encode, config, tmp_path):
    options = ("--keep", "k", "--on-bad-row", "null", "--shard-rows", 20)
    (tmp_path / "one").mkdir()
    assert encode(tmp_path / "in", "-o", tmp_path / "one/out", *options).code == 0
    for rank in (1, 0):
        part = ("--shard-id", rank, "--num-shards", 2)
        ran = encode(tmp_path / "in", "-o", tmp_path / "out", *options, *part)
        assert ran.code == 0, ran.err
    assert not (tmp_path / "out/segments").exists()
    ours, theirs = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("part-*")} for name in ("out", "one/out")
    )
    assert ours == theirs
    assert len(ours) > 10
