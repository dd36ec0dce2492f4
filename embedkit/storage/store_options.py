"""Options of object stores: `--store-option KEY=VALUE`, checked, and kept for this process.

Keys and secrets are never taken as an option, which a list of processes shows: they come by each cloud's usual
environment variables, profiles and roles.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from embedkit.errors import UsageError
from embedkit.suggest import closest_names

#: Each option, with the stores that it is for.
OPTIONS = {
    "endpoint": ("s3", "gs", "az"),
    "region": ("s3",),
    "path_style": ("s3",),
    "account": ("az",),
    "unsigned": ("s3", "gs", "az"),
    "allow_http": ("s3", "gs", "az"),
    "certificate": ("s3", "gs", "az"),
    "timeout": ("s3", "gs", "az"),
    "request_payer": ("s3",),
    "checksum": ("s3",),
    "server_side_encryption": ("s3",),
    "kms_key_id": ("s3",),
}
_BOOLEANS = frozenset({"path_style", "unsigned", "allow_http", "request_payer"})
_CHOICES = {
    "checksum": ("sha256", "crc64nvme", "none"),
    "server_side_encryption": ("AES256", "aws:kms", "aws:kms:dsse"),
}
_SECRET = re.compile(r"key|secret|token|password|passwd|\bsas|sas_|credential|signature", re.IGNORECASE)
_INSTEAD = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, or"
    " AZURE_STORAGE_ACCOUNT_KEY, in the environment"
)
_WORDS = {**dict.fromkeys(("true", "yes", "1", "on"), True), **dict.fromkeys(("false", "no", "0", "off"), False)}
_ALLOWING = ("AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP", "AZURE_STORAGE_ALLOW_HTTP", "AZURE_ALLOW_HTTP")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Checked values of `--store-option`, by name."""

    values: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> StoreOptions:
        """Read values of the form KEY=VALUE; the last one of a key counts.

        Raises:
            UsageError: a value is not of this form, a key is unknown or a secret, a value cannot be used.
        """
        values: dict[str, str] = {}
        for text in texts:
            key, mark, value = text.partition("=")
            key = key.strip().lower().replace("-", "_")
            if key not in OPTIONS and _SECRET.search(key):
                # Without its value, and nothing that follows it.
                raise UsageError(
                    f"--store-option {key} would show a secret to everybody on this machine", hint=_INSTEAD
                )
            if key not in OPTIONS:
                near = closest_names(key, tuple(OPTIONS), most=1)
                hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(OPTIONS)}"
                raise UsageError(f"--store-option {key} is unknown", hint=hint)
            if not mark:
                raise UsageError(f"--store-option {key} has no value", hint=f"write it as {key}=VALUE")
            values[key] = _checked(key, value.strip())
        return cls(tuple(sorted(values.items())))

    def text(self, key: str) -> str | None:
        """Return a value; None if it was not given."""
        return dict(self.values).get(key)

    def flag(self, key: str) -> bool | None:
        """Return a value that is yes or no; None if it was not given."""
        value = self.text(key)
        return None if value is None else _WORDS[value.lower()]


def _checked(key: str, value: str) -> str:
    if key in _BOOLEANS and value.lower() not in _WORDS:
        raise UsageError(f"--store-option {key} cannot be '{value}'", hint="use true or false")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise UsageError(f"--store-option {key} cannot be '{value}'", hint=f"use {', '.join(_CHOICES[key])}")
    if key == "timeout" and not re.fullmatch(r"\d+ ?(s|min|h)", value):
        raise UsageError(f"--store-option timeout cannot be '{value}'", hint="use a time such as 90s or 5min")
    if key == "endpoint":
        found = urlsplit(value)
        if found.scheme not in {"http", "https"} or not found.hostname or found.username or found.query:
            raise UsageError(
                "--store-option endpoint is not an address",
                hint="write it as https://HOST or https://HOST:PORT, without user, password and parameters",
            )
    return value


def allows_http(options: StoreOptions) -> bool:
    """Check whether texts may cross a network in clear, by option or by the variables that other tools read."""
    asked = options.flag("allow_http")
    return asked if asked is not None else any(_WORDS.get(os.environ.get(n, "").lower(), False) for n in _ALLOWING)


def check_encrypted(endpoint: str, options: StoreOptions) -> bool:
    """Check that texts do not cross a network in clear, unless that was asked for.

    Returns:
        True if the endpoint is one of HTTP.

    Raises:
        UsageError: it is, on another machine, and not allowed.
    """
    found = urlsplit(endpoint)
    if found.scheme != "http":
        return False
    if not (allows_http(options) or (options.flag("allow_http") is None and found.hostname in _LOOPBACK)):
        raise UsageError(
            f"the address {found.scheme}://{found.hostname} of the store is not encrypted",
            hint="use https://, or allow it with --store-option allow_http=true",
        )
    return True


_configured = StoreOptions()


def configure_stores(texts: Iterable[str]) -> None:
    """Use these values of `--store-option` for every store that this process opens from now on.

    Raises:
        UsageError: as `StoreOptions.parse`.
    """
    global _configured  # noqa: PLW0603 - one for all threads of a process, as its environment is
    _configured = StoreOptions.parse(texts)


def configured_stores() -> StoreOptions:
    """Return the options that `configure_stores` set."""
    return _configured
