"""Real texts to measure on: what Debian says of its packages, as JSON Lines of `id`, `section` and `text`.

    python -m tests.bench.texts OUT.jsonl [--rows N]

Needs a Debian whose package lists are there (`apt-get update`). Rows are in an order that the ids' hashes decide.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

#: Packages asked for at once.
_PACKAGES = 500


def descriptions(rows: int | None) -> Iterator[dict[str, str]]:
    """A row a package, in the order of the hashes of their names."""
    names = sorted(_apt("pkgnames"), key=lambda name: hashlib.sha256(name.encode()).digest())
    found = 0
    for start in range(0, len(names), _PACKAGES):
        fields: dict[str, list[str]] = {}
        name = ""
        for line in [*_apt("--no-all-versions", "show", *names[start : start + _PACKAGES]), ""]:
            if not line:
                row = _row(fields)
                fields = {}
                found += row is not None
                if row is not None:
                    yield row
                if found == rows:
                    return
            elif line[0] == " ":
                fields[name].append("" if line == " ." else line[1:])
            else:
                name, _, value = line.partition(": ")
                fields[name] = [value]


def _apt(*arguments: str) -> list[str]:
    command = ["apt-cache", "-o", "Acquire::Languages=en", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=True, text=True, errors="replace")
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit("error: apt-cache failed\nhint: this needs a Debian with package lists") from None
    return done.stdout.split("\n")


def _row(fields: dict[str, list[str]]) -> dict[str, str] | None:
    title, *body = fields.get("Description-en") or [""]
    if not (title and body and "Section" in fields):
        return None
    text = "\n".join([title, "", *body])
    return {"id": fields["Package"][0], "section": fields["Section"][0], "text": text}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("out", type=Path)
    options.add_argument("--rows", type=int)
    asked = options.parse_args()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with asked.out.open("w", encoding="utf-8") as out:
        for row in descriptions(asked.rows):
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    if not count:
        raise SystemExit("error: apt knows no descriptions\nhint: apt-get -o Acquire::Languages=en update")
    print(f"{count:,} texts in {asked.out}")


if __name__ == "__main__":
    main()
