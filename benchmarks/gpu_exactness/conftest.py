"""The device that these tests are about, and what of them needs a real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests import tiny_models
from tests.conftest import embedkit_cli, one_thread  # noqa: F401 - fixtures: pytest finds them by their names here


@pytest.fixture(scope="session")
def device() -> str:
    """Returns a value for `--device`: that of EMBEDKIT_TEST_DEVICE, which `make test-gpu` sets, else cpu."""
    return os.environ.get("EMBEDKIT_TEST_DEVICE", "cpu")


@pytest.fixture(scope="session")
def cuda(device: str) -> torch.device:
    """Returns the device, for what only CUDA has."""
    if not device.startswith("cuda"):
        pytest.skip("needs a CUDA device: make test-gpu")
    # Some of torch's functions want its number.
    return torch.device("cuda", torch.device(device).index or 0)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory):
    """Returns a function from a model type to the folder of a tiny random model, made once."""
    made: dict[str, Path] = {}

    def folder_of(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = tiny_models.make(model_type, tmp_path_factory.mktemp("gpu") / model_type).folder
        return made[model_type]

    return folder_of
