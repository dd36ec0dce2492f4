"""stdin, stdout and stderr as a shell may leave them: closed, full, or without a reader.

What is said on stderr is for whoever looks: a note that cannot be written ends no run. What goes to stdout is what
was asked for: where it cannot be written, the command fails.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Generator, Iterable
from typing import Any

from embedkit.errors import InputError, OutputError, ReaderGone

_STDIN, _STDOUT, _STDERR = range(3)
#: Of these, what was closed when the process started.
_closed: set[int] = set()


def hold_descriptors() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that is closed.

    Otherwise the next file that is opened gets its number, and what is printed lands in that file. The ends are
    the wrong way round, so that reading from and writing to a closed stream still fails.
    """
    for number, mode in ((_STDIN, os.O_WRONLY), (_STDOUT, os.O_RDONLY), (_STDERR, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            _closed.add(number)
            null = os.open(os.devnull, mode)
            if null != number:
                os.dup2(null, number)
                os.close(null)
    if _STDOUT in _closed:
        sys.stdout = io.TextIOWrapper(io.FileIO(_STDOUT, "r+", closefd=False), encoding="utf-8")
    if _STDERR in _closed:
        sys.stderr = io.TextIOWrapper(io.FileIO(_STDERR, "w", closefd=False), encoding="utf-8", write_through=True)


def check_stdin(inputs: Iterable[str]) -> None:
    """Refuse to read rows from a stdin that is closed, with InputError."""
    if "-" in inputs and (_STDIN in _closed or sys.stdin is None):
        raise InputError("stdin is closed, so there are no rows to read", hint="pipe the rows in, or name a file")


def check_stdout() -> None:
    """Refuse to write rows to a stdout that is closed, with OutputError."""
    if _STDOUT in _closed or sys.stdout is None:
        raise OutputError("stdout is closed, so no rows can go there", hint="name a file or a folder with -o")


@contextlib.contextmanager
def forgiving_streams() -> Generator[None, None, None]:
    """Have stderr swallow what cannot be written, and stdout tell it as an error of embedkit's own."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Stdout(before[0]), _Stderr(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def show(lines: Iterable[object]) -> None:
    """Print lines of a result, as many as whoever reads stdout wants: the verdict that follows is not theirs."""
    with contextlib.suppress(ReaderGone):
        for line in lines:
            print(line)


class _Stream:
    """A text stream that does all but writing as the one that it stands for."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            # A character that the terminal's encoding lacks is shown escaped.
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Stderr(_Stream):
    """Where notes go."""

    def write(self, text: str) -> int:
        """Write, or leave it."""
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or leave it."""
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()


class _Stdout(_Stream):
    """Where results go.

    Raises:
        ReaderGone: whoever read it has enough.
        OutputError: it cannot be written.
    """

    def write(self, text: str) -> int:
        """Write."""
        with _told_as_output():
            return int(self._stream.write(text))

    def flush(self) -> None:
        """Flush."""
        with _told_as_output():
            self._stream.flush()


@contextlib.contextmanager
def _told_as_output() -> Generator[None, None, None]:
    try:
        yield
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as fault:
        raise OutputError(
            f"cannot write to stdout: {os.strerror(fault.errno or 0)}",
            hint="see where it goes: a full disk needs space, a closed stream another place",
        ) from None
