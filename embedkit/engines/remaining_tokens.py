"""Estimates the remaining tokens of a run.

Tokens of tokenized shards are known. Those of the others follow from their characters, which planning counted, and
from the tokens per character so far.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping


class TokensLeft:
    """Tokens of the shards that this process does.

    Args:
        characters: by the number of the shard; of each text at most those that the model reads.
    """

    def __init__(self, characters: Mapping[int, int]) -> None:
        self._waiting = dict(characters)
        self._characters = self._tokens = self._done = 0
        self._lock = threading.Lock()

    def tokenized(self, shard: int, tokens: int) -> None:
        """Adds the tokens of a shard."""
        with self._lock:
            self._characters += self._waiting.pop(shard, 0)
            self._tokens += tokens

    def done(self, tokens: int) -> None:
        """Adds tokens that went through the model."""
        with self._lock:
            self._done += tokens

    @property
    def left(self) -> float | None:
        """Estimated tokens that are left; None until a shard was tokenized."""
        with self._lock:
            if not self._characters:
                return (
                    None if sum(self._waiting.values()) or not self._tokens else max(0, self._tokens - self._done)
                )
            per_character = self._tokens / self._characters
            return max(0.0, self._tokens - self._done + per_character * sum(self._waiting.values()))
