"""Files that appear under their names once they are whole and on disk, and not before.

Knows nothing of shards, nor of what is in the files.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from embedkit.disk import refuse_link
from embedkit.errors import OutputError
from embedkit.leftovers import is_leftover, temporary_name


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
            names = f".{glob.escape(final.name)}.*.tmp"
            for leftover in final.parent.glob(names) if self.sweep else ():
                if is_leftover(leftover):
                    leftover.unlink(missing_ok=True)
            self.made[name] = temporary
            return temporary.open("wb")

    def publish(self, *, last: str | None = None, replace: bool = True) -> list[dict[str, Any]]:
        """Sync the files, give them their names, sync their folders.

        Args:
            last: the name of the file that is published last: once it is there, all are.
            replace: False leaves a file alone that has the name already: the first of several processes wins.

        Returns:
            For each file its `path`, `bytes` and `sha256`.

        Raises:
            OutputError: the disk refuses.
        """
        facts: list[dict[str, Any]] = []
        for name, temporary in sorted(self.made.items(), key=lambda item: item[0] == last):
            with as_output_error(self.root / name):
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    facts.append({"path": name, "bytes": file.tell(), "sha256": digest})
                if replace or not _linked(temporary, self.root / name):
                    temporary.replace(self.root / name)
        for folder in sorted({(self.root / name).parent for name in self.made}):
            with as_output_error(folder):
                _sync_folder(folder)
        self.made.clear()
        return facts

    def discard(self) -> None:
        """Remove what was not published."""
        for temporary in self.made.values():
            with contextlib.suppress(OSError):
                temporary.unlink()
        self.made.clear()


def _linked(temporary: Path, final: Path) -> bool:
    """Give a file its name unless one has it; False where the file system knows no links."""
    try:
        os.link(temporary, final)
    except OSError:
        if not final.exists():
            return False
    temporary.unlink()
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def as_output_error(path: Path) -> Iterator[None]:
    """Tell what the disk refuses as an error of the output at this path."""
    try:
        yield
    except OSError as fault:
        full = fault.errno in {errno.ENOSPC, errno.EDQUOT}
        raise OutputError(
            f"cannot write {path}: {os.strerror(fault.errno) if fault.errno else 'the disk refuses'}",
            hint="free some space, then run the same command again; an encode with --on-exists resume"
            if full
            else "choose another place with -o, or mend its permissions",
        ) from None
