"""Turns what goes wrong with the hub, the network or the disk into one sentence and a hint."""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Any

from embedkit.models.repository.hub_cache import cache_folder, host

_PRIVATE = "for a private model set HF_TOKEN, or run `hf auth login`"


class Unavailable(Exception):  # noqa: N818 - it becomes a ModelError, which has the model's name
    """The hub does not give a model.

    Args:
        why: as a sentence about the model.
        way_out: what to do about it.
        absent: whether the hub answered that it has no such model, or shows none.
        final: whether a copy in the cache is no substitute.
    """

    def __init__(self, why: str, way_out: str, *, absent: bool = False, final: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.way_out = way_out
        self.absent = absent
        self.final = final


def no_space(why: str) -> Unavailable:
    """Describes a full disk."""
    return Unavailable(
        f"cannot be fetched: {why}", "make room there, or set HF_HOME to a folder on another disk", final=True
    )


def no_answer(seconds: float, *, fetched: bool) -> Unavailable:
    """Describes a hub that sent nothing for so long, before or after the first file."""
    what = f"stopped sending for {seconds:.0f} s" if fetched else f"does not answer within {seconds:.0f} s"
    variable = "HF_HUB_DOWNLOAD_TIMEOUT" if fetched else "HF_HUB_ETAG_TIMEOUT"
    more = "; what has come is kept, and the same command goes on" if fetched else f"; {variable} gives it longer"
    return Unavailable(f"cannot be fetched: {host()} {what}", f"try again later{more}")


def explain_failure(fault: BaseException, repo: str, revision: str | None, patience: float) -> BaseException:
    """What went wrong, and the way out; a fault that is none of the hub's or the network's comes back as it is."""
    if isinstance(fault, Unavailable) or not isinstance(fault, Exception):
        return fault
    chain = list(_chain(fault))
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    answered = next((one for one in chain if getattr(one, "response", None) is not None), None)
    if answered is not None:
        return _of_answer(answered, kinds, repo, revision)
    if "OfflineModeIsEnabled" in kinds:
        return Unavailable(
            "is not on this machine, and HF_HUB_OFFLINE forbids to fetch it", "unset HF_HUB_OFFLINE"
        )
    of_disk = next((one for one in chain if isinstance(one, OSError) and _is_of_disk(one)), None)
    if of_disk is not None:
        if of_disk.errno in {errno.ENOSPC, errno.EDQUOT}:
            return no_space(f"no room is left in {cache_folder()}")
        return Unavailable(
            f"cannot be fetched: {cache_folder()} cannot be written ({of_disk.strerror})",
            "set HF_HOME to a folder that you may write to",
            final=True,
        )
    return _of_network(chain, kinds, patience)


def _chain(fault: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = fault
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _is_of_disk(fault: OSError) -> bool:
    return fault.errno in {
        *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
        *(errno.ENOTDIR, errno.EIO, errno.ENAMETOOLONG),
    } and not isinstance(fault, ConnectionError | socket.gaierror | ssl.SSLError)


def _of_answer(fault: Any, kinds: set[str], repo: str, revision: str | None) -> Unavailable:  # noqa: PLR0911
    from huggingface_hub import get_token

    status, headers = int(fault.response.status_code), fault.response.headers
    page = f"https://{host()}/{repo}"
    has_token = get_token() is not None
    if "GatedRepoError" in kinds:
        way_out = f"accept its licence at {page}, then set HF_TOKEN to your token or run `hf auth login`"
        return Unavailable(f"is gated (HTTP {status}): its authors want a licence accepted first", way_out)
    if "RevisionNotFoundError" in kinds:
        return Unavailable(
            f"has no revision '{revision}' on {host()} (HTTP {status})",
            f"its branches and commits are listed at {page}/commits",
            final=True,
        )
    if "DisabledRepoError" in kinds:
        return Unavailable(f"was disabled on {host()} (HTTP {status})", f"see {page}, or use another model")
    # "Invalid username or password." is what it says of a model that is not there, to somebody without a token.
    of_token = re.search(r"credentials|token", str(headers.get("X-Error-Message", "")), re.IGNORECASE)
    if status == 401 and of_token and "RepositoryNotFoundError" not in kinds:
        return Unavailable(
            f"cannot be fetched: {host()} does not accept your token (HTTP 401)",
            "set HF_TOKEN to a valid one, run `hf auth login`, or take the token away: a public model needs none",
        )
    if "RepositoryNotFoundError" in kinds or status in {401, 404}:
        private = "for a private model, your token must be one that may read it" if has_token else _PRIVATE
        return Unavailable(
            f"is not on {host()}, or is private (HTTP {status})",
            f"check the spelling of owner/name; {private}",
            absent=True,
        )
    if status == 403:
        return Unavailable(
            f"may not be fetched: {host()} forbids it (HTTP 403)",
            f"see {page} whether a licence is to be accepted, and "
            + ("whether your token may read it" if has_token else "set HF_TOKEN or run `hf auth login`"),
        )
    if status == 407:
        return Unavailable("cannot be fetched: the proxy wants a login (HTTP 407)", "put it into HTTPS_PROXY")
    return explain_overload(status, str(headers.get("Retry-After") or "")) or Unavailable(
        f"cannot be fetched: {host()} answers with HTTP {status}", f"see {page}"
    )


def explain_overload(status: int | None, pause: str) -> Unavailable | None:
    """A hub that has too much to do, or is down; None for all other answers."""
    from huggingface_hub import get_token

    if status == 429:
        wait = f"wait {pause} s" if pause.isdecimal() else "wait some minutes"
        token = "" if get_token() else "; with a token (HF_TOKEN, or `hf auth login`) more requests are allowed"
        return Unavailable(f"cannot be fetched now: {host()} has had too many requests (HTTP 429)", wait + token)
    if status is not None and status >= 500:
        return Unavailable(f"cannot be fetched now: {host()} is out of order (HTTP {status})", "try again later")
    return None


def _of_network(chain: list[BaseException], kinds: set[str], patience: float) -> Unavailable:  # noqa: PLR0911
    proxies = [name for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy") if os.environ.get(name)]
    if "ProxyError" in kinds:
        return Unavailable(
            "cannot be fetched: the proxy refuses", f"check {proxies[0] if proxies else 'HTTPS_PROXY'}"
        )
    if {"TimeoutException", "TimeoutError"} & kinds:
        return no_answer(patience, fetched=False)
    said = " ".join(str(one) for one in chain)
    if "SSLError" in kinds or "CERTIFICATE_VERIFY_FAILED" in said:
        return Unavailable(
            f"cannot be fetched: the certificate of {host()} is not one that this machine trusts",
            "a proxy that reads traffic needs its certificate in SSL_CERT_FILE; check the clock, too",
        )
    if {"UnsupportedProtocol", "InvalidURL", "LocalProtocolError"} & kinds:
        return Unavailable(
            f"cannot be fetched: the address of the hub or of a proxy cannot be used ({host()})",
            "give HF_ENDPOINT and HTTPS_PROXY with https:// in front",
        )
    through = f" through the proxy of {proxies[0]}" if proxies else ""
    network = f"check the network{', ' + proxies[0] if proxies else ''} and HF_ENDPOINT"
    if "gaierror" in kinds or re.search(r"Name or service|resolution|getaddrinfo|No address associated", said):
        return Unavailable(f"cannot be fetched: no address is found for {host()}{through}", network)
    if "ConnectionRefusedError" in kinds or "refused" in said:
        return Unavailable(f"cannot be fetched: {host()} refuses the connection{through}", network)
    if {"ConnectError", "NetworkError", "RemoteProtocolError", "ConnectionError"} & kinds:
        return Unavailable(f"cannot be fetched: the connection to {host()} breaks off{through}", network)
    if {"JSONDecodeError", "KeyError", "AssertionError"} & kinds:
        return Unavailable(
            f"cannot be fetched: {host()} does not answer as a hub does",
            "check HF_ENDPOINT, and whether the network wants a login in a browser first",
        )
    if "Consistency check failed" in said:
        return Unavailable("cannot be fetched: a file came cut", "the same command fetches it again")
    return Unavailable(f"cannot be fetched from {host()} ({type(chain[0]).__name__})", "try again later")
