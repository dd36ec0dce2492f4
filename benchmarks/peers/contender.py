"""One contender in a process of its own, in the environment that it needs: python -m benchmarks.peers.contender
KIND MODEL DTYPE.

Loads its model, says so or why not, then takes orders, a line of JSON each: {"texts": FILE.json, "out": FILE.npy
or null, "tune": bool}. Says how long it took, with which settings, and how much memory it has had at most. Knows
nothing of the others.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.libraries import LIBRARIES


def main() -> None:
    kind, folder, dtype = sys.argv[1:]
    # What a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        for answer in _answers(kind, folder, dtype):
            print(json.dumps(answer), file=answers, flush=True)
    except Exception as fault:
        # Of several lines, the first or the last one is the cause.
        lines = str(fault).strip().splitlines() or [""]
        reason = " ... ".join(dict.fromkeys(line[:160] for line in (lines[0], lines[-1])))
        print(json.dumps({"reason": f"{type(fault).__name__}: {reason}"}), file=answers, flush=True)
        raise


def _answers(kind: str, folder: str, dtype: str) -> Iterator[dict[str, Any]]:
    """Yields an answer once the model is loaded, and one for each order."""
    library = LIBRARIES[kind](folder, dtype)
    yield {"ready": True}
    for line in sys.stdin:
        order = json.loads(line)
        texts = json.loads(Path(order["texts"]).read_text(encoding="utf-8"))
        if order["tune"]:
            library.tune(texts)
        began = time.perf_counter()
        vectors = library.encode(texts)
        seconds = time.perf_counter() - began
        if order["out"]:
            np.save(order["out"], np.asarray(vectors, np.float32))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        yield {"seconds": seconds, "peak_mib": peak, "settings": library.settings}


if __name__ == "__main__":
    main()
