"""Single bits flipped in finished folders, one at a time: `embedkit verify` finds each and names its file.

    python -m tests.torture.bitflips [--flips 10000] [--seed 0]

Half of the bits are drawn from all bytes alike, half from a file drawn first, so that small files (plan, records,
manifest, rejects) have their share. Exits with 1 if a bit was not found.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from embedkit.cli import run
from embedkit.verification import verify_output
from tests.conftest import NOTES

FORMATS = ("parquet", "npy", "jsonl", "arrow")


def finished(model: Path, folder: Path, form: str) -> Path:
    """A folder of three shards, with an empty row and a row that cannot be read among them; returns it."""
    table = folder.with_suffix(".csv")
    header, *rows = NOTES.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join([header, "00100,\n", *rows]), encoding="utf-8")
    options = ("--limit", 20, "--shard-rows", 7, "--on-bad-row", "null", "--keep", "label", "--pool", "mean", "-q")
    arguments = ("encode", table, "-m", model, "-o", folder, "--output-format", form, *options)
    assert run([str(argument) for argument in arguments]) == 0
    return folder


def misses(folder: Path, flips: int, seed: int) -> Iterator[tuple[str, int, int]]:
    """Flip so many bits, one at a time; yield (file, byte, bit) where `verify` does not name the file.

    A record's file is named by the record, too, and a flip in a manifest or a plan may be named by either.
    """
    pick = random.Random(seed)
    sizes = {path: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    for number in range(flips):
        weights = list(sizes.values()) if number % 2 else None
        path = pick.choices(list(sizes), weights)[0]
        place, bit = pick.randrange(sizes[path]), pick.randrange(8)
        content = path.read_bytes()
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        name = path.relative_to(folder).as_posix()
        if name not in {problem.path for problem in verify_output(folder).problems}:
            yield name, place, bit
        path.write_bytes(content)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    from tests.tiny_models import make

    missed = Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        model = make("bert", Path(name) / "bert").folder
        for form in FORMATS:
            began = time.monotonic()
            folder = finished(model, Path(name) / form, form)
            assert not verify_output(folder).problems
            flips = asked.flips // len(FORMATS)
            for file, place, bit in misses(folder, flips, asked.seed):
                missed[form] += 1
                print(f"NOT FOUND {form}: {file}, byte {place}, bit {bit}", file=sys.stderr)
            assert not verify_output(folder).problems
            print(f"{form}: {flips:,} bits flipped, {missed[form]} not found, {time.monotonic() - began:.1f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
