"""Finds the files of the inputs as typed: globs, folders, formats and compressions by name."""

from __future__ import annotations

import codecs
import errno
import glob
import io
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from embedkit.config.databases import DATABASE_SUFFIXES, is_postgres, no_query
from embedkit.errors import InputError, UsageError
from embedkit.sources.compression import Decompressed
from embedkit.storage.filesystem import (
    fixed_name,
    is_link,
    is_same_file,
    match_files,
    open_file,
    read_file,
    real_path,
    seems_folder,
    seems_there,
    sha256_of_ends,
    stat_file,
    stat_if_there,
    walk_folder,
)
from embedkit.storage.protocol import FilePath, FileStat
from embedkit.storage.remote_path import RemotePath, is_uri
from embedkit.storage.store_errors import StoreError

_T = TypeVar("_T")

STDIN = "-"
#: Files of a remote place that are looked at together.
_AT_ONCE = 16

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

#: Folders with one of these, if embedkit wrote it, are outputs and not tables of texts.
OWN_FILES = frozenset({"plan.json", "manifest.json"})

#: Folders with all of these files, and a folder whose name starts so, are outputs of a sweep.
_SWEEP_FILES, _SWEEP_FOLDERS = frozenset({"results.parquet", "summary.json"}), "vectors"
#: Keys of a row of JSON Lines output, and of a list of rejects.
_OF_ROWS = frozenset({"id", "n_tokens", "n_used", "n_chunks", "status"})
_OF_REJECTS = frozenset({"row", "file", "offset", "code"})
#: Keys of plans and manifests.
_OF_A_RUN = frozenset({"version", "recipe", "fingerprint", "variants"})
_FIRST_LINE = 64 * 2**20


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the input, or a query of a database; equal values mean unchanged rows.

    Size and hashes of a query are those of its rows (see `query.RowsDigest`), and None before it was read once.
    """

    name: str  # as typed, or from a glob or a folder; `-` for stdin; host and name of a PostgreSQL database
    format: str  # csv, tsv, jsonl, parquet, arrow, txt, postgresql, sqlite or duckdb
    compression: str | None = None  # gz, zst, bz2, xz
    size: int | None = None  # in bytes on disk; None for stdin, as are the next two
    mtime_ns: int | None = None
    sha256: str | None = None  # of the first and last MiB on disk together
    content_sha256: str | None = None  # of a query: see `query.RowsDigest`
    etag: str | None = None  # of an object, which changes whenever its content does

    @property
    def known(self) -> FileStat | None:
        """What `open_file` needs to open exactly this version of an object; None for other files."""
        if self.etag is None or self.size is None:
            return None
        return FileStat(self.size, self.mtime_ns or 0, "file", self.name, self.etag)

    @property
    def shown(self) -> str:
        """Its name, with escapes for invalid UTF-8."""
        return shown_name(self.name)


def locate(inputs: Sequence[str], file_format: str, notes: list[str]) -> tuple[SourceFile, ...]:
    """Lists all files, in the order typed; those of a glob or a folder sorted by name.

    Args:
        inputs: as typed.
        file_format: see `InputConfig`.
        notes: list that receives a sentence for what is left out, or read twice.

    Raises:
        InputError: an input does not exist, or cannot be read.
        UsageError: a name has no known suffix, and `file_format` is `auto`.
    """
    known: dict[str, FileStat] = {}
    names = _all_expanded(inputs, notes, known)
    twice = len(names) - len({real_path(name) for name in names})
    if twice:
        notes.append(f"{_count(twice, 'file')} named more than once in the input, and read each time")
    return tuple(_of_each(lambda name: described(name, file_format, known.get(name)), names))


def expanded(inputs: Sequence[str], notes: list[str]) -> list[str]:
    """Lists the names of all files, as `locate` does.

    Raises:
        InputError: an input does not exist, or a folder cannot be read.
    """
    return _all_expanded(inputs, notes, {})


def shown_name(name: str) -> str:
    """Returns a file's name with escapes for invalid UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def canonical(file_format: str) -> str:
    """Returns the usual name of a format."""
    return "jsonl" if file_format == "ndjson" else file_format


def by_name(name: str) -> tuple[str | None, str | None]:
    """Returns format and compression by a file's suffixes."""
    suffixes = PurePath(name.lower()).suffixes
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression is not None:
        suffixes.pop()
    return (SUFFIXES.get(suffixes[-1]) if suffixes else None), compression


def _of_each(function: Callable[[str], _T], names: Sequence[str]) -> list[_T]:
    """Applies a function to names; to those of a remote place many at a time, since each waits for answers."""
    if not any(map(is_uri, names)):
        return list(map(function, names))
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(function, names))


def described(name: str, file_format: str, known: FileStat | None = None) -> SourceFile:
    """Describes a file as it is now.

    Args:
        name: of the file.
        file_format: see `InputConfig`.
        known: what `stat_file` has just said of it, if that was asked.

    Raises:
        InputError: it does not exist, or cannot be read.
        UsageError: its name has no known suffix, and `file_format` is `auto`.
    """
    try:
        found = known or stat_file(name)
        digest = sha256_of_ends(name, found) if found.kind == "file" else None
    except OSError as error:
        raise unreadable(name, error) from None
    if digest is None:
        raise InputError(
            f"{shown_name(name)}: not a regular file, which can be read more than once", hint="pipe it in: -"
        )
    named, compression = by_name(name)
    form = named if file_format == "auto" else canonical(file_format)
    if form is None:
        suffix = Path(name).suffix.lower()
        if suffix[1:] in DATABASE_SUFFIXES:
            raise no_query(shown_name(name))
        raise UsageError(
            f"{shown_name(name)}: unknown suffix; known are {' '.join(SUFFIXES)},"
            f" alone or with {' '.join(COMPRESSIONS)}",
            hint="save it as .csv or .parquet" if suffix in _NOT_TABLES else "name the format with --format",
        )
    return SourceFile(name, form, compression, found.size, found.mtime_ns, digest, etag=found.etag)


def check_not_read(outputs: Sequence[FilePath], inputs: Sequence[str], *, whole_folders: bool = False) -> None:
    """Refuses an output that is one of the inputs, also by another name or through a link.

    Args:
        outputs: files that will be written or removed.
        inputs: files that are read.
        whole_folders: the outputs are folders, which must not contain an input.

    Raises:
        UsageError: an input is among them.
    """
    for output in outputs:
        is_remote = isinstance(output, RemotePath)
        places = f"{output.scheme}://" if isinstance(output, RemotePath) else ""
        names = (name for name in inputs if (name.startswith(places) if is_remote else not is_uri(name)))
        reads = {real_path(name): name for name in names}
        target = real_path(output)
        hit = reads.get(target)
        if hit is None and whole_folders:
            below = f"{target}{'/' if is_remote else os.sep}"
            hit = next((name for read, name in reads.items() if read.startswith(below)), None)
        elif hit is None and not is_remote and seems_there(output):  # a hard link
            hit = next((name for name in reads.values() if is_same_file(output, name)), None)
        if hit is not None:
            raise UsageError(
                f"the output would replace {shown_name(hit)}, which is an input",
                hint="choose another place with -o",
            )


#: Suffixes of files that are read with no --format.
_NOT_TABLES = frozenset(
    f".{suffix}"
    for suffix in (
        *("xls", "xlsx", "xlsm", "ods", "doc", "docx", "odt", "rtf", "pdf", "htm", "html", "xml", "yaml"),
        *("sav", "dta", "sas7bdat", "xpt", "rds", "rdata", "pkl", "pickle", "h5", "orc", "avro"),
        *("zip", "tar", "7z", "npy", "npz"),
    )
)
_HINTS = {
    errno.EMFILE: "raise the limit on open files, such as `ulimit -n 4096`",
    errno.EBADF: "open it for reading",
}


def unreadable(name: str, error: OSError | ValueError) -> InputError:
    """Returns the error of a file that cannot be read."""
    reason = getattr(error, "strerror", None) or "cannot be read"
    hint = _HINTS.get(getattr(error, "errno", None) or 0, "check the name and the permissions")
    if isinstance(error, StoreError):
        hint = error.hint
    return InputError(f"{shown_name(name)}: {reason}", hint=hint)


def _all_expanded(inputs: Sequence[str], notes: list[str], known: dict[str, FileStat]) -> list[str]:
    """Lists files as `expanded` does; `known` receives what was found of those that are named themselves."""
    try:
        return [
            name
            for typed in inputs
            for name in ([typed] if is_postgres(typed) else _expanded(typed, notes, known))
        ]
    except StoreError as error:
        raise unreadable(str(error.filename), error) from None


def _expanded(typed: str, notes: list[str], known: dict[str, FileStat]) -> list[str]:
    typed = fixed_name(typed)  # refuses URIs that are not read
    found_there = stat_if_there(typed)
    is_inside = found_there is not None and found_there.kind == "folder"
    if not is_inside and (found_there is not None or is_link(typed) or not glob.has_magic(typed)):
        if found_there is not None:
            known[typed] = found_there
        if is_own_output(typed, found_there):
            notes.append(f"{shown_name(typed)} was written by embedkit; it is read because you named it")
        return [typed]
    what = f"contains no file that ends in {' '.join(SUFFIXES)}" if is_inside else "matches no file"
    try:
        found = [typed] if is_inside else list(match_files(typed))
        names = [name for name in found if not seems_folder(name)]
        for folder in filter(seems_folder, found):
            names += _inside(folder, notes)
    except OSError as error:
        raise unreadable(str(error.filename), error) from None
    own = [name for name, is_own in zip(names, _of_each(is_own_output, names), strict=True) if is_own]
    if own:
        outputs, first = _count(len(own), "file"), shown_name(own[0])
        notes.append(f"{shown_name(typed)}: left out {outputs} that embedkit wrote, first {first}")
    names = sorted(set(names) - set(own))
    if not names:
        raise InputError(
            f"{shown_name(typed)}: {what}", hint="check the name; hidden files and embedkit's own are left out"
        )
    return names


def _inside(folder: str, notes: list[str]) -> list[str]:
    """Lists the files of known formats below a folder; not hidden ones, outputs of embedkit, and doubled links."""
    names: list[str] = []
    own: list[str] = []
    n_others = 0
    for root, folders, files in walk_folder(folder):
        is_sweep = set(files) >= _SWEEP_FILES and any(name.startswith(_SWEEP_FOLDERS) for name in folders)
        if is_sweep or any(_is_of_a_run(root, name) for name in OWN_FILES & set(files)):
            own.append(root)
            folders.clear()
            continue
        for name in sorted(files):
            path = f"{root}/{name}" if is_uri(root) else os.path.join(root, name)  # noqa: PTH118 - `./a` as typed
            if name.startswith("."):
                continue
            is_known = by_name(name)[0] is not None
            if (is_known or not PurePath(name).suffix) and is_link(path) and not seems_there(path):
                raise InputError(
                    f"{shown_name(path)}: a link to a missing file", hint="fix it, or remove it from the folder"
                )
            if is_known:
                names.append(path)
            n_others += not is_known
    linked = {name: real_path(name) for name in names if is_link(name)}
    whole = {real_path(name) for name in names if name not in linked} if linked else set()
    doubled = {name for name, target in linked.items() if target in whole}
    shown = shown_name(folder)
    if doubled:
        notes.append(f"{shown}: left out {_count(len(doubled), 'link')} to a file that is read anyway")
    if own:
        outputs, first = _count(len(own), "folder"), shown_name(own[0])
        notes.append(f"{shown}: left out {outputs} with an output of embedkit, first {first}")
    if n_others:
        others = _count(n_others, "file")
        notes.append(f"{shown}: left out {others} with a suffix other than {' '.join(SUFFIXES)}")
    return [name for name in names if name not in doubled]


def _is_of_a_run(folder: str, name: str) -> bool:
    """Checks whether embedkit wrote a plan or a manifest: other programs use these names, too.

    One that cannot be read counts if its folder looks like an output.
    """
    try:
        value = json.loads(read_file(f"{folder}/{name}"))
    except (OSError, ValueError, RecursionError):
        return seems_folder(f"{folder}/commits")
    return isinstance(value, dict) and value.keys() >= _OF_A_RUN


def is_own_output(name: str, known: FileStat | None = None) -> bool:
    """Checks whether embedkit wrote a file, by its schema's metadata or the keys of its first line.

    False for a file that cannot be read: the reader of rows will report it. For `known`, see `described`.
    """
    form, compression = by_name(name)
    is_searched = compression is None or form == "jsonl"
    found = known or stat_if_there(name) if is_searched else None
    if found is None or found.kind != "file":
        return False
    try:
        with open_file(name, found) as raw:
            file: BinaryIO = raw
            if compression is not None:
                file = io.BufferedReader(Decompressed(raw, compression, file=name, check=lambda _: None))
            if form == "parquet":
                return _is_of_embedkit(pq.read_schema(file))
            if form == "arrow":
                return _is_of_embedkit(pa.ipc.open_file(file).schema)
            if form == "jsonl":
                first = json.loads(file.readline(_FIRST_LINE).removeprefix(codecs.BOM_UTF8))
                return isinstance(first, dict) and (
                    first.keys() >= _OF_ROWS or first.keys() - {"layer"} == _OF_REJECTS
                )
    except (InputError, pa.ArrowException, OSError, ValueError, RecursionError):
        return False
    return False


def _is_of_embedkit(schema: Any) -> bool:
    return any(key.startswith(b"embedkit.") for key in schema.metadata or {})


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
