"""Errors of the operating system as errors of an output, with a hint."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from embedkit.errors import OutputError
from embedkit.storage.protocol import AnyPath, FilePath
from embedkit.storage.store_errors import StoreError

_SHORTER_NAME = "choose a shorter name: temporary files next to an output have names some 40 characters longer"
_FREE_SPACE = "free some space, then run the same command again; an encode with --on-exists resume"
_WRITE_HINTS = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "see `ulimit -f`, or choose a place with -o whose file system takes larger files",
    errno.EMFILE: "raise the limit on open files, such as `ulimit -n 4096`",
    errno.EROFS: "choose another place with -o: nothing can be written there",
    errno.ENAMETOOLONG: _SHORTER_NAME,
}


@contextlib.contextmanager
def as_output_error(path: AnyPath) -> Iterator[None]:
    """Raises an `OSError` as the error of an output that cannot be written."""
    try:
        yield
    except StoreError as fault:
        raise OutputError(f"cannot write {fault.filename}: {fault.strerror}", hint=fault.hint) from None
    except OSError as fault:
        hint = _WRITE_HINTS.get(fault.errno or 0, "choose another place with -o, or fix its permissions")
        reason = os.strerror(fault.errno) if fault.errno else "the disk reports an error"
        raise OutputError(f"cannot write {path}: {reason}", hint=hint) from None


@contextlib.contextmanager
def as_read_error(path: AnyPath) -> Iterator[None]:
    """Raises an `OSError` as the error of an output that cannot be read, and may be intact."""
    try:
        yield
    except StoreError as fault:
        raise OutputError(f"{fault.filename} cannot be read: {fault.strerror}", hint=fault.hint) from None
    except OSError as fault:
        where = fault.filename if isinstance(fault.filename, str) else path
        raise OutputError(
            f"{where} cannot be read: {os.strerror(fault.errno or 0)}; nothing was changed",
            hint=_SHORTER_NAME
            if fault.errno == errno.ENAMETOOLONG
            else "fix the disk or the permissions, then run the same command again",
        ) from None


def check_no_link(path: FilePath) -> None:
    """Raises OutputError for a symbolic link: who made it would choose where the output goes."""
    with as_read_error(path):
        is_link = isinstance(path, Path) and path.is_symlink()
    if is_link:
        raise OutputError(
            f"{path} is a symbolic link, and embedkit does not write through links",
            hint="name the real place with -o, or remove the link",
        )
