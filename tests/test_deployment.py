"""What containers, Slurm, Kubernetes and clouds are given fits their programs, as far as can be told here."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedkit.cli import command_tree

ROOT = Path(__file__).parents[1]
DOCKERFILES = ["Dockerfile", "Dockerfile.cuda"]
SCRIPTS = sorted((ROOT / "configs/slurm").glob("*.sbatch"))
RAYJOB = ROOT / "configs/kubernetes/rayjob.yaml"
CLUSTER = ROOT / "configs/ray/cluster.yaml"
#: The fields of KubeRay 1.7 (ray.io/v1), of which ours are some. Pods are Kubernetes' own.
RAYJOB_FIELDS = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint",
    "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata",
    "preRunningDeadlineSeconds", "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode",
    "submitterConfig", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
RAYCLUSTER_FIELDS = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
    "headServiceAnnotations", "historyServerOptions", "managedBy", "networkPolicy", "rayVersion", "suspend",
    "tlsOptions", "upgradeStrategy", "workerGroupSpecs",
}  # fmt: skip
AUTOSCALER_FIELDS = {
    "args", "command", "env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources",
    "securityContext", "upscalingMode", "version", "volumeMounts",
}  # fmt: skip
HEAD_FIELDS = {
    "enableIngress", "headService", "ingressOptions", "labels", "rayStartParams", "resources", "serviceType",
    "template",
}  # fmt: skip
WORKER_FIELDS = {
    "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "priority",
    "rayStartParams", "replicas", "resources", "scaleStrategy", "suspend", "template",
}  # fmt: skip


def instructions(name: str) -> list[tuple[str, str]]:
    """Returns the instructions of a Dockerfile, lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split()[0], line.partition(" ")[2]) for line in lines if line.strip()]


def parse_embedkit(words: list[str]) -> dict[str, Any]:
    assert words[0] == "embedkit"
    return dict(command_tree().commands[words[1]].make_context(words[1], words[2:]).params)


# Containers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_has_a_pinned_base_runs_as_nobody_in_particular_and_is_the_command(name: str) -> None:
    found = instructions(name)
    bases = [what for kind, what in found if kind == "FROM"]
    assert all(re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+( AS build)?", base) for base in bases)
    last_stage = found[max(place for place, (kind, _) in enumerate(found) if kind == "FROM") :]
    assert [what for kind, what in last_stage if kind == "USER"] == ["10001"]
    assert [what for kind, what in last_stage if kind == "ENTRYPOINT"] == ['["embedkit"]']
    environment = " ".join(what for kind, what in last_stage if kind == "ENV")
    assert "HF_HUB_OFFLINE=1" in environment
    assert "RAY_USAGE_STATS_ENABLED=0" in environment


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_installs_pinned_versions_of_extras_that_exist(name: str) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    runs = [what for kind, what in instructions(name) if kind == "RUN"]
    installs = [one for run in runs for one in run.split("&&") if "pip install" in one]
    assert len(installs) == 3
    assert all("-c configs/constraints.txt" in install for install in installs)
    (extras,) = re.findall(r"'\.\[([a-z,]+)\]'", " ".join(installs))
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras.split(","))


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_an_image_copies_exists_and_is_sent_to_the_builder(name: str) -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = [line[1:] for line in ignore if line.startswith("!")]
    copied = [what.split()[:-1] for kind, what in instructions(name) if kind == "COPY" and "--from" not in what]
    for source in (one for sources in copied for one in sources):
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in sent), source


def test_both_images_differ_in_what_gpus_need_only() -> None:
    cpu, cuda = ({*instructions(name)} for name in DOCKERFILES)
    assert {kind for kind, _ in cpu ^ cuda} == {"ENV"}


# Slurm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_of_slurm_is_bash_and_calls_embedkit_with_options_that_exist(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    text = re.sub(r"\\\n\s*", "", script.read_text(encoding="utf-8"))
    commands = re.findall(r"^(?:srun )?(embedkit encode [^&|\n]*)", text, re.MULTILINE)
    assert commands
    for command in commands:
        words = shlex.split(command.replace('"$@"', "notes.parquet").replace("$workers", "2"))
        assert parse_embedkit(words)["on_exists"] == "resume"


@pytest.mark.parametrize(
    "command",
    [["shellcheck", *map(str, SCRIPTS)], ["hadolint", *(str(ROOT / name) for name in DOCKERFILES)]],
    ids=["shellcheck", "hadolint"],
)
def test_linters_find_nothing(command: list[str]) -> None:
    path = shutil.which(command[0], path=str(Path(sys.executable).parent)) or shutil.which(command[0])
    if path is None:
        pytest.skip(f"{command[0]} is not installed: it is in the extra `cluster`")
    ran = subprocess.run([path, *command[1:]], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "")


# Kubernetes and clouds -----------------------------------------------------------------------------------


def test_the_rayjob_has_fields_that_kuberay_knows_and_a_command_that_embedkit_knows() -> None:
    job = yaml.safe_load(RAYJOB.read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert spec.keys() <= RAYJOB_FIELDS
    assert cluster.keys() <= RAYCLUSTER_FIELDS
    assert cluster["autoscalerOptions"].keys() <= AUTOSCALER_FIELDS
    assert cluster["headGroupSpec"].keys() <= HEAD_FIELDS
    assert workers.keys() <= WORKER_FIELDS
    options = parse_embedkit(shlex.split(spec["entrypoint"]))
    assert (options["engine"], options["on_exists"]) == ("ray", "resume")
    assert workers["maxReplicas"] == int(options["workers"].rpartition(":")[2])


def test_the_versions_of_ray_are_those_of_the_constraints() -> None:
    constraints = (ROOT / "configs/constraints.txt").read_text(encoding="utf-8")
    (pinned,) = re.findall(r"^ray==(.*)$", constraints, re.MULTILINE)
    cluster = yaml.safe_load(RAYJOB.read_text(encoding="utf-8"))["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == pinned


def test_the_images_of_head_and_workers_are_one() -> None:
    cluster = yaml.safe_load(RAYJOB.read_text(encoding="utf-8"))["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"]["template"], *(one["template"] for one in cluster["workerGroupSpecs"])]
    containers = [container for pod in pods for container in pod["spec"]["containers"]]
    assert len({container["image"] for container in containers}) == 1
    assert all(pod["spec"]["securityContext"]["runAsNonRoot"] for pod in pods)


def test_the_cluster_of_ray_up_is_what_rays_own_schema_allows() -> None:
    ray = pytest.importorskip("ray", reason="in the dev extra")
    jsonschema = pytest.importorskip("jsonschema", reason="comes with Ray")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text(encoding="utf-8"))
    cluster = yaml.safe_load(CLUSTER.read_text(encoding="utf-8"))
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
