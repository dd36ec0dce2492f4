"""The Slurm scripts in configs/slurm do what they say, with an `srun` that starts its tasks on this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import embedkit
from tests.conftest import NOTES
from tests.engines.test_resume import assert_same

SCRIPTS = Path(__file__).parents[2] / "configs/slurm"
pytestmark = pytest.mark.timeout(120)

#: Starts SLURM_NTASKS tasks, passes SIGUSR1 on to them, and ends with the highest of their exit codes.
SRUN = """#!/bin/bash
tasks=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=$SLURM_NTASKS SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    tasks+=($!)
done
trap 'kill -USR1 "${tasks[@]}" 2>/dev/null' USR1
highest=0
for task in "${tasks[@]}"; do
    wait "$task"
    while kill -0 "$task" 2>/dev/null; do wait "$task"; done
    wait "$task"
    code=$?
    if ((code > highest)); then highest=$code; fi
done
exit $highest
"""


@pytest.fixture
def slurm(tmp_path):
    """Yields a function that starts a script with a job's environment and arguments for `embedkit encode`."""
    programs = {
        "srun": SRUN,
        "scontrol": f'#!/bin/bash\necho "$@" >> {tmp_path}/scontrol.said\n',
        "embedkit": f'#!/bin/bash\nexec {sys.executable} -m embedkit "$@"\n',
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    started = []

    def slurm(script, arguments, **job):
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        environ |= {"PATH": f"{tmp_path}/bin:{environ['PATH']}", "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "4711"}
        command = ["bash", str(SCRIPTS / script), *map(str, arguments)]
        job = {name: str(value) for name, value in job.items()}
        started.append(subprocess.Popen(command, env=environ | job, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield slurm
    for process in started:
        process.kill()
        process.wait()


def arguments_of(bert, notes, output):
    return [notes, "-m", bert, "--pool", "mean", "--shard-rows", 8, "--batch-size", 1, "-o", output]


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.iterdir()))
def test_the_command_in_a_scripts_comment_is_for_this_script(script):
    text = (SCRIPTS / script).read_text()
    # Options of Slurm come before the script's name; what follows it are embedkit's.
    command = rf"^#     sbatch (--\S+ \d+ )*configs/slurm/{script} (/scratch/)?notes\.parquet "
    assert re.search(command, text, re.MULTILINE)
    assert subprocess.run(["bash", "-n", SCRIPTS / script], check=True).returncode == 0
    # Slurm reads its options up to the first command.
    assert not re.search(r"^[^#\n].*\n(.*\n)*#SBATCH", text, re.MULTILINE)


@pytest.mark.long
def test_the_tasks_of_an_array_make_one_output_between_them(slurm, encode, bert, tmp_path):
    arguments = arguments_of(bert, NOTES, tmp_path / "place/out")
    (tmp_path / "place").mkdir()
    array = {"SLURM_NTASKS": 1, "SLURM_ARRAY_TASK_COUNT": 2, "SLURM_ARRAY_TASK_MIN": 1, "SLURM_ARRAY_TASK_MAX": 2}
    tasks = [slurm("array.sbatch", arguments, SLURM_ARRAY_TASK_ID=number, **array) for number in (1, 2)]
    said = [task.communicate()[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert all("of 2, as the numbers of the Slurm array say" in words for words in said)
    assert encode(*arguments_of(bert, NOTES, tmp_path / "whole/out")).code == 0
    assert_same(tmp_path / "place", tmp_path / "whole")


def test_a_batch_script_that_calls_the_command_without_srun_does_all_of_it(encode, tmp_path, monkeypatch):
    allocation = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "3", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    for name, value in allocation.items():
        monkeypatch.setenv(name, value)
    ran = encode(NOTES, "-o", tmp_path / "out", "--shard-rows", 8)
    assert ran.code == 0
    assert "note: the Slurm allocation has 3 tasks, and srun did not start this process" in ran.err
    assert len(embedkit.read(tmp_path / "out").table) == 67


@pytest.mark.long
def test_a_signalled_job_requeues_itself_and_continues(slurm, encode, bert, tmp_path):
    header, *rows = NOTES.read_text(encoding="utf-8").split("\n0")  # ids begin with 0
    notes = tmp_path / "notes.csv"
    notes.write_text("\n0".join([header, *rows * 6]), encoding="utf-8")
    arguments = arguments_of(bert, notes, tmp_path / "place/out")
    assert "#SBATCH --requeue" in (SCRIPTS / "preemptible.sbatch").read_text()
    job = slurm("preemptible.sbatch", arguments, SLURM_NTASKS=2)
    commits, until = tmp_path / "place/out/commits", time.monotonic() + 60
    while len(list(commits.glob("[0-9]*.json"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    said = job.communicate()[1]
    assert (job.returncode, (tmp_path / "scontrol.said").read_text()) == (75, "requeue 4711\n"), said
    assert not (tmp_path / "place/out/manifest.json").exists()
    again = slurm("preemptible.sbatch", arguments, SLURM_NTASKS=1)
    said = again.communicate()[1]
    assert again.returncode == 0, said
    assert encode(*arguments_of(bert, notes, tmp_path / "whole/out")).code == 0
    assert_same(tmp_path / "place", tmp_path / "whole")
