"""What the tests of models share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny_models


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of tiny models by their kind, each made once a module, to be copied before they are changed."""
    root, made = tmp_path_factory.mktemp("bases"), {}

    def base(kind: str) -> Path:
        if kind not in made:
            made[kind] = tiny_models.make(kind, root / kind).folder
        return made[kind]

    return base
