"""Downloads what is missing of a model from the hub.

The hub's library runs in a thread of its own, so that a download that stalls can be given up.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

from embedkit.errors import Stopped
from embedkit.models.repository.hub_cache import (
    FilePatterns,
    Snapshot,
    cache_folder,
    find_snapshot,
    host,
    repo_folder,
)
from embedkit.models.repository.hub_errors import (
    Unavailable,
    explain_failure,
    explain_overload,
    no_answer,
    no_space,
)

#: Seconds without a byte after which a download is given up. The library itself tries again five times meanwhile.
STALL_SECONDS = 60.0
_POLL_SECONDS = 0.1


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


def fetch(name: str, repos: Sequence[str], revision: str | None, wanted: FilePatterns) -> Snapshot:
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
    repos: Sequence[str], revision: str | None, wanted: FilePatterns, observer: FetchObserver | None
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


def _fetched(repo: str, revision: str | None, wanted: FilePatterns, observer: FetchObserver | None) -> Path:
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
        raise explain_failure(fetching.fault, repo, revision, patience) from None
    return fetching.found


def _wait(fetching: _Fetch, patience: float, observer: FetchObserver | None) -> None:
    """Wait for the thread as long as bytes come, and tell of them."""
    from huggingface_hub import constants

    blobs = repo_folder(fetching.repo) / "blobs"
    before = here = _bytes_in(blobs)
    alive, sized = time.monotonic(), False
    done = False
    while not done:
        try:
            done = fetching.done.wait(_POLL_SECONDS)
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
            raise explain_overload(fetching.status, fetching.pause) or no_answer(limit, fetched=sized)


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


def _work(fetching: _Fetch, revision: str | None, wanted: FilePatterns, patience: float, silent: bool) -> None:
    """The thread: asks which files there are, then has the library fetch them."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    try:
        # One question that fails at once where there is no network; the library asks others five times.
        info = HfApi().model_info(fetching.repo, revision=revision, timeout=patience, files_metadata=True)
        siblings = info.siblings or []
        patterns = list(wanted([file.rfilename for file in siblings]))
        folder = repo_folder(fetching.repo) / "snapshots" / str(info.sha)
        missing = [
            file
            for file in siblings
            if any(fnmatch(file.rfilename, pattern) for pattern in patterns)
            and not (folder / file.rfilename).is_file()
        ]
        size = sum(file.size or 0 for file in missing)
        _check_disk_space(size)
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


def _check_disk_space(size: int) -> None:
    folder = cache_folder()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if size > free:
        raise no_space(f"it has {size / 1e6:,.0f} MB, and {cache_folder()} has room for {free / 1e6:,.0f} MB")
