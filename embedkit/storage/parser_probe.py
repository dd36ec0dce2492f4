"""Parses a file in a child process first, to find out whether the parser survives it.

A flipped bit in a Parquet or Arrow file can end the process that parses it, by a signal or by a request for too
much memory. Files with a matching hash need no probe. One child serves all files of a process and ends after some
idle seconds; its start takes 0.2 s.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).with_name("parser_probe_child.py")


class Prober:
    """The child process, started when first needed; `script` is the program that it runs."""

    def __init__(self, script: Path = _SCRIPT) -> None:
        self._script = script
        self._lock = threading.Lock()
        self._child: Any = None  # a Popen with pipes
        #: False if Python cannot be started, or its child has no pyarrow: files are then parsed without a probe.
        self._usable = bool(sys.executable) and not getattr(sys, "frozen", False)

    def probe_file(
        self,
        source: Path | str | bytes | memoryview,
        file_format: str,
        *,
        part: int | str = "all",
        without: Iterable[str] = (),
    ) -> str | None:
        """Parses a file in the child.

        Args:
            source: the file's path, or its bytes.
            file_format: parquet or arrow.
            part: number of a row group or record batch; "all"; or "none", for the metadata alone.
            without: columns to leave out.

        Returns:
            The type of the error, or the signal that ended the child, without content of the file; None if there
            was none, or if no child can be started.
        """
        path, data = (None, source) if isinstance(source, bytes | memoryview) else (str(source), b"")
        request = {
            "path": path,
            "bytes": len(data),
            "format": file_format,
            "part": part,
            "without": sorted(without),
        }
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            # An idle child may have ended just before the request.
            for _ in range(2):
                child = self._started()
                if child is None:
                    return None
                reply = self._answer(child, line, data)
                if reply is not None:
                    fault: str | None = json.loads(reply)["fault"]
                    return fault
                code = self._end()
                if code != 0:
                    return _cause(code)
        return None

    def close(self) -> None:
        """Ends the child."""
        with self._lock:
            self._end()

    def forget_child(self) -> None:
        """Starts another one when it is needed: after a fork, the child belongs to the parent process."""
        self._lock, self._child = threading.Lock(), None

    def _end(self) -> int:
        """Closes the child's pipes, which ends it, and returns its exit code."""
        child, self._child = self._child, None
        if child is None:
            return 0
        with contextlib.suppress(OSError):
            child.stdin.close()
        child.stdout.close()
        code: int = child.wait()
        return code

    def _answer(self, child: Any, line: bytes, data: bytes | memoryview) -> bytes | None:
        """Sends a request; ends the child if an exception prevents reading its reply."""
        try:
            return _exchange(child, line, data)
        except BaseException:
            # Its reply would be taken for that to the next request.
            child.kill()
            self._end()
            raise

    def _started(self) -> Any:
        if self._child is not None or not self._usable:
            return self._child
        try:
            child = subprocess.Popen(  # noqa: S603 - this Python, on a script of our own
                [sys.executable, "-I", str(self._script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # Ctrl-C must not end the child: that would look like a damaged file.
                start_new_session=True,
            )
        except OSError:
            self._usable = False
            return None
        # The import path of this process: an isolated Python ignores PYTHONPATH.
        self._child = child
        if self._answer(child, json.dumps(sys.path).encode() + b"\n", b"") is None:
            self._usable = False
            self._end()
        return self._child


def _exchange(child: Any, line: bytes, data: bytes | memoryview) -> bytes | None:
    """Sends a line and the bytes after it, and returns the reply; None if the child has ended."""
    try:
        child.stdin.write(line)
        child.stdin.write(data)
        child.stdin.flush()
        return child.stdout.readline() or None
    except OSError:
        return None


def _cause(code: int) -> str:
    """Describes the end of a child by its exit code."""
    if code >= 0:
        return f"the parser ends with exit code {code}"
    if code == -getattr(signal, "SIGXCPU", 0):
        return "the parser does not end"
    with contextlib.suppress(ValueError):
        return f"the parser crashes with {signal.Signals(-code).name}"
    return f"the parser crashes with signal {-code}"


_PROBER = Prober()


def probe_file(
    source: Any, file_format: str, *, part: int | str = "all", without: Iterable[str] = ()
) -> str | None:
    """Parses a file in the child of this process; see `Prober.probe_file`."""
    return _PROBER.probe_file(source, file_format, part=part, without=without)


atexit.register(_PROBER.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PROBER.forget_child)
