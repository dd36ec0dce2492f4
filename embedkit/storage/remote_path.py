"""Paths of URIs, such as `s3://bucket/folder/part.parquet`, with the operations of `pathlib` that embedkit uses.

`Path("s3://bucket/key")` is `s3:/bucket/key`: a URI must never become a `pathlib.Path`. A `RemotePath` has no
`__fspath__`, so that opening one as a local file is a TypeError.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from embedkit.storage.store_options import StoreOptions

_URI = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True, order=True)
class RemotePath:
    """A place in an object store, or on another machine. Immutable; `str(path)` is the URI.

    Names are kept as typed: a store knows no `..`, and `a//b` and `a/b` are two keys. Slashes at the end are
    dropped, as `Path` does.

    Args:
        uri: of the form `SCHEME://HOST/KEY`; for an object store, HOST is the bucket.
        options: of its store; None for those of the process. Paths that are made from this one have them, too.

    Raises:
        ValueError: it is not of this form.
    """

    uri: str
    options: StoreOptions | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        found = _URI.fullmatch(self.uri)
        if found is None:
            raise ValueError(f"{self.uri!a} is not a URI")
        object.__setattr__(self, "uri", f"{found['scheme'].lower()}://{found['rest'].rstrip('/')}")

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, below: str) -> RemotePath:
        if below.startswith("/"):
            raise ValueError(f"{below!a} is absolute, and cannot be below {self.uri}")
        return self._of(f"{self.uri}/{below}") if below else self

    @property
    def scheme(self) -> str:
        """Such as `s3`."""
        return self.uri.partition("://")[0]

    @property
    def host(self) -> str:
        """What stands before the first slash: the bucket of an object store."""
        return self.uri.partition("://")[2].partition("/")[0]

    @property
    def key(self) -> str:
        """What stands after the first slash: the key of an object, or a folder; empty for the bucket itself."""
        return self.uri.partition("://")[2].partition("/")[2]

    @property
    def root(self) -> RemotePath:
        """The bucket itself."""
        return self._of(f"{self.scheme}://{self.host}")

    @property
    def name(self) -> str:
        """The last part of the key; empty for the bucket itself."""
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The last suffix of the name, such as `.gz`."""
        return PurePosixPath(self.name).suffix

    @property
    def suffixes(self) -> list[str]:
        """All suffixes of the name, such as `.jsonl` and `.gz`."""
        return PurePosixPath(self.name).suffixes

    @property
    def parent(self) -> RemotePath:
        """The folder of this name; the bucket is its own parent."""
        return self._of(self.uri.rpartition("/")[0]) if self.key else self

    @property
    def parents(self) -> tuple[RemotePath, ...]:
        """All folders above this name, the nearest first, the bucket last."""
        return (self.parent, *self.parent.parents) if self.key else ()

    def with_name(self, name: str) -> RemotePath:
        """Returns the path of another name in the same folder.

        Raises:
            ValueError: the name is empty or has a slash, or this is the bucket itself.
        """
        if not name or "/" in name or not self.key:
            raise ValueError(f"{name!a} cannot be the name in {self.uri}")
        return self.parent / name

    def with_suffix(self, suffix: str) -> RemotePath:
        """Returns the path with another suffix, or none."""
        return self.with_name(PurePosixPath(self.name).with_suffix(suffix).name)

    def _of(self, uri: str) -> RemotePath:
        return RemotePath(uri, self.options)


def is_uri(path: object) -> bool:
    """Checks for a `RemotePath`, or a text that is a URI."""
    return isinstance(path, RemotePath) or (isinstance(path, str) and _URI.fullmatch(path) is not None)


def as_path(text: str) -> Path | RemotePath:
    """Returns the path of a text: a `RemotePath` for a URI, else a local one."""
    return RemotePath(text) if is_uri(text) else Path(text)


def as_remote(path: Path | RemotePath | str) -> RemotePath:
    """Returns the path of a URI, with the options that it has."""
    return path if isinstance(path, RemotePath) else RemotePath(str(path))
