"""How many tokens a run has still to do. Counts and divides; knows no clock, and nothing of who shows it.

Of shards that were tokenized the tokens are known. Those of the rest follow from how many characters they have,
which planning counted, and from how many tokens a character came to so far.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping


class TokensLeft:
    """Tokens of the shards that this process does.

    Args:
        characters: by the number of the shard; of each text as many as the model can read at most.
    """

    def __init__(self, characters: Mapping[int, int]) -> None:
        self._waiting = dict(characters)
        self._characters = self._tokens = self._done = 0
        self._lock = threading.Lock()

    def tokenized(self, shard: int, tokens: int) -> None:
        """A shard's tokens are known: so many go through the model."""
        with self._lock:
            self._characters += self._waiting.pop(shard, 0)
            self._tokens += tokens

    def done(self, tokens: int) -> None:
        """So many more tokens went through the model."""
        with self._lock:
            self._done += tokens

    @property
    def left(self) -> float | None:
        """Tokens to go, about; None as long as no shard was tokenized."""
        with self._lock:
            if not self._characters:
                return (
                    None if sum(self._waiting.values()) or not self._tokens else max(0, self._tokens - self._done)
                )
            per_character = self._tokens / self._characters
            return max(0.0, self._tokens - self._done + per_character * sum(self._waiting.values()))
