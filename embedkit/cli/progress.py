"""Reports the progress of a run, and of the download of its model, on stderr: as `--progress` asks."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from embedkit.engines.base import RunStart
from embedkit.models.repository.hub_fetch import observed_by
from embedkit.percent import percent

if TYPE_CHECKING:
    from embedkit.types import DeviceStats

MODES = ("auto", "bar", "json", "none")
LINE_SECONDS = 30.0
_JSON_SECONDS = 1.0
_BAR_SECONDS = 0.2
#: Rows of the terminal, as given to tqdm: it shows no bar on a terminal that reports 0 rows.
_ROWS = 100


def make_callbacks(mode: str, *, quiet: bool) -> _Progress:
    """Returns the Callbacks for a value of `--progress`; auto is a bar on a terminal, else a line every 30 s."""
    if quiet or mode == "none":
        return _Progress(silent=quiet)
    if mode == "json":
        return _JsonLines()
    return _Bar() if _is_bar(mode) else _Lines()


def _is_bar(mode: str) -> bool:
    return mode == "bar" or (mode == "auto" and sys.stderr.isatty())


def print_event(**event: Any) -> None:
    """Prints a line of `--progress json`."""
    print(json.dumps(event), file=sys.stderr, flush=True)


class Interval:
    """Spaces printed lines in time."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def has_passed(self, seconds: float) -> bool:
        """Returns True if so much time has passed since it last did, or since it was created."""
        now = time.monotonic()
        if now - self._last < seconds:
            return False
        self._last = now
        return True


class _Progress:
    """Implements Callbacks: counts rows and tokens, and prints notices only."""

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.rows: int | None = None
        self.before = self.done = 0
        self.texts = self.tokens = self.cells = 0
        self.stats: DeviceStats | None = None
        self.counts_characters = False
        self.characters_left: dict[int, int] = {}  # by shard, until it is tokenized
        self.characters = self.tokenized_tokens = 0  # of the tokenized shards
        self.began = time.monotonic()
        self.interval = Interval()
        self.lock = threading.Lock()

    def notice(self, sentence: str) -> None:
        if not self.silent:
            print(f"note: {sentence}", file=sys.stderr)

    def started(self, start: RunStart) -> None:
        # A command may run the model several times, as a sweep does for each of its models.
        self.rows, self.before, self.done = start.rows, start.done, start.done
        self.texts = self.tokens = self.cells = 0
        self.characters = self.tokenized_tokens = 0
        self.counts_characters = start.characters is not None
        self.characters_left = dict(start.characters or {})
        self.began = time.monotonic()
        self.interval = Interval()
        self.show_start(start.device, start.dtype)

    def tokenized(self, shard: int, tokens: int) -> None:
        with self.lock:
            self.characters += self.characters_left.pop(shard, 0)
            self.tokenized_tokens += tokens

    def batch(self, texts: int, tokens: int, cells: int) -> None:
        with self.lock:
            self.texts += texts
            self.tokens += tokens
            self.cells += cells
        self.show(texts)

    def device(self, use: DeviceStats) -> None:
        self.stats = use

    def shard_done(self, rows: int) -> None:
        with self.lock:
            self.done += rows

    def close(self) -> None:
        """Ends the display."""

    def show_start(self, device: str, dtype: str) -> None:
        """Shows the device and the dtype."""

    def show(self, texts: int) -> None:
        """Updates the display after `texts` more texts."""

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.began, 1e-9)

    @property
    def padding(self) -> float:
        """Share of padding among the computed tokens, 0 to 1."""
        return 1 - self.tokens / self.cells if self.cells else 0.0

    @property
    def pace(self) -> str:
        """Tokens per second, padding, and the use of the device if it is measured."""
        pace = f"{self.tokens / self.seconds:,.0f} tokens/s, {percent(self.padding)} padding"
        if self.stats is None:
            return pace
        return f"{pace}, device idle {percent(self.stats.idle_fraction)}, {describe_memory(self.stats)}"

    @property
    def left(self) -> float | None:
        """Estimated seconds left, at the pace of the tokens so far; None if unknown."""
        if self.rows is None or not self.tokens:
            return None
        if not self.counts_characters:
            return (self.rows - self.before - self.texts) / max(1, self.texts) * self.seconds
        # Tokens of the shards that are not tokenized follow from their characters, which planning counted.
        with self.lock:
            characters = sum(self.characters_left.values())
            if characters and not self.characters:
                return None
            not_tokenized = characters and characters * self.tokenized_tokens / self.characters
            return max(0.0, self.tokenized_tokens - self.tokens + not_tokenized) / self.tokens * self.seconds


class _Bar(_Progress):
    """A bar of one line, however narrow the terminal; the details follow when it is complete."""

    bar: Any = None
    where = ""

    def notice(self, sentence: str) -> None:
        if self.bar is not None:
            self.bar.clear()
        super().notice(sentence)
        if self.bar is not None:
            self.bar.refresh()

    def show_start(self, device: str, dtype: str) -> None:
        from tqdm import tqdm

        self.where = f"{device} {dtype}"
        counted = "{n:,} rows" if self.rows is None else "{percentage:3.0f} %|{bar}| {n:,}/{total:,} rows"
        self.bar = tqdm(
            total=self.rows,
            initial=self.before,
            bar_format=f"{counted}{{postfix}}",
            file=sys.stderr,
            ncols=_columns(),
            nrows=_ROWS,
            mininterval=_BAR_SECONDS,
        )

    def show(self, texts: int) -> None:
        if self.bar is None:
            return
        self.bar.ncols = _columns()
        # A narrow terminal cuts off the end.
        left = [] if self.left is None else [f"{_duration(self.left)} left"]
        self.bar.set_postfix_str(
            ", ".join([*left, f"{_short(self.tokens / self.seconds)} tokens/s"]), refresh=False
        )
        self.bar.update(texts)

    def shard_done(self, rows: int) -> None:
        super().shard_done(rows)
        if self.done == self.rows and self.bar is not None:
            # Empty texts are in no batch: fill the bar.
            self.bar.set_postfix_str(f"{_short(self.tokens / self.seconds)} tokens/s", refresh=False)
            self.bar.update(self.rows - self.bar.n)
            self.close()
            print(f"{self.where}: {self.pace}", file=sys.stderr)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class _Lines(_Progress):
    def show_start(self, device: str, dtype: str) -> None:
        self.where = f"on {device} in {dtype}"

    def show(self, texts: int) -> None:  # noqa: ARG002 - counted already
        if not self.interval.has_passed(LINE_SECONDS):
            return
        total = "" if self.rows is None else f" of {self.rows:,}"
        left = "" if self.left is None else f", {_duration(self.left)} left"
        print(
            f"{self.before + self.texts:,}{total} rows, {self.texts / self.seconds:,.0f} rows/s, "
            f"{self.pace} {self.where}{left}",
            file=sys.stderr,
            flush=True,
        )


class _JsonLines(_Progress):
    def notice(self, sentence: str) -> None:
        print_event(event="notice", message=sentence)

    def show_start(self, device: str, dtype: str) -> None:
        print_event(event="start", rows=self.rows, done=self.before, device=device, dtype=dtype)

    def show(self, texts: int) -> None:  # noqa: ARG002 - counted already
        if self.interval.has_passed(_JSON_SECONDS):
            print_event(
                event="progress",
                rows=self.before + self.texts,
                total=self.rows,
                rows_per_second=round(self.texts / self.seconds, 1),
                tokens_per_second=round(self.tokens / self.seconds),
                padding_percent=round(100 * self.padding, 2),
                seconds_left=None if self.left is None else round(self.left),
                **_device_fields(self.stats),
            )

    def shard_done(self, rows: int) -> None:
        super().shard_done(rows)
        print_event(event="shard", committed=self.done, total=self.rows)


@contextlib.contextmanager
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
        self._interval = Interval()

    def fetching(self, model: str, host: str) -> None:
        self._model = model
        self._print(f"fetching {model} from {host}", note=True, event="fetching", host=host)

    def sized(self, files: int, size: int) -> None:
        self._size, self._interval = size, Interval()
        if _is_bar(self._mode):
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
        if self._interval.has_passed(_JSON_SECONDS if self._mode == "json" else LINE_SECONDS):
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
            print_event(model=self._model, **event)
        elif self._mode != "none" or (note and not self._quiet):
            print(f"note: {sentence}" if note else sentence, file=sys.stderr, flush=True)


def describe_memory(stats: DeviceStats) -> str:
    """Formats the peak device memory of a process."""
    return f"peak memory {stats.allocated / 2**30:.1f} GiB, {stats.reserved / 2**30:.1f} GiB reserved"


def _device_fields(stats: DeviceStats | None) -> dict[str, Any]:
    if stats is None:
        return {}
    return {
        "device_waiting_percent": round(100 * stats.idle_fraction, 2),
        "memory_allocated": stats.allocated,
        "memory_reserved": stats.reserved,
    }


def _columns() -> int:
    """Returns the width of a bar: one column less than the terminal, so that it does not wrap; 79 if unknown."""
    columns = 0
    with contextlib.suppress(OSError, ValueError):
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    return (columns or 80) - 1


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _short(count: float) -> str:
    return f"{count:,.0f}" if count < 10_000 else f"{count / 1000:,.0f}k"


def _format_size(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"
