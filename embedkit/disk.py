"""What lies on a disk: files listed with their sizes, hashed, and links refused; where the cache is.

Knows nothing of what is in the files, nor of how they are written.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from embedkit.errors import OutputError


def cache_folder() -> Path:
    """Where embedkit keeps what it can make again."""
    of_user = os.environ.get("XDG_CACHE_HOME")
    usual = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return Path(of_user or Path.home() / usual) / "embedkit"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes: 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_small(path: Path | str) -> bytes:
    """A file's bytes, by four calls of the system where `Path.read_bytes` needs eight.

    100,000 records are read in 0.5 s instead of 1.6.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return b"".join(iter(lambda: os.read(descriptor, 2**20), b""))
    finally:
        os.close(descriptor)


def listed(folder: Path | str, prefix: str = "") -> Iterator[tuple[str, int | None]]:
    """Every file under a folder: `prefix` and its path in there, and its size; None for a link or a device.

    A folder is listed once: of 100,000 files that takes 0.3 s, where asking for each by its name took 2.
    """
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from listed(entry.path, f"{prefix}{entry.name}/")
            else:
                is_file = entry.is_file(follow_symlinks=False)
                yield f"{prefix}{entry.name}", entry.stat(follow_symlinks=False).st_size if is_file else None


def refuse_link(path: Path) -> None:
    """See that a path is no symbolic link.

    Raises:
        OutputError: it is one.
    """
    if path.is_symlink():
        raise OutputError(
            f"{path} is a symbolic link, and embedkit writes through none: whoever made it would choose the place",
            hint="name the real place with -o, or remove the link",
        )
