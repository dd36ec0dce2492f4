"""Options of object stores: `--store-option KEY=VALUE`, and `store_options` of `embedkit.read`, checked.

Those of the command line are kept for this process. `s3:KEY=VALUE` and `s3://BUCKET:KEY=VALUE` are for these
stores alone, so that one command can read from one store and write to another. Keys and secrets are never taken as
an option, which a list of processes or a notebook shows: they come by each cloud's usual environment variables,
profiles and roles.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping
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
#: What an option is called in errors: on the command line, and in Python.
_TYPED, _IN_PYTHON = "--store-option ", "store_options: "
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
#: What may stand before an option that is not for all stores.
_PLACE = re.compile(r"(?P<scheme>s3|gs|az)(?:://(?P<bucket>[^/:]+)/?)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Checked values of `--store-option`, by name."""

    values: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str], scheme: str = "", bucket: str = "") -> StoreOptions:
        """Reads values of the form KEY=VALUE or PLACE:KEY=VALUE, and keeps those for a bucket.

        What is said of the bucket counts before what is said of its kind of store, and this before what is said of
        all; else the last one of a key.

        Raises:
            UsageError: a value is not of this form, a key is unknown or a secret, a value cannot be used.
        """
        found: list[tuple[int, str, str]] = []
        for text in texts:
            typed, mark, value = text.partition("=")
            place, _, name = typed.rpartition(":")
            of = _PLACE.fullmatch(place.strip())
            key = _known(name if of else typed, _TYPED)
            if not mark:
                raise UsageError(f"{_TYPED}{key} has no value", hint=f"write it as {key}=VALUE")
            checked = _checked(key, value.strip(), _TYPED)
            if of is None:
                found.append((0, key, checked))
                continue
            its_scheme = of["scheme"].lower()
            check_scheme(key, its_scheme)
            if its_scheme == scheme and of["bucket"] in {None, bucket}:
                found.append((1 if of["bucket"] is None else 2, key, checked))
        in_order = sorted(found, key=lambda one: one[0])
        return cls(tuple(sorted({key: value for _, key, value in in_order}.items())))

    @classmethod
    def of(cls, settings: object) -> StoreOptions:
        """Checks options in a dictionary of text, True and False.

        Raises:
            UsageError: as `parse`.
        """
        if not isinstance(settings, Mapping):
            raise UsageError(
                f"store_options cannot be a {type(settings).__name__}",
                hint='give a dict, such as {"region": "eu"}',
            )
        values: dict[str, str] = {}
        for name, value in settings.items():
            key = _known(str(name), _IN_PYTHON)
            if not isinstance(value, str | bool):
                kind = type(value).__name__
                raise UsageError(f"{_IN_PYTHON}{key} cannot be a {kind}", hint="give a text, or True or False")
            values[key] = _checked(key, str(value).strip(), _IN_PYTHON)
        return cls(tuple(sorted(values.items())))

    def text(self, key: str) -> str | None:
        """Returns a value; None if it was not given."""
        return dict(self.values).get(key)

    def flag(self, key: str) -> bool | None:
        """Returns a value that is yes or no; None if it was not given."""
        value = self.text(key)
        return None if value is None else _WORDS[value.lower()]


def check_scheme(key: str, scheme: str) -> None:
    """Checks that an option is for a kind of store.

    Raises:
        UsageError: it is not.
    """
    if scheme not in OPTIONS[key]:
        known = ", ".join(f"{each}://" for each in OPTIONS[key])
        raise UsageError(
            f"the store option {key} is for {known}, not for {scheme}://",
            hint=f"leave it out, or write {OPTIONS[key][0]}:{key}=VALUE if the command uses other stores as well",
        )


def _known(typed: str, said: str) -> str:
    """Returns the name of an option as it is in OPTIONS."""
    key = typed.strip().lower().replace("-", "_")
    if key not in OPTIONS and _SECRET.search(key):
        shown = re.split(r"\W", key)[0]  # without its value, and nothing that follows it
        raise UsageError(f"{said}{shown} is refused: keys and secrets are not given here", hint=_INSTEAD)
    if key not in OPTIONS:
        near = closest_names(key, tuple(OPTIONS), most=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(OPTIONS)}"
        raise UsageError(f"{said}{key} is unknown", hint=hint)
    return key


def _checked(key: str, value: str, said: str) -> str:
    if key in _BOOLEANS and value.lower() not in _WORDS:
        raise UsageError(f"{said}{key} cannot be '{value}'", hint="use true or false")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise UsageError(f"{said}{key} cannot be '{value}'", hint=f"use {', '.join(_CHOICES[key])}")
    if key == "timeout" and not re.fullmatch(r"\d+ ?(s|min|h)", value):
        raise UsageError(f"{said}timeout cannot be '{value}'", hint="use a time such as 90s or 5min")
    if key == "endpoint" and not _is_address(value):
        raise UsageError(
            f"{said}endpoint is not an address",
            hint="write it as https://HOST or https://HOST:PORT, without user, password and parameters",
        )
    return value


def _is_address(value: str) -> bool:
    try:
        found = urlsplit(value)
    except ValueError:
        return False
    is_http = found.scheme in {"http", "https"} and bool(found.hostname)
    return is_http and not ("@" in found.netloc or found.query or found.fragment)


def allows_http(options: StoreOptions) -> bool:
    """Checks whether texts may cross a network in clear, by option or by the variables that other tools read."""
    asked = options.flag("allow_http")
    return asked if asked is not None else any(_WORDS.get(os.environ.get(n, "").lower(), False) for n in _ALLOWING)


def check_encrypted(endpoint: str, options: StoreOptions) -> bool:
    """Checks that texts do not cross a network in clear, unless that was asked for.

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


_configured: tuple[str, ...] = ()


def configure_stores(texts: Iterable[str]) -> None:
    """Uses these values of `--store-option` for every store that this process opens from now on.

    Raises:
        UsageError: as `StoreOptions.parse`.
    """
    global _configured  # noqa: PLW0603 - one for all threads of a process, as its environment is
    given = tuple(texts)
    StoreOptions.parse(given)
    _configured = given


def configured_stores(scheme: str, bucket: str) -> StoreOptions:
    """Returns the options that `configure_stores` set for a bucket."""
    return _for_bucket(_configured, scheme, bucket)


@functools.cache
def _for_bucket(texts: tuple[str, ...], scheme: str, bucket: str) -> StoreOptions:
    return StoreOptions.parse(texts, scheme, bucket)
