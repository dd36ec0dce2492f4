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
    find_snapshot,
    repo_folder,
)
from embedkit.storage.hub import (
    Unavailable,
    cache_folder,
    explain_failure,
    explain_overload,
    host,
    no_answer,
    no_space,
)

#: Seconds without a byte after which a download is given up. The library itself tries again five times meanwhile.
STALL_SECONDS = 60.0
_POLL_SECONDS = 0.1


class FetchObserver(Protocol):
    """Receives the progress of a download, in the thread that waits for it."""

    def fetching(self, model: str, host: str) -> None:
        """Is called before the hub is asked for a model."""

    def sized(self, files: int, size: int) -> None:
        """Is called with the number of files to download and their bytes."""

    def received(self, size: int) -> None:
        """Is called with the number of bytes downloaded so far."""

    def ended(self) -> None:
        """Is called at the end of the download, successful or not."""

    def stopped(self) -> bool:
        """Returns True to cancel the download."""


@dataclass(slots=True)
class _Session:
    """The observer of one command, and the commit of each branch when it was first asked for."""

    observer: FetchObserver
    commits: dict[tuple[str, str | None], str] = field(default_factory=dict)


_session: ContextVar[_Session | None] = ContextVar("session", default=None)


@contextmanager
def observed_by(observer: FetchObserver) -> Generator[None, None, None]:
    """Reports downloads in this context to `observer`, and asks the hub for the commit of a branch only once."""
    token = _session.set(_Session(observer))
    try:
        yield
    finally:
        _session.reset(token)


@dataclass(slots=True)
class _Download:
    """A download in a thread of its own, and its progress."""

    repo: str
    #: Number of files to download, None until the hub has answered; and their bytes.
    files: int | None = None
    size: int = 0
    #: The snapshot's folder, after success.
    folder: Path = field(default_factory=Path)
    error: BaseException | None = None
    #: HTTP status of the last answer that the library retried, such as 429; and its pause in seconds, if any.
    status: int | None = None
    retry_after: str = ""
    done: threading.Event = field(default_factory=threading.Event)


def fetch(name: str, repos: Sequence[str], revision: str | None, wanted: FilePatterns) -> Snapshot:
    """Downloads what the cache lacks of the model called `name`, from the first of `repos` that the hub has.

    `revision` is a branch, tag or commit; None for the default branch.

    Raises:
        Unavailable: the hub does not answer, refuses, or has no such model; or the disk is full.
        Stopped: the observer cancelled it.
    """
    session = _session.get()
    if session is None:
        return _fetch_first(repos, revision, wanted, None)
    if (commit := session.commits.get((name, revision))) is not None:
        known = find_snapshot(repos, commit, wanted)
        if known is not None and known.complete:
            return known
    session.observer.fetching(name, host())
    try:
        found = _fetch_first(repos, revision, wanted, session.observer)
    finally:
        session.observer.ended()
    session.commits[name, revision] = found.commit
    return found


def _fetch_first(
    repos: Sequence[str], revision: str | None, wanted: FilePatterns, observer: FetchObserver | None
) -> Snapshot:
    """Downloads the first id that the hub has; the error for none is that of the first id."""
    try:
        folder = _fetch_repo(repos[0], revision, wanted, observer)
    except Unavailable as error:
        if not error.absent or not repos[1:]:
            raise
        try:
            return _fetch_first(repos[1:], revision, wanted, observer)
        except Unavailable as later:
            raise (error if later.absent else later) from None
    return Snapshot(repos[0], folder.name, folder)


def _fetch_repo(repo: str, revision: str | None, wanted: FilePatterns, observer: FetchObserver | None) -> Path:
    from huggingface_hub import constants

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    timeout = float(constants.HF_HUB_ETAG_TIMEOUT)
    download = _Download(repo)
    arguments = (download, revision, wanted, timeout, observer is not None)
    threading.Thread(target=_run, args=arguments, daemon=True, name="hub").start()
    with _retries_noted(download):
        _wait(download, timeout, observer)
    if download.error is not None:
        raise explain_failure(download.error, repo, revision, timeout) from None
    return download.folder


def _wait(download: _Download, timeout: float, observer: FetchObserver | None) -> None:
    """Waits for the thread as long as bytes arrive, and reports them."""
    from huggingface_hub import constants

    blobs = repo_folder(download.repo) / "blobs"
    before = size = _bytes_in(blobs)
    last_sign, sized, done = time.monotonic(), False, False
    while not done:
        try:
            done = download.done.wait(_POLL_SECONDS)
            stopped = observer is not None and observer.stopped()
        except KeyboardInterrupt:
            if observer is None:
                raise
            stopped = True
        if stopped:
            raise Stopped(
                f"stopped while '{download.repo}' was downloaded", hint="the same command continues the download"
            )
        if download.files is not None and not sized:
            sized, last_sign = True, time.monotonic()
            if observer is not None and download.files:
                observer.sized(download.files, download.size)
        now = _bytes_in(blobs)
        if sized and now != size:
            last_sign, size = time.monotonic(), now
            if observer is not None:
                observer.received(max(0, size - before))
        # Resolving a name and connecting to several addresses take longer than the library's own limit.
        limit = max(STALL_SECONDS, 2.0 * constants.HF_HUB_DOWNLOAD_TIMEOUT) if sized else 1.5 * timeout
        if not done and time.monotonic() - last_sign > limit:
            overload = explain_overload(download.status, download.retry_after)
            raise overload or no_answer(limit, started=sized)


@contextmanager
def _retries_noted(download: _Download) -> Generator[None, None, None]:
    """Reads the library's log for answers that it retries: it waits for minutes without reporting them."""
    threads = set()

    def note(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        answer = re.search(r"HTTP Error (\d{3})", message)
        if answer and host() in message and f"/{download.repo}/" in message:
            threads.add(record.thread)
            download.status, download.retry_after = int(answer[1]), ""
        elif record.thread in threads and (pause := re.search(r"Rate limited. Waiting (\d+)", message)):
            download.retry_after = pause[1]
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


def _run(download: _Download, revision: str | None, wanted: FilePatterns, timeout: float, quiet: bool) -> None:
    """Asks for the list of files, and downloads those that are missing; runs in the thread."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    try:
        # This request fails at once without a network; the library's others are tried five times.
        info = HfApi().model_info(download.repo, revision=revision, timeout=timeout, files_metadata=True)
        siblings = info.siblings or []
        patterns = list(wanted([file.rfilename for file in siblings]))
        folder = repo_folder(download.repo) / "snapshots" / str(info.sha)
        missing = [
            file
            for file in siblings
            if any(fnmatch(file.rfilename, pattern) for pattern in patterns)
            and not (folder / file.rfilename).is_file()
        ]
        size = sum(file.size or 0 for file in missing)
        _check_disk_space(size)
        download.size, download.files = size, len(missing)
        bars: dict[str, Any] = {"tqdm_class": functools.partial(tqdm, disable=True)} if quiet else {}
        download.folder = Path(
            snapshot_download(download.repo, revision=revision, allow_patterns=patterns, **bars)
        )
    except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
        download.error = error
    finally:
        download.done.set()


def _bytes_in(blobs: Path) -> int:
    """Counts the bytes of all of a model's downloads, finished or not."""
    total = 0
    try:
        for entry in os.scandir(blobs):
            total += entry.stat().st_size
    except OSError:
        return total  # a file was renamed meanwhile: the next call counts it
    return total


def _check_disk_space(size: int) -> None:
    existing = next(path for path in (cache_folder(), *cache_folder().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise no_space(f"it has {size / 1e6:,.0f} MB, and {cache_folder()} has room for {free / 1e6:,.0f} MB")
