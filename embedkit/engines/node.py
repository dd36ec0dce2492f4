"""Facts of the machine that a worker runs on: all that must be equal where one output is computed on several.

Also finds the run's model there.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

from embedkit.errors import ModelError, UsageError
from embedkit.inference.model_spec import ModelSpec
from embedkit.manifest.versions import vector_versions
from embedkit.models.repository.model_folder import ModelFolder
from embedkit.models.repository.resolve import go_offline, resolve_model

#: Libraries besides those of `vector_versions` that decide a file's bytes.
_OF_FILES = ("numpy", "pyarrow")


@dataclass(frozen=True, slots=True)
class Node:
    """A machine, as one of its processes sees it."""

    host: str
    pid: int  # of that process
    versions: Mapping[str, str]  # of what decides vectors and files, by name

    @classmethod
    def here(cls) -> Node:
        """Returns the machine of this process."""
        versions = {"python": ".".join(platform.python_version_tuple()[:2]), **vector_versions()}
        for name in _OF_FILES:
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                continue
        return cls(socket.gethostname(), os.getpid(), versions)

    def check_same_versions(self, ours: Node) -> None:
        """Checks that a worker's machine has the versions of the run's.

        Raises:
            UsageError: it has others, or lacks a library.
        """
        for name, wanted in ours.versions.items():
            found = self.versions.get(name)
            if found != wanted:
                has = f"has {name} {found}" if found else f"has no {name}"
                raise UsageError(
                    f"node {self.host} {has}, and the run is by {name} {wanted}: results would differ",
                    hint="install the same versions on all nodes, such as by one container image or one "
                    "environment on a shared disk",
                )


def device_kind(device: str) -> str:
    """Returns the kind of a device of this machine: numbers of one kind are the same to the last bit."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if device == "cpu":
        return f"a CPU with {torch.backends.cpu.get_cpu_capability()}"
    return device


def spec_here(spec: ModelSpec) -> ModelSpec:
    """Returns the model of a run with the files of it on this machine, where the run itself may not be.

    They are at the same path, as on a shared disk; else in an installed package, in the hub's cache of this
    machine, or downloaded from the hub. All of them are hashed here, so that another model is noticed.

    Raises:
        ModelError: the model is not here, and cannot be downloaded.
    """
    model, found = spec.config.model, spec.folder
    if model.offline:
        go_offline()
    if (found.folder / "config.json").is_file():
        return replace(spec, folder=replace(found, hashed={}))
    return replace(spec, folder=replace(_resolved(spec), name=found.name, hashed={}, runs_code=found.runs_code))


def _resolved(spec: ModelSpec) -> ModelFolder:
    found = spec.folder
    if found.revision is None and found.alias is None:
        raise ModelError(
            f"there is no model in {found.folder}",
            hint="put it on a disk that all nodes share at one path, or name a hub id that they can download",
        )
    return resolve_model(replace(spec.config.model, revision=found.revision))
