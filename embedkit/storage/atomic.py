"""Files that appear under their names once they are whole and on disk, and not before.

A file gets its name in the folder that was opened for it: if another run puts a folder of its own in that place
meanwhile, nothing of this one appears among its files. Knows nothing of shards, nor of what is in the files.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from embedkit.errors import OutputError
from embedkit.storage.files import SHORTER, is_there, refuse_link
from embedkit.storage.tempfiles import is_leftover, temporary_name

#: What a file system without links answers when one is asked for.
_NO_LINKS = frozenset(
    {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.EINVAL}
)
#: Whether names can be given within a folder that is open, wherever that has been moved to.
_BY_DESCRIPTOR = os.rename in os.supports_dir_fd


class WholeFiles:
    """Files that appear together under their names once they are whole and on disk.

    Args:
        root: folder that the names are relative to.
        sweep: remove what processes that are gone left of the same files. It lists the folder for each file, so
            where there are 100,000, whoever calls has done it.
    """

    def __init__(self, root: Path, *, sweep: bool = True) -> None:
        self.root = root
        self.sweep = sweep
        self.made: dict[str, Path] = {}
        #: Names that were given already, and left to whom they were given.
        self.taken: set[str] = set()
        #: Descriptors of the folders that the files are in.
        self._folders: dict[Path, int] = {}

    def create(self, name: str) -> BinaryIO:
        """Open a new file under a temporary name beside its final one.

        Raises:
            OutputError: it cannot be made.
        """
        final = self.root / name
        temporary = final.with_name(temporary_name(final.name))
        for folder in list(final.parents)[: len(Path(name).parts) - 1]:
            refuse_link(folder)
        with as_output_error(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            self._open_folder(final.parent)
            names = f".{glob.escape(final.name)}.*.tmp"
            for leftover in final.parent.glob(names) if self.sweep else ():
                if is_leftover(leftover):
                    leftover.unlink(missing_ok=True)
            self.made[name] = temporary
            return temporary.open("wb")

    def publish(
        self,
        *,
        last: str | None = None,
        replace: bool = True,
        check: Callable[[], None] = lambda: None,
    ) -> list[dict[str, Any]]:
        """Sync the files, give them their names, sync their folders.

        Args:
            last: the name of the file that is published last: once it is there, all are.
            replace: False leaves a file alone that has the name already: the first of several processes wins.
            check: raises if the files may not get their names after all; called when all of them are on disk.

        Returns:
            For each file its `path`, `bytes` and `sha256`.

        Raises:
            OutputError: the disk refuses.
        """
        facts: list[dict[str, Any]] = []
        in_order = sorted(self.made.items(), key=lambda item: item[0] == last)
        for name, temporary in in_order:
            with as_output_error(self.root / name), temporary.open("rb+") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                facts.append({"path": name, "bytes": file.tell(), "sha256": digest})
        check()
        for name, temporary in in_order:
            with as_output_error(self.root / name):
                if not self._name(temporary, self.root / name, replace=replace):
                    self.taken.add(name)
        for folder in sorted({(self.root / name).parent for name in self.made}):
            with as_output_error(folder):
                self._sync(folder)
        self.made.clear()
        self._close_folders()
        return facts

    def discard(self) -> None:
        """Remove what was not published."""
        for temporary in self.made.values():
            with contextlib.suppress(OSError):
                temporary.unlink()
        self.made.clear()
        self._close_folders()

    def _open_folder(self, folder: Path) -> None:
        if _BY_DESCRIPTOR and folder not in self._folders:
            self._folders[folder] = os.open(folder, os.O_RDONLY)

    def _close_folders(self) -> None:
        while self._folders:
            os.close(self._folders.popitem()[1])

    def _name(self, temporary: Path, final: Path, *, replace: bool) -> bool:
        """Give a file its name; False where there is one that may not be replaced."""
        within = self._folders.get(final.parent)
        names = (temporary, final) if within is None else (temporary.name, final.name)
        if not replace:
            try:
                os.link(*names, src_dir_fd=within, dst_dir_fd=within)
            except OSError as fault:
                if fault.errno == errno.EEXIST or (fault.errno in _NO_LINKS and is_there(final)):
                    temporary.unlink()
                    return False
                if fault.errno not in _NO_LINKS:
                    raise
            else:
                temporary.unlink()
                return True
        os.replace(*names, src_dir_fd=within, dst_dir_fd=within)
        return True

    def _sync(self, folder: Path) -> None:
        if folder in self._folders:
            os.fsync(self._folders[folder])
        else:
            sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk.

    Raises:
        OSError: the disk refuses.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_SPACE = "free some space, then run the same command again; an encode with --on-exists resume"
_WAYS_OUT = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "see `ulimit -f`, or choose a place with -o whose file system takes larger files",
    errno.EMFILE: "raise the limit on open files, such as `ulimit -n 4096`",
    errno.EROFS: "choose another place with -o: nothing can be written there",
    errno.ENAMETOOLONG: SHORTER,
}


@contextlib.contextmanager
def as_output_error(path: Path) -> Iterator[None]:
    """Tell what the disk refuses as an error of the output at this path."""
    try:
        yield
    except OSError as fault:
        hint = _WAYS_OUT.get(fault.errno or 0, "choose another place with -o, or mend its permissions")
        raise OutputError(
            f"cannot write {path}: {os.strerror(fault.errno) if fault.errno else 'the disk refuses'}",
            hint=hint,
        ) from None
