"""Data sets of the Hugging Face hub, read only: `hf://datasets/OWNER/NAME/PATH`, or `NAME@REVISION/PATH`.

A file is downloaded once a process, to a temporary file of this user alone that has no name, so that it is gone
when the process ends, however it ends: no text stays in a cache. Its size and hash are those that the hub states.
From there it is read as a local file: as often as needed, from its end, and by the parser probe.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

from embedkit.errors import InputError, UsageError
from embedkit.storage.hub import Unavailable, explain_failure, is_offline
from embedkit.storage.protocol import AnyPath, FileStat
from embedkit.storage.remote_files import ReadOnlyFileSystem

SCHEME = "hf://"
_DATASETS = f"{SCHEME}datasets/"
_CHUNK = 2**20
_FORM = "use hf://datasets/OWNER/NAME/PATH, or NAME@REVISION/PATH"

_T = TypeVar("_T")


class HubFileSystem(ReadOnlyFileSystem):
    """See `FileSystem`. Methods that write raise UsageError, and failures of the hub are an InputError."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._remote: Any = None
        self._commits: dict[str, str] = {}
        #: Open temporary files by name.
        self._copies: dict[str, BinaryIO] = {}

    def open_file(self, path: AnyPath, known: FileStat | None = None) -> io.BufferedReader:  # noqa: ARG002
        name = self.fixed_name(str(path))
        with self._lock:
            if name not in self._copies:
                self._copies[name] = self._downloaded(name)
            number = self._copies[name].fileno()
        # A new description of the open file, with a position of its own; also for the process of the parser probe.
        of_process = f"/proc/{os.getpid()}/fd/{number}"
        found = of_process if os.path.exists(of_process) else f"/dev/fd/{number}"  # noqa: PTH110
        file = open(found, "rb")  # noqa: PTH123, SIM115 - the caller closes it
        file.seek(0)
        return file

    def read_file(self, path: AnyPath) -> bytes:
        with self.open_file(path) as file:
            return file.read()

    def stat_file(self, path: AnyPath) -> FileStat:
        found = self._info(str(path))
        kind = "file" if found["type"] == "file" else "folder"
        return FileStat(found["size"] or 0, 0, kind, str(found["name"]))

    def fixed_name(self, path: str) -> str:
        if not path.startswith(_DATASETS):
            raise UsageError(f"{path}: only data sets are read from the hub", hint=_FORM)
        owner, slash, rest = path.removeprefix(_DATASETS).partition("/")
        repo, _, inside = rest.partition("/")
        repo, _, revision = repo.partition("@")
        if not owner or not slash or not repo:
            raise UsageError(f"{path}: names no data set", hint=_FORM)
        place = f"{owner}/{repo}@{revision}"
        if place not in self._commits:
            said = revision.replace("%2F", "/") or None
            self._commits[place] = self._asking(path, lambda _: _commit(f"{owner}/{repo}", said))
        return f"{_DATASETS}{owner}/{repo}@{self._commits[place]}{f'/{inside}' if inside else ''}"

    def real_path(self, path: AnyPath) -> str:
        return self.fixed_name(str(path)).rstrip("/")

    def file_names(self, folder: AnyPath) -> list[str]:
        return [name.rpartition("/")[2] for name in self._found(str(folder), "ls", detail=False)]

    def list_files(self, folder: AnyPath, prefix: str = "") -> Iterator[tuple[str, int | None]]:
        top = self.fixed_name(str(folder)).rstrip("/")
        for name, found in self._found(str(folder), "find", detail=True).items():
            yield prefix + f"{SCHEME}{name}".removeprefix(f"{top}/"), found["size"]

    def walk_folder(self, folder: AnyPath) -> Iterator[tuple[str, list[str], list[str]]]:
        for root, folders, files in self._found(str(folder), "walk"):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield f"{SCHEME}{root}", folders, files

    def match_files(self, pattern: str) -> Iterator[str]:
        yield from (f"{SCHEME}{name}" for name in self._found(pattern, "glob"))

    def refusal(self, path: AnyPath) -> UsageError:
        return UsageError(f"{path}: the hub is only read", hint="write to a local path")

    def _found(self, path: str, method: str, **options: Any) -> Any:
        """Calls a method of `HfFileSystem`, which takes paths without `hf://`."""
        name = self.fixed_name(path).removeprefix(SCHEME)
        found = self._asking(path, lambda hub: getattr(hub, method)(name, **options))
        return list(found) if isinstance(found, Iterator) else found

    def _info(self, path: str) -> Any:
        return self._found(path.rstrip("/"), "info")

    def _asking(self, path: str, question: Callable[[Any], _T]) -> _T:
        """Asks the hub.

        Raises:
            FileNotFoundError: it has no such file.
            InputError: it cannot be reached, or does not give it.
        """
        if is_offline():
            raise InputError(f"{path}: HF_HUB_OFFLINE forbids reading from the hub", hint="unset HF_HUB_OFFLINE")
        from huggingface_hub import HfFileSystem, constants

        if self._remote is None:
            self._remote = HfFileSystem(skip_instance_cache=True)
        repo = path.removeprefix(SCHEME).partition("@")[0]
        try:
            return question(self._remote)
        except FileNotFoundError as error:
            if getattr(error.__cause__ or error, "response", None) is None:
                raise FileNotFoundError(errno.ENOENT, "No such file in the data set", path) from None
            failure: BaseException = error.__cause__ or error
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise InputError(
                    f"{path}: no space is left in {tempfile.gettempdir()} to download it",
                    hint="free some space, or set TMPDIR to a folder on another disk",
                ) from None
            failure = error
        except Exception as error:  # noqa: BLE001 - of the library, of the network; explained below
            failure = error
        repo = "/".join(repo.split("/")[:3])
        why = explain_failure(failure, repo, None, constants.HF_HUB_DOWNLOAD_TIMEOUT)
        if isinstance(why, Unavailable):
            raise InputError(f"{path}: {why.why}", hint=why.way_out)
        raise why

    def _downloaded(self, name: str) -> BinaryIO:
        """Downloads a file whole, and compares it with the size and the hash that the hub states."""
        found = self._info(name)
        if found["type"] != "file":
            raise IsADirectoryError(errno.EISDIR, "Is a directory", name)
        stated = (found.get("lfs") or {}).get("sha256")
        digest = hashlib.sha256() if stated else hashlib.sha1(b"blob %d\0" % found["size"], usedforsecurity=False)
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process reads it

        def fill(hub: Any) -> None:
            with hub.open(name.removeprefix(SCHEME), "rb", block_size=0) as source:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    copy.write(chunk)
            copy.flush()

        self._asking(name, fill)
        if copy.tell() != found["size"] or digest.hexdigest() != (stated or found["blob_id"]):
            raise InputError(
                f"{name}: arrived incomplete or damaged: its hash is not the one that the hub states",
                hint="run the same command again",
            )
        return copy


def _commit(repo: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(repo, revision=revision).sha)
