"""What a Python must have to run these on a machine without a network; told in one line where it lacks something.

Imports nothing of embedkit or torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

_NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "typer", "tqdm")
#: Dependencies of embedkit's of which nothing that is measured here needs more than the stand-ins give.
_STOOD_IN_FOR = ("orjson",)
_STAND_INS = Path(__file__).parents[1] / "stand_ins"


def refuse_without(also: Sequence[str] = ()) -> str | None:
    """Ends the process with one line if this Python lacks something; puts stand-ins where a package is not used.

    Returns:
        What stands in for what, in a sentence; None where all is there.
    """
    missing = [name for name in (*_NEEDED, *also) if find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"error: {sys.executable} lacks {', '.join(missing)}\n"
            "hint: make PYTHON=/path/to/a/python that has them, or put a folder that holds them on PYTHONPATH"
        )
    absent = [name for name in _STOOD_IN_FOR if find_spec(name) is None]
    if not absent:
        return None
    # At the end: a real one that is there after all is found before it.
    sys.path.append(str(_STAND_INS))
    return f"{', '.join(absent)}: not installed; the standard library stands in for what is used here"
