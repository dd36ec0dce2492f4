"""Input → shards. Pure: knows nothing of files, models, or how many workers there are.

A shard ends at so many rows, or at so much text, so that a table of very long notes is not held in memory
by the thousand. Where it ends depends on the rows before it alone, so a stream can be cut as it comes.
"""

from __future__ import annotations

#: Rows a shard has unless told otherwise: on 2 cores a minute of work, lost at most if a run is killed.
SHARD_ROWS = 4096
#: On a pipe somebody waits for the first line.
SHARD_ROWS_STDOUT = 256
SHARD_CHARACTERS = 64_000_000
#: Values in the vectors of a shard (of 4 bytes each): vectors of many layers make shards of fewer rows.
_SHARD_VALUES = 64_000_000


class ShardCutter:
    """Tells at each row whether it opens a new shard.

    Args:
        shard_rows: most rows in a shard.
        shard_characters: most characters of text, where a shard has more than one row.
        longest: characters of a text that can go through the model, about; None = all of them.
    """

    def __init__(
        self, shard_rows: int, shard_characters: int = SHARD_CHARACTERS, longest: int | None = None
    ) -> None:
        self.shard_rows = shard_rows
        self.shard_characters = shard_characters
        self.longest = longest
        self.rows = 0
        self.starts: list[int] = []
        #: Characters of each shard that go through the model, about: how long it will take.
        self.characters: list[int] = []
        self._characters = 0

    def count(self, characters: int) -> None:
        """Count a row whose text has so many characters."""
        self.opens_shard(characters)

    def opens_shard(self, characters: int) -> bool:
        """Count a row whose text has so many characters; True if it opens a shard."""
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
    """Rows a shard has where the user did not say, for vectors of about `dims` values."""
    return max(64, min(SHARD_ROWS_STDOUT if to_stdout else SHARD_ROWS, _SHARD_VALUES // max(1, dims)))


def default_shard_characters(dims: int) -> int:
    """Characters a shard has where vectors grow with the text: about `dims` values for 400 characters of it."""
    return min(SHARD_CHARACTERS, 400 * _SHARD_VALUES // max(1, dims))
