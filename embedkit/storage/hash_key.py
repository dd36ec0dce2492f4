"""Keys of the hashes by which texts are recognised, and the files that hold them.

A hash of a short text alone could be guessed by hashing likely texts. Hashes are therefore HMAC-SHA256 with a key
(RFC 2104), cut to 128 bits as NIST SP 800-107 allows: without the key nothing can be tried. A key is known by an
id, a hash of it, so that the wrong one is noticed. Keys are in files of their own and in no output.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from embedkit.errors import OutputError, UsageError
from embedkit.storage.disk_errors import as_read_error, check_no_link
from embedkit.storage.filesystem import write_file

#: Bytes of a hash, 128 bits: among 10 million texts, two have the same one with a probability of 1e-25.
HASH_BYTES = 16
_KEY_BYTES = 32
#: Fewer bytes than this can be guessed; more than this are another file given by mistake.
_LEAST_BYTES, _MOST_BYTES = 16, 4096
_MAKE = "make one with `openssl rand -hex 32 > FILE; chmod 600 FILE`"


@dataclass(frozen=True, slots=True)
class HashKey:
    """A key for hashes of texts."""

    secret: bytes = field(repr=False)

    @classmethod
    def new(cls) -> HashKey:
        """Returns a random key."""
        return cls(secrets.token_hex(_KEY_BYTES).encode())

    @property
    def id(self) -> str:
        """Identifies the key without giving it away: 16 hexadecimal digits."""
        return hashlib.sha256(b"id of an embedkit hash key\n" + self.secret).hexdigest()[:16]

    def hash(self, text: str) -> bytes:
        """Returns the hash of a text: 16 bytes."""
        return hmac.digest(self.secret, text.encode("utf-8", "surrogatepass"), "sha256")[:HASH_BYTES]


def read_key(path: Path) -> HashKey | None:
    """Reads a key; None if there is no such file. Line ends after it do not count.

    Raises:
        OutputError: the file cannot be read.
        UsageError: it is too short or too long for a key.
    """
    with as_read_error(path):
        try:
            with path.open("rb") as file:
                secret = file.read(_MOST_BYTES + 1).rstrip(b"\r\n")
        except FileNotFoundError:
            return None
    if not _LEAST_BYTES <= len(secret) <= _MOST_BYTES:
        size = f"{len(secret)} bytes" if len(secret) <= _MOST_BYTES else f"more than {_MOST_BYTES:,} bytes"
        raise UsageError(
            f"{path} is no key: it has {size}, and a key has {_LEAST_BYTES} to {_MOST_BYTES:,} random ones",
            hint=_MAKE,
        )
    return HashKey(secret)


def required_key(path: Path) -> HashKey:
    """Reads a key that the user names; see `read_key`.

    Raises:
        UsageError: there is no such file.
    """
    key = read_key(path)
    if key is None:
        raise UsageError(f"--hash-key {path} does not exist", hint=f"check the path, or {_MAKE}")
    return key


def key_beside(output: Path) -> Path:
    """Returns the path of the key beside an output: a copy of the output alone has no key."""
    named = output if output.name not in {"", ".."} else output.resolve()
    return named.with_name(f"{named.name}.key")


def join_key(path: Path, key: HashKey) -> HashKey:
    """Writes a key, readable by this user alone, unless the file exists.

    Args:
        path: of the file.
        key: to write.

    Returns:
        The key in the file, which may be another process's.

    Raises:
        OutputError: it cannot be written or read.
    """
    found = read_key(path)
    if found is not None:
        return found
    check_no_link(path)
    # Several ranks may make it at once: the first one wins.
    write_file(path.parent, path.name, key.secret + b"\n", replace=False, private=True)
    found = read_key(path)
    if found is None:
        raise OutputError(f"{path} was removed", hint="leave the key alone while embedkit runs")
    return found
