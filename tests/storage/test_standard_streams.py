"""Stdin and stdout belong to the rows: whatever a library asks or prints goes elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CHILD = """
import ctypes, os, subprocess, sys
from embedkit.storage.standard_streams import reserved_for_rows, rows_in, rows_out

with reserved_for_rows():
    print("a library prints")
    ctypes.CDLL(None).puts(b"compiled code prints")
    os.write(1, b"a descriptor is written to\\n")
    subprocess.run(["echo", "a child prints"])
    try:
        input("run this model's code? [y/N] ")
    except EOFError:
        print("nothing to answer")
    assert os.read(0, 10) == b""
    rows = rows_in().read()
    rows_out().write(b"".join(b"row: " + line + b"\\n" for line in rows.splitlines()))
    rows_out().flush()
print("afterwards:", sys.stdin.read() == "", file=sys.stdout)
"""


def child(source: str, *, given: bytes = b"", **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", source], input=given, capture_output=True, check=False, **options)


def test_only_the_reader_of_rows_reads_stdin_and_only_rows_go_to_stdout():
    ran = child(CHILD, given=b"y\nyes\n")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == b"row: y\nrow: yes\nafterwards: True\n"
    for printed in (
        b"a library prints",
        b"compiled code prints",
        b"a descriptor",
        b"a child",
        b"nothing to answer",
    ):
        assert printed in ran.stderr


def test_closed_streams_are_errors_with_their_names():
    source = (
        "from embedkit.storage.standard_streams import reserved_for_rows, rows_in, rows_out\n"
        "with reserved_for_rows():\n"
        "    for of in (rows_in, rows_out):\n"
        "        try: of()\n"
        "        except Exception as fault: print(type(fault).__name__, fault.message)\n"
    )
    command = f"exec {sys.executable} -c '{source}' <&- >&-"
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert ran.stderr.splitlines() == [
        "InputError stdin is closed, so no rows can be read",
        "OutputError stdout is closed, so no rows can be written",
    ]
    assert ran.returncode == 0


def test_the_streams_are_as_they_were_afterwards():
    from embedkit.storage.standard_streams import reserved_for_rows

    before = (sys.stdin, sys.stdout, os.fstat(0).st_ino, os.fstat(1).st_ino)
    descriptors = Path("/proc/self/fd")
    open_before = len(list(descriptors.iterdir())) if descriptors.is_dir() else 0
    for _ in range(3):
        with reserved_for_rows():
            assert sys.stdout is sys.stderr
    assert (sys.stdin, sys.stdout, os.fstat(0).st_ino, os.fstat(1).st_ino) == before
    if open_before:
        assert len(list(descriptors.iterdir())) <= open_before
