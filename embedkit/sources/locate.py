"""What the user typed → the files that are read: globs, folders, formats and compressions by name.

Knows names and sizes; reads a file's head and tail for their hash, and nothing of what they mean.
"""

from __future__ import annotations

import codecs
import errno
import glob
import hashlib
import io
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from embedkit.errors import InputError, UsageError
from embedkit.sources.compression import Decompressed
from embedkit.storage.filesystem import exists, seems_file, seems_folder, seems_there

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

#: A folder that holds one of these, written by embedkit, is a result and not a table of texts.
OWN_FILES = frozenset({"plan.json", "manifest.json"})

#: A folder that holds all of these is a sweep's.
_SWEEP_FILES, _SWEEP_FOLDER = frozenset({"results.parquet", "summary.json"}), "vectors"
#: Keys of a row in an output of JSON Lines, and of one in its list of rejects.
_OF_ROWS = frozenset({"id", "n_tokens", "n_used", "n_chunks", "status"})
_OF_REJECTS = frozenset({"row", "file", "offset", "code"})
#: Keys of plans and manifests.
_OF_A_RUN = frozenset({"version", "recipe", "fingerprint", "variants"})
_FIRST_LINE = 64 * 2**20

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

    @property
    def shown(self) -> str:
        """Its name as text that every output can hold."""
        return shown_name(self.name)


def locate(inputs: Sequence[str], file_format: str, notes: list[str]) -> tuple[SourceFile, ...]:
    """All files, in the order typed; those of a glob or a folder sorted by name.

    Args:
        inputs: what the user typed.
        file_format: as in `InputConfig`.
        notes: gets a sentence for each thing that is left out, or read twice.

    Raises:
        InputError: nothing is there, or it cannot be read.
        UsageError: a name does not tell the format, and `format` is `auto`.
    """
    names = expanded(inputs, notes)
    twice = len(names) - len({os.path.realpath(name) for name in names})
    if twice:
        notes.append(f"{_count(twice, 'file')} of the input {_are(twice)} named twice, and read twice")
    return tuple(described(name, file_format) for name in names)


def expanded(inputs: Sequence[str], notes: list[str]) -> list[str]:
    """The names of all files, as `locate` finds them.

    Raises:
        InputError: nothing is there, or a folder cannot be read.
    """
    return [name for typed in inputs for name in _expanded(typed, notes)]


def shown_name(name: str) -> str:
    """A file's name as text that can be written: what is not UTF-8 in it as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


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
        raise InputError(
            f"{shown_name(name)}: not a regular file, and it is read more than once", hint="pipe it in: -"
        )
    found, compression = by_name(name)
    found = found if file_format == "auto" else canonical(file_format)
    if found is None:
        suffix = Path(name).suffix.lower()
        raise UsageError(
            f"{shown_name(name)}: the name does not tell the format; known are {' '.join(SUFFIXES)},"
            f" alone or with {' '.join(COMPRESSIONS)}",
            hint="save it as .csv or .parquet" if suffix in _NOT_TABLES else "say it with --format",
        )
    return SourceFile(name, found, compression, status.st_size, status.st_mtime_ns, digest)


def check_not_read(outputs: Sequence[Path], inputs: Sequence[str], *, whole_folders: bool = False) -> None:
    """Refuse an output that is one of the inputs, by another name or through a link, too.

    Args:
        outputs: files that will be written or removed.
        inputs: files that are read.
        whole_folders: the outputs are folders, and what is inside counts.

    Raises:
        UsageError: an input is among them.
    """
    reads = {os.path.realpath(name): name for name in inputs}
    for output in outputs:
        place = os.path.realpath(output)
        hit = reads.get(place)
        if hit is None and whole_folders:
            hit = next((name for read, name in reads.items() if read.startswith(place + os.sep)), None)
        elif hit is None and seems_there(output):  # a hard link
            hit = next((name for name in inputs if seems_there(name) and output.samefile(name)), None)
        if hit is not None:
            raise UsageError(
                f"the output would replace {shown_name(hit)}, which is read", hint="choose another place with -o"
            )


#: Suffixes of files that no --format reads.
_NOT_TABLES = frozenset(
    f".{suffix}"
    for suffix in (
        *("xls", "xlsx", "xlsm", "ods", "doc", "docx", "odt", "rtf", "pdf", "htm", "html", "xml", "yaml"),
        *("sav", "dta", "sas7bdat", "xpt", "rds", "rdata", "pkl", "pickle", "h5", "db", "sqlite", "orc", "avro"),
        *("zip", "tar", "7z", "npy", "npz"),
    )
)
_WAYS_OUT = {
    errno.EMFILE: "raise the limit on open files, such as `ulimit -n 4096`",
    errno.EBADF: "see how it was opened: it cannot be read from",
}


def unreadable(name: str, error: OSError | ValueError) -> InputError:
    """The error of a file that cannot be opened."""
    reason = getattr(error, "strerror", None) or "cannot be read"
    hint = _WAYS_OUT.get(getattr(error, "errno", None) or 0, "check the name and who may read it")
    return InputError(f"{shown_name(name)}: {reason}", hint=hint)


def _expanded(typed: str, notes: list[str]) -> list[str]:
    if "://" in typed:
        raise UsageError(f"{typed}: only local files are read", hint="copy it here first, or pipe it in with -")
    path = Path(typed)
    if not seems_folder(path) and (os.path.lexists(typed) or not glob.has_magic(typed)):
        if is_own_output(typed):
            notes.append(f"{shown_name(typed)} was written by embedkit; it is read because it is named")
        return [typed]
    if seems_folder(path):
        names = _inside(typed, notes)
        what = f"holds no file that ends in {' '.join(SUFFIXES)}"
    else:
        names = _matching(typed, notes)
        what = "matches no file"
    own = [name for name in names if is_own_output(name)]
    if own:
        notes.append(
            f"{shown_name(typed)}: {_count(len(own), 'file')} that embedkit wrote {_are(len(own))} left out, "
            f"first {shown_name(own[0])}"
        )
    names = sorted(set(names) - set(own))
    if not names:
        raise InputError(
            f"{shown_name(typed)}: {what}", hint="check the name; hidden files and embedkit's own are left out"
        )
    return names


def _matching(pattern: str, notes: list[str]) -> list[str]:
    """Files that a glob matches; of a folder that it matches, the files inside."""
    names: list[str] = []
    for part in _without_any_depth(pattern):
        _check_readable(os.path.dirname(part))  # noqa: PTH120 - names as typed
        for name in glob.glob(part):  # noqa: PTH207
            if not seems_folder(name):
                names.append(name)
            elif part == pattern:  # what is inside is matched by another part else
                names += _inside(name, notes)
    return names


def _without_any_depth(pattern: str) -> list[str]:
    """One pattern a folder for a pattern with `**`, each folder once: `glob` follows links round in circles."""
    before, mark, after = f"{os.sep}{pattern}".partition(f"{os.sep}**{os.sep}")
    if not mark and before.endswith(f"{os.sep}**"):
        before, mark, after = before.removesuffix(f"{os.sep}**"), "**", "*"
    if not mark:
        return [pattern]
    tops = glob.glob(before[1:]) if before else [""]  # noqa: PTH207
    below = [glob.escape(folder) for top in tops for folder in _folders(top)]
    return [part for folder in below for part in _without_any_depth(os.path.join(folder, after or "*"))]  # noqa: PTH118


def _folders(top: str) -> list[str]:
    """A folder and those below it, linked ones too, each of them once; none hidden."""

    def refuse(error: OSError) -> None:
        raise unreadable(str(error.filename), error)

    found: dict[str, str] = {}
    waiting = [top]
    while waiting:
        links: list[str] = []
        for start in waiting:
            for root, folders, _ in os.walk(start or ".", onerror=refuse):
                folders[:] = [name for name in folders if not name.startswith(".")]
                if found.setdefault(os.path.realpath(root), root) != root:
                    folders.clear()
                paths = [os.path.join(root, name) for name in folders]  # noqa: PTH118 - names as typed
                links += [path for path in paths if Path(path).is_symlink()]
        waiting = [link for link in sorted(links) if os.path.realpath(link) not in found]
    return [root if top else os.path.relpath(root) for root in found.values()]


def _check_readable(pattern: str) -> None:
    """Refuse a folder that may not be listed: `glob` passes over it."""
    if glob.has_magic(pattern):
        _check_readable(os.path.dirname(pattern))  # noqa: PTH120
    elif pattern:
        try:
            exists(pattern)
        except OSError as error:
            raise unreadable(pattern, error) from None
    for name in glob.glob(pattern) if pattern else ():  # noqa: PTH207
        if seems_folder(name) and not os.access(name, os.R_OK | os.X_OK):
            raise unreadable(name, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _inside(folder: str, notes: list[str]) -> list[str]:
    """Files of a known format, at any depth, linked folders too; nothing hidden, nothing that embedkit made.

    A folder is read once: a link to one that is read anyway, or to one that the link is in, is not followed. Nor
    is a link to a file that is read anyway.
    """
    found = _Found()
    waiting = [folder]
    while waiting:
        for top in waiting:
            _walk(top, found)
        waiting, found.links = [link for link in sorted(found.links) if not _is_around(link)], []
    whole = {os.path.realpath(name) for name in found.names if not Path(name).is_symlink()}
    doubled = {name for name in found.names if Path(name).is_symlink() and os.path.realpath(name) in whole}
    place = shown_name(folder)
    if doubled:
        links = _count(len(doubled), "link")
        notes.append(f"{place}: {links} to a file that is read anyway {_are(len(doubled))} left out")
    if found.own:
        folders = _count(len(found.own), "folder")
        notes.append(
            f"{place}: {folders} with an output of embedkit {_are(len(found.own))} left out, "
            f"first {shown_name(found.own[0])}"
        )
    if found.others:
        notes.append(
            f"{place}: {_count(len(found.others), 'file')} {_are(len(found.others))} left out, "
            f"whose names do not end in {' '.join(SUFFIXES)}"
        )
    return [name for name in found.names if name not in doubled]


@dataclass(slots=True)
class _Found:
    """What is below a folder.

    Attributes:
        names: files of a known format.
        others: files of no known format.
        own: folders that embedkit wrote.
        links: links to folders, which are to be followed later.
        seen: the folders that were listed, without links in their paths.
    """

    names: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)


def _walk(top: str, found: _Found) -> None:
    """Collect what is below a folder."""

    def refuse(error: OSError) -> None:
        raise unreadable(str(error.filename), error)

    for root, folders, files in os.walk(top, onerror=refuse):
        place = os.path.realpath(root)
        is_own = any(_is_of_a_run(root, name) for name in OWN_FILES & set(files)) or (
            set(files) >= _SWEEP_FILES and _SWEEP_FOLDER in folders
        )
        if place in found.seen or is_own:
            found.own += [root] if is_own else []
            folders.clear()
            continue
        found.seen.add(place)
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [path for name in folders if Path(path := os.path.join(root, name)).is_symlink()]  # noqa: PTH118
        found.links += links
        for name in sorted(files):
            path = os.path.join(root, name)  # noqa: PTH118 - names as typed
            if name.startswith("."):
                continue
            known = by_name(name)[0] is not None
            if (known or not PurePath(name).suffix) and Path(path).is_symlink() and not seems_there(path):
                raise InputError(
                    f"{shown_name(path)}: a link that leads nowhere", hint="mend it, or remove it from the folder"
                )
            (found.names if known else found.others).append(path)


def _is_around(link: str) -> bool:
    """Check whether a link leads to a folder that it is in."""
    folder, place = os.path.realpath(link), os.path.realpath(os.path.dirname(link))  # noqa: PTH120
    return os.path.commonpath([folder, place]) == folder


def _is_of_a_run(folder: str, name: str) -> bool:
    """Check whether a plan or a manifest is embedkit's: other programs write files of these names, too.

    One that cannot be read counts as such where its folder looks like an output.
    """
    try:
        value = json.loads((Path(folder) / name).read_bytes())
    except (OSError, ValueError, RecursionError):
        return (Path(folder) / "commits").is_dir()
    return isinstance(value, dict) and value.keys() >= _OF_A_RUN


def is_own_output(name: str) -> bool:
    """Check whether embedkit wrote a file: by its schema's metadata, or the keys of its first line.

    A file that cannot be read is not one; the reader of rows will say what is wrong with it.
    """
    form, compression = by_name(name)
    if (compression is not None and form != "jsonl") or not seems_file(name):
        return False
    try:
        with open(name, "rb") as raw:  # noqa: PTH123 - as os.stat above
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


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _digest(name: str, size: int) -> str:
    with open(name, "rb") as file:  # noqa: PTH123 - as os.stat above
        digest = hashlib.sha256(file.read(_SAMPLED))
        file.seek(max(_SAMPLED, size - _SAMPLED))
        digest.update(file.read(_SAMPLED))
    return digest.hexdigest()
