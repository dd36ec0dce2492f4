"""Names of temporary files: they say who writes them, so that what a dead process left can be told from the rest.

A name carries the machine and the process: `.part-00003.parquet.5f0c33ab-4242.tmp`. No two live processes have
the same, and a live one's file is never removed. Knows nothing of what is in them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import time
from pathlib import Path

_NAME = re.compile(r"\..+\.(?P<here>[0-9a-f]{8})-(?P<pid>\d+)\.tmp")
#: After so long a temporary file of another machine is taken for a leftover: writing one takes minutes.
_OLD_SECONDS = 24 * 3600
_MARK_DOTS = 3


def temporary_name(name: str) -> str:
    """What a file is called while this process writes it."""
    return f".{name}.{_here()}-{os.getpid()}.tmp"


def is_temporary(name: str) -> bool:
    """Whether a file is called like one that is being written."""
    return _NAME.fullmatch(name) is not None


def former_mark() -> str:
    """What a file is called that says of the folder it is in: it is an old output, whose place is being taken."""
    return temporary_name("former")


def is_former_mark(name: str) -> bool:
    """Whether a file is called like one that says so."""
    return is_temporary(name) and name.startswith(".former.") and name.count(".") == _MARK_DOTS


def is_leftover(path: Path) -> bool:
    """Whether nobody writes a temporary file any more.

    Its process ran on this machine and is gone; or it is of another machine (or of this one before it was
    started anew), where nobody can ask for the process, and has not changed for a day.
    """
    name = _NAME.fullmatch(path.name)
    if name is None:
        return False
    if name["here"] == _here():
        return not _is_running(int(name["pid"]))
    try:
        return time.time() - path.stat().st_mtime > _OLD_SECONDS
    except OSError:
        return False


@functools.cache
def _here() -> str:
    """This machine since it was started, and the space that its process numbers are counted in, as 8 digits.

    The host's name alone is not enough: containers on several machines may share it, and their processes all
    have the number 1.
    """
    known = [platform.node()]
    with contextlib.suppress(OSError):
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        known.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]


def _is_running(pid: int) -> bool:
    if os.name != "posix":
        return True  # there, asking would end it
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # another user's
    return True
