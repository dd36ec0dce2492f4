"""All long tests, one after the other: `make torture`. Exits with 1 if one failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = [
    path.stem
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if path.stem != "__main__" and '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]

failed = []
for script in SCRIPTS:
    print(f"== {script}", flush=True)
    if subprocess.run([sys.executable, "-m", f"benchmarks.torture.{script}"], check=False).returncode:
        failed.append(script)
print(f"failed: {', '.join(failed) or 'none'}")
sys.exit(1 if failed else 0)
