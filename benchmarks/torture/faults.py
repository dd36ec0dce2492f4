"""Errors of the disk at every n-th read, write, fsync, rename, unlink, open, stat and listing of a run.

    python -m benchmarks.torture.faults [--step 1] [--jobs 2] [--short]

Encodes (a folder, single files of four formats, groups), overwrites and resumes of them, a sweep and a fit run
with faults.c preloaded, which makes one call of libc fail, or all from that one on. After each: an exit code with
an `error:` line, or 0 and the whole output; whatever was committed before is there, byte for byte; and the same
command ends, undisturbed, with the bytes of a run that nothing disturbed. Exits with 1 if one of these did
not hold.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import functools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.torture.kills import FaultError, contents, ended, forked, fresh, loaded_once, run

KINDS = ("open", "read", "stat", "list", "write", "fsync", "rename", "unlink", "mkdir")
#: What a disk answers: one that is full, one that is broken, a server that was started anew.
ERRORS = {"write": errno.ENOSPC, "fsync": errno.EIO, "stat": errno.ESTALE, "open": errno.EACCES}
ENCODE = ("encode", "--shard-rows", "8", "--pool", "mean")
PRELOADED = "EMBEDKIT_FAULTS"


class Scenario(NamedTuple):
    """What runs, and what is there before.

    Attributes:
        output: what `-o` names.
        words: of the command.
        before: words of the command that made what is there; None = nothing is.
        unfinished: names that are removed from it, so that a run goes on with it.
        again: what the same command needs to go on.
    """

    output: str
    words: tuple[str, ...]
    before: tuple[str, ...] | None = None
    unfinished: tuple[str, ...] = ()
    again: tuple[str, ...] = ("--on-exists", "resume")


LEFT = ("manifest.json", "commits/00001.json")
OVERWRITE = (*ENCODE, "--on-exists", "overwrite", "--limit", "12")
SWEEP = ("sweep", "--label", "label", "--folds", "3", "--layers", "0,1", "--pool", "mean")
FIT = ("fit", "--pooler", "pca:3")
SCENARIOS = {
    "folder": Scenario("out", ENCODE),
    "folder, resumed": Scenario("out", (*ENCODE, "--on-exists", "resume"), ENCODE, LEFT, again=()),
    "folder, overwritten": Scenario("out", OVERWRITE, ENCODE, again=()),
    **{f"{form} file": Scenario(f"out.{form}", ENCODE) for form in ("parquet", "npy", "jsonl", "arrow")},
    **{
        f"{form} file, overwritten": Scenario(f"out.{form}", OVERWRITE, ENCODE, again=())
        for form in ("parquet", "npy")
    },
    "groups": Scenario("out.parquet", (*ENCODE, "--group-by", "patient")),
    "sweep": Scenario("sw", SWEEP),
    "sweep, overwritten": Scenario("sw", (*SWEEP, "--on-exists", "overwrite", "--seed", "1"), SWEEP, again=()),
    "fit": Scenario("p.safetensors", FIT, again=()),
    "fit, overwritten": Scenario("p.safetensors", (*FIT[:-1], "pca:2", "--overwrite"), FIT, again=()),
}
SHORT = ("folder", "folder, resumed", "npy file, overwritten")


class Bench(NamedTuple):
    """What every run shares: a folder for all of it, the input, the model."""

    root: Path
    table: Path
    model: Path

    def command(self, scenario: Scenario, words: tuple[str, ...], place: Path) -> list[str]:
        name, *options = words
        given = (str(self.table), "-m", str(self.model), "-o", str(place / scenario.output), "-q")
        return [name, *given, *options]

    def prepared(self, name: str) -> tuple[Path, dict[str, bytes]]:
        """Makes what is there before a run of a scenario, and records what an undisturbed one leaves."""
        scenario = SCENARIOS[name]
        before, whole = (fresh(self.root / f"{name}-{of}-{os.getpid()}") for of in ("before", "whole"))
        if scenario.before is not None:
            self._undisturbed(scenario, scenario.before, before)
            shutil.copytree(before, whole, dirs_exist_ok=True)
            for gone in scenario.unfinished:
                (before / scenario.output / gone).unlink()
        self._undisturbed(scenario, scenario.words, whole)
        return before, contents(whole)

    def _undisturbed(self, scenario: Scenario, words: tuple[str, ...], place: Path) -> None:
        said = place.with_suffix(".said")
        if ended(forked(functools.partial(run, self.command(scenario, words, place)), said)) != 0:
            raise FaultError(f"{words}: an undisturbed run fails: {said.read_text()}")


def disturbed(command: list[str], place: Path, said: Path, fault: tuple[int, ...]) -> tuple[int, list[int]]:
    """Runs with a fault: kind, number of the call, errno, whether it lasts, whether a write is torn.

    Returns:
        The exit code, and how many calls of each kind it made.
    """
    shim = ctypes.CDLL(os.environ[PRELOADED])
    counted = said.with_suffix(".calls")

    def action() -> int:
        shim.faults_arm(str(place).encode(), *fault)
        code = run(command)
        counted.write_text(json.dumps([shim.faults_calls(kind) for kind in range(len(KINDS))]))
        return code

    counted.unlink(missing_ok=True)
    code = ended(forked(action, said))
    return code, json.loads(counted.read_text()) if counted.exists() else []


def look(name: str, place: Path, before: dict[str, bytes], whole: dict[str, bytes], code: int, said: str) -> None:
    """Checks that a run that met a fault reported it or did all of its work, and that nothing is lost."""
    found = {name: data for name, data in contents(place).items() if not name.endswith(".tmp")}
    if code == 0:
        if {file: found.get(file) for file in whole} != whole:
            raise FaultError("ends with 0 and is not whole")
        return
    if code not in {3, 5} or "error: " not in said:
        raise FaultError(f"ends with {code}: {said}")
    old = {file: data for file, data in before.items() if not file.endswith(".tmp")}
    if old.items() <= found.items() or whole.items() <= found.items():
        return
    if all(found.get(file) in {old.get(file), whole.get(file)} for file in old.keys() | whole.keys()):
        return  # between two renames: files of which each names the others, as `verify` and `resume` see
    lost = [file for file in old if found.get(file) != old[file]]
    raise FaultError(f"committed files are gone: {lost}")


def gone_on_with(bench: Bench, scenario: Scenario, place: Path, whole: dict[str, bytes]) -> None:
    """Checks that the same command, undisturbed now, ends with the bytes of a run that was never disturbed."""
    words = (*scenario.words, *scenario.again)
    if words[0] == "fit" and "--overwrite" not in words and (place / scenario.output).exists():
        words = (*words, "--overwrite")
    said = place.with_suffix(".after")
    code = ended(forked(functools.partial(run, bench.command(scenario, words, place)), said))
    was_complete = scenario.output.endswith(".jsonl") and "does not name its" in said.read_text()
    if code != 0 and not was_complete:
        raise FaultError(f"undisturbed, it ends with {code}: {said.read_text()}")
    found = contents(place)
    if found != whole:
        differ = [name for name in found.keys() | whole.keys() if found.get(name) != whole.get(name)]
        raise FaultError(f"undisturbed, other files or bytes: {differ}")


def with_faults(bench: Bench, name: str, kind: int, step: int) -> dict[str, Any]:
    """Makes every call of a kind fail in turn, once and for good."""
    scenario = SCENARIOS[name]
    source, whole = bench.prepared(name)
    before = contents(source)
    place = bench.root / f"place-{os.getpid()}"
    said = place.with_suffix(".said")
    command = bench.command(scenario, scenario.words, place)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source, place)
    _, calls = disturbed(command, place, said, (-1, 0, 0, 0, 0))
    number = ERRORS.get(KINDS[kind], errno.EIO)
    ways = [(0, 0), (1, 0), *([(0, 1)] if KINDS[kind] == "write" else [])]
    wrong: list[str] = []
    codes = Counter[int]()
    for call in range(0, calls[kind], step):
        for lasting, torn in ways:
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(source, place)
            code, _ = disturbed(command, place, said, (kind, call, number, lasting, torn))
            codes[code] += 1
            where = f"{name}: {KINDS[kind]} {call}{' and on' * lasting}{' torn' * torn}"
            told = said.read_text()
            try:
                look(name, place, before, whole, code, told)
                if code != 0:
                    gone_on_with(bench, scenario, place, whole)
            except FaultError as fault:
                wrong.append(f"{where}: {fault}; it said: {told}")
    return {"scenario": name, "kind": KINDS[kind], "calls": calls[kind], "codes": dict(codes), "wrong": wrong}


def call(job: tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]) -> dict[str, Any]:
    """Does a job of the pool."""
    function, arguments = job
    return function(*arguments)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--step", type=int, default=1, help="every so-many-th call")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="scenarios whose names hold this")
    parser.add_argument("--short", action="store_true", help="three scenarios, every 40th call")
    asked = parser.parse_args()
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        print("left out: needs Linux and a C compiler")
        return 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        root = Path(name).resolve()
        library = root / "faults.so"
        source = Path(__file__).with_suffix(".c")
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        preloaded = {"LD_PRELOAD": str(library), PRELOADED: str(library), "TOKENIZERS_PARALLELISM": "false"}
        told = json.dumps([str(root), asked.step, asked.jobs, asked.only, asked.short])
        again = [sys.executable, "-c", "from benchmarks.torture.faults import serve; serve()", told]
        return subprocess.run(again, env={**os.environ, **preloaded}, check=False).returncode


def serve() -> None:
    """Runs all jobs in forks of a process that has the library preloaded and the model loaded."""
    import torch

    from embedkit.engines import in_process
    from tests.tiny_models import TEXTS, make

    name, step, jobs, only, short = json.loads(sys.argv[1])
    root = Path(name)
    torch.set_num_threads(1)
    in_process.build = loaded_once(in_process.build)  # type: ignore[assignment]
    table = root / "rows.jsonl"
    rows = [
        {"id": f"{row:05d}", "text": "" if row == 7 else TEXTS[row % len(TEXTS)] + f" {row}"}
        | {"patient": f"p{row // 3}", "label": "ab"[row % 2]}
        for row in range(24)
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bench = Bench(root, table, make("bert", root / "model").folder)
    # In one thread of this process, before there are forks.
    assert run(bench.command(SCENARIOS["folder"], ENCODE, fresh(root / "warm"))) == 0
    began = time.monotonic()
    names = [of for of in SCENARIOS if only in of and (not short or of in SHORT)]
    work = [(with_faults, (bench, of, kind, 40 if short else step)) for of in names for kind in range(len(KINDS))]
    faults = wrong = 0
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        for facts in pool.imap(call, work, chunksize=1):
            told = {key: value for key, value in facts.items() if key != "wrong"}
            print(", ".join(f"{key} {value}" for key, value in told.items()), flush=True)
            for sentence in facts["wrong"]:
                print(f"WRONG {sentence}", flush=True)
            faults += sum(facts["codes"].values())
            wrong += len(facts["wrong"])
    print(f"{faults} faults in {time.monotonic() - began:.0f} s: {wrong} silent, lost or not gone on with")
    sys.stdout.flush()
    os._exit(1 if wrong else 0)


if __name__ == "__main__":
    sys.exit(main())
