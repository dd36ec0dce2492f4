"""Converts exceptions caused by limits of the machine into errors: memory, processes, open files, disk."""

from __future__ import annotations

import errno
import os

from embedkit.errors import EmbedkitError, ModelError, OutputError, UsageError
from embedkit.storage.store_errors import StoreError

_NO_MORE_FILES = {errno.EMFILE, errno.ENFILE}
_NO_MORE_PROCESSES = {errno.EAGAIN, errno.ENOMEM}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DISK_ERRORS = {errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP}


def as_machine_error(fault: Exception) -> EmbedkitError | None:  # noqa: PLR0911
    """Returns the error for a failure caused by the machine; None for any other exception."""
    if isinstance(fault, StoreError):
        return OutputError(str(fault), hint=fault.hint)
    if isinstance(fault, MemoryError):
        return ModelError(
            "not enough memory",
            hint="free some memory, or use a smaller --batch-tokens or --shard-rows, or fewer --workers",
        )
    number = fault.errno if isinstance(fault, OSError) else None
    if number in _NO_MORE_FILES:
        return OutputError(
            "too many open files",
            hint="raise the limit (`ulimit -n 4096`), or use fewer --workers",
        )
    if number in _NO_MORE_PROCESSES or str(fault) == "can't start new thread":
        return OutputError(
            "the system cannot start another process or thread",
            hint="raise the limit (`ulimit -u`, memory), or use fewer --workers",
        )
    if number in _FULL:
        return OutputError("the disk is full", hint="free space here and in TMPDIR, then run the command again")
    if isinstance(fault, OSError) and number in _DISK_ERRORS:
        where = f"{fault.filename}: " if isinstance(fault.filename, str) else ""
        return OutputError(
            f"{where}{os.strerror(number)}",
            hint="fix the disk, the name or the permissions, then run the same command again",
        )
    return _missing_folder()


def _missing_folder() -> UsageError | None:
    try:
        os.getcwd()  # noqa: PTH109 - Path.cwd() is the same
    except OSError:
        return UsageError("the working folder no longer exists", hint="change to an existing folder with cd")
    return None
