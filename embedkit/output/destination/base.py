"""What a destination can do, whichever it is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from embedkit.manifest.schema import Manifest, Plan, ShardRecord
from embedkit.output.formats import Sink
from embedkit.types import EncodedShard

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

    def open(self) -> Plan | None:
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

    def committed(self) -> dict[int, ShardRecord]:
        """Records of the shards that are done."""

    def begin(self, plan: Plan) -> Plan:
        """Make room, and write the plan. Returns the one that counts: of several ranks, the first one's."""

    def abandon(self) -> None:
        """Leave nothing behind: the run failed before any shard was committed."""

    def write(self, shard: EncodedShard, sink: Sink) -> ShardRecord:
        """Commit a shard. Returns its record.

        Raises:
            AlreadyCompleted: another process has finished the output.
        """

    def finish(self, sink: Sink, manifest: Manifest) -> None:
        """Makes the output whole, now that every row is accounted for.

        Raises:
            AlreadyCompleted: another process has done so.
        """
