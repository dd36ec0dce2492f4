"""Runs killed by SIGKILL at every system call that changes a file, and at random, each resumed to its end.

    python -m benchmarks.torture.kills [--rounds 1000] [--jobs 2] [--seed 0] [--short]

After each kill: whatever has its final name holds the bytes that an undisturbed run writes there. After each
resume: the same files with the same bytes, so no row is lost, doubled or moved. Runs are forked from one process
that has everything imported and the model loaded: a kill costs some 30 ms. A run that does not end within
LIMIT_SECONDS is a fault as well, and the stacks of its threads are told. Exits with 1 at the first fault.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import io
import json
import math
import os
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from benchmarks.torture.calls import watched

SHARD_ROWS = 8
#: Seconds that a run may take, which takes less than one on an idle machine.
LIMIT_SECONDS = 120
#: Seconds that all of the short form may take: pytest ends a test after 300 and does not say where it was.
SHORT_SECONDS = 240
#: Of how many boundaries the short form takes one.
STEP = 3
#: By how much the time of a run that is killed at random grows with each kill.
GROWTH = 1.25
TEMPORARY = re.compile(r"\..+\.tmp")

#: What is written: `-o`, further options, and the folder of the same shards, which a single file is made of.
OUTPUTS = {
    "folder": ("out", (), "out"),
    "folder of npy": ("npy", ("--output-format", "npy"), "npy"),
    "parquet file": ("out.parquet", (), "out"),
    "npy files": ("out.npy", (), "npy"),
    "jsonl file": ("out.jsonl", (), "jsonl"),
    "arrow file": ("out.arrow", (), "arrow"),
    "folder of windows": ("chunks", ("--level", "chunk", "--max-length", "8"), "chunks"),
    "file of groups": ("groups.parquet", ("--group-by", "patient"), "groups"),
}
FOLDERS = {
    "jsonl": ("--output-format", "jsonl"),
    "arrow": ("--output-format", "arrow"),
    "groups": ("--group-by", "patient"),
}
#: The folder of rows that groups are made of, which is gone when they are.
ROWS_OF_GROUPS = "groups.rows.partial"
#: Rows of a group, which lie in several shards.
GROUP_ROWS = 3


#: A function that kills runs and tells how many, and its arguments.
Job = tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]


class FaultError(AssertionError):
    """What must not be: a row lost, a file that is not whole, a run that does not end well."""


class Bench(NamedTuple):
    """What every run shares.

    Attributes:
        root: folder for all of it.
        table: the input.
        model: folder of a tiny model.
        whole: by `-o`, what an undisturbed run leaves: every file's bytes by its name.
    """

    root: Path
    table: Path
    model: Path
    whole: dict[str, dict[str, bytes]]

    def arguments(self, output: str, place: Path) -> list[str]:
        """Returns the command line of a run that begins or is resumed."""
        name, options, _ = OUTPUTS[output]
        return self._arguments(place / name, options)

    def _arguments(self, out: Path, options: Sequence[str]) -> list[str]:
        words = ["encode", self.table, "-m", self.model, "-o", out, "--shard-rows", SHARD_ROWS, "--pool", "mean"]
        return [str(word) for word in (*words, "-q", "--on-exists", "resume", *options)]

    def allowed(self, output: str) -> dict[str, bytes]:
        """Returns every file that may be there under its final name at some moment, and its bytes."""
        name, _, folder = OUTPUTS[output]
        parts = {} if name == folder else self.whole[folder]
        rows = self.whole[ROWS_OF_GROUPS] if folder == "groups" else {}
        return {
            **self.whole[name],
            **{f"{name}.rows.partial/{path}": content for path, content in rows.items()},
            **{
                f"{name}{beside}{path.removeprefix(folder)}": content
                for path, content in parts.items()
                for beside in (".partial", ".partial.next")
            },
        }


def contents(folder: Path) -> dict[str, bytes]:
    """Returns every file under a folder, and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Runs in forks ------------------------------------------------------------------------------------------


def forked(action: Callable[[], int], said: Path) -> int:
    """Runs an action in a fork of this process, with its messages in a file. Returns the fork's id."""
    child = os.fork()
    if child == 0:
        code = 97
        try:
            file = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(file, 1)
            os.dup2(file, 2)
            limit_time()
            code = action()
        except BaseException:  # noqa: BLE001 - the process ends here
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    return child


def limit_time(seconds: int = LIMIT_SECONDS) -> None:
    """Writes the stacks of all threads and ends the process, if this is not called again within some seconds.

    An alarm needs no thread, which a fork would not have, and no fork inherits it.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.register(signal.SIGALRM, file=2, chain=True)
    signal.alarm(seconds)


def ended(child: int) -> int:
    """Returns the exit code of a fork; -9 if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(arguments: Sequence[str]) -> int:
    """Runs a command line."""
    from embedkit.cli import run as run_embedkit

    return run_embedkit(arguments)


def warm_up(root: Path, n_rows: int, only: Sequence[str]) -> Bench:
    """Imports everything, loads a model, and records what undisturbed runs write, of all outputs or some."""
    import torch
    from tqdm import tqdm

    from embedkit.engines import in_process
    from tests.tiny_models import make

    tqdm.monitor_interval = (
        0  # no thread: a fork has a copy of each lock that a thread holds, and nobody to release it
    )
    torch.set_num_threads(1)
    os.fsync = lambda _: None  # the system outlives the killed process, and so does what it wrote
    in_process.build = loaded_once(in_process.build)  # type: ignore[assignment]
    return prepared(root, n_rows, make("bert", root / "model").folder, only)


def prepared(root: Path, n_rows: int, model: Path, only: Sequence[str] = ()) -> Bench:
    """Makes a table with an empty text, and records what undisturbed runs leave, of some outputs or of all."""
    from tests.tiny_models import TEXTS

    table = root / "rows.jsonl"
    texts = ["" if row == SHARD_ROWS - 1 else TEXTS[row % len(TEXTS)] for row in range(n_rows)]
    lines = (
        json.dumps({"id": f"{row:05d}", "text": text, "patient": f"p{row // GROUP_ROWS:04d}"})
        for row, text in enumerate(texts)
    )
    table.write_text("".join(line + "\n" for line in lines))
    bench = Bench(root, table, model, {})
    folders = {name: options for name, options, _ in OUTPUTS.values()} | FOLDERS
    for name, options in folders.items():
        if only and name not in only:
            continue
        place = root / "whole" / name
        place.mkdir(parents=True)
        if run(bench._arguments(place / name, options)) != 0:
            raise FaultError(f"{name}: an undisturbed run fails")
        bench.whole[name] = contents(place)
    if not only:
        bench.whole[ROWS_OF_GROUPS] = rows_of_groups(bench)
    return bench


def rows_of_groups(bench: Bench) -> dict[str, bytes]:
    """Returns the files of the rows, of a run that is ended before it makes groups of them."""
    from embedkit.engines import grouping

    place = fresh(bench.root / "rows")
    with (
        patch.object(grouping, "last_rows", side_effect=ZeroDivisionError),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        code = run(bench._arguments(place / "groups", FOLDERS["groups"]))
    if code != 1:
        raise FaultError("groups: a run that is to end between rows and groups does not")
    return contents(place / ROWS_OF_GROUPS)


def loaded_once(load: Callable[..., Any]) -> Callable[..., Any]:
    """Loads each model once, for this process and its forks."""
    made: dict[str, Any] = {}

    def loaded(*asked: Any, **named: Any) -> Any:
        question = repr((asked, sorted(named.items())))
        if question not in made:
            made[question] = load(*asked, **named)
        return made[question]

    return loaded


# Killed -------------------------------------------------------------------------------------------------


def look_after_kill(bench: Bench, output: str, place: Path) -> int:
    """Checks that every file under its final name is whole. Returns how many shards are committed."""
    allowed = bench.allowed(output)
    for name, content in contents(place).items():
        if TEMPORARY.fullmatch(Path(name).name):
            continue
        if name not in allowed:
            raise FaultError(f"{output}: {name} is there, which no run writes")
        if content != allowed[name]:
            raise FaultError(f"{output}: {name} has {len(content)} bytes that differ from an undisturbed run's")
    return len(list(place.glob("*/commits/*.json")))


def look_after_end(bench: Bench, output: str, place: Path) -> None:
    """Checks that all files are there, with the bytes of an undisturbed run, and no others."""
    found, expected = contents(place), bench.whole[OUTPUTS[output][0]]
    if sorted(found) != sorted(expected):
        raise FaultError(f"{output}: files are {sorted(found)}, of an undisturbed run {sorted(expected)}")
    differ = [name for name in found if found[name] != expected[name]]
    if differ:
        raise FaultError(f"{output}: bytes differ in {differ}")


def resumed(bench: Bench, output: str, place: Path) -> None:
    """Resumes the run to its end, and checks the output."""
    said = place.with_suffix(".said")
    code = ended(forked(functools.partial(run, bench.arguments(output, place)), said))
    # JSON Lines have no place to say what made them: once the file is there, nobody can go on with it.
    was_complete = output == "jsonl file" and code == 5 and "is complete and does not name" in said.read_text()
    if code != 0 and not was_complete:
        raise FaultError(f"{output}: resumed after a kill, it ends with {code}: {said.read_text()}")
    look_after_end(bench, output, place)


def calls_of(bench: Bench, output: str) -> list[str]:
    """Returns the kinds of all calls of an undisturbed run, in order."""
    place = fresh(bench.root / f"counted-{os.getpid()}")
    log = place.with_suffix(".calls")
    kinds: list[str] = []

    def counted() -> int:
        with watched(place, lambda kind, _: kinds.append(kind)):
            code = run(bench.arguments(output, place))
        log.write_text(json.dumps(kinds))
        return code

    said = place.with_suffix(".said")
    if ended(forked(counted, said)) != 0:
        raise FaultError(f"{output}: a run that is only counted fails: {said.read_text()}")
    found: list[str] = json.loads(log.read_text())
    return found


def killed_at(bench: Bench, output: str, place: Path, call: int, *, torn: bool) -> int:
    """Kills a run before its call of this number, or when half of what it writes is written."""
    made = -1

    def on_call(kind: str, _: str) -> bool | None:
        nonlocal made
        if kind != "torn":
            made += 1
        if made == call and torn == (kind == "torn"):
            os.kill(os.getpid(), signal.SIGKILL)
        return kind == "write" and torn and made == call

    def action() -> int:
        with watched(place, on_call):
            return run(bench.arguments(output, place))

    return ended(forked(action, place.with_suffix(".said")))


def at_every_boundary(bench: Bench, output: str, start: int = 0, step: int = 1) -> dict[str, Any]:
    """Kills a run at each of its calls in turn, and resumes each to its end."""
    kinds = calls_of(bench, output)
    places = [(call, torn) for call, kind in enumerate(kinds) for torn in (False, True)[: 1 + (kind == "write")]]
    place = bench.root / f"boundary-{os.getpid()}"
    for call, torn in places[start::step]:
        limit_time()
        fresh(place)
        code = killed_at(bench, output, place, call, torn=torn)
        if code != -signal.SIGKILL:
            said = place.with_suffix(".said").read_text()
            raise FaultError(
                f"{output}: to be killed at call {call} ({kinds[call]}), it ended with {code}: {said}"
            )
        look_after_kill(bench, output, place)
        try:
            resumed(bench, output, place)
        except FaultError as fault:
            raise FaultError(f"killed at call {call} ({kinds[call]}{', torn' * torn}): {fault}") from None
    return {"output": output, "kills": len(places[start::step]), "calls": dict(Counter(kinds))}


def at_random(bench: Bench, output: str, kills: int, seed: int) -> dict[str, Any]:
    """Kills runs after random times, again and again, until each has ended nevertheless."""
    chance = random.Random(seed)
    place = bench.root / f"random-{os.getpid()}"
    action = functools.partial(run, bench.arguments(output, place))
    usual = math.inf
    for _ in range(2):  # the first takes longer
        fresh(place)
        began = time.monotonic()
        ended(forked(action, place.with_suffix(".said")))
        usual = min(usual, time.monotonic() - began)
    done, finished, committed = 0, 0, Counter[int]()
    while done < kills:
        fresh(place)
        patience = 1.2 * usual
        while True:
            limit_time()
            child = forked(action, place.with_suffix(".said"))
            watch = os.pidfd_open(child)
            over, _, _ = select.select([watch], [], [], chance.uniform(0, patience))
            os.close(watch)
            if not over:
                os.kill(child, signal.SIGKILL)
            code = ended(child)
            if code == 0 or (output == "jsonl file" and code == 5 and (place / "out.jsonl").exists()):
                break
            if code != -signal.SIGKILL:
                raise FaultError(f"{output}: ended with {code}: {place.with_suffix('.said').read_text()}")
            done += 1
            # What is there may take longer to look at than to make (Parquet is parsed in another process first):
            # with the same time for all, such a run would never end.
            patience *= GROWTH
            committed[look_after_kill(bench, output, place)] += 1
        look_after_end(bench, output, place)
        finished += 1
    return {
        "output": output,
        "kills": done,
        "runs finished": finished,
        "shards committed": dict(sorted(committed.items())),
    }


def fresh(folder: Path) -> Path:
    """Makes an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


# The whole of it ----------------------------------------------------------------------------------------


def ids_of(bench: Bench, name: str) -> tuple[int, int, bool]:
    """Returns of an undisturbed output: rows lost, rows doubled, and whether they are in the input's order."""
    import embedkit

    rows = [json.loads(line) for line in bench.table.read_text().splitlines()]
    expected = list(dict.fromkeys(row["patient" if "groups" in name else "id"] for row in rows))
    found = embedkit.read(bench.root / "whole" / name / name).table["id"].to_pylist()
    if name == "chunks":  # a text has several
        found = list(dict.fromkeys(found))
    if "npy" in name:  # rows without a vector are not in it
        expected = [identity for identity in expected if identity != f"{SHARD_ROWS - 1:05d}"]
    return len(set(expected) - set(found)), len(found) - len(set(found)), found == expected


def tell(facts: dict[str, Any]) -> None:
    """Prints what was done."""
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1000, help="random kills")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--short", action="store_true", help=f"every {STEP}rd boundary of one shard, 4 random kills"
    )
    asked = parser.parse_args()
    if asked.short:
        limit_time(SHORT_SECONDS)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
    boundaries = ["folder", "npy files"] if asked.short else list(OUTPUTS)
    rounds = 4 if asked.short else asked.rounds
    step = STEP if asked.short else 1
    began = time.monotonic()
    kills = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        for n_rows, work in (
            (SHARD_ROWS if asked.short else 3 * SHARD_ROWS, "boundaries"),
            (9 * SHARD_ROWS, "random"),
        ):
            root = Path(name).resolve() / work
            root.mkdir()
            bench = warm_up(root, n_rows, ("out", "out.npy", "npy") if asked.short else ())
            jobs: list[Job]
            if work == "boundaries":
                jobs = [
                    (at_every_boundary, (bench, output, k * step, asked.jobs * step))
                    for output in boundaries
                    for k in range(asked.jobs)
                ]
            else:
                outputs = boundaries
                share = -(-rounds // (len(outputs) * asked.jobs))
                jobs = [
                    (at_random, (bench, output, share, asked.seed + 1000 * k + place))
                    for place, output in enumerate(outputs)
                    for k in range(asked.jobs)
                ]
            for facts in in_forks(jobs, asked.jobs, root):
                tell({"killed": work, **facts})
                kills += facts["kills"]
            for output in bench.whole.keys() - {ROWS_OF_GROUPS}:
                lost, doubled, in_order = ids_of(bench, output)
                if lost or doubled or not in_order:
                    raise FaultError(f"{output}: {lost} rows lost, {doubled} doubled, in order: {in_order}")
    print(
        f"{kills} kills in {time.monotonic() - began:.0f} s: 0 rows lost, 0 doubled, 0 reordered, bytes identical"
    )
    return 0


def in_forks(jobs: Sequence[Job], count: int, root: Path) -> Iterator[dict[str, Any]]:
    """Does jobs in so many forks at once; returns what they found."""
    if threading.active_count() > 1:
        raise FaultError(f"forks of a process with threads may hang: {threading.enumerate()}")
    children = []
    for place in range(count):
        said, found = root / f"jobs-{place}.said", root / f"jobs-{place}.json"
        work = functools.partial(do, jobs[place::count], found)
        children.append((forked(work, said), said, found))
    codes = [ended(child) for child, _, _ in children]
    for code, (_, said, found) in zip(codes, children, strict=True):
        if code != 0:
            raise FaultError(f"a fork that kills runs ended with {code}: {said.read_text()}")
        yield from json.loads(found.read_text())


def do(jobs: Sequence[Job], found: Path) -> int:
    """Does some of the jobs, one after the other."""
    found.write_text(json.dumps([function(*arguments) for function, arguments in jobs]))
    return 0


if __name__ == "__main__":
    try:
        code = main()
    except FaultError as fault:
        print(f"FAULT {fault}", file=sys.stderr)
        code = 1
    sys.exit(code)
