"""What file systems of other places have in common: no links, and for some of them no writing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Never

from embedkit.errors import UsageError
from embedkit.storage.protocol import AnyPath, AtomicFiles, FileStat


class RemoteFileSystem(ABC):
    """See `FileSystem`."""

    @abstractmethod
    def stat_file(self, path: AnyPath) -> FileStat:
        """See `FileSystem`."""

    def exists(self, path: AnyPath) -> bool:
        """See `FileSystem`."""
        try:
            self.stat_file(path)
        except FileNotFoundError:
            return False
        return True

    def is_link(self, path: AnyPath) -> bool:  # noqa: ARG002
        """See `FileSystem`."""
        return False


class ReadOnlyFileSystem(RemoteFileSystem):
    """See `FileSystem`; methods that write raise UsageError."""

    @abstractmethod
    def refusal(self, path: AnyPath) -> UsageError:
        """Returns the error of a write."""

    def free_bytes(self, folder: AnyPath) -> int:
        """See `FileSystem`."""
        return self._refuse(folder)

    def make_folder(self, folder: AnyPath, *, private: bool = False) -> None:  # noqa: ARG002
        """See `FileSystem`."""
        self._refuse(folder)

    def new_files(self, folder: AnyPath, *, sweep: bool = True) -> AtomicFiles:  # noqa: ARG002
        """See `FileSystem`."""
        return self._refuse(folder)

    def remove_file(self, path: AnyPath) -> None:
        """See `FileSystem`."""
        self._refuse(path)

    def remove_empty(self, folder: AnyPath) -> None:
        """See `FileSystem`."""
        self._refuse(folder)

    def remove_tree(self, folder: AnyPath) -> None:
        """See `FileSystem`."""
        self._refuse(folder)

    def _refuse(self, path: AnyPath) -> Never:
        raise self.refusal(path)
