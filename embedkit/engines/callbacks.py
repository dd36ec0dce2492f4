"""What a run tells whoever shows it to the user. Says nothing of how that looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from embedkit.types import DeviceStats


class Callbacks(Protocol):
    """Told how a run goes, from the thread that computes or the one that writes."""

    def notice(self, sentence: str) -> None:
        """Something the user should know before using the numbers."""

    def started(
        self,
        *,
        rows: int | None,
        done: int,
        device: str,
        dtype: str,
        characters: Mapping[int, int] | None = None,
    ) -> None:
        """The model runs from now on.

        Args:
            rows: of this process's part of the input; None for a stream.
            done: of these, done already.
            device: where it runs.
            dtype: what it computes in.
            characters: by the shards that are still to do, how much text they have; None if nobody has counted.
        """

    def tokenized(self, shard: int, tokens: int) -> None:
        """A shard was tokenized: so many of its tokens will go through the model."""

    def batch(self, texts: int, tokens: int, cells: int) -> None:
        """A batch went through: its texts, their tokens, and the cells computed (padding included)."""

    def device(self, use: DeviceStats) -> None:
        """How the device was used so far; after each batch, where that is measured."""

    def shard_done(self, rows: int) -> None:
        """A shard of so many input rows is written."""
