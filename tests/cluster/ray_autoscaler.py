"""A Ray head without processors and without nodes, whose autoscaler starts raylets on this machine on demand.

Started by `ray start --autoscaling-config`, as `ray up` does it: Ray's own `AutoscalingCluster.start` ends every
Ray of the machine first.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.cluster.ray_cluster import ENVIRONMENT, START_SECONDS, RayCluster
from tests.cluster.ray_runs import environment
from tests.cluster.servers import free_port


def autoscaling(gcs_address: str, nodes: int) -> dict[str, Any]:
    """Returns the configuration of a cluster that may have so many nodes of one processor."""
    return {
        "cluster_name": "from-none",
        "max_workers": nodes,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 5.0,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": gcs_address,  # else its nodes try port 6379, for ever
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": nodes},
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "head_start_ray_commands": [],
        **{name: [] for name in ("worker_start_ray_commands", "cluster_synced_files", "initialization_commands")},
        **{name: [] for name in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
        **{name: [] for name in ("rsync_exclude", "rsync_filter")},
        **{name: {} for name in ("file_mounts", "docker")},
        "file_mounts_sync_continuously": False,
    }


def processes_of(folder: Path) -> Iterator[tuple[int, str]]:
    """Yields the processes with a cluster's folder in their command lines, and these."""
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and str(folder) in (words := (process / "cmdline").read_text()):
                yield int(process.name), words


@contextlib.contextmanager
def autoscaled_ray(nodes: int) -> Iterator[RayCluster]:
    """Yields a head without processors; up to `nodes` raylets come when something is asked for."""
    # Sockets of Unix have paths of at most 107 characters: pytest's folders are too long.
    folder = Path(tempfile.mkdtemp(prefix="ek-auto-", dir="/tmp"))
    port = free_port()
    (folder / "config.json").write_text(json.dumps(autoscaling(f"127.0.0.1:{port}", nodes)))
    variables = {
        **ENVIRONMENT,
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": str(folder),  # by which its processes are found
    }
    words = (
        *(Path(sys.executable).with_name("ray"), "start", "--head", f"--port={port}", "--num-cpus=0", "--block"),
        *(f"--autoscaling-config={folder / 'config.json'}", f"--temp-dir={folder / 'ray'}"),
        "--include-dashboard=false",
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            list(map(str, words)),
            env=environment(variables),
            stdout=log,
            stderr=log,
            start_new_session=True,
            text=True,
        )
    cluster = RayCluster(process, folder, variables | {"RAY_ADDRESS": f"127.0.0.1:{port}"}, f"127.0.0.1:{port}")
    try:
        until = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in (told := (folder / "log").read_text()):
            assert time.monotonic() < until, told
            assert process.poll() is None, told
            time.sleep(0.1)
        (cluster.head,) = (pid for pid, words in processes_of(folder) if "gcs_server" in words.split("\0")[0])
        yield cluster
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        for pid in (*cluster.actors(), *(pid for pid, _ in processes_of(folder))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
