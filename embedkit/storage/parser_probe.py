"""Parse a file in a child process first, and tell whether the parser survives it.

A flipped bit in a Parquet or Arrow file can end the process that parses it: by a signal, or by asking for more
memory than there is. Where a hash says that a file is as it was written, there is no need for this. One child
serves all files of a process and ends when it has had none for some seconds; starting it takes 0.2 s.
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
from typing import IO, Any

_SCRIPT = Path(__file__).with_name("parser_probe_child.py")


class Prober:
    """The child process, started when first needed.

    Args:
        script: what it runs.
    """

    def __init__(self, script: Path = _SCRIPT) -> None:
        self._script = script
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        #: Where Python cannot be started, or finds no pyarrow there, files are parsed here alone.
        self._usable = bool(sys.executable) and not getattr(sys, "frozen", False)

    def fault_of(
        self,
        source: Path | str | bytes | memoryview,
        file_format: str,
        *,
        part: int | str = "all",
        without: Iterable[str] = (),
    ) -> str | None:
        """What goes wrong when a file is parsed; None = nothing, or nobody can tell.

        Args:
            source: the file's path, or its bytes.
            file_format: parquet or arrow.
            part: number of a row group or record batch; all; or none, for what describes them alone.
            without: columns that are not read.

        Returns:
            The type of the error, or the signal that ended the child: no content of the file.
        """
        data = source if isinstance(source, bytes | memoryview) else None
        request = {
            "path": None if data is not None else str(source),
            "bytes": len(data or b""),
            "format": file_format,
            "part": part,
            "without": sorted(without),
        }
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            # A child that was idle may have ended just before it was asked.
            for _ in range(2):
                child = self._started()
                if child is None:
                    return None
                reply = self._answer(child, line, data or b"")
                if reply is not None:
                    fault: str | None = json.loads(reply)["fault"]
                    return fault
                code = self._end()
                if code != 0:
                    return _cause(code)
        return None

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _end(self) -> int:
        """Forget the child, which ends when nobody asks it any more; its exit code."""
        child, self._child = self._child, None
        if child is None:
            return 0
        with contextlib.suppress(OSError):
            _pipe(child.stdin).close()
        _pipe(child.stdout).close()
        return child.wait()

    def _answer(self, child: subprocess.Popen[bytes], line: bytes, data: bytes | memoryview) -> bytes | None:
        """See `_asked`; a child whose answer nobody waited for is ended."""
        try:
            return _asked(child, line, data)
        except BaseException:
            # Stopped while it waited: the answer is still to come, and would be taken for the next file's.
            child.kill()
            self._end()
            raise

    def _started(self) -> subprocess.Popen[bytes] | None:
        if self._child is not None or not self._usable:
            return self._child
        try:
            child = subprocess.Popen(  # noqa: S603 - this Python, on a script of our own
                [sys.executable, "-I", str(self._script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # Whoever stops this process by the keyboard does not mean a file to be damaged.
                start_new_session=True,
            )
        except OSError:
            self._usable = False
            return None
        # Where the libraries of this process are from: PYTHONPATH counts for nothing in an isolated Python.
        self._child = child
        if self._answer(child, json.dumps(sys.path).encode() + b"\n", b"") is None:
            self._usable = False
            self._end()
        return self._child


def _asked(child: subprocess.Popen[bytes], line: bytes, data: bytes | memoryview) -> bytes | None:
    """The child's answer to a line and the bytes behind it; None where it ended."""
    try:
        asking = _pipe(child.stdin)
        asking.write(line)
        asking.write(data)
        asking.flush()
        return _pipe(child.stdout).readline() or None
    except OSError:
        return None


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise ValueError("the child was started without this pipe")
    return pipe


def _cause(code: int) -> str:
    """What a child's exit code says of its end."""
    if code >= 0:
        return f"the parser ends with exit code {code}"
    if code == -getattr(signal, "SIGXCPU", 0):
        return "the parser does not come to an end"
    with contextlib.suppress(ValueError):
        return f"the parser crashes with {signal.Signals(-code).name}"
    return f"the parser crashes with signal {-code}"


_PROBER = Prober()


def fault_of(source: Any, file_format: str, *, part: int | str = "all", without: Iterable[str] = ()) -> str | None:
    """See `Prober.fault_of`; by the child of this process."""
    return _PROBER.fault_of(source, file_format, part=part, without=without)


def _at_exit() -> None:
    _PROBER.close()


def _after_fork() -> None:
    # The child of the parent answers the parent.
    global _PROBER  # noqa: PLW0603 - one for each process
    _PROBER = Prober()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
