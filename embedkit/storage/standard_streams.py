"""Stdin and stdout of the process, reserved for rows while a model is in use.

A library, or a model's own code, may ask a question on stdin and so consume rows, or print into the rows on
stdout. Inside `reserved_for_rows`, Python and compiled code and child processes read nothing and print on stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import BinaryIO, TextIO

from embedkit.errors import InputError, OutputError

_STDIN, _STDOUT, _STDERR = 0, 1, 2


#: Stdin and stdout as they were, inside `reserved_for_rows`.
_kept: list[tuple[BinaryIO | None, BinaryIO | None]] = []


def rows_in() -> BinaryIO:
    """Returns the stream of rows for the input `-`.

    Raises:
        InputError: stdin is closed.
    """
    stream = _kept[-1][0] if _kept else _binary(sys.stdin)
    if stream is None:
        raise InputError("stdin is closed, so no rows can be read", hint="pipe the rows in, or name a file")
    return stream


def rows_out() -> BinaryIO:
    """Returns the stream that rows are written to with `-o -`.

    Raises:
        OutputError: stdout is closed.
    """
    stream = _kept[-1][1] if _kept else _binary(sys.stdout)
    if stream is None or not stream.writable():  # as `hold_descriptors` leaves a stream that was closed
        raise OutputError("stdout is closed, so no rows can be written", hint="name a file or a folder with -o")
    return stream


@contextmanager
def reserved_for_rows() -> Generator[None, None, None]:
    """Reserves stdin and stdout for `rows_in` and `rows_out`; all else reads nothing and prints on stderr."""
    stdin, stdout = sys.stdin, sys.stdout
    _flush(stdout)
    saved = {number: _duplicate(number) for number in (_STDIN, _STDOUT)}
    rows_stdout = _own(stdout, _STDOUT, "wb")
    _kept.append((_own(stdin, _STDIN, "rb"), rows_stdout))
    nothing = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115 - a device; closed below
    try:
        os.dup2(nothing.fileno(), _STDIN)
        with contextlib.suppress(OSError):  # stderr is closed
            os.dup2(_STDERR, _STDOUT)
        sys.stdin, sys.stdout = nothing, sys.stderr
        yield
    finally:
        _kept.pop()
        _flush(sys.stdout)
        # What compiled code printed is still in the C library's buffer.
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).fflush(None)
        sys.stdin, sys.stdout = stdin, stdout
        if rows_stdout is not None and rows_stdout is not _binary(stdout):
            with contextlib.suppress(OSError):  # the reader is gone, which the writer has reported
                rows_stdout.close()
        nothing.close()
        for number, duplicate in saved.items():
            _restore(number, duplicate)


def _own(stream: TextIO | None, number: int, mode: str) -> BinaryIO | None:
    """Opens a duplicate of a standard stream for bytes; returns the stream itself if it has been replaced."""
    try:
        is_standard = stream is not None and stream.fileno() == number
    except (OSError, ValueError):
        is_standard = False
    duplicate = _duplicate(number) if is_standard else None
    # A stream for reading is never closed: a thread may still be waiting in it.
    return _binary(stream) if duplicate is None else open(duplicate, mode)  # type: ignore[return-value]  # noqa: PTH123


def _binary(stream: TextIO | None) -> BinaryIO | None:
    return getattr(stream, "buffer", None)


def _duplicate(number: int) -> int | None:
    try:
        return os.dup(number)
    except OSError:  # it is closed
        return None


def _restore(number: int, duplicate: int | None) -> None:
    if duplicate is None:
        with contextlib.suppress(OSError):  # it was closed from the start
            os.close(number)
        return
    os.dup2(duplicate, number)
    os.close(duplicate)


def _flush(stream: TextIO | None) -> None:
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
