"""The protocol of destinations. Its own methods are those of a destination that cannot be resumed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from embedkit.manifest.schema import Manifest, Plan, ShardRecord
from embedkit.manifest.versioned_file import Json
from embedkit.output.commit import OutputFolder
from embedkit.output.formats import Sink
from embedkit.types import EncodedShard

#: Hints for an existing output: of a run by itself, and of one among several ranks.
WAYS = "--on-exists resume to go on with it, --on-exists overwrite to start again, or another place with -o"
SHARED_WAYS = "--on-exists resume to go on with it, or another place with -o"


class AlreadyCompleted(Exception):  # noqa: N818 - nothing is wrong
    """Another process has completed the output while this one worked on it."""


class Destination(Protocol):
    """Takes finished shards."""

    @property
    def notices(self) -> Sequence[str]:
        """Sentences for the user about obsolete files that could not be removed."""

    def open(self) -> Plan | None:
        """Returns the plan of a run to be resumed; None to begin.

        Raises:
            OutputError: there is an output, and no option says what to do with it.
        """
        return None

    def is_complete(self, sink: Sink, inputs: Iterable[str]) -> bool:  # noqa: ARG002
        """Returns True if the output is complete already, by the same recipe from the same input.

        Args:
            sink: of this run.
            inputs: digests that this run's input has in outputs of the versions of embedkit; may be asked for
                again.

        Raises:
            OutputError: it is complete by another recipe or from another input; or it was before several ranks
                started, and no option says what to do with it.
        """
        return False

    def committed(self) -> dict[int, ShardRecord]:
        """Returns the records of the shards that are done; reads those that this process was not told of."""
        return {}

    def recorded(self) -> dict[int, ShardRecord]:
        """Returns the records of the shards that are done, when all have been computed."""
        return self.committed()

    def acknowledgement(self, record: ShardRecord) -> Json:  # noqa: ARG002
        """Returns as JSON what another process needs to know of a shard that this one has just committed."""
        return {}

    def adopt(self, acknowledgement: Json) -> None:  # noqa: ARG002
        """Takes what another process says of a shard that it has committed: its record need not be read."""
        return

    def begin(self, plan: Plan) -> Plan:
        """Prepares the destination and writes the plan. Returns the plan of the rank that was first."""
        return plan

    def scans(self) -> OutputFolder | None:
        """Returns the folder for scans of segments of the input; None if they are not to be kept."""
        return None

    def abandon(self) -> None:
        """Removes the run's files if it failed before any shard was committed."""
        return

    def write(self, shard: EncodedShard, sink: Sink) -> ShardRecord:
        """Commits a shard. Returns its record.

        Raises:
            AlreadyCompleted: another process has finished the output.
        """

    def finish(self, sink: Sink, manifest: Manifest) -> None:  # noqa: ARG002
        """Completes the output, once every row is accounted for.

        Raises:
            AlreadyCompleted: another process has done so.
        """
        return
