"""What a destination can do, whichever it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from embedkit.output.formats import Sink
from embedkit.types import EncodedShard, TextCounts

#: What to do about an output that is there already: alone, and beside other ranks.
WAYS = "--on-exists resume to go on with it, --on-exists overwrite to start again, or another place with -o"
SHARED_WAYS = "--on-exists resume to go on with it, or another place with -o"


class AlreadyCompleted(Exception):  # noqa: N818 - nothing is wrong
    """Another process has made the output whole while this one worked on it."""


class Destination(Protocol):
    """Where finished shards go."""

    @property
    def notices(self) -> Sequence[str]:
        """What the user should know of former files that stay though they are of no more use, a sentence each."""

    def open(self) -> dict[str, Any] | None:
        """Look what is there: the plan of a run that is to be resumed, or None to begin.

        Raises:
            OutputError: something is there, and the user did not say what to do with it.
        """

    def is_whole(self, sink: Sink, inputs: Collection[str]) -> bool:
        """Whether all of it is there already, by the same recipe from the same input.

        Args:
            sink: of this run.
            inputs: what an output may say of its input, if it is this run's: each version of embedkit in its way.

        Raises:
            OutputError: it is there by another recipe, or from another input; or it was there before several
                ranks were started, and the user did not say what to do with it.
        """

    def committed(self) -> dict[int, dict[str, Any]]:
        """Records of the shards that are done."""

    def begin(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Make room, and write the plan. Returns the one that counts: of several ranks, the first one's."""

    def abandon(self) -> None:
        """Leave nothing behind: the run failed before any shard was committed."""

    def write(self, shard: EncodedShard, sink: Sink) -> dict[str, Any]:
        """Commit a shard. Returns its record.

        Raises:
            AlreadyCompleted: another process has finished the output.
        """

    def finish(self, sink: Sink, manifest: Mapping[str, Any], shards: Sequence[int]) -> None:
        """Make the output whole, now that every row is accounted for; `shards` are those that have files.

        Raises:
            AlreadyCompleted: another process has done so.
        """


def facts_of(shard: EncodedShard) -> dict[str, Any]:
    """What a shard's record says beside its files."""
    return {
        "start": shard.start,
        "stop": shard.stop,
        "rows": len(shard.ids),
        "vectors": int(shard.has_vector.sum()),
        "status_counts": dict(sorted(Counter(shard.status).items())),
        "tokens": {"n_tokens": int(shard.n_tokens.sum()), "n_used": int(shard.n_used.sum())},
        "vocabulary": {"n_content": shard.n_content, "n_unknown": shard.n_unknown},
        "rejects": len(shard.rejects),
        **({} if shard.texts is None else {"texts": _by_text(shard.texts)}),
    }


def _by_text(texts: TextCounts) -> dict[str, Any]:
    return {
        "rows": texts.rows,
        "status_counts": dict(texts.statuses),
        "tokens": {"n_tokens": texts.n_tokens, "n_used": texts.n_used},
    }
