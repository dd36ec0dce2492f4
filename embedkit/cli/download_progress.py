"""Reports the download of a model on stderr: a line before it starts, then a bar or lines."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from embedkit.models.repository.hub_fetch import observed_by

_LINE_SECONDS = 30.0
_JSON_SECONDS = 1.0


@contextmanager
def shown_downloads(
    progress: str = "auto", *, quiet: bool = False, stop: threading.Event | None = None
) -> Generator[None, None, None]:
    """Reports downloads as `--progress` asks, and ends them when `stop` is set."""
    with observed_by(_DownloadObserver(progress, quiet=quiet, stop=stop or threading.Event())):
        yield


class _DownloadObserver:
    """Implements FetchObserver."""

    def __init__(self, progress: str, *, quiet: bool, stop: threading.Event) -> None:
        self._mode = "none" if quiet else progress
        self._quiet = quiet
        self._stop = stop
        self._model = ""
        self._size = 0
        self._bar: Any = None
        self._last_shown = time.monotonic()

    def fetching(self, model: str, host: str) -> None:
        self._model = model
        self._print(f"fetching {model} from {host}", note=True, event="fetching", host=host)

    def sized(self, files: int, size: int) -> None:
        self._size, self._last_shown = size, time.monotonic()
        if self._mode == "bar" or (self._mode == "auto" and sys.stderr.isatty()):
            from tqdm import tqdm

            self._bar = tqdm(
                total=size or None,
                desc=f"fetching {self._model}",
                unit="B",
                unit_scale=True,
                file=sys.stderr,
                dynamic_ncols=True,
            )
            return
        count = f"{files:,} files" if files > 1 else "1 file"
        self._print(
            f"fetching {self._model}: {count}, {_format_size(size)}", event="fetch_size", files=files, bytes=size
        )

    def received(self, size: int) -> None:
        if self._bar is not None:
            self._bar.update(size - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last_shown >= (_JSON_SECONDS if self._mode == "json" else _LINE_SECONDS):
            self._last_shown = now
            line = f"fetching {self._model}: {_format_size(size)} of {_format_size(self._size)}"
            self._print(line, event="fetch_progress", bytes=size, total=self._size)

    def ended(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def stopped(self) -> bool:
        return self._stop.is_set()

    def _print(self, sentence: str, *, note: bool = False, **event: Any) -> None:
        """Prints a line or a JSON event; a note is printed even with `--progress none`."""
        if self._mode == "json":
            print(json.dumps({"model": self._model, **event}), file=sys.stderr, flush=True)
        elif self._mode != "none" or (note and not self._quiet):
            print(f"note: {sentence}" if note else sentence, file=sys.stderr, flush=True)


def _format_size(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"
