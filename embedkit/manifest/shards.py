"""Cuts an input into shards, by rows and by characters, so that memory does not grow with the length of texts.

Where a shard ends depends on the rows before it alone, so a stream can be cut while it is read.
"""

from __future__ import annotations

#: Default rows of a shard: a minute of work on 2 cores, the most that a killed run loses.
SHARD_ROWS = 4096
#: Fewer on a pipe, whose reader waits for the first line.
SHARD_ROWS_STDOUT = 256
SHARD_CHARACTERS = 64_000_000
#: Most values in the vectors of a shard, of 4 bytes each: vectors of many layers mean fewer rows.
_SHARD_VALUES = 64_000_000


class ShardCutter:
    """Decides at each row whether it starts a new shard.

    Args:
        shard_rows: most rows in a shard.
        shard_characters: most characters of text in a shard of more than one row.
        longest: about the most characters of a text that go through the model; None if all.
    """

    def __init__(
        self, shard_rows: int, shard_characters: int = SHARD_CHARACTERS, longest: int | None = None
    ) -> None:
        self.shard_rows = shard_rows
        self.shard_characters = shard_characters
        self.longest = longest
        self.rows = 0
        self.starts: list[int] = []
        #: About the characters of each shard that go through the model, to estimate its time.
        self.characters: list[int] = []
        self._characters = 0

    def opens_shard(self, characters: int) -> bool:
        """Counts a row whose text has so many characters. Returns True if it starts a shard."""
        opened = self.starts[-1] if self.starts else 0
        opens = (
            not self.starts
            or self.rows - opened >= self.shard_rows
            or self._characters + characters > self.shard_characters
        )
        if opens:
            self.starts.append(self.rows)
            self.characters.append(0)
            self._characters = 0
        self._characters += characters
        self.characters[-1] += characters if self.longest is None else min(characters, self.longest)
        self.rows += 1
        return opens


def default_shard_rows(dims: int, *, to_stdout: bool) -> int:
    """Returns the default rows of a shard, for vectors of about `dims` values."""
    return max(64, min(SHARD_ROWS_STDOUT if to_stdout else SHARD_ROWS, _SHARD_VALUES // max(1, dims)))


def default_shard_characters(dims: int) -> int:
    """Returns the default characters of a shard if a text has `dims` values per 400 characters."""
    return min(SHARD_CHARACTERS, 400 * _SHARD_VALUES // max(1, dims))
