"""configs/slurm/ray.sbatch does what it says, with an `srun` that starts its step on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.ray_cluster import ENVIRONMENT
from tests.cluster.ray_runs import ROOT, environment
from tests.engines.test_resume import assert_same
from tests.tiny_models import TEXTS

pytestmark = pytest.mark.timeout(600)
SHARDS = 60
SRUN = """#!/bin/bash
# Ends all that the step has started, as Slurm does.
while [[ $1 == --* ]]; do shift; done
setsid "$@" &
step=$!
trap 'kill -TERM -- "-$step"' TERM
wait "$step"
wait "$step"
"""


@pytest.fixture
def ray_job(tmp_path):
    """Yields a function that starts the script as a job of two nodes."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray>=2.52'")
    (tmp_path / "bin").mkdir()
    programs = {
        "srun": SRUN,
        "ray": f'#!/bin/bash\nexec {Path(sys.executable).with_name("ray")} "$@"\n',
        "embedkit": f'#!/bin/bash\nexec {sys.executable} -m embedkit "$@"\n',
    }
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    jobs = []

    def ray_job(*arguments):
        number = random.Random().randint(100_000, 999_999)  # decides port and folder
        job = {
            "SLURM_JOB_ID": str(number),
            "SLURM_JOB_NUM_NODES": "2",
            "SLURMD_NODENAME": socket.gethostname(),
            "SLURM_CPUS_PER_TASK": "1",
        }
        variables = environment(ENVIRONMENT | job) | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
        script = ROOT / "configs/slurm/ray.sbatch"
        with (tmp_path / f"said-{len(jobs)}").open("w") as said:
            process = subprocess.Popen(
                ["bash", str(script), *map(str, arguments)], env=variables, stdout=said, stderr=said
            )
        jobs.append((process, number))
        return process

    yield ray_job
    for process, number in jobs:
        process.kill()
        process.wait()
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and f"/tmp/ray-{number}".encode() in (folder / "cmdline").read_bytes():  # noqa: S108
                    os.kill(int(folder.name), signal.SIGKILL)
        shutil.rmtree(f"/tmp/ray-{number}", ignore_errors=True)  # noqa: S108


def test_a_job_runs_on_all_its_nodes_ends_with_75_at_a_signal_and_continues(ray_job, bert, tmp_path):
    texts = tmp_path / "notes.jsonl"
    texts.write_text("".join(json.dumps({"text": TEXTS[row % len(TEXTS)]}) + "\n" for row in range(8 * SHARDS)))
    arguments = (texts, "-m", bert, "--shard-rows", 8, "--pool", "mean", "--device", "cpu")
    (tmp_path / "ray").mkdir()
    job = ray_job(*arguments, "-o", tmp_path / "ray/out")
    commits, until = tmp_path / "ray/out/commits", time.monotonic() + 200
    while len(list(commits.glob("[0-9]*.json"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    code, said = job.wait(200), (tmp_path / "said-0").read_text()
    assert code == 75, said
    assert "stopped by a signal" in said
    assert not (tmp_path / "ray/out/manifest.json").exists()

    code, said = ray_job(*arguments, "-o", tmp_path / "ray/out").wait(400), (tmp_path / "said-1").read_text()
    assert code == 0, said
    assert "2 Ray workers, cpu" in said
    (tmp_path / "whole").mkdir()
    words = [sys.executable, "-m", "embedkit", "encode", *arguments, "-o", tmp_path / "whole/out"]
    subprocess.run(list(map(str, words)), env=environment(), check=True, capture_output=True)
    assert_same(tmp_path / "ray", tmp_path / "whole")
