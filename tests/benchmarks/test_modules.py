from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "benchmarks").rglob("*.py")
    if path.stem not in {"__main__", "__init__"} and path.parent.name != "stand_ins"
)


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_can_be_imported(name):
    if name == "benchmarks.readers":
        pytest.importorskip("datasets", reason="in an environment of its own: make bench-readers")
    import_module(name)
