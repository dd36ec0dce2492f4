"""Writes local files under temporary names, and gives them their names when they are complete and on disk.

A file gets its name in the folder that was opened for it: if another run replaces that folder meanwhile, no file
of this one appears in the new one. A temporary name carries the machine and the process, as in
`.part-00003.parquet.5f0c33ab-4242.tmp`, so that leftovers of dead processes differ from files being written.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from embedkit.storage.disk_errors import as_output_error, check_no_link
from embedkit.storage.protocol import FilePath, PublishedFile

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)\.tmp")
#: Temporary files of other machines count as leftovers after this time: writing one takes minutes.
_LEFTOVER_SECONDS = 24 * 3600
#: How the names of hidden folders end that hold states of tokens while a fit or a sweep runs. While its process
#: uses one, there is an empty temporary file beside it, named after the folder.
STATES = ".states"
#: Such a folder of another machine is abandoned after this time: training, which writes no file, may take days.
_ABANDONED_SECONDS = 7 * 24 * 3600
#: Errors of file systems without hard links.
_NO_LINKS = frozenset(
    {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.EINVAL}
)
_BY_DESCRIPTOR = os.rename in os.supports_dir_fd


class LocalAtomicFiles:
    """See `AtomicFiles`; the arguments are those of `new_files`."""

    def __init__(self, root: Path, *, sweep: bool) -> None:
        self._root = root
        self._sweep = sweep
        self._temporary: dict[str, Path] = {}
        self._folders: dict[Path, int] = {}  # descriptors
        self.taken: set[str] = set()

    def create(self, name: str, *, private: bool = False) -> BinaryIO:
        final = self._root / name
        temporary = final.with_name(temporary_name(final.name))
        for folder in list(final.parents)[: len(Path(name).parts) - 1]:
            check_no_link(folder)
        with as_output_error(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            if _BY_DESCRIPTOR and final.parent not in self._folders:
                self._folders[final.parent] = os.open(final.parent, os.O_RDONLY)
            if self._sweep:
                remove_abandoned_states(final.parent)
                for leftover in temporary_files(final.parent, final.name):
                    if is_leftover(leftover):
                        leftover.unlink(missing_ok=True)
            self._temporary[name] = temporary
            return open(temporary, "wb", opener=_open_private if private else None)

    def publish(
        self, *, last: str | None = None, replace: bool = True, check: Callable[[], None] = lambda: None
    ) -> list[PublishedFile]:
        facts: list[PublishedFile] = []
        in_order = sorted(self._temporary.items(), key=lambda item: item[0] == last)
        for name, temporary in in_order:
            with as_output_error(self._root / name), temporary.open("rb+") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                facts.append(PublishedFile(name, file.tell(), digest))
        check()
        for name, temporary in in_order:
            with as_output_error(self._root / name):
                if not self._publish(temporary, self._root / name, replace=replace):
                    self.taken.add(name)
        for folder in sorted({(self._root / name).parent for name in self._temporary}):
            with as_output_error(folder):
                sync_folder(folder, self._folders.get(folder))
        self._close()
        return facts

    def discard(self) -> None:
        for temporary in self._temporary.values():
            with contextlib.suppress(OSError):
                temporary.unlink()
        self._close()

    def _close(self) -> None:
        self._temporary.clear()
        while self._folders:
            os.close(self._folders.popitem()[1])

    def _publish(self, temporary: Path, final: Path, *, replace: bool) -> bool:
        """Gives a file its name; False if the name is in use and must not be replaced."""
        within = self._folders.get(final.parent)
        names = (temporary, final) if within is None else (temporary.name, final.name)
        if not replace:
            try:
                os.link(*names, src_dir_fd=within, dst_dir_fd=within)
            except OSError as fault:
                if fault.errno == errno.EEXIST or (fault.errno in _NO_LINKS and os.path.lexists(final)):
                    temporary.unlink()
                    return False
                if fault.errno not in _NO_LINKS:
                    raise
            else:
                temporary.unlink()
                return True
        os.replace(*names, src_dir_fd=within, dst_dir_fd=within)
        return True


def _open_private(path: str, flags: int) -> int:
    Path(path).unlink(missing_ok=True)
    return os.open(path, flags | os.O_EXCL, 0o600)


def sync_folder(folder: Path, descriptor: int | None = None) -> None:
    """Writes the names in a folder to disk.

    Args:
        folder: its path.
        descriptor: of the folder if it is open: it may have been moved.
    """
    opened = os.open(folder, os.O_RDONLY) if descriptor is None else descriptor
    try:
        os.fsync(opened)
    finally:
        if descriptor is None:
            os.close(opened)


def temporary_name(name: str) -> str:
    """Returns the name of a file while this process writes it."""
    return f".{name}.{_machine()}-{os.getpid()}.tmp"


def is_temporary(name: str) -> bool:
    """Checks for a name by `temporary_name`, of any process."""
    return _TEMPORARY.fullmatch(name) is not None


def temporary_files(folder: FilePath, name: str | None = None, *, recursive: bool = False) -> Iterator[Path]:
    """Lists files with a temporary name in a folder; those of one file, if it is named. Stores have none."""
    if not isinstance(folder, Path):
        return iter(())
    pattern = ".*.tmp" if name is None else f".{glob.escape(name)}.*.tmp"
    found = folder.rglob(pattern) if recursive else folder.glob(pattern)
    return (path for path in found if is_temporary(path.name))


def former_mark() -> str:
    """Returns the name of the file that marks a folder as an old output which is being replaced."""
    return temporary_name("former")


def is_former_mark(name: str) -> bool:
    """Checks for a name by `former_mark`, of any process."""
    found = _TEMPORARY.fullmatch(name)
    return found is not None and found["name"] == "former"


def is_leftover(path: Path) -> bool:
    """Checks for a temporary file that no process is writing any more.

    Its process ran on this machine and has ended; or it was written elsewhere (or before the last start of this
    machine), whose processes are unknown, and has not changed for a day.
    """
    name = _TEMPORARY.fullmatch(path.name)
    if name is None:
        return False
    if name["machine"] == _machine():
        return not _is_running(int(name["pid"]))
    try:
        return time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS
    except OSError:
        return False


def remove_abandoned_states(folder: Path) -> None:
    """Removes states of tokens, which reveal texts, that processes left in a folder when they were killed.

    States that a stopped fit has kept, so that it can continue, have no temporary file beside them and stay.
    """
    for marker in temporary_files(folder):
        name = _TEMPORARY.fullmatch(marker.name)
        if name is None or not name["name"].endswith(STATES) or not is_leftover(marker):
            continue
        states = folder / f".{name['name']}"
        with contextlib.suppress(OSError):
            if name["machine"] != _machine() and time.time() - marker.stat().st_mtime < _ABANDONED_SECONDS:
                continue
            if states.is_dir() and not states.is_symlink():
                shutil.rmtree(states)
            marker.unlink()


@functools.cache
def _machine() -> str:
    """Identifies this machine since its last start, and its process namespace, by 8 hexadecimal digits.

    The host's name is not enough: containers on several machines may share it, and process 1 is in all of them.
    """
    known = [platform.node()]
    with contextlib.suppress(OSError):
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        known.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]


def _is_running(pid: int) -> bool:
    if os.name != "posix":
        return True  # `os.kill` would end it there
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # another user's
    return True
