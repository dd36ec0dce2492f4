"""Failures of object stores as errors with a way out.

What a library or a server says is never passed on: it may hold keys, tokens or signed URLs. A sentence is made
from the HTTP status, the error code and the region in an answer alone.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import Any

#: What each cloud calls the place that holds objects, and where its credentials are looked for.
PLACES = {"s3": "bucket", "gs": "bucket", "az": "container"}
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with a profile or `aws sso login`",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY, a SAS token, or run `az login`",
}
_REGION = "name it with AWS_REGION or --store-option region=REGION"
_ENDPOINT = {
    "s3": "check the network, --store-option endpoint=URL and AWS_ENDPOINT_URL",
    "gs": "check the network, --store-option endpoint=URL and GOOGLE_BASE_URL",
    "az": "check the network, --store-option endpoint=URL and AZURE_STORAGE_ENDPOINT",
}

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_REGION_FOUND = re.compile(r"<Region>([a-z0-9-]{4,30})</Region>|expecting '([a-z0-9-]{4,30})'")
#: Services that give credentials to a machine in a cloud; elsewhere nothing answers there.
_METADATA = re.compile(r"https?://(169\.254\.|fd00:ec2|metadata\.google|100\.100\.)")
_NOT_ACCEPTED = frozenset(
    {
        *("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"),
        *(
            "AuthenticationFailed",
            "InvalidAuthenticationInfo",
            "NoAuthenticationInformation",
            "ExpiredTokenException",
        ),
    }
)
_ELSEWHERE = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})
_NO_PLACE = frozenset({"NoSuchBucket", "ContainerNotFound", "InvalidBucketName", "ContainerBeingDeleted"})
#: Statuses that say "later".
_LATER = frozenset({408, 429, 500, 502, 503, 504})


class StoreError(OSError):
    """An object store does not do what was asked.

    Args:
        sentence: what is wrong.
        hint: what to do about it.
        path: the URI.
        status: of HTTP, if there was an answer.
    """

    def __init__(self, sentence: str, hint: str, path: str, status: int | None = None) -> None:
        super().__init__(None, sentence, path)
        self.hint = hint
        self.status = status

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.strerror, self.hint, self.filename, self.status)


class ObjectChangedError(StoreError):
    """An object is not the one that was asked for any more."""

    def __init__(self, path: str) -> None:
        super().__init__("was changed while it was read", "do not change it while embedkit reads it", path)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.filename,)


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that failed."""

    error: OSError
    is_passing: bool = False  # True if the same request may succeed later
    answered: bool = True  # False if no server did


def failure_of(error: Exception, path: str, host: str) -> Failure:  # noqa: PLR0911
    """Explains an exception of obstore.

    Args:
        error: the exception.
        path: the URI that it is about.
        host: of the store, for the message; empty if it is the cloud's own.
    """
    scheme = path.partition("://")[0]
    said, kind = str(error), type(error).__name__
    status, code = _STATUS.search(said), _CODE.search(said)
    number, word = int(status[1]) if status else None, code[1] if code else ""
    server = host or "the store"
    if _METADATA.search(said):
        return Failure(StoreError("no credentials were found", CREDENTIALS[scheme], path))
    if word in _NO_PLACE:
        place = PLACES[scheme]
        sentence = f"there is no {place} {path.split('/')[2]}"
        return Failure(StoreError(sentence, f"check its name; embedkit makes no {place}s", path, number))
    if kind in {"PreconditionError", "NotModifiedError"}:
        return Failure(ObjectChangedError(path))
    if kind == "AlreadyExistsError":
        return Failure(FileExistsError(errno.EEXIST, "exists already", path))
    if kind == "FileNotFoundError":
        return Failure(FileNotFoundError(errno.ENOENT, "no such object", path))
    if isinstance(error, ValueError) and "parse path" in said:
        return Failure(unusable_key(path))
    if "non-partial response" in said:
        hint = "copy the object here, or to another store"
        return Failure(StoreError("the store does not give parts of an object", hint, path))
    if number is None and kind not in {"PermissionDeniedError", "UnauthenticatedError"}:
        return _without_answer(said, path, server, _ENDPOINT[scheme])
    if number in _LATER:
        sentence = f"{server} is overloaded or down ({_shown(number, word)})"
        return Failure(StoreError(sentence, "try again later", path, number), is_passing=True)
    return Failure(StoreError(*_refusal(number, word, kind, said, path), path, number))


def unusable_key(path: str) -> StoreError:
    """Returns the error of a key that obstore cannot ask for."""
    sentence = "a part of its name is empty, `.` or `..`, or has a control character"
    return StoreError(sentence, "copy the object to another name", path)


def _shown(number: int | None, word: str) -> str:
    return f"HTTP {number}{f', {word}' if word else ''}" if number else word or "no reason given"


def _refusal(number: int | None, word: str, kind: str, said: str, path: str) -> tuple[str, str]:
    """Returns the sentence and the hint for a request that a server refuses."""
    scheme, shown = path.partition("://")[0], _shown(number, word)
    if word in _ELSEWHERE or number == 301:
        groups = _REGION_FOUND.search(said)
        found = next((part for part in groups.groups() if part), "") if groups else ""
        sentence = f"the bucket is in another region{f', {found}' if found else ''} ({shown})"
        return sentence, _REGION.replace("=REGION", f"={found}") if found else _REGION
    if word == "RequestTimeTooSkewed":
        return f"the store says that the clock of this machine is wrong ({shown})", "set the clock"
    if word in _NOT_ACCEPTED or number == 401 or kind == "UnauthenticatedError":
        return f"the store does not accept the credentials ({shown})", f"renew them: {CREDENTIALS[scheme]}"
    if number == 403 or kind == "PermissionDeniedError":
        hint = f"check the name of the {PLACES[scheme]}, and what the credentials may do there"
        return f"the store refuses access ({shown})", hint
    return f"the store does not understand the request ({shown})", _ENDPOINT[scheme]


def _without_answer(said: str, path: str, server: str, check: str) -> Failure:
    said = said.lower()
    sentence = f"{server} cannot be reached"
    if "certificate" in said:
        error = StoreError(
            f"this machine does not trust the certificate of {server}",
            "name the file of the authority's certificate with --store-option certificate=FILE",
            path,
        )
        return Failure(error, answered=False)
    if "builder error" in said or "relative url" in said or "invalid uri" in said:
        hint = f"{check}: it has the form https://HOST or https://HOST:PORT"
        return Failure(StoreError("the address of the store is invalid", hint, path), answered=False)
    if "dns error" in said:
        sentence = f"no address is found for {server}"
    elif "connection refused" in said or "connectionrefused" in said:
        sentence = f"{server} refuses the connection"
    elif "timed out" in said or "timedout" in said:
        sentence = f"{server} does not answer in time"
    return Failure(StoreError(sentence, check, path), is_passing=True, answered=False)
