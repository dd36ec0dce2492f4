"""These tests, by a Python that has torch, transformers and pytest: make test-gpu [PYTHON=...] [DEVICE=cuda]."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.gpu.needs import refuse_without


def main() -> int:
    said = refuse_without(("pytest",))
    if said:
        print(said)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    device = os.environ.setdefault("EMBEDKIT_TEST_DEVICE", "cuda")
    import pytest

    from benchmarks.gpu.device import refuse_device

    refuse_device(device)
    # The project's options name plugins that may be missing here.
    return int(pytest.main(["-q", "-ra", "--durations=5", "-o", "addopts=", str(Path(__file__).parent)]))


if __name__ == "__main__":
    sys.exit(main())
