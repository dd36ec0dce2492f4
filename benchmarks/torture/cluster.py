"""Kills of Ray's actors, nodes, drivers and heads at random times, and ranks that race on one bucket.

    python -m benchmarks.torture.cluster [--kills 200] [--races 6] [--seed 0] [--to local,s3] [-o RESULT.json]

Each run writes many small shards, to a disk or to a bucket of SeaweedFS, and is killed at until it has had its
share of kills, at random seconds or after a random number of shards. What died is replaced by the engine, or the
run is resumed by a random engine. Then every file has the bytes that one local process writes, so no row is lost,
doubled or moved. What RESULT.json tells of earlier runs is added to: give another seed. Exits with 1 at the first
fault, and with 0 where Ray or SeaweedFS are not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.__main__ import machine, versions
from benchmarks.torture.kills import FaultError, contents, fresh, tell
from tests.cluster import ray_cluster, servers
from tests.tiny_models import TEXTS, make

SHARD_ROWS = 8
N_ROWS = 300 * SHARD_ROWS
EMPTY_EVERY = 97
#: Kills of one run, and how often each kind is drawn. A head takes a new cluster with it.
KILLS_A_RUN = 10
WEIGHTS = {"actor": 22, "raylet": 8, "driver": 9, "head": 1}
#: From one kill to the next: seconds at most, or shards at most. To load the tiny model takes an idle machine 5 s,
#: so that seconds hit workers that start, and shards workers that compute.
PAUSE, PAUSE_SHARDS, SHARDS_SECONDS = 4.0, 20, 20.0
#: Raylets of one processor: one more than the run has workers, so that one is free when another is killed.
NODES, WORKERS = 3, 2
#: Seconds that a run may take that nothing disturbs any more.
LIMIT_SECONDS = 300
#: How a run may end when it was killed at, besides 0: what its message has then.
ALLOWED = ("the head of the Ray cluster", "died before", "workers died", "cannot connect to Ray")


@dataclass
class Place:
    """Where outputs go: a disk or a bucket.

    Attributes:
        name: "local" or "s3".
        target: what -o is given for an output's name.
        files: all files of an output, by name.
        environment: of the processes that write there.
        whole: the files of one undisturbed local process.
    """

    name: str
    target: Callable[[str], str]
    files: Callable[[str], dict[str, bytes]]
    environment: dict[str, str] = field(default_factory=dict)
    whole: dict[str, bytes] = field(default_factory=dict)

    def look(self, output: str) -> None:
        """Checks that an output is complete, with the bytes of an undisturbed run and no other file."""
        found = self.files(output)
        if found.keys() != self.whole.keys():
            raise FaultError(f"{output}: {sorted(found.keys() ^ self.whole.keys())[:5]} are there, or are not")
        differ = [name for name in found if found[name] != self.whole[name]]
        if differ:
            raise FaultError(f"{output}: bytes differ in {differ[:5]}")


@dataclass
class Bench:
    """What all runs share."""

    root: Path
    table: Path
    model: Path

    def command(self, target: str, *options: object) -> list[str]:
        words = ["encode", self.table, "-m", self.model, "-o", target, "--shard-rows", SHARD_ROWS]
        words += ["--pool", "mean", "--device", "cpu", "--progress", "json", "--on-exists", "resume", *options]
        return [sys.executable, "-m", "embedkit", *(str(word) for word in words)]

    def start(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Starts a run; what it says goes to a file."""
        with (self.root / "said").open("ab") as said:
            return subprocess.Popen(
                command, stdout=said, stderr=said, stdin=subprocess.DEVNULL, env=os.environ | environment
            )

    def said(self) -> str:
        lines = (self.root / "said").read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if not line.startswith('{"event": "'))[-2000:]

    def shards(self) -> int:
        """Returns how many shards the run has committed, by its events in the file."""
        return (self.root / "said").read_bytes().count(b'{"event": "shard"')


def prepare(root: Path) -> Bench:
    table = root / "rows.jsonl"
    with table.open("w") as file:
        for row in range(N_ROWS):
            text = "" if row % EMPTY_EVERY == 7 else TEXTS[row % len(TEXTS)][:200]
            file.write(json.dumps({"id": f"{row:06d}", "text": text}) + "\n")
    return Bench(root, table, make("bert", root / "model").folder)


@contextmanager
def places(bench: Bench, names: list[str]) -> Iterator[list[Place]]:
    """Yields the places, and what an undisturbed run leaves at each."""
    with ExitStack() as stack:
        found = []
        if "local" in names:
            folder = fresh(bench.root / "outputs")
            found.append(Place("local", lambda name: str(folder / name), lambda name: contents(folder / name)))
        if "s3" in names:
            server = stack.enter_context(servers.seaweed(bench.root / "seaweed"))
            bucket = server.make_bucket()
            found.append(
                Place(
                    "s3",
                    lambda name: f"s3://{bucket}/{name}",
                    lambda name: server.objects(bucket, f"{name}/"),
                    server.environment,
                )
            )
        for place in found:
            process = bench.start(bench.command(place.target("whole")), place.environment)
            if process.wait(LIMIT_SECONDS) != 0:
                raise FaultError(f"{place.name}: an undisturbed run fails: {bench.said()}")
            place.whole = place.files("whole")
            check_ids(bench, place)
        yield found


def check_ids(bench: Bench, place: Place) -> None:
    """Checks, by pyarrow alone, that the undisturbed run itself has each row once, in order."""
    import io

    import pyarrow.parquet as pq

    shards = sorted(name for name in place.whole if name.endswith(".parquet"))
    ids = [row for name in shards for row in pq.read_table(io.BytesIO(place.whole[name]))["id"].to_pylist()]
    if ids != [f"{row:06d}" for row in range(N_ROWS)] or len(shards) != N_ROWS // SHARD_ROWS:
        raise FaultError(f"{place.name}: {len(ids)} rows in {len(shards)} shards, or not in the table's order")


class Cluster:
    """A Ray cluster, and another one when its head was killed.

    Args:
        variables: of its nodes, which have credentials of their own.
    """

    def __init__(self, variables: dict[str, str]) -> None:
        self._variables = variables
        self._stack = ExitStack()
        self.now = self._start()

    def _start(self) -> ray_cluster.RayCluster:
        started = ray_cluster.ray_cluster(nodes=NODES, cpus=1, variables=self._variables)
        return self._stack.enter_context(started)

    def renew(self) -> ExitStack:
        """Starts another one; returns what ends the one before."""
        former, self._stack = self._stack, ExitStack()
        self.now = self._start()
        return former

    def end(self) -> None:
        self._stack.close()


class Run:
    """One output, disturbed until it has had its kills.

    Attributes:
        done: kills, by kind.
        ends: how the processes ended, besides by kills.
        resumes: how often one engine went on with another's shards, by their names.
    """

    def __init__(self, bench: Bench, place: Place, cluster: Cluster, chance: random.Random, name: str) -> None:
        self.bench, self.place, self.cluster, self.chance, self.name = bench, place, cluster, chance, name
        self.driver: subprocess.Popen[bytes] | None = None
        self.engine = ""
        self.done: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.resumes: Counter[str] = Counter()

    def start(self, engine: str) -> None:
        if self.engine and self.bench.shards():
            self.resumes[f"{engine} after {self.engine}"] += 1
        (self.bench.root / "said").write_bytes(b"")
        self.engine = engine
        options = ["--engine", "ray", "--workers", WORKERS] if engine == "ray" else []
        environment = self.place.environment | (self.cluster.now.environment if engine == "ray" else {})
        command = self.bench.command(self.place.target(self.name), *options)
        self.driver = self.bench.start(command, environment | {"OMP_NUM_THREADS": "1"})

    def is_running(self, seconds: float) -> bool:
        """Waits, at most so long, for the driver to end."""
        if self.driver is None:
            return False
        try:
            code = self.driver.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        self.driver = None
        if code == 0:
            self.ends["complete"] += 1
            self.place.look(self.name)
        elif code == 1 and any(part in self.bench.said() for part in ALLOWED):
            self.ends["gave up"] += 1
        elif code != -signal.SIGKILL:
            raise FaultError(f"{self.name}: ended with {code}: {self.bench.said()}")
        return False

    def pause(self) -> bool:
        """Waits for a random time or number of shards; returns True if the driver still runs."""
        if self.chance.random() < 0.4:
            return self.is_running(self.chance.uniform(0, PAUSE))
        wanted = self.bench.shards() + self.chance.randint(1, PAUSE_SHARDS)
        until = time.monotonic() + SHARDS_SECONDS
        while self.bench.shards() < wanted and time.monotonic() < until:
            if not self.is_running(0.05):
                return False
        return True

    def kill(self, kind: str) -> bool:
        """Kills something while the driver runs; False if there is nothing to kill."""
        assert self.driver
        cluster = self.cluster.now
        if kind == "driver":
            self.driver.kill()
            self.is_running(LIMIT_SECONDS)
        elif kind == "head":
            cluster.kill_head()
            former = self.cluster.renew()  # the driver waits meanwhile
            if self.is_running(LIMIT_SECONDS):
                raise FaultError(f"{self.name}: runs {LIMIT_SECONDS} s after its head was killed")
            former.close()
        elif kind == "raylet":
            try:
                cluster.kill_node(self.chance.choice(cluster.raylets))
                cluster.add_node(cpus=1)
            except RuntimeError as error:  # a machine so busy that Ray gave up: its cluster has gone
                print(f"a new cluster: {str(error)[-200:]}")
                former = self.cluster.renew()
                self.is_running(LIMIT_SECONDS)
                former.close()
        else:
            actors = cluster.actors("RayActor")
            if not actors:
                return False
            with suppress(ProcessLookupError):
                os.kill(self.chance.choice(actors), signal.SIGKILL)
        self.done[kind] += 1
        return True

    def disturbed(self, kinds: list[str]) -> None:
        """Runs until the kills are done, and then until the output is complete."""
        outputs = 0
        self.start("ray")
        while kinds:
            if self.pause():
                if self.engine == "local":
                    self.kill("driver")
                elif self.kill(kinds[0]):
                    kinds.pop(0)
            else:
                if self.ends["complete"] > outputs:  # an output of its own for the kills that are left
                    outputs = self.ends["complete"]
                    self.name, self.engine = f"{self.name}+", ""
                # A local run is only there to go on with shards of Ray, and to leave some.
                is_next = self.engine == "ray" and self.chance.random() < 0.4
                self.start("local" if is_next else "ray")
        while self.ends["complete"] == outputs:
            if self.driver is None:
                self.start(self.chance.choice(["ray", "local"]))
            if self.is_running(LIMIT_SECONDS):
                raise FaultError(f"{self.name}: does not end: {self.bench.said()}")

    def end(self) -> None:
        if self.driver is not None:
            self.driver.kill()
            self.driver.wait()


def race(bench: Bench, place: Place, chance: random.Random, name: str) -> int:
    """Starts two ranks on one output at once; kills and restarts one of them, or none. Returns the kills."""
    share = bench.command(place.target(name), "--num-shards", 2)
    both = [bench.start([*share, "--shard-id", str(rank)], place.environment) for rank in (0, 1)]
    kills = 0
    if chance.random() < 0.7:
        rank = chance.choice((0, 1))
        try:
            both[rank].wait(chance.uniform(4, 20))
        except subprocess.TimeoutExpired:
            both[rank].kill()
            both[rank].wait()
            kills += 1
            both[rank] = bench.start([*share, "--shard-id", str(rank)], place.environment)
    codes = [process.wait(LIMIT_SECONDS) for process in both]
    if codes != [0, 0]:
        raise FaultError(f"{name}: ranks end with {codes}: {bench.said()}")
    if "manifest.json" not in place.files(name):  # the killed one may have been the last
        process = bench.start(bench.command(place.target(name)), place.environment)
        if process.wait(LIMIT_SECONDS) != 0:
            raise FaultError(f"{name}: not resumed: {bench.said()}")
    place.look(name)
    return kills


def drawn(chance: random.Random, kills: int) -> list[list[str]]:
    """Returns the kinds of all kills, by run."""
    kinds = chance.choices(list(WEIGHTS), list(WEIGHTS.values()), k=kills)
    return [kinds[start : start + KILLS_A_RUN] for start in range(0, kills, KILLS_A_RUN)]


@dataclass
class Tally:
    """What was done, for a file."""

    output: Path | None
    began: float = field(default_factory=time.monotonic)
    runs: int = 0
    races: dict[str, int] = field(default_factory=dict)
    kills: dict[str, Counter[str]] = field(default_factory=dict)  # by place, then by kind
    ends: Counter[str] = field(default_factory=Counter)
    resumes: Counter[str] = field(default_factory=Counter)
    seconds: int = 0  # of earlier runs
    machines: list[dict[str, Any]] = field(default_factory=list)  # of earlier runs and of this one, with kills

    def __post_init__(self) -> None:
        here: dict[str, Any] = {"machine": machine(), "versions": versions(sys.executable), "kills": 0}
        here["versions"] |= {name: version(name) for name in ("ray", "obstore")}
        self.machines.append(here)
        if self.output is None or not self.output.exists():
            return
        earlier = json.loads(self.output.read_text(encoding="utf-8"))
        self.races, self.seconds = earlier["races"], earlier["seconds"]
        self.machines[:0] = earlier["machines"]
        self.kills = {place: Counter(kills) for place, kills in earlier["kills_by_place"].items()}
        self.resumes = Counter(earlier["resumes"])
        self.ends["complete"] = earlier["outputs_with_the_bytes_of_one_process"]
        self.ends["gave up"] = earlier["runs_that_gave_up_and_were_resumed"]

    def add_race(self, killed: int) -> None:
        self.races = {
            "races": self.races.get("races", 0) + 1,
            "ranks killed": self.races.get("ranks killed", 0) + killed,
        }
        self.write()

    @property
    def n_kills(self) -> int:
        return sum(kills.total() for kills in self.kills.values())

    def add(self, run: Run) -> None:
        self.runs += 1
        self.machines[-1]["kills"] += run.done.total()
        self.kills.setdefault(run.place.name, Counter()).update(run.done)
        self.ends += run.ends
        self.resumes += run.resumes
        tell({"run": self.runs, "to": run.place.name, "kills": dict(run.done), "in all": self.n_kills})
        self.write()

    def write(self) -> None:
        """Writes the file, again after each run and race."""
        self.machines[-1]["load_average"] = round(os.getloadavg()[0], 2)
        found: dict[str, Any] = {
            "machines": self.machines,
            "seconds": self.seconds + round(time.monotonic() - self.began),
            "shards_of_an_output": N_ROWS // SHARD_ROWS,
            "kills": self.n_kills,
            "kills_by_place": {place: dict(sorted(kills.items())) for place, kills in self.kills.items()},
            "races": self.races,
            "outputs_with_the_bytes_of_one_process": self.ends["complete"],  # another one ends all
            "runs_that_gave_up_and_were_resumed": self.ends["gave up"],
            "resumes": dict(sorted(self.resumes.items())),
        }
        if self.output:
            self.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--races", type=int, default=6, help="of two ranks on one bucket")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", default="local,s3", help="where outputs go")
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers and runs end as well
    chance, tally = random.Random(asked.seed), Tally(asked.output)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bench = prepare(Path(folder).resolve())
        with places(bench, asked.to.split(",")) as found:
            for number in range(asked.races):
                tally.add_race(race(bench, found[-1], chance, f"race-{number}"))
            if asked.races:
                tell(tally.races | {"to": found[-1].name})
            cluster = Cluster({name: value for place in found for name, value in place.environment.items()})
            try:
                for number, kinds in enumerate(drawn(chance, asked.kills)):
                    run = Run(bench, found[number % len(found)], cluster, chance, f"run-{number}")
                    try:
                        run.disturbed(kinds)
                    except FaultError:
                        tell({"run": number, "kills": dict(run.done), "ends": dict(run.ends)})
                        raise
                    finally:
                        run.end()
                    tally.add(run)
                    for output in (bench.root / "outputs").glob(f"run-{number}*"):
                        shutil.rmtree(output, ignore_errors=True)
            finally:
                cluster.end()
    print(
        f"{tally.n_kills} kills and {asked.races} races in {time.monotonic() - tally.began:.0f} s: 0 rows lost, "
        "0 doubled, 0 reordered, bytes identical"
    )
    return 0


if __name__ == "__main__":
    try:
        code = main()
    except FaultError as fault:
        print(f"FAULT {fault}", file=sys.stderr)
        code = 1
    except pytest.skip.Exception as missing:
        print(f"not run: {missing}")
        code = 0
    sys.exit(code)
