"""How a run looks while it goes, on stderr: a bar, a line now and then, JSON, or nothing."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from embedkit.engines.remaining_tokens import TokensLeft
from embedkit.types import DeviceStats

MODES = ("auto", "bar", "json", "none")
_LINE_SECONDS = 30.0
_JSON_SECONDS = 1.0
_BAR_SECONDS = 0.2
#: More than any bar needs: tqdm shows none on a terminal that says it has no rows.
_ROWS = 100


def make_watcher(mode: str, *, quiet: bool) -> _Progress:
    """The watcher for `--progress`; auto is a bar on a terminal and a line every 30 s otherwise."""
    if quiet or mode == "none":
        return _Progress(silent=quiet)
    if mode == "json":
        return _JsonLines()
    if mode == "bar" or sys.stderr.isatty():
        return _Bar()
    return _Lines()


class _Progress:
    """Counts what went through; says notices and nothing else. A Callbacks."""

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.rows: int | None = None
        self.before = self.done = 0
        self.texts = self.tokens = self.cells = 0
        self.use: DeviceStats | None = None
        self.tokens_left = TokensLeft({})
        self.counts_characters = False
        self.began = self.said = time.monotonic()
        self.lock = threading.Lock()

    def notice(self, sentence: str) -> None:
        if not self.silent:
            print(f"note: {sentence}", file=sys.stderr)

    def started(
        self,
        *,
        rows: int | None,
        done: int,
        device: str,
        dtype: str,
        characters: Mapping[int, int] | None = None,
    ) -> None:
        self.rows, self.before, self.done = rows, done, done
        self.tokens_left = TokensLeft(characters or {})
        self.counts_characters = characters is not None
        self.began = self.said = time.monotonic()
        self.show_start(device, dtype)

    def tokenized(self, shard: int, tokens: int) -> None:
        self.tokens_left.tokenized(shard, tokens)

    def batch(self, texts: int, tokens: int, cells: int) -> None:
        with self.lock:
            self.texts += texts
            self.tokens += tokens
            self.cells += cells
        self.tokens_left.done(tokens)
        self.show(texts)

    def device(self, use: DeviceStats) -> None:
        self.use = use

    def shard_done(self, rows: int) -> None:
        with self.lock:
            self.done += rows

    def close(self) -> None:
        """Leave what was shown as it is."""

    def show_start(self, device: str, dtype: str) -> None:
        """Say where it runs."""

    def show(self, texts: int) -> None:
        """Show how far it is, after `texts` more."""

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.began, 1e-9)

    @property
    def padding(self) -> float:
        """Share of the computed cells that held no token, in per cent."""
        return 100 * (1 - self.tokens / self.cells) if self.cells else 0.0

    @property
    def pace(self) -> str:
        """Tokens a second, what of the work was padding, and how the device was used where that is measured."""
        told = f"{self.tokens / self.seconds:,.0f} tokens/s, {self.padding:.1f} % padding"
        if self.use is None:
            return told
        return f"{told}, device waits {self.use.idle_fraction:.1%}, {told_memory(self.use)}"

    @property
    def left(self) -> float | None:
        """Seconds to go, by the pace of the tokens so far; None if unknown."""
        if self.rows is None or not self.tokens:
            return None
        if not self.counts_characters:
            return (self.rows - self.before - self.texts) / max(1, self.texts) * self.seconds
        tokens = self.tokens_left.left
        return None if tokens is None else tokens / self.tokens * self.seconds

    def due(self, every: float) -> bool:
        now = time.monotonic()
        if now - self.said < every:
            return False
        self.said = now
        return True


class _Bar(_Progress):
    """A bar of one line, however narrow the terminal; what it has no room for is said when it is full."""

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
        # The last is what a narrow terminal cuts off.
        left = [] if self.left is None else [f"{_span(self.left)} left"]
        self.bar.set_postfix_str(
            ", ".join([*left, f"{_short(self.tokens / self.seconds)} tokens/s"]), refresh=False
        )
        self.bar.update(texts)

    def shard_done(self, rows: int) -> None:
        super().shard_done(rows)
        if self.done == self.rows and self.bar is not None:
            # Empty texts go through no batch; a finished bar is full all the same.
            self.bar.set_postfix_str(f"{_short(self.tokens / self.seconds)} tokens/s", refresh=False)
            self.bar.update(self.rows - self.bar.n)
            self.close()
            print(f"{self.where}: {self.pace}", file=sys.stderr)

    def close(self) -> None:
        """End the line of the bar, so that what is said next has one of its own."""
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
        left = "" if self.left is None else f", {_span(self.left)} left"
        print(
            f"{self.before + self.texts:,}{total} rows, {self.texts / self.seconds:,.0f} rows/s, "
            f"{self.pace} {self.where}{left}",
            file=sys.stderr,
            flush=True,
        )


class _JsonLines(_Progress):
    def notice(self, sentence: str) -> None:
        self._say({"event": "notice", "message": sentence})

    def show_start(self, device: str, dtype: str) -> None:
        self._say({"event": "start", "rows": self.rows, "done": self.before, "device": device, "dtype": dtype})

    def show(self, texts: int) -> None:  # noqa: ARG002 - counted already
        if self.due(_JSON_SECONDS):
            self._say(
                {
                    "event": "progress",
                    "rows": self.before + self.texts,
                    "total": self.rows,
                    "rows_per_second": round(self.texts / self.seconds, 1),
                    "tokens_per_second": round(self.tokens / self.seconds),
                    "padding_percent": round(self.padding, 2),
                    "seconds_left": None if self.left is None else round(self.left),
                    **_of_device(self.use),
                }
            )

    def shard_done(self, rows: int) -> None:
        super().shard_done(rows)
        self._say({"event": "shard", "committed": self.done, "total": self.rows})

    def _say(self, event: dict[str, Any]) -> None:
        print(json.dumps(event), file=sys.stderr, flush=True)


def told_memory(use: DeviceStats) -> str:
    """Most memory that a process took from its device."""
    return f"{use.allocated / 2**30:.1f} GiB at most, {use.reserved / 2**30:.1f} GiB reserved"


def _of_device(use: DeviceStats | None) -> dict[str, Any]:
    if use is None:
        return {}
    return {
        "device_waiting_percent": round(100 * use.idle_fraction, 2),
        "memory_allocated": use.allocated,
        "memory_reserved": use.reserved,
    }


def _columns() -> int:
    """Columns that a bar may take: one less than the terminal has, or it wraps; 79 where it does not say."""
    columns = 0
    with contextlib.suppress(OSError, ValueError):
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    return (columns or 80) - 1


def _span(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _short(count: float) -> str:
    return f"{count:,.0f}" if count < 10_000 else f"{count / 1000:,.0f}k"
