"""What the user typed → the files that are read: globs, folders, formats and compressions by name.

Knows names and sizes; reads a file's head and tail for their hash, and nothing of what they mean.
"""

from __future__ import annotations

import glob
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from embedkit.errors import InputError, UsageError

STDIN = "-"

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "txt",
}
COMPRESSIONS = {".gz": "gz", ".zst": "zst", ".bz2": "bz2", ".xz": "xz"}

#: A folder that holds one of these is a result of embedkit, not a table of texts.
OWN_FILES = frozenset({"plan.json", "manifest.json"})

_SAMPLED = 2**20


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the input, and what tells whether it is still the same.

    Attributes:
        name: as typed, or as expanded from a glob or a folder; `-` for stdin.
        format: csv, tsv, jsonl, parquet, arrow or txt.
        compression: gz, zst, bz2, xz; None where there is none.
        size: bytes on disk; None for stdin, as are the next two.
        mtime_ns: when it was last changed.
        sha256: of the first and last MiB on disk together; of all of it where it is not longer.
    """

    name: str
    format: str
    compression: str | None
    size: int | None
    mtime_ns: int | None
    sha256: str | None


def locate(inputs: Sequence[str], file_format: str) -> tuple[SourceFile, ...]:
    """All files, in the order typed; those of a glob or a folder sorted by name.

    Raises:
        InputError: nothing is there, or it cannot be read.
        UsageError: a name does not tell the format, and `format` is `auto`.
    """
    return tuple(described(name, file_format) for typed in inputs for name in _expanded(typed))


def canonical(file_format: str) -> str:
    """The one name of a format that has two."""
    return "jsonl" if file_format == "ndjson" else file_format


def by_name(name: str) -> tuple[str | None, str | None]:
    """Format and compression as a file's suffixes tell them."""
    suffixes = PurePath(name.lower()).suffixes
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression is not None:
        suffixes.pop()
    return (SUFFIXES.get(suffixes[-1]) if suffixes else None), compression


def described(name: str, file_format: str) -> SourceFile:
    """A file as it is now.

    Raises:
        InputError: it is not there, or cannot be read.
        UsageError: its name does not tell the format, and `file_format` is `auto`.
    """
    try:
        status = os.stat(name)  # noqa: PTH116 - a Path would turn `./a` into `a`
        digest = _digest(name, status.st_size) if stat.S_ISREG(status.st_mode) else None
    except OSError as error:
        raise unreadable(name, error) from None
    if digest is None:
        raise InputError(f"{name}: not a regular file, and it is read more than once", hint="pipe it in: -")
    found, compression = by_name(name)
    found = found if file_format == "auto" else canonical(file_format)
    if found is None:
        raise UsageError(
            f"{name}: the name does not tell the format; known are {' '.join(SUFFIXES)},"
            f" alone or with {' '.join(COMPRESSIONS)}",
            hint="say it with --format",
        )
    return SourceFile(name, found, compression, status.st_size, status.st_mtime_ns, digest)


def unreadable(name: str, error: OSError) -> InputError:
    """The error of a file that cannot be opened."""
    return InputError(f"{name}: {error.strerror or 'cannot be read'}", hint="check the name and who may read it")


def _expanded(typed: str) -> list[str]:
    if "://" in typed:
        raise UsageError(f"{typed}: only local files are read", hint="copy it here first, or pipe it in with -")
    path = Path(typed)
    if path.is_dir():
        names = sorted(_inside(typed))
        what = f"holds no file that ends in {' '.join(SUFFIXES)}"
    elif path.exists() or not glob.has_magic(typed):
        return [typed]
    else:
        names = sorted(name for name in glob.glob(typed, recursive=True) if Path(name).is_file())  # noqa: PTH207
        what = "matches no file"
    if not names:
        raise InputError(f"{typed}: {what}", hint="check the name; hidden files and embedkit's own are left out")
    return names


def _inside(folder: str) -> Iterator[str]:
    """Files of a known format, at any depth; nothing hidden, nothing that embedkit made."""
    for root, folders, files in os.walk(folder):
        if OWN_FILES & set(files):
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and by_name(name)[0] is not None:
                yield os.path.join(root, name)  # noqa: PTH118 - names as typed


def _digest(name: str, size: int) -> str:
    with open(name, "rb") as file:  # noqa: PTH123 - as os.stat above
        digest = hashlib.sha256(file.read(_SAMPLED))
        file.seek(max(_SAMPLED, size - _SAMPLED))
        digest.update(file.read(_SAMPLED))
    return digest.hexdigest()
