"""The exceptions of embedkit, and their exit codes.

    EmbedkitError
    ├── UsageError     2   the command line, a config file or an argument is wrong
    ├── InputError     3   the input cannot be read
    ├── ModelError     4   the model is unavailable, or cannot compute what was requested
    ├── OutputError    5   the output cannot be written, or does not match its plan or checksums
    └── Stopped       75   a signal stopped the run; committed shards can be resumed

An error has two sentences: what is wrong (the value, what is allowed), and what to do. Neither contains row
content, which may be patients' records. Row numbers, byte offsets, column names and codes are allowed.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any
from unicodedata import category

#: The password or the signature in a URL, which a user may have typed where no URL is expected.
_PASSWORD = re.compile(
    r"(://[^\s/:@]*:)[^\s@]*@"
    r"|((?:^|[?&])(?:ssl)?password=|[?&](?:sig|[\w-]*(?:signature|credential|token|secret|accesskeyid))=)[^&\s'\"]*",
    re.IGNORECASE,
)


class EmbedkitError(Exception):
    """Base class: a failure with a cause that the user can act on.

    `str(error)` is "MESSAGE (hint: HINT)".

    Args:
        message: what is wrong, in one line: the value, and what is allowed.
        hint: what to do, in one line.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str) -> None:
        self.message = _in_one_line(message)
        super().__init__(self.message)
        self.hint = _in_one_line(hint)

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Unpickling passes positional arguments only, and the hint is a keyword: without this, a worker process
        # that raises one hangs its pool.
        return partial(type(self), hint=self.hint), (self.message,), self.__dict__


def without_passwords(sentence: str) -> str:
    """Replaces the passwords of URLs by asterisks."""
    return _PASSWORD.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", sentence)


def _in_one_line(sentence: str) -> str:
    """Escapes line ends and control characters, which names of files may contain; hides passwords in URLs."""
    sentence = without_passwords(sentence)
    if sentence.isprintable():
        return sentence
    controls = ("Cc", "Zl", "Zp")
    return "".join(c.encode("unicode_escape").decode() if category(c) in controls else c for c in sentence)


class UsageError(EmbedkitError):
    """An option, a config key or an argument has a value that cannot be used."""

    exit_code = 2


class InputError(EmbedkitError):
    """The input is missing, malformed, or lacks a column."""

    exit_code = 3


class ModelError(EmbedkitError):
    """The model cannot be found or loaded, or does not support what was requested."""

    exit_code = 4


class OutputError(EmbedkitError):
    """The output cannot be written, already exists, or does not match its plan."""

    exit_code = 5


class Stopped(EmbedkitError):  # noqa: N818 - a signal is no error
    """A signal stopped the run. Committed shards are kept and can be resumed."""

    exit_code = 75


class ReaderGone(Exception):  # noqa: N818 - nothing is wrong
    """The reader of stdout stopped reading, as `head` does: the command ends without an error."""
