"""A Ray cluster of several raylets on this machine, with a session folder and a token of its own.

The cluster lives in a process of its own: Ray reads its environment once, when it is imported, and the tests must
not have that environment. It ends when its standard input does, and so with the tests, however they end.
Never calls `ray stop`: it ends every Ray of the machine, those of others too.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

#: For raylets and drivers alike. With another niceness than 0, workers are starved by whatever else runs; on a
#: busy machine a raylet needs longer than the 10 s that Ray waits for it. Processes to spare, one for each CPU of
#: each node whenever a driver comes, take what the tests need.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_AUTH_MODE": "token",
    "OMP_NUM_THREADS": "1",
}
START_SECONDS = 180
ROOT, ODD_NODE = Path(__file__).parents[2], Path(__file__).parent / "odd_node"


@dataclass
class RayCluster:
    """A cluster that runs.

    Attributes:
        folder: Ray's sessions: logs, sockets, spilled objects.
        environment: the variables that a driver needs to join, `RAY_ADDRESS` among them.
        address: "HOST:PORT" of the head.
        head: process id of the head's server (GCS).
        raylets: process ids of the raylets besides the head's, in the order in which they were added.
        dashboard: its "HOST:PORT"; empty without one.
    """

    process: subprocess.Popen[str]
    folder: Path
    environment: dict[str, str]
    address: str = ""
    head: int = 0
    raylets: tuple[int, ...] = ()
    dashboard: str = ""

    def ask(self, command: str, *arguments: object) -> None:
        """Has the cluster do something and waits until it is done."""
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            print(command, *arguments, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("{"):  # Ray prints lines of its own
                state = json.loads(line)
                self.address, self.head, self.raylets = state["address"], state["head"], tuple(state["raylets"])
                self.dashboard = state["dashboard"]
                self.environment["RAY_ADDRESS"] = self.address
                return
        raise RuntimeError(f"the cluster ended: {(self.folder / 'cluster.log').read_text()[-3000:]}")

    def add_node(self, cpus: int = 2) -> int:
        """Starts another raylet and returns its process id."""
        self.ask("add", cpus)
        return self.raylets[-1]

    def kill_node(self, raylet: int | None = None) -> int:
        """SIGKILLs a raylet (the last, unless stated) with its workers, as a power cut would. Returns its id."""
        raylet = raylet or self.raylets[-1]
        self.ask("kill", raylet)
        return raylet

    def kill_head(self) -> None:
        """SIGKILLs the head's server; this cluster is of no use afterwards."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.head, signal.SIGKILL)

    @contextlib.contextmanager
    def odd_workers(self, kind: str, value: object = "") -> Iterator[None]:
        """Lets workers that start meanwhile differ; see odd_node/sitecustomize.py."""
        odd = self.folder / "odd"
        odd.write_text(f"{kind}={value}")
        try:
            yield
        finally:
            odd.unlink()
            odd.with_name("odd-taken").unlink(missing_ok=True)

    def page(self, path: str) -> str:
        """Returns a page of the dashboard."""
        headers = {"Authorization": f"Bearer {(self.folder / 'token').read_text()}"}
        connection = http.client.HTTPConnection(self.dashboard, timeout=60)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        assert answer.status == 200, f"{path}: {answer.status} {text[:300]}"
        return text

    def actors(self, name: str = "") -> list[int]:
        """Process ids of the workers that have an actor whose class name has `name` in it."""
        return [
            int(process.name)
            for process in Path("/proc").iterdir()
            if process.name.isdigit() and self._is_actor(process, name)
        ]

    def _is_actor(self, process: Path, name: str) -> bool:
        """Ray renames its workers: `ray::Name.method` while one runs, `ray::Name` between."""
        with contextlib.suppress(OSError):
            title = (process / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            if title.startswith("ray::") and not title.startswith("ray::IDLE") and name in title:
                return str(self.folder).encode() in (process / "environ").read_bytes()
        return False


@contextlib.contextmanager
def ray_cluster(
    nodes: int = 2, cpus: int = 2, *, dashboard: bool = False, variables: Mapping[str, str] = {}
) -> Iterator[RayCluster]:
    """A head without processors, and so without workers, and `nodes` raylets beside it, with these variables."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray>=2.52'")
    # Sockets of Unix have paths of at most 107 characters: pytest's folders are too long.
    folder = Path(tempfile.mkdtemp(prefix="ek-ray-", dir="/tmp"))
    (folder / "ray").mkdir()
    (folder / "token").write_text(secrets.token_hex(32))
    environment = ENVIRONMENT | {"RAY_AUTH_TOKEN_PATH": str(folder / "token"), "RAY_TMPDIR": str(folder)}
    odd = {"ODD_NODE": str(folder / "odd"), "PYTHONPATH": os.pathsep.join(map(str, (ODD_NODE, ROOT)))}
    command = [sys.executable, "-m", __name__, str(folder), str(nodes), str(cpus), str(int(dashboard))]
    with (folder / "cluster.log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env={**os.environ, **odd, **environment, **variables},
        )
    cluster = RayCluster(process, folder, environment)
    try:
        cluster.ask("state")
        yield cluster
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.communicate(timeout=START_SECONDS)  # the end of its input ends it
        process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def process_of(node: Any, name: str) -> int:
    (process,) = node.all_processes[name]
    return int(process.process.pid)


def add_node(cluster: Any, cpus: int) -> Any:
    """Starts a raylet; on a busy machine Ray may give up on the first."""
    try:
        return cluster.add_node(num_cpus=cpus)
    except Exception as error:  # noqa: BLE001 - Ray raises that itself
        print(f"tried again after: {error}", file=sys.stderr)
        return cluster.add_node(num_cpus=cpus)


def main(folder: str, nodes: str, cpus: str, dashboard: str) -> None:
    from ray.cluster_utils import Cluster

    head: dict[str, Any] = {"num_cpus": 0, "include_dashboard": dashboard == "1", "temp_dir": f"{folder}/ray"}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    added: list[Any] = [add_node(cluster, int(cpus)) for _ in range(int(nodes))]
    cluster.wait_for_nodes(START_SECONDS)
    for line in sys.stdin:
        match line.split():
            case ["add", number]:
                added.append(add_node(cluster, int(number)))
            case ["kill", raylet]:
                (node,) = (node for node in added if process_of(node, "raylet") == int(raylet))
                added.remove(node)
                cluster.remove_node(node, allow_graceful=False)
        state = {
            "address": cluster.address,
            "head": process_of(cluster.head_node, "gcs_server"),
            "dashboard": cluster.head_node.webui_url,
            "raylets": [process_of(node, "raylet") for node in added],
        }
        print(json.dumps(state), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
