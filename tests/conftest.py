"""Fixtures: the command line run in this process, a tiny model and the sample notes.

A run takes 0.1 s in this process and 5 s in its own, nearly all of it for importing transformers. Only tests of
pipes, signals, sockets and imports start processes.
"""

from __future__ import annotations

import contextlib
import csv
import gc
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    from benchmarks.torture.kills import Bench

#: As `make test` has it: with more threads, tiny models spend their time waiting. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

NOTES = Path(__file__).parent / "data" / "notes.csv"


@dataclass(frozen=True)
class Ran:
    """The result of a command: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> list[str]:
        """The lines of stderr, without notes."""
        return [line for line in self.err.splitlines() if not line.startswith("note: ")]


@dataclass(frozen=True)
class Notes:
    """tests/data/notes.csv as Python's csv reads it, and its vectors by `embedkit.Encoder`.

    Attributes:
        rows: the table, every cell a string.
        ids: of the rows that have a vector.
        vectors: [66, 32] of the tiny model, mean of the tokens.
    """

    rows: list[dict[str, str]]
    ids: list[str]
    vectors: NDArray[np.float32]

    @property
    def texts(self) -> list[str]:
        return [row["text"] for row in self.rows]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Writes rows as JSON Lines, and returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores: a fifth of the time, one waits for servers, children and clocks."""
    return 1 + (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out the folder of clusters where its marker is: importing Ray takes seconds in each process."""
    return True if collection_path.name == "cluster" and "not cluster" in config.option.markexpr else None


def pytest_collection_finish() -> None:
    """Leaves what was made up to here, some thousand tests and libraries, out of all later garbage collections."""
    gc.collect()
    gc.freeze()


def last_counts(command: str, *arguments: object) -> list[str]:
    """Removes options that are repeated later, so that a test's own options win over its defaults.

    The command itself rejects a repeated option.
    """
    from embedkit.cli import command_tree

    options = [of for of in command_tree().commands[command].params if hasattr(of, "is_flag")]
    single = {name: of.name for of in options if not (of.multiple or of.is_flag) for name in of.opts}
    words = [str(argument) for argument in arguments]
    last = {single[word]: place for place, word in enumerate(words) if word in single}
    again = [place for place, word in enumerate(words) if word in single and last[single[word]] != place]
    return [word for place, word in enumerate(words) if place not in again and place - 1 not in again]


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Skips fsync: no test cuts the power, and those that fail or count these calls replace them themselves."""
    with mock.patch.object(os, "fsync", return_value=None):
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_long_trial_of_the_processor() -> Iterator[None]:
    """Lets `embedkit plan` time matrix products for a hundredth of a second, and not for a third."""
    from embedkit.estimate import cost

    with mock.patch.object(cost, "_TRIAL_SECONDS", 0.01):
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_reading_of_all_packages_again() -> Iterator[None]:
    """Looks for entry points once for each state of the import path: runs search 300 packages for a pooler."""
    from embedkit.config import poolings

    def place(path: str) -> tuple[str, int]:
        with contextlib.suppress(OSError):
            return path, os.stat(path or ".").st_mtime_ns  # noqa: PTH116
        return path, 0

    @lru_cache(maxsize=8)
    def found(_: tuple[tuple[str, int], ...], group: str) -> EntryPoints:
        return entry_points(group=group)

    def known(*, group: str, **wanted: str) -> EntryPoints:
        return found(tuple(map(place, sys.path)), group).select(**wanted)

    with mock.patch.object(poolings, "entry_points", known):
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Runs tiny models in one thread: with more, they spend their time waiting."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def embedkit_cli(one_thread: None, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs `embedkit ARGUMENTS...` in this process, and undoes what --offline does to the environment."""
    from embedkit.cli import run

    def ran(*arguments: object) -> Ran:
        capfd.readouterr()
        with mock.patch.dict(os.environ):
            code = run([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        return Ran(code, printed.out, printed.err)

    return ran


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a tiny random BERT: 3 layers, 32 dimensions, 64 tokens."""
    from tests.tiny_models import make

    return make("bert", tmp_path_factory.mktemp("models") / "bert").folder


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts worker processes as forks of one that has imported the libraries, which takes each of them seconds.

    They get their task as spawned ones do. Their environment is that of the first test that starts some.
    """
    from embedkit.engines import worker_pool

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["numpy", "pyarrow.parquet", "tokenizers", "torch"])
    monkeypatch.setattr(worker_pool, "_CONTEXT", context)


@pytest.fixture
def encode(embedkit_cli: Callable[..., Ran], bert: Path) -> Callable[..., Ran]:
    """Runs `embedkit encode ARGUMENTS... -m BERT`; of a repeated option with one value, the last counts."""

    def ran(*arguments: object) -> Ran:
        return embedkit_cli("encode", *last_counts("encode", "-m", bert, *arguments))

    return ran


@pytest.fixture(scope="session")
def notes(bert: Path) -> Notes:
    """Returns the sample notes, read by Python's csv and embedded by `embedkit.Encoder`."""
    from embedkit import Encoder

    with NOTES.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    vectors = Encoder(str(bert), pool="mean").encode([row["text"] for row in rows])
    has_vector = ~np.isnan(vectors).any(axis=1)
    ids = [row["id"] for row, has in zip(rows, has_vector, strict=True) if has]
    return Notes(rows, ids, vectors[has_vector])


@pytest.fixture
def pictures_in_words() -> Iterator[None]:
    """Writes what a sweep's pictures show instead of drawing it, which takes half the time of a small sweep."""
    from embedkit.study import sweep_files

    def told(verdict: Any, *others: object) -> dict[str, bytes]:
        rows = [(row.candidate.name, row.intervals, row.baseline, row.is_winner) for row in verdict.rows]
        return dict.fromkeys(("png", "svg"), repr((verdict.metric, rows, others)).encode())

    with mock.patch.multiple(sweep_files, heat_map=told, cost_chart=told):
        yield


@pytest.fixture(scope="module")
def load_once() -> Callable[..., Any]:
    """`build`, which loads each model once for all tests of a module."""
    from benchmarks.torture.kills import loaded_once
    from embedkit.engines import in_process

    return loaded_once(in_process.build)


@pytest.fixture
def models_loaded_once(load_once: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets runs in this process share the models that `load_once` loaded."""
    from embedkit.engines import in_process

    monkeypatch.setattr(in_process, "build", load_once)


@pytest.fixture(scope="module")
def bench(
    request: pytest.FixtureRequest,
    bert: Path,
    load_once: Callable[..., Any],
    one_thread: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bench:
    """Two shards, one text empty, and undisturbed outputs of them: those in a module's BENCH_OUTPUTS, or all."""
    from benchmarks.torture.kills import SHARD_ROWS, prepared
    from embedkit.engines import in_process

    only = getattr(request.module, "BENCH_OUTPUTS", ())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(in_process, "build", load_once)
        return prepared(tmp_path_factory.mktemp("bench").resolve(), 2 * SHARD_ROWS, bert, only)
