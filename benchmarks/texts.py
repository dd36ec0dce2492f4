"""Real texts to measure on: what Debian says of its packages, as JSON Lines of `id`, `section` and `text`.

    python -m benchmarks.texts OUT.jsonl [--rows N]

Needs a Debian whose package lists are there (`apt-get -o Acquire::Languages=en update`). Rows are in an order that
the ids' hashes decide.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

_APT = ("apt-get", "-o", "Acquire::Languages=en", "indextargets", "--format", "$(FILENAME)")


def descriptions() -> list[dict[str, str]]:
    """Returns a row for each package, in the order of the hashes of their names."""
    texts = {
        of["Description-md5"]: of["Description-en"]
        for of in _stanzas("Identifier: Translations")
        if {"Description-md5", "Description-en"} <= of.keys()
    }
    rows = {
        of["Package"]: {"id": of["Package"], "section": of["Section"], "text": _text(texts[of["Description-md5"]])}
        for of in _stanzas("Identifier: Packages")
        if "Section" in of and of.get("Description-md5") in texts
    }
    return [rows[name] for name in sorted(rows, key=lambda name: hashlib.sha256(name.encode()).digest())]


def _stanzas(lists: str) -> Iterator[dict[str, str]]:
    """Yields the fields of each entry of apt's lists of one kind; a value's further lines begin with a space."""
    for name in _output(*_APT, lists).splitlines():
        for stanza in _output("/usr/lib/apt/apt-helper", "cat-file", name).split("\n\n"):
            fields: dict[str, str] = {}
            field = ""
            for line in stanza.splitlines():
                if line.startswith(" "):
                    fields[field] += f"\n{line}"
                else:
                    field, _, value = line.partition(":")
                    fields[field] = value.removeprefix(" ")
            yield fields


def _text(description: str) -> str:
    title, *body = description.split("\n")
    return "\n".join([title, "", *("" if line == " ." else line[1:] for line in body)])


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit(f"error: {command[0]} failed\nhint: this needs a Debian with package lists") from None
    return done.stdout.decode(errors="replace")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("out", type=Path)
    options.add_argument("--rows", type=int)
    asked = options.parse_args()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    rows = descriptions()[: asked.rows]
    if not rows:
        raise SystemExit("error: apt knows no descriptions\nhint: apt-get -o Acquire::Languages=en update")
    with asked.out.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{len(rows):,} texts in {asked.out}")


if __name__ == "__main__":
    main()
