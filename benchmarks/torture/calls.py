"""Counts the system calls by which a run changes a folder, and does something at one of them.

Sees what goes through `os`, `pathlib`, `io` and `shutil`, in every thread: opens for writing, writes, syncs,
renames, removals, folders made and removed. Knows nothing of embedkit: whatever it writes, and in whatever
order, each call that changes a file under the watched folder is one boundary.
"""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

#: Told of each call before it is made: its kind, and the path. It may raise, or never return. Where it returns
#: True for a write, half of the bytes are written, and it is told `torn` before the rest is.
OnCall = Callable[[str, str], "bool | None"]

KINDS = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir")


@contextmanager
def watched(root: Path, on_call: OnCall) -> Iterator[None]:
    """Reports each call that changes something under `root` to `on_call`, as long as the block lasts."""
    opener = _opener(root, on_call, real=open)
    with (
        mock.patch.multiple(os, **_os_functions(root, on_call)),
        mock.patch.object(io, "open", opener),
        mock.patch.object(builtins, "open", opener),
    ):
        yield


def _os_functions(root: Path, on_call: OnCall) -> dict[str, Any]:
    def told(kind: str, name: str) -> Any:
        real = getattr(os, name)

        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            # What shutil.rmtree removes is named within a folder that it has open, as is what gets its final name.
            where = _path(path, options.get("dir_fd", options.get("src_dir_fd")))
            if _is_under(where, root):
                on_call(kind, where)
            return real(path, *arguments, **options)

        return call

    return {
        name: told(kind, name)
        for kind, names in {
            "mkdir": ("mkdir",),
            "fsync": ("fsync", "fdatasync"),
            "rename": ("rename", "replace", "link"),
            "unlink": ("unlink", "remove"),
            "rmdir": ("rmdir",),
        }.items()
        for name in names
    }


def _opener(root: Path, on_call: OnCall, *, real: Any) -> Any:
    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        where = _path(file, None)
        if not set(mode) & set("wax+") or not _is_under(where, root):
            return real(file, mode, *arguments, **options)
        on_call("open", where)
        if mode != "wb":
            return real(file, mode, *arguments, **options)
        known = {name: options[name] for name in ("closefd", "opener") if name in options}
        return io.BufferedWriter(_ToldFile(file, where, on_call, **known))

    return opened


class _ToldFile(io.FileIO):
    """A file whose writes are told before they are made."""

    def __init__(self, file: Any, where: str, on_call: OnCall, **options: Any) -> None:
        super().__init__(file, "wb", **options)
        self._where = where
        self._on_call = on_call

    def write(self, data: Any, /) -> int:
        if not self._on_call("write", self._where):
            return super().write(data)
        written = super().write(memoryview(data)[: len(data) // 2])
        self._on_call("torn", self._where)
        return written


def _path(file: Any, dir_fd: int | None) -> str:
    """Returns the path of a name or a descriptor; "" where there is none."""
    if isinstance(file, int):
        return _of_descriptor(file)
    name = os.fspath(file)
    name = name.decode() if isinstance(name, bytes) else name
    folder = _of_descriptor(dir_fd) if dir_fd is not None else str(Path.cwd())
    return str(Path(folder, name))


def _of_descriptor(descriptor: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:
        return ""


def _is_under(where: str, root: Path) -> bool:
    return where.startswith(f"{root}{os.sep}") or where == str(root)
