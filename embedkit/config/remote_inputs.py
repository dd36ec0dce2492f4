"""URIs of inputs, without the secrets that some of them hold."""

from __future__ import annotations

import re

from embedkit.config.databases import is_database
from embedkit.errors import UsageError

_URI = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/]*)(?P<path>.*)", re.IGNORECASE | re.DOTALL)
#: Stores that take no credentials in a URI, and have none in it.
_WITHOUT = frozenset({"s3", "gs", "az", "hf"})


def is_remote(name: str) -> bool:
    """Check for a URI of files, as opposed to a local name or a database."""
    return _URI.fullmatch(name) is not None and not is_database(name)


def split_secret(name: str) -> tuple[str, tuple[str, str] | None]:
    """Split the name of an input into one that may be shown, and its secret.

    Args:
        name: as typed.

    Returns:
        The name without a password, or the query of a signed address; and the URI, or its start, without and with
        the secret, if there is one.

    Raises:
        UsageError: it has a secret where none belongs, or one whose end is unknown.
    """
    found = _URI.fullmatch(name)
    if found is None or is_database(name):
        return name, None
    scheme, authority, path = found["scheme"].lower(), found["authority"], found["path"]
    user, at, host = authority.rpartition("@")
    if scheme in _WITHOUT:
        if at:
            raise UsageError(
                f"a {scheme}:// address has no user and no key in it",
                hint="leave it out; credentials come from the environment, a profile or a role",
            )
        return name, None
    if ":" in host and not host.rpartition(":")[2].isdecimal() and not host.endswith("]"):
        # Not shown: where the password ends is unknown.
        raise UsageError(f"the {scheme}:// address has a / in its password", hint="write it as %2F")
    shown_user = user.partition(":")[0]
    shown = f"{scheme}://{shown_user}{at if shown_user else ''}{host}"
    if scheme in {"http", "https"} and re.search(r"[?#]", path):
        shown += re.split(r"[?#]", path, maxsplit=1)[0]
        return shown, (shown, name)
    if user in {"", shown_user}:
        return name, None
    return f"{shown}{path}", (shown, f"{scheme}://{authority}")


def check_no_secret(option: str, name: str) -> None:
    """Check that a file named by an option is no URI with a secret, which only an INPUT may have.

    Raises:
        UsageError: it is one.
    """
    if split_secret(name)[1] is not None:
        raise UsageError(
            f"{option} takes no address with a password or a signature", hint="download the file first"
        )
