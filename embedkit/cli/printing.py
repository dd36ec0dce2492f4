"""Makes stdin, stdout and stderr safe to use when they are closed, full, or without a reader.

Messages to stderr that cannot be written are dropped. If stdout cannot be written, the command fails.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Generator, Iterable
from typing import Any

from embedkit.errors import OutputError, ReaderGone
from embedkit.storage.standard_streams import rows_in

_STDIN, _STDOUT, _STDERR = range(3)


def hold_descriptors() -> None:
    """Opens /dev/null for each of stdin, stdout and stderr that is closed.

    Otherwise the next file to be opened gets the number of the closed stream, and printed text ends up in it.
    stdin is opened for writing and stdout for reading, so that using them still fails.
    """
    for number, mode in ((_STDIN, os.O_WRONLY), (_STDOUT, os.O_RDONLY), (_STDERR, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, mode)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            if number == _STDOUT:
                sys.stdout = io.TextIOWrapper(io.FileIO(number, closefd=False), encoding="utf-8")
            elif number == _STDERR:
                file = io.FileIO(number, "w", closefd=False)
                sys.stderr = io.TextIOWrapper(file, encoding="utf-8", write_through=True)


def check_stdin(inputs: Iterable[str]) -> None:
    """Raises InputError if rows are to be read from a closed stdin."""
    if "-" in inputs:
        rows_in()


@contextlib.contextmanager
def safe_streams() -> Generator[None, None, None]:
    """Makes stderr drop what cannot be written, and stdout raise an error of embedkit instead."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Stdout(before[0]), _Stderr(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def show(lines: Iterable[object]) -> None:
    """Prints the lines of a result until the reader of stdout stops reading, without ending the command."""
    with contextlib.suppress(ReaderGone):
        for line in lines:
            print(line)


class _Stream:
    """A text stream that wraps another, for subclasses to override writing."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            # Characters that the terminal cannot encode are shown escaped.
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Stderr(_Stream):
    """Drops what cannot be written."""

    def write(self, text: str) -> int:
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()


class _Stdout(_Stream):
    """Raises ReaderGone if the reader stopped reading, and OutputError if it cannot be written."""

    def write(self, text: str) -> int:
        with _as_output_error():
            return int(self._stream.write(text))

    def flush(self) -> None:
        with _as_output_error():
            self._stream.flush()


@contextlib.contextmanager
def _as_output_error() -> Generator[None, None, None]:
    try:
        yield
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as fault:
        raise OutputError(
            f"cannot write to stdout: {os.strerror(fault.errno or errno.EBADF)}",
            hint="free disk space, or write to another place",
        ) from None
