"""Replaces a local folder by another one when that is complete.

The new folder is made next to the old one, as `OUT.next`. When it is complete, the two are exchanged in one step
where the system can do that (Linux), else in two, and the old one is removed. A run that is killed at any moment
leaves the old folder or the new one intact, and the next run finishes the replacement.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from embedkit.errors import OutputError
from embedkit.storage.atomic import former_mark, is_former_mark, sync_folder, temporary_name
from embedkit.storage.disk_errors import as_output_error, as_read_error
from embedkit.storage.filesystem import exists, is_folder

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
#: Errors of systems and file systems that cannot exchange two names.
_CANNOT_EXCHANGE = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM})


class Replacement:
    """A new folder, and the old one that it replaces.

    Args:
        path: of the old folder.
        clear: removes the files of embedkit from a folder, and no others.
    """

    def __init__(self, path: Path, clear: Callable[[Path], None]) -> None:
        self.path = path
        self.clear = clear
        self.next = path.with_name(f"{path.name}.next")
        #: The old folder's name meanwhile if the two cannot be exchanged in one step.
        self._former = path.with_name(f"{path.name}.former")

    def recover(self) -> list[str]:
        """Finishes a replacement that was killed between two renames, or while it removed the old folder.

        Returns:
            A notice for each old folder that could not be removed.

        Raises:
            OutputError: the disk fails.
        """
        with as_read_error(self.path):
            notices: list[str] = []
            for old in (self._former, self.next):
                names = [entry.name for entry in old.iterdir()] if is_folder(old) else None
                if names == []:
                    with suppress(OSError):  # all but the folder itself was removed
                        old.rmdir()
                if not any(map(is_former_mark, names or ())):
                    continue
                if not exists(self.path):
                    new = self.next if old == self._former and is_folder(self.next) else old
                    with as_output_error(self.path):
                        new.rename(self.path)
                    if new == old:
                        continue
                notices += self._remove(old)
            return notices

    def check_movable(self) -> None:
        """Checks that the old folder can be replaced, before hours are spent on the new one.

        Raises:
            OutputError: it cannot.
        """
        with as_read_error(self.path):
            reasons = {
                "a link": self.path.is_symlink(),
                "a mount point": os.path.ismount(self.path),
                "the folder that this command runs in": is_folder(self.path) and self.path.samefile(Path.cwd()),
                "in a folder that may not be written to": not os.access(
                    self.path.absolute().parent, os.W_OK | os.X_OK
                ),
            }
        for reason, is_true in reasons.items():
            if is_true:
                raise OutputError(
                    f"{self.path} is {reason}, and a new output is made next to the old one until it is complete",
                    hint="name a folder inside it with -o, or remove the old output yourself first",
                )

    def start(self) -> None:
        """Makes the new folder, empty.

        An unfinished one is removed. It is renamed first, so that a run that still writes there does not write
        into the new one.

        Raises:
            OutputError: the disk fails.
        """
        with as_output_error(self.next):
            if exists(self.next):
                gone = self.next.with_name(temporary_name(self.next.name))
                self.next.rename(gone)
                self.clear(gone)
                gone.rmdir()
            self.next.mkdir(parents=True, exist_ok=True)
            if is_folder(self.path):
                made, old = (folder.stat().st_mode & 0o7777 for folder in (self.next, self.path))
                # With `--private`, others keep no access that the old folder gave them.
                self.next.chmod(old if made & 0o077 else old & 0o700)

    def finish(self) -> list[str]:
        """Replaces the old folder by the new one, which is complete, and removes it.

        Returns:
            A notice if the old folder could not be removed.

        Raises:
            OutputError: the disk fails before the new folder is in its place.
        """
        with as_output_error(self.path):
            sync_folder(self.next)
            if not exists(self.path):
                self.next.rename(self.path)
                old = None
            else:
                (self.path / former_mark()).touch()
                sync_folder(self.path)
                old = self.next
                if not _exchanged(self.next, self.path):
                    old = self._former
                    self.path.rename(old)
                    self.next.rename(self.path)
            sync_folder(self.path.absolute().parent)
        return [] if old is None else self._remove(old)

    def _remove(self, old: Path) -> list[str]:
        """Removes the old folder; files of others in it move to the new one."""
        try:
            self.clear(old)
            _move(old, self.path)
            for entry in list(old.iterdir()):
                if is_former_mark(entry.name):
                    entry.unlink(missing_ok=True)
            old.rmdir()
        except FileNotFoundError:  # another process was faster
            return []
        except (OSError, OutputError):
            return [f"{old} is left of the replaced output and could not be removed: remove it"]
        return []


def _move(old: Path, new: Path) -> None:
    """Moves the content of a folder to another one, except for marks and for names that exist in both."""
    for entry in list(old.iterdir()):
        if is_former_mark(entry.name):
            continue
        target = new / entry.name
        if not exists(target):
            entry.rename(target)
        elif is_folder(entry) and not entry.is_symlink() and is_folder(target):
            _move(entry, target)
            entry.rmdir()


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return function


def _exchanged(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step; False if the system or the file system cannot."""
    renameat2 = _renameat2()
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))
