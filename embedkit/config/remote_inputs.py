"""URIs of inputs and outputs, without the secrets that some of them hold."""

from __future__ import annotations

import re

from embedkit.config.databases import is_database
from embedkit.errors import UsageError

_URI = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/]*)(?P<path>.*)", re.IGNORECASE | re.DOTALL)
#: Of these, a query or a fragment may follow the host at once.
_WEB = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#]*)(?P<path>.*)", re.IGNORECASE | re.DOTALL)
#: Stores that take no credentials in a URI, and have none in it.
_WITHOUT = frozenset({"s3", "gs", "az", "hf"})
#: An address inside another one, as fsspec chains them.
_CHAINED = re.compile(r"::[a-z][a-z0-9+.-]*://|^[a-z][a-z0-9+.-]*::", re.IGNORECASE)
#: Parameters of signed addresses, and other secrets, where an address has no parameters.
_SIGNED = re.compile(
    r"[?&;](sig|se|sv|[\w-]*(signature|credential|token|secret|password|key(id)?))=", re.IGNORECASE
)
_FROM = "credentials come from the environment, a profile or a role"


def is_remote(name: str) -> bool:
    """Checks for a URI of files, as opposed to a local name or a database."""
    return _URI.fullmatch(name) is not None and not is_database(name)


def split_secret(name: str) -> tuple[str, tuple[str, str] | None]:
    """Splits the name of an input into one that may be shown, and its secret.

    Args:
        name: as typed.

    Returns:
        The name without a password, or the query of a signed address; and the URI, or its start, without and with
        the secret, if there is one.

    Raises:
        UsageError: it has a secret where none belongs, or one whose end is unknown.
    """
    if "://" not in name or is_database(name):
        return name, None
    if _CHAINED.search(name):
        raise UsageError("an address inside another one (a::b) is not read", hint="copy the file here first")
    found = _WEB.fullmatch(name) or _URI.fullmatch(name)
    if found is None:
        return name, None
    scheme, authority, path = found["scheme"].lower(), found["authority"], found["path"]
    user, at, host = authority.rpartition("@")
    is_web = scheme in {"http", "https"}
    place = re.split(r"[?#]", path, maxsplit=1)[0] if is_web else path
    if not is_web and _SIGNED.search(path):
        raise UsageError(
            f"{scheme}:// addresses have no signature and no token in them",
            hint=f"leave it out: {_FROM}; or use the address that starts with https://",
        )
    if scheme in _WITHOUT:
        if at or ":" in host:
            raise UsageError(
                f"{scheme}:// addresses have no user, no key and no port in them", hint=f"leave it out; {_FROM}"
            )
        return name, None
    _, colon, port = host.rpartition(":")
    if colon and not host.endswith("]") and (not port.isdecimal() or (not at and "@" in place)):
        # Not shown: where the password ends is unknown.
        raise UsageError(
            f"the {scheme}:// address seems to have a /, ? or # in its password",
            hint="write them as %2F, %3F and %23 there, and an @ in the name of a file as %40",
        )
    # A user of the web may be a token.
    shown_user = "" if is_web else user.partition(":")[0]
    shown = f"{scheme}://{shown_user}{'@' if shown_user else ''}{host}"
    if place != path:
        return shown + place, (shown + place, name)
    if user == shown_user:
        return name, None
    return f"{shown}{path}", (shown, f"{scheme}://{authority}")


def check_no_secret(option: str, name: str) -> None:
    """Checks that a file named by an option is no URI with a secret, which only an INPUT may have.

    Raises:
        UsageError: it is one.
    """
    if split_secret(name)[1] is not None:
        raise UsageError(
            f"{option} takes no address with a password or a signature", hint="download the file first"
        )
