"""New files that are held here until they are complete, since an object is put into a store whole or not at all.

A small one is in memory. A larger one is in a temporary file that has no name and is gone when the process ends,
however it ends: it may hold texts of kept columns.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from typing import Any, BinaryIO, cast

_IN_MEMORY = 64 * 2**20


class SpooledFile(io.RawIOBase):
    """A file that is written once. Its content can be read after `close`, until `discard`."""

    def __init__(self) -> None:
        self._content: Any = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - closed by `discard`
        self._digest = hashlib.sha256()
        #: Bytes written so far.
        self.size = 0

    def writable(self) -> bool:
        """Returns True."""
        return True

    def write(self, data: Any) -> int:
        """Writes bytes, all of them."""
        view = memoryview(data).cast("B")
        self._content.write(view)
        self._digest.update(view)
        self.size += len(view)
        return len(view)

    def tell(self) -> int:
        """Returns the bytes written so far."""
        return self.size

    @property
    def sha256(self) -> str:
        """SHA-256 of what was written, as 64 hexadecimal digits."""
        return self._digest.hexdigest()

    @property
    def content(self) -> BinaryIO:
        """What was written, at its start."""
        self._content.seek(0)
        return cast("BinaryIO", self._content)

    def discard(self) -> None:
        """Frees the memory or the disk."""
        self.close()
        self._content.close()
