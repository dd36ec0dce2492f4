"""Reports the progress of a run on stderr: as a bar, as lines, as JSON, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from typing import Any

from embedkit.engines.base import RunStart
from embedkit.types import DeviceStats

MODES = ("auto", "bar", "json", "none")
_LINE_SECONDS = 30.0
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
    if mode == "bar" or sys.stderr.isatty():
        return _Bar()
    return _Lines()


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
        self.began = self.last_shown = time.monotonic()
        self.lock = threading.Lock()

    def notice(self, sentence: str) -> None:
        if not self.silent:
            print(f"note: {sentence}", file=sys.stderr)

    def started(self, start: RunStart) -> None:
        self.rows, self.before, self.done = start.rows, start.done, start.done
        self.counts_characters = start.characters is not None
        self.characters_left = dict(start.characters or {})
        self.began = self.last_shown = time.monotonic()
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
        """Padding among the computed tokens, in per cent."""
        return 100 * (1 - self.tokens / self.cells) if self.cells else 0.0

    @property
    def pace(self) -> str:
        """Tokens per second, padding, and the use of the device if it is measured."""
        pace = f"{self.tokens / self.seconds:,.0f} tokens/s, {self.padding:.1f} % padding"
        if self.stats is None:
            return pace
        return f"{pace}, device idle {self.stats.idle_fraction:.1%}, {describe_memory(self.stats)}"

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

    def due(self, every: float) -> bool:
        now = time.monotonic()
        if now - self.last_shown < every:
            return False
        self.last_shown = now
        return True


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
        counted = "{n:,} rows" if self.rows is None else "{percentage:3.0f}%|{bar}| {n:,}/{total:,} rows"
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
        if not self.due(_LINE_SECONDS):
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
        self._print({"event": "notice", "message": sentence})

    def show_start(self, device: str, dtype: str) -> None:
        self._print({"event": "start", "rows": self.rows, "done": self.before, "device": device, "dtype": dtype})

    def show(self, texts: int) -> None:  # noqa: ARG002 - counted already
        if self.due(_JSON_SECONDS):
            self._print(
                {
                    "event": "progress",
                    "rows": self.before + self.texts,
                    "total": self.rows,
                    "rows_per_second": round(self.texts / self.seconds, 1),
                    "tokens_per_second": round(self.tokens / self.seconds),
                    "padding_percent": round(self.padding, 2),
                    "seconds_left": None if self.left is None else round(self.left),
                    **_device_fields(self.stats),
                }
            )

    def shard_done(self, rows: int) -> None:
        super().shard_done(rows)
        self._print({"event": "shard", "committed": self.done, "total": self.rows})

    def _print(self, event: dict[str, Any]) -> None:
        print(json.dumps(event), file=sys.stderr, flush=True)


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
