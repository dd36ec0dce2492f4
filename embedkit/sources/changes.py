"""Files that have changed since they were located, and files of other machines that are not the same here."""

from __future__ import annotations

from embedkit.errors import InputError
from embedkit.sources.locate import SourceFile, described, unreadable
from embedkit.storage.filesystem import stat_file


class OtherFileError(InputError):
    """A file is missing, or another one than the process has seen that opened the table."""


def is_unchanged(file: SourceFile) -> bool:
    """Checks that a file is as it was described. An object is, if its ETag is: nothing of it is read again.

    Raises:
        InputError: it does not exist, or cannot be read.
    """
    if file.etag is None:
        return described(file.name, file.format) == file
    try:
        found = stat_file(file.name)
    except OSError as error:
        raise unreadable(file.name, error) from None
    return (found.size, found.etag) == (file.size, file.etag)


def check_same(file: SourceFile) -> None:
    """Checks that a file is here as another process has described it.

    Raises:
        OtherFileError: it is not.
    """
    if file.etag is not None:  # every read of an object is of its ETag
        return
    try:
        now = described(file.name, file.format)
    except InputError as error:
        raise OtherFileError(error.message, hint=error.hint) from None
    if (now.size, now.sha256) != (file.size, file.sha256):  # the time of another machine's file may differ
        other = changed(file)
        raise OtherFileError(other.message, hint=other.hint)


def changed(file: SourceFile) -> InputError:
    """Returns the error of a file that has changed."""
    return InputError(
        f"{file.shown} was changed while it was read",
        hint="do not change the input while embedkit reads it; start again with --on-exists overwrite",
    )
