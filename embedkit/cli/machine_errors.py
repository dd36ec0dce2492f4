"""What the machine refuses wherever it happens: memory, processes, open files, the disk, a folder that is gone."""

from __future__ import annotations

import errno
import os

from embedkit.errors import EmbedkitError, ModelError, OutputError, UsageError

_NO_MORE_FILES = {errno.EMFILE, errno.ENFILE}
_NO_MORE_PROCESSES = {errno.EAGAIN, errno.ENOMEM}
_FULL = {errno.ENOSPC, errno.EDQUOT}
#: What a disk answers, whatever it is asked.
_OF_DISK = {errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP}


def refusal_of_machine(fault: Exception) -> EmbedkitError | None:
    """Tell what the machine refused as an error with its way out; None if the fault is of another kind."""
    if isinstance(fault, MemoryError):
        return ModelError(
            "there is not enough memory",
            hint="free some; less is taken by a smaller --batch-tokens or --shard-rows, and by fewer --workers",
        )
    number = fault.errno if isinstance(fault, OSError) else None
    if number in _NO_MORE_FILES:
        return OutputError(
            "the system lets this process open no more files",
            hint="raise the limit, such as `ulimit -n 4096`, or use fewer --workers",
        )
    if number in _NO_MORE_PROCESSES or str(fault) == "can't start new thread":
        return OutputError(
            "the system refuses another process or thread",
            hint="raise the limit (`ulimit -u`, memory), or use fewer --workers",
        )
    if number in _FULL:
        return OutputError("a disk is full", hint="free some space here and where TMPDIR is, then run it again")
    if isinstance(fault, OSError) and number in _OF_DISK:
        where = f"{fault.filename}: " if isinstance(fault.filename, str) else ""
        return OutputError(
            f"{where}{os.strerror(number)}",
            hint="mend the disk, the names or the permissions, then run the same command again",
        )
    return _no_folder()


def _no_folder() -> UsageError | None:
    try:
        os.getcwd()  # noqa: PTH109 - Path.cwd() is the same
    except OSError:
        return UsageError("the folder that the command runs in is gone", hint="go to one that is there, with cd")
    return None
