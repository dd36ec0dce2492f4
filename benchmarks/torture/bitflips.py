"""Single bits flipped in finished outputs, one at a time.

In a folder, `embedkit verify` finds each and names its file. In a single file, which has no hash, some are found
and some are numbers. Over neither do `verify`, `inspect` and `embedkit.read` end by a signal or with a fault of
embedkit.

    python -m benchmarks.torture.bitflips [--flips 10000] [--seed 0]

Half of the bits are drawn from all bytes alike, half from a file drawn first, so that small files (plan, records,
manifest, rejects) have their share. Exits with 1 if a bit was not found, or ended the process that read it.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from embedkit.cli import run
from embedkit.verify import verify_output
from tests.conftest import NOTES

FORMATS = ("parquet", "npy", "jsonl", "arrow")


def finished(model: Path, folder: Path, form: str) -> Path:
    """Makes a folder of three shards, with an empty row and a row that cannot be read among them."""
    table = folder.with_suffix(".csv")
    header, *rows = NOTES.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join([header, "00100,\n", *rows]), encoding="utf-8")
    options = ("--limit", 20, "--shard-rows", 7, "--on-bad-row", "null", "--keep", "label", "--pool", "mean", "-q")
    arguments = ("encode", table, "-m", model, "-o", folder, "--output-format", form, *options)
    assert run([str(argument) for argument in arguments]) == 0
    return folder


def misses(folder: Path, flips: int, seed: int) -> Iterator[tuple[str, int, int]]:
    """Flips so many bits, one at a time; yields (file, byte, bit) where `verify` does not name the file.

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


#: Opens each path on its stdin in three ways, and answers with the ways that went wrong: a process of its own,
#: since what is looked for would be its end.
_OPENS = """
import contextlib, io, sys
import embedkit
from embedkit.cli import run
for line in sys.stdin:
    wrong = []
    for command in ("verify", "inspect"):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = run([command, line.strip()])
        if code not in (0, 3, 5):
            wrong.append(f"{command} exits with {code}")
    try:
        found = embedkit.read(line.strip())
        found.vectors, found.ids, found.table.to_pylist()
    except embedkit.EmbedkitError as error:
        wrong += [] if error.exit_code == 5 else [f"read raises {error!r}"]
    except BaseException as error:
        wrong.append(f"read raises {type(error).__name__}")
    print(", ".join(wrong), flush=True)
"""


class _Opens:
    """The process that opens outputs, started again when it has died."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def wrong(self, path: Path) -> str:
        """Returns what goes wrong when an output is opened; "" if nothing does."""
        if self.process is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.process = subprocess.Popen([sys.executable, "-c", _OPENS], text=True, **pipes)
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        told = self.process.stdout.readline()
        if told:
            return told.strip()
        code, self.process = self.process.wait(), None
        return f"the process ends with {code}"


def deaths(given: Path, files: list[Path], flips: int, seed: int) -> Iterator[tuple[str, int, int, str]]:
    """Flips so many bits in these files; yields (file, byte, bit, what) where opening `given` goes wrong."""
    pick, opens = random.Random(seed), _Opens()
    for _ in range(flips):
        path = pick.choice(files)
        content = path.read_bytes()
        place, bit = pick.randrange(len(content)), pick.randrange(8)
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        if wrong := opens.wrong(given):
            yield path.name, place, bit, wrong
        path.write_bytes(content)


def single(model: Path, folder: Path, form: str) -> Path:
    """Makes one file of three shards."""
    folder.mkdir()
    options = ("--limit", 20, "--shard-rows", 7, "--keep", "label", "--pool", "mean", "-q")
    arguments = ("encode", NOTES, "-m", model, "-o", folder / f"o.{form}", *options)
    assert run([str(argument) for argument in arguments]) == 0
    return folder / f"o.{form}"


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
            file = single(model, Path(name) / f"single-{form}", form)
            for given, files in ((file, sorted(file.parent.iterdir())), (folder, sorted(folder.glob("*/part-*")))):
                for where, place, bit, wrong in deaths(given, files, flips // 5, asked.seed):
                    missed[form] += 1
                    print(f"NOT OPENED {form}: {where}, byte {place}, bit {bit}: {wrong}", file=sys.stderr)
            print(f"{form}: {2 * (flips // 5):,} more bits, opened; {time.monotonic() - began:.1f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
