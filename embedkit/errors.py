"""Every way in which embedkit can fail a user, and the exit code of each.

    EmbedkitError
    ├── UsageError     2   the command line, a config file or an argument is wrong
    ├── InputError     3   the table of texts cannot be read as asked
    ├── ModelError     4   the model cannot be had, or cannot give what was asked
    ├── OutputError    5   the output cannot be written, or is not what it should be
    └── Stopped       75   a signal ended the run; what is committed can be resumed

An error is two sentences: what is wrong (the value, what is allowed) and the way out.
Neither ever holds the content of a row: texts are patients' records. Row numbers,
byte offsets, column names and codes are what an error may tell.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from unicodedata import category


class EmbedkitError(Exception):
    """The root: a failure that has a cause the user can act on.

    `str(error)` is both sentences, "MESSAGE (hint: HINT)".

    Args:
        message: what is wrong, in one line: the value, and what is allowed.
        hint: what to do about it, in one line.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = _in_one_line(message)
        self.hint = _in_one_line(hint)

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})"

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is rebuilt from its positional arguments alone, and the hint is none: without this, a worker
        # process that raises one hangs the pool it belongs to.
        return partial(type(self), hint=self.hint), (self.message,), self.__dict__


def _in_one_line(sentence: str) -> str:
    """A sentence with the line ends and control characters of a name that it tells written as escapes."""
    if sentence.isprintable():
        return sentence
    controls = ("Cc", "Zl", "Zp")
    return "".join(of.encode("unicode_escape").decode() if category(of) in controls else of for of in sentence)


class UsageError(EmbedkitError):
    """An option, a config key or an argument has a value that cannot be used."""

    exit_code = 2


class InputError(EmbedkitError):
    """The input is missing, is not what its name says, or lacks a column."""

    exit_code = 3


class ModelError(EmbedkitError):
    """The model cannot be found or loaded, or has not got what was asked of it."""

    exit_code = 4


class OutputError(EmbedkitError):
    """The output cannot be written, exists already, or does not match its plan."""

    exit_code = 5


class Stopped(EmbedkitError):  # noqa: N818 - a signal is no error
    """A signal asked the run to stop. Committed shards stay and can be resumed."""

    exit_code = 75


class ReaderGone(Exception):  # noqa: N818 - nothing is wrong
    """Whoever read stdout has had enough, as `head` does: the command ends quietly."""
