"""Reads files of outputs, which may be damaged: every failure is an error that names the file.

A file that a parser in C or C++ reads is parsed by a child process before, unless its hash was that of its record.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from msgspec import ValidationError

from embedkit.errors import EmbedkitError, OutputError
from embedkit.manifest.versioned_file import MalformedFileError, VersionedFile
from embedkit.output.formats.columns import VERIFY
from embedkit.storage.filesystem import open_file, read_file, read_files
from embedkit.storage.opener import Fetched
from embedkit.storage.parser_probe import probe_file
from embedkit.storage.partial_copy import ranged
from embedkit.storage.probed_copy import probed_copy
from embedkit.storage.protocol import AnyPath, FilePath
from embedkit.storage.store_errors import StoreError

AnyFile = TypeVar("AnyFile", bound=VersionedFile)

#: Raised by pyarrow, numpy, orjson, json and zlib for damaged bytes.
_BROKEN = (
    *(pa.ArrowException, OSError, ValueError, TypeError, LookupError, ArithmeticError),
    *(AttributeError, EOFError, MemoryError, NotImplementedError, RecursionError, SystemError, ValidationError),
)


@contextmanager
def readable(path: FilePath) -> Iterator[None]:
    """Raises an OutputError that names the file for any error of the block that damaged bytes may cause."""
    try:
        yield
    except EmbedkitError:
        raise
    except StoreError as error:
        raise OutputError(f"{error.filename} cannot be read: {error.strerror}", hint=error.hint) from None
    except FileNotFoundError as error:
        raise OutputError(f"{error.filename or path} is missing", hint=VERIFY) from None
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:  # the file need not be damaged
            raise OutputError(
                f"{error.filename or path} cannot be read: {os.strerror(error.errno)}",
                hint="fix the disk or the permissions, then run the same command again",
            ) from None
        cause = "its page checksum differs" if "CRC" in str(error) else type(error).__name__
        raise _damaged(path, str(error) if isinstance(error, MalformedFileError) else cause) from None


def check_parsable(path: FilePath, *, part: str = "all", without: Collection[str] = ()) -> dict[AnyPath, Fetched]:
    """Checks that a Parquet or Arrow file can be parsed without ending the process; other formats always can.

    Of a Parquet file in an object store, the footer and the chunks of the columns are fetched; of others all.

    Args:
        path: of the file.
        part: all, or none for the schema only.
        without: columns that will not be read.

    Returns:
        What was fetched of the file for that, from an object store, by its path; else {}.

    Raises:
        OutputError: a child process that parsed it failed or died.
    """
    form = path.suffix.removeprefix(".")
    if form not in {"parquet", "arrow"}:
        return {}
    fetched: Fetched | None = None
    if isinstance(path, Path):
        fault = probe_file(path, form, part=part, without=without)
    else:
        with open_file(path) as stream:
            remote = ranged(stream) if form == "parquet" else None
            if remote is None:
                fetched = stream.read()
                fault = probe_file(fetched, form, part=part, without=without)
            else:
                fetched, fault = probed_copy(remote, part=part, without=without)
    if fault is not None:
        raise _damaged(path, fault)
    return {} if fetched is None else {path: fetched}


def read_versioned(kind: type[AnyFile], path: FilePath) -> AnyFile:
    """Returns the plan, a record or the manifest of an output, whether its file has a checksum or not.

    Raises:
        OutputError: the file is missing, damaged, or of a newer version.
    """
    with readable(path):
        return kind.parse(read_file(path), path, needs_checksum=False)


def read_all_versioned(kind: type[AnyFile], paths: Sequence[FilePath]) -> list[AnyFile]:
    """Returns several files; see `read_versioned`. Those of an object store are read in parallel."""
    found = []
    for path, data in zip(paths, read_files(paths), strict=True):
        with readable(path):
            if data is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            found.append(kind.parse(data, path, needs_checksum=False))
    return found


def _damaged(path: FilePath, cause: str) -> OutputError:
    return OutputError(f"{path} is damaged, or is not what its name says ({cause})", hint=VERIFY)
