"""The Hugging Face hub: its address, its cache, and its failures as a sentence and a hint."""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_DISK_ERRORS = {
    *(*_DISK_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EIO, errno.ENAMETOOLONG),
}
#: Also OSErrors, some with the same numbers.
_NETWORK_ERRORS = (ConnectionError, socket.gaierror, ssl.SSLError)


def is_offline() -> bool:
    """Checks whether the environment forbids requests to the hub (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cache_folder() -> Path:
    """Returns the folder of the hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def host() -> str:
    """Returns the host name of the hub, such as huggingface.co."""
    from huggingface_hub import constants

    # Without a user name and password that the address may contain.
    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2] or str(constants.ENDPOINT)


class Unavailable(Exception):  # noqa: N818 - it becomes a ModelError or an InputError, which has the name
    """The hub does not provide a repository.

    Args:
        why: a clause about the repository.
        way_out: what to do about it.
        absent: True if the hub has no such repository, or does not show it.
        final: True if a cached copy must not be used instead.
    """

    def __init__(self, why: str, way_out: str, *, absent: bool = False, final: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.way_out = way_out
        self.absent = absent
        self.final = final


def no_space(why: str) -> Unavailable:
    """Returns the error for a full disk."""
    return Unavailable(
        f"cannot be downloaded: {why}", "free some space, or set HF_HOME to a folder on another disk", final=True
    )


def no_answer(seconds: float, *, started: bool) -> Unavailable:
    """Returns the error for a hub that sent nothing for some seconds, before or after the download started."""
    problem, more = "does not answer within", "HF_HUB_ETAG_TIMEOUT allows more time"
    if started:
        problem, more = "stopped sending for", "the same command continues the download"
    return Unavailable(f"cannot be downloaded: {host()} {problem} {seconds:.0f} s", f"try again later; {more}")


def explain_failure(error: BaseException, repo: str, revision: str | None, timeout: float) -> BaseException:
    """Turns an exception of a download into an `Unavailable`; returns one of any other origin unchanged."""
    if isinstance(error, Unavailable) or not isinstance(error, Exception):
        return error
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
    answered = next((link for link in chain if getattr(link, "response", None) is not None), None)
    if answered is not None:
        return _explain_answer(answered, kinds, repo, revision)
    if "OfflineModeIsEnabled" in kinds:
        return Unavailable("is not on this machine, and HF_HUB_OFFLINE forbids downloads", "unset HF_HUB_OFFLINE")
    disk_errors = (link for link in chain if isinstance(link, OSError) and not isinstance(link, _NETWORK_ERRORS))
    disk_error = next((link for link in disk_errors if link.errno in _DISK_ERRORS), None)
    if disk_error is None:
        return _explain_network(chain, kinds, timeout)
    if disk_error.errno in _DISK_FULL:
        return no_space(f"no space is left in {cache_folder()}")
    return Unavailable(
        f"cannot be downloaded: {cache_folder()} cannot be written ({disk_error.strerror})",
        "set HF_HOME to a folder that you may write to",
        final=True,
    )


def _explain_answer(  # noqa: PLR0911
    error: Any, kinds: set[str], repo: str, revision: str | None
) -> Unavailable:
    from huggingface_hub import get_token

    status, headers = int(error.response.status_code), error.response.headers
    page = f"https://{host()}/{repo}"
    has_token = get_token() is not None
    if "GatedRepoError" in kinds:
        return Unavailable(
            f"is gated (HTTP {status}): its authors ask you to accept a licence first",
            f"accept its licence at {page}, then set HF_TOKEN to your token or run `hf auth login`",
        )
    if "RevisionNotFoundError" in kinds:
        return Unavailable(
            f"has no revision '{revision}' on {host()} (HTTP {status})",
            f"its branches and commits are listed at {page}/commits",
            final=True,
        )
    if "DisabledRepoError" in kinds:
        return Unavailable(f"was disabled on {host()} (HTTP {status})", f"see {page}, or use another one")
    # "Invalid username or password." is the answer for what does not exist, to a request without a token.
    about_token = re.search(r"credentials|token", str(headers.get("X-Error-Message", "")), re.IGNORECASE)
    if status == 401 and about_token and "RepositoryNotFoundError" not in kinds:
        return Unavailable(
            f"cannot be downloaded: {host()} does not accept your token (HTTP 401)",
            "set HF_TOKEN to a valid one, run `hf auth login`, or remove the token: a public one needs none",
        )
    if "RepositoryNotFoundError" in kinds or status in {401, 404}:
        private = "your token must have access to it" if has_token else "set HF_TOKEN, or run `hf auth login`"
        return Unavailable(
            f"is not on {host()}, or is private (HTTP {status})",
            f"check the spelling of owner/name; for a private one, {private}",
            absent=True,
        )
    if status == 403:
        token = "whether your token has access" if has_token else "set HF_TOKEN or run `hf auth login`"
        return Unavailable(
            f"cannot be downloaded: {host()} forbids it (HTTP 403)",
            f"check at {page} whether a licence has to be accepted, and {token}",
        )
    if status == 407:
        return Unavailable("cannot be downloaded: the proxy requires a login (HTTP 407)", "add it to HTTPS_PROXY")
    return explain_overload(status, str(headers.get("Retry-After") or "")) or Unavailable(
        f"cannot be downloaded: {host()} answers with HTTP {status}", f"see {page}"
    )


def explain_overload(status: int | None, retry_after: str) -> Unavailable | None:
    """Returns the error for a hub that is overloaded or down; None for any other HTTP status."""
    from huggingface_hub import get_token

    if status == 429:
        wait = f"wait {retry_after} s" if retry_after.isdecimal() else "wait some minutes"
        token = "" if get_token() else "; with a token (HF_TOKEN, or `hf auth login`) more requests are allowed"
        return Unavailable(
            f"cannot be downloaded now: {host()} has received too many requests (HTTP 429)", wait + token
        )
    if status is not None and status >= 500:
        return Unavailable(f"cannot be downloaded now: {host()} is down (HTTP {status})", "try again later")
    return None


def _explain_network(  # noqa: PLR0911
    chain: list[BaseException], kinds: set[str], timeout: float
) -> Unavailable:
    proxies = [name for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy") if os.environ.get(name)]
    proxy = proxies[0] if proxies else "HTTPS_PROXY"
    if "ProxyError" in kinds:
        return Unavailable("cannot be downloaded: the proxy refuses", f"check {proxy}")
    if {"TimeoutException", "TimeoutError"} & kinds:
        return no_answer(timeout, started=False)
    message = " ".join(str(link) for link in chain)
    if "SSLError" in kinds or "CERTIFICATE_VERIFY_FAILED" in message:
        return Unavailable(
            f"cannot be downloaded: this machine does not trust the certificate of {host()}",
            "set SSL_CERT_FILE to the certificate of a proxy that reads traffic, and check the clock",
        )
    if {"UnsupportedProtocol", "InvalidURL", "LocalProtocolError"} & kinds:
        return Unavailable(
            f"cannot be downloaded: the address of the hub ({host()}) or of a proxy is invalid",
            "give HF_ENDPOINT and HTTPS_PROXY with https:// in front",
        )
    through = f" through the proxy of {proxy}" if proxies else ""
    check = f"check the network{f', {proxy}' if proxies else ''} and HF_ENDPOINT"
    if "gaierror" in kinds or re.search(r"Name or service|resolution|getaddrinfo|No address associated", message):
        return Unavailable(f"cannot be downloaded: no address is found for {host()}{through}", check)
    if "ConnectionRefusedError" in kinds or "refused" in message:
        return Unavailable(f"cannot be downloaded: {host()} refuses the connection{through}", check)
    if {"ConnectError", "NetworkError", "RemoteProtocolError", "ConnectionError"} & kinds:
        return Unavailable(f"cannot be downloaded: the connection to {host()} breaks off{through}", check)
    if {"JSONDecodeError", "KeyError", "AssertionError"} & kinds:
        return Unavailable(
            f"cannot be downloaded: {host()} does not answer as a hub does",
            "check HF_ENDPOINT, and whether the network requires a login in a browser first",
        )
    if "Consistency check failed" in message:
        return Unavailable("cannot be downloaded: a file arrived incomplete", "run the same command again")
    return Unavailable(f"cannot be downloaded from {host()} ({type(chain[0]).__name__})", "try again later")
