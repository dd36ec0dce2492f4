"""JSON files with a format version and a checksum. Knows nothing of their fields.

A file without a `version` is of version 1. Unknown keys are ignored: a change that a reader of this version must
not ignore needs a higher version.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from msgspec import ValidationError

from embedkit.errors import OutputError
from embedkit.storage.checksummed_json import dump_checksummed, load_checksummed, load_json
from embedkit.storage.protocol import AnyPath
from embedkit.storage.typed_json import convert

#: Of the files that this embedkit writes.
VERSION = 1

#: A JSON object whose values are of any type.
Json = Mapping[str, Any]


class MalformedFileError(ValueError):
    """A file whose checksum fits has content that this embedkit does not write."""


class VersionedFile(ABC):
    """JSON object with a format version and a checksum, in a file of its own."""

    __slots__ = ()
    KIND: ClassVar[str]

    @classmethod
    @abstractmethod
    def fields(cls, content: Json) -> dict[str, Any]:
        """Returns JSON of this or an earlier version, nested as the fields of the class are."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Returns the object as JSON of this version."""

    @classmethod
    def from_json(cls, content: Json) -> Self:
        """Returns the object that JSON of this or an earlier version describes.

        Raises:
            MalformedFileError: a value is missing or of another type.
        """
        try:
            return convert(cls.fields(content), cls)
        except (ValidationError, LookupError, TypeError, ValueError, AttributeError):
            raise MalformedFileError(f"not a {cls.KIND} as embedkit writes it") from None

    @classmethod
    def parse(cls, data: bytes, path: AnyPath, *, needs_checksum: bool = True) -> Self:
        """Reads a file's bytes.

        Args:
            data: the bytes.
            path: where they are from, for the error.
            needs_checksum: False accepts a file without a checksum, such as one written by hand.

        Raises:
            OutputError: a newer embedkit wrote the file.
            MalformedFileError: the content is not that of such a file.
            ValueError: the file is not JSON, or its checksum does not fit.
        """
        content = load_checksummed(data) if needs_checksum else load_json(data)
        version = content.get("version", 1) if isinstance(content, dict) else None
        if isinstance(version, int) and version > VERSION:
            raise OutputError(
                f"{path} has format version {version}, and this embedkit reads versions up to {VERSION}",
                hint="upgrade embedkit, or write to another output",
            )
        return cls.from_json(content)

    def serialize(self, *, indent: int | None = None) -> bytes:
        """Returns the file's bytes, checksum included."""
        return dump_checksummed(self.to_json(), indent=indent)
