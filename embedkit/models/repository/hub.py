"""Fetches a model's files from the hub, and finds what was fetched before.

Knows ids, commits and files, and what the hub's answers mean; nothing of what is in the files. No call waits for
ever: the hub runs in a thread of its own, and one that is silent for too long is given up.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import re
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from embedkit.errors import Stopped
from embedkit.models.repository.model_folder import READ
from embedkit.models.repository.weight_files import WEIGHTS

#: Seconds without a byte after which a download is given up. The library itself tries again five times meanwhile.
STALL_SECONDS = 60.0
_LOOK_SECONDS = 0.1
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,39}")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.spm", "tokenizer_config.json")
#: Files of a recipe that only a model with a modules.json has.
_OF_RECIPE = (
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "*_Pooling",
    "*_Dense",
    "*_Normalize",
)
_BARE = re.compile(r"\.(Normalize|Dropout)$")
_PRIVATE = "for a private model set HF_TOKEN, or run `hf auth login`"

Wanted = Callable[[Iterable[str]], Sequence[str]]


class FetchObserver(Protocol):
    """Told how a model is fetched, from the thread that waits for it."""

    def fetching(self, model: str, host: str) -> None:
        """The hub is asked for a model from now on."""

    def sized(self, files: int, size: int) -> None:
        """So many files are missing here, of `size` bytes."""

    def received(self, size: int) -> None:
        """So many bytes of them are here."""

    def ended(self) -> None:
        """Nothing more comes, whether it went well or not."""

    def stopped(self) -> bool:
        """Whether the user wants no more of it."""


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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Files of one commit in the hub's cache.

    Attributes:
        repo: the id that it is cached under.
        commit: 40 hexadecimal digits.
        folder: where the files are.
        missing: what is known to be missing.
        doubt: why more may be missing, as a sentence; None if nothing hints at it.
        listed: whether it is known which files the commit has.
    """

    repo: str
    commit: str
    folder: Path
    missing: tuple[str, ...] = ()
    doubt: str | None = None
    listed: bool = False

    @property
    def whole(self) -> bool:
        """Whether nothing has to be fetched."""
        return not self.missing and self.doubt is None


@dataclass(slots=True)
class _Session:
    """What one command knows of the hub: who is told, and the commits that it was given for branches."""

    observer: FetchObserver
    commits: dict[tuple[str, str | None], str] = field(default_factory=dict)


_session: ContextVar[_Session | None] = ContextVar("session", default=None)


@contextmanager
def observed_by(observer: FetchObserver) -> Generator[None, None, None]:
    """Tell `observer` of all that is fetched meanwhile, and ask the hub for the commit of a branch only once."""
    token = _session.set(_Session(observer))
    try:
        yield
    finally:
        _session.reset(token)


def is_offline() -> bool:
    """Tell whether the environment forbids the hub (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cache_folder() -> Path:
    """Find the folder of the hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def host() -> str:
    """Name the hub that is asked, such as huggingface.co."""
    from huggingface_hub import constants

    # Without a login that may stand before it.
    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2] or str(constants.ENDPOINT)


def is_commit(revision: str | None) -> bool:
    """Tell whether a revision is a whole commit, which never changes."""
    return _COMMIT.fullmatch(revision or "") is not None


def is_hub_id(name: str) -> bool:
    """Tell whether a name has the form of a hub id, by the hub's rules."""
    parts = name.split("/")
    plain = len(parts) <= 2 and all(re.fullmatch(r"[\w.-]{1,96}", part, re.ASCII) for part in parts)
    return plain and not re.search(r"--|\.\.|(^|/)[.-]|[.-](/|$)|\.git$", name)


# The cache -------------------------------------------------------------------------------------------


def cached_ids() -> list[str]:
    """List the hub ids of all models in the cache, sorted."""
    folders = cache_folder().glob("models--*")
    return sorted(folder.name.removeprefix("models--").replace("--", "/") for folder in folders)


def cached_commits(repos: Iterable[str]) -> list[str]:
    """List the commits in the cache of models with these ids."""
    folders = (_repo_folder(repo) / "snapshots" for repo in repos)
    return [commit.name for folder in folders if folder.is_dir() for commit in sorted(folder.iterdir())]


def find_snapshot(repos: Sequence[str], revision: str | None, wanted: Wanted) -> Snapshot | None:
    """Find a model in the cache, without the network.

    Args:
        repos: the ids that it may be cached under, the likeliest first.
        revision: branch, tag or commit; None = the default branch.
        wanted: of the names of all files of a commit, the patterns of those that are fetched.

    Returns:
        The first that is whole, else the first that is there in part, else None.
    """
    found = [one for repo in repos if (one := _snapshot(repo, revision, wanted)) is not None]
    return next((one for one in found if one.whole), found[0] if found else None)


def _repo_folder(repo: str) -> Path:
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def _snapshot(repo: str, revision: str | None, wanted: Wanted) -> Snapshot | None:
    commit = _cached_commit(repo, revision)
    if commit is None:
        return None
    folder = _repo_folder(repo) / "snapshots" / commit
    if not folder.is_dir():
        return None
    names = _listed(repo, commit)
    if names is None:
        missing, doubt = tuple(_plainly_missing(folder)), None
        if not missing and not (folder / "modules.json").is_file():
            doubt = _doubt(repo, folder, commit)
        return Snapshot(repo, commit, folder, missing, doubt)
    lacking = [name for name in _needed(names, wanted(names), folder) if not (folder / name).is_file()]
    return Snapshot(repo, commit, folder, tuple(lacking), listed=True)


def _cached_commit(repo: str, revision: str | None) -> str | None:
    branch = Path(revision or "main")
    if is_commit(revision):
        return revision
    if branch.is_absolute() or ".." in branch.parts:
        return None
    ref = _repo_folder(repo) / "refs" / branch
    if ref.is_file():
        return ref.read_text(encoding="utf-8").strip() or None
    if revision is not None and _SHORT_COMMIT.fullmatch(revision):
        commits = [commit for commit in cached_commits([repo]) if commit.startswith(revision)]
        return commits[0] if len(commits) == 1 else None
    return None


def _listed(repo: str, commit: str) -> list[str] | None:
    """The files of a commit by the listing that the library keeps beside a download; None where there is none."""
    try:
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError
    except ImportError:  # the library keeps no listings before its version 2
        return None
    try:
        tree = get_cached_repo_tree(repo, revision=commit, cache_dir=cache_folder())
    except (CachedRepoTreeNotFoundError, OSError, ValueError):
        return None
    return [file.path for file in tree]


def _needed(names: Sequence[str], patterns: Sequence[str], folder: Path) -> list[str]:
    """Of all files of a commit, those that a run reads: others, a plain `hf download` may have left out."""
    modules = (*_modules_with_settings(folder), "")
    encoder = next((path for path in modules if f"{path}/config.json".lstrip("/") in names), "")
    index = next((name for name in WEIGHTS if f"{encoder}/{name}".lstrip("/") in names), WEIGHTS[0])
    stem, suffix = index.partition(".")[0], index.removesuffix(".index.json").rpartition(".")[2]
    in_use = (index, f"{stem}-*-of-*.{suffix}" if index.endswith(".index.json") else index)
    needed = []
    for name in names:
        place, _, file = name.rpartition("/")
        is_read = any(
            fnmatch(file, pattern) for pattern in (*READ, *in_use, *(("*.py",) if "*.py" in patterns else ()))
        )
        is_wanted = any(fnmatch(name, pattern) for pattern in patterns)
        if is_wanted and place in modules and (is_read or place not in {"", encoder}):
            needed.append(name)
    return needed


def _plainly_missing(folder: Path) -> Iterator[str]:
    """Files that every encoder has and this folder lacks; of one that is no encoder's, nothing is known."""
    if (folder / "modules.json").is_file():
        yield from (
            f"{path}/config.json" for path in _modules_with_settings(folder) if not (folder / path).is_dir()
        )
        if not (folder / "config.json").is_file():
            return
    if not (folder / "config.json").is_file():
        yield "config.json"
    weights = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None and not (folder / "adapter_config.json").is_file():
        yield WEIGHTS[0]
    elif weights is not None and weights.endswith(".index.json"):
        numbered = re.findall(r'"([^"/]+-\d+-of-\d+\.(?:safetensors|bin))"', (folder / weights).read_text("utf-8"))
        yield from sorted(name for name in set(numbered) if not (folder / name).is_file())
    if not any(next(folder.glob(name), None) for name in _TOKENIZER_FILES):
        yield "tokenizer.json"


def _modules_with_settings(folder: Path) -> list[str]:
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        # Normalize and Dropout have nothing to be kept in a folder.
        named = [str(module.get("path") or "") for module in modules if not _BARE.search(str(module.get("type")))]
    except (OSError, ValueError, AttributeError, TypeError):
        return []
    return [path for path in named if path and ".." not in Path(path).parts]


def _doubt(repo: str, folder: Path, commit: str) -> str | None:
    """Why a folder without modules.json may lack one: other programs fetch the files that they need, no more."""
    # The library leaves an empty file here for each file that it asked for and the hub does not have.
    if (folder.parent.parent / ".no_exist" / commit / "modules.json").is_file():
        return None
    hints = repo.startswith("sentence-transformers/") or any(next(folder.glob(name), None) for name in _OF_RECIPE)
    return "modules.json, the recipe of its authors, is not among the cached files" if hints else None


# The hub ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Fetch:
    """A fetch in its own thread, and its signs of life.

    Attributes:
        repo: the id that is asked for.
        files: those that are missing here; None while the hub is asked.
        size: bytes of them.
        found: the folder, when it is through without a fault.
        fault: what ended it.
        status: of the last answer that the library met with another try, such as 429; None if there was none.
        pause: seconds until that try, where the hub has asked for so many.
        done: set at the end.
    """

    repo: str
    files: int | None = None
    size: int = 0
    found: Path = field(default_factory=Path)
    fault: BaseException | None = None
    status: int | None = None
    pause: str = ""
    done: threading.Event = field(default_factory=threading.Event)


def fetch(name: str, repos: Sequence[str], revision: str | None, wanted: Wanted) -> Snapshot:
    """Fetch from the hub what is not here of a model.

    Args:
        name: the model, as the user gave it.
        repos: ids that are asked for in turn, until the hub has one.
        revision: branch, tag or commit; None = the default branch.
        wanted: of the names of all files, the patterns of those that are fetched.

    Raises:
        Unavailable: the hub does not answer, refuses, or has no such model; or the disk is full.
        Stopped: the user wants no more of it.
    """
    session = _session.get()
    observer = session.observer if session else None
    if session is not None and (commit := session.commits.get((name, revision))) is not None:
        known = find_snapshot(repos, commit, wanted)
        if known is not None and known.whole:
            return known
    if observer is not None:
        observer.fetching(name, host())
    try:
        repo, folder = _first_fetched(repos, revision, wanted, observer)
    finally:
        if observer is not None:
            observer.ended()
    if session is not None:
        session.commits[name, revision] = folder.name
    return Snapshot(repo, folder.name, folder, listed=True)


def _first_fetched(
    repos: Sequence[str], revision: str | None, wanted: Wanted, observer: FetchObserver | None
) -> tuple[str, Path]:
    """The first id that the hub has, and the folder of its files; the fault is that of the first id."""
    try:
        return repos[0], _fetched(repos[0], revision, wanted, observer)
    except Unavailable as fault:
        if not fault.absent or not repos[1:]:
            raise
        try:
            return _first_fetched(repos[1:], revision, wanted, observer)
        except Unavailable as later:
            raise (fault if later.absent else later) from None


def _fetched(repo: str, revision: str | None, wanted: Wanted, observer: FetchObserver | None) -> Path:
    from huggingface_hub import constants

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    patience = float(constants.HF_HUB_ETAG_TIMEOUT)
    fetching = _Fetch(repo)
    threading.Thread(
        target=_work, args=(fetching, revision, wanted, patience, observer is not None), daemon=True, name="hub"
    ).start()
    with _heard(fetching):
        _wait(fetching, patience, observer)
    if fetching.fault is not None:
        raise _explained(fetching.fault, repo, revision, patience) from None
    return fetching.found


def _wait(fetching: _Fetch, patience: float, observer: FetchObserver | None) -> None:
    """Wait for the thread as long as bytes come, and tell of them."""
    from huggingface_hub import constants

    blobs = _repo_folder(fetching.repo) / "blobs"
    before = here = _bytes_in(blobs)
    alive, sized = time.monotonic(), False
    done = False
    while not done:
        try:
            done = fetching.done.wait(_LOOK_SECONDS)
            stopped = observer is not None and observer.stopped()
        except KeyboardInterrupt:
            if observer is None:
                raise
            stopped = True
        if stopped:
            raise Stopped(
                f"stopped while '{fetching.repo}' was fetched", hint="the same command goes on with fetching it"
            )
        if fetching.files is not None and not sized:
            sized, alive = True, time.monotonic()
            if observer is not None and fetching.files:
                observer.sized(fetching.files, fetching.size)
        size = _bytes_in(blobs)
        if sized and size != here:
            alive, here = time.monotonic(), size
            if observer is not None:
                observer.received(max(0, here - before))
        # Resolving a name and connecting to several addresses take longer than the library's own limit.
        stall = max(STALL_SECONDS, 2.0 * constants.HF_HUB_DOWNLOAD_TIMEOUT)
        limit = stall if sized else 1.5 * patience
        if not done and time.monotonic() - alive > limit:
            raise _of_load(fetching.status, fetching.pause) or _silent(limit, fetched=sized)


@contextmanager
def _heard(fetching: _Fetch) -> Generator[None, None, None]:
    """Note what the library says of answers that it meets with another try: it waits for minutes, untold."""
    threads = set()

    def note(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        answer = re.search(r"HTTP Error (\d{3})", said)
        if answer and host() in said and f"/{fetching.repo}/" in said:
            threads.add(record.thread)
            fetching.status, fetching.pause = int(answer[1]), ""
        elif record.thread in threads and (pause := re.search(r"Rate limited. Waiting (\d+)", said)):
            fetching.pause = pause[1]
        return False

    logger = logging.getLogger("huggingface_hub.utils._http")
    level = logger.level
    logger.addFilter(note)
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.removeFilter(note)
        logger.setLevel(level)


def _work(fetching: _Fetch, revision: str | None, wanted: Wanted, patience: float, silent: bool) -> None:
    """The thread: asks which files there are, then has the library fetch them."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    try:
        # One question that fails at once where there is no network; the library asks others five times.
        info = HfApi().model_info(fetching.repo, revision=revision, timeout=patience, files_metadata=True)
        siblings = info.siblings or []
        patterns = list(wanted([file.rfilename for file in siblings]))
        folder = _repo_folder(fetching.repo) / "snapshots" / str(info.sha)
        missing = [
            file
            for file in siblings
            if any(fnmatch(file.rfilename, pattern) for pattern in patterns)
            and not (folder / file.rfilename).is_file()
        ]
        size = sum(file.size or 0 for file in missing)
        _refuse_full_disk(size)
        fetching.size, fetching.files = size, len(missing)
        bars: dict[str, Any] = {"tqdm_class": functools.partial(tqdm, disable=True)} if silent else {}
        found = snapshot_download(fetching.repo, revision=revision, allow_patterns=patterns, **bars)
        fetching.found = Path(found)
    except BaseException as fault:  # noqa: BLE001 - raised again by the thread that waits
        fetching.fault = fault
    finally:
        fetching.done.set()


def _bytes_in(blobs: Path) -> int:
    """Bytes of all downloads of a model, finished or not."""
    total = 0
    try:
        for entry in os.scandir(blobs):
            total += entry.stat().st_size
    except OSError:
        # A file was renamed meanwhile: the next look sees it.
        return total
    return total


def _refuse_full_disk(size: int) -> None:
    folder = cache_folder()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if size > free:
        raise _no_room(f"it has {size / 1e6:,.0f} MB, and {cache_folder()} has room for {free / 1e6:,.0f} MB")


def _no_room(why: str) -> Unavailable:
    return Unavailable(
        f"cannot be fetched: {why}", "make room there, or set HF_HOME to a folder on another disk", final=True
    )


def _silent(seconds: float, *, fetched: bool) -> Unavailable:
    what = f"stopped sending for {seconds:.0f} s" if fetched else f"does not answer within {seconds:.0f} s"
    variable = "HF_HUB_DOWNLOAD_TIMEOUT" if fetched else "HF_HUB_ETAG_TIMEOUT"
    more = "; what has come is kept, and the same command goes on" if fetched else f"; {variable} gives it longer"
    return Unavailable(f"cannot be fetched: {host()} {what}", f"try again later{more}")


# What its answers mean -------------------------------------------------------------------------------


def _explained(fault: BaseException, repo: str, revision: str | None, patience: float) -> BaseException:
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
            return _no_room(f"no room is left in {cache_folder()}")
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
    return _of_load(status, str(headers.get("Retry-After") or "")) or Unavailable(
        f"cannot be fetched: {host()} answers with HTTP {status}", f"see {page}"
    )


def _of_load(status: int | None, pause: str) -> Unavailable | None:
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
        return _silent(patience, fetched=False)
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
