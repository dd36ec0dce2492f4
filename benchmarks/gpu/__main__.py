"""Everything about one device, in less than 8 minutes: make bench-gpu [PYTHON=python3] [DEVICE=cuda:0].

    python -m benchmarks.gpu [--device cuda] [-o RESULTS.json] [--limit SECONDS] [--small]

For a Python that has torch and transformers; no network. Models are random, texts are made up with the lengths of
real ones. What is compared is timed in turn, five rounds, and the median told. A part that there is no time for is
left out, and named. Ends with 1 if vectors are wrong or two runs give different bytes; never for a time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.needs import refuse_without


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__)
    options.add_argument("--device", default="cuda")
    options.add_argument("-o", "--out", type=Path)
    options.add_argument("--limit", type=float, default=440.0, help="seconds after which nothing new is begun")
    options.add_argument("--small", action="store_true", help="tiny models and few texts: a trial of the script")
    options.add_argument("--rounds", type=int, default=5)
    asked = options.parse_args(arguments)
    stand_ins = refuse_without()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    from benchmarks.gpu.device import refuse_device
    from benchmarks.gpu.measuring import Measuring

    refuse_device(asked.device)
    with tempfile.TemporaryDirectory() as work:
        measuring = Measuring(asked.device, Path(work), asked.limit, asked.rounds, small=asked.small)
        measuring.note(stand_ins)

        def finish() -> int:
            found = measuring.results()
            if asked.out:
                asked.out.parent.mkdir(parents=True, exist_ok=True)
                asked.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            print(measuring.table(), flush=True)
            return 0 if measuring.right() else 1

        def give_up() -> None:
            measuring.note("the rest: the time was over in the middle of a measurement")
            finish()
            os._exit(1)

        # A measurement that hangs, or takes far longer than was foreseen, must not cost what there is already.
        watchdog = threading.Timer(asked.limit + 30, give_up)
        watchdog.daemon = True
        watchdog.start()
        measuring.all()
        watchdog.cancel()
        return finish()


if __name__ == "__main__":
    sys.exit(main())
