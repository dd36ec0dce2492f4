"""Input → shards. Pure: knows nothing of files, models, or how many workers there are.

A shard ends at so many rows, or at so much text, so that a table of very long notes is not held in memory
by the thousand. Where it ends depends on the rows before it alone, so a stream can be cut as it comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedkit.errors import OutputError

#: Rows a shard has unless told otherwise: on 2 cores a minute of work, lost at most if a run is killed.
SHARD_ROWS = 4096
#: On a pipe somebody waits for the first line.
SHARD_ROWS_STDOUT = 256
SHARD_CHARACTERS = 64_000_000
#: Values in the vectors of a shard (of 4 bytes each): vectors of many layers make shards of fewer rows.
_SHARD_VALUES = 64_000_000
#: What says of a file of the input that it is the same one: `sha256` is of its first and last MiB.
_CONTENT = ("format", "compression", "size", "sha256", "content_sha256")


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


def planned_ranges(plan: Mapping[str, Any]) -> dict[int, tuple[int, int]] | None:
    """The rows [start, stop) of each planned shard, by its number; None for a stream, cut as it comes."""
    if plan["starts"] is None:
        return None
    ends = [*plan["starts"], plan["rows"]]
    return {index: (ends[index], ends[index + 1]) for index in range(len(plan["starts"]))}


class AnotherPlanError(OutputError):
    """A run that is to be resumed is of another recipe or of another input."""


def by_content(read: Mapping[str, Any]) -> dict[str, Any]:
    """The plan's `input` without what a copy of the files, in another place or at another time, has another of."""
    return {
        key: [{name: of for name, of in file.items() if name in _CONTENT} for file in value]
        if key in {"files", "spans"}
        else value
        for key, value in read.items()
    }


def refuse_changes(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Hold a run that is to be resumed against its plan.

    Files are the same if their content is; what they are called, and when they were changed, is a remark.

    Raises:
        AnotherPlanError: they differ; names the first field that does, and both values.
    """
    # The fingerprint follows from the recipe, whose fields say more; the same files from elsewhere are the same.
    told_elsewhere = {"fingerprint": None, "source": None}
    before, after = ({**of, **told_elsewhere} for of in (stored, asked))
    if isinstance(before.get("input"), Mapping) and isinstance(after.get("input"), Mapping):
        before["input"], after["input"] = _comparable(before["input"], after["input"])
    difference = first_difference(before, after)
    if difference is not None:
        name, was, now = difference
        raise AnotherPlanError(
            f"cannot resume: {name} was {was} when the run was planned and is {now} now",
            hint="resume with the options and the input of the first run, or use --on-exists overwrite",
        )


def _comparable(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two plans' `input` by content; hashes of whole files where both have them, which older plans have not."""
    one, other = by_content(stored), by_content(asked)
    for key in ("files", "spans"):
        for first, second in zip(one.get(key, ()), other.get(key, ()), strict=False):
            if not (first.get("content_sha256") and second.get("content_sha256")):
                first.pop("content_sha256", None)
                second.pop("content_sha256", None)
    return one, other


def first_difference(stored: Any, asked: Any, name: str = "") -> tuple[str, str, str] | None:
    """Where two things made of JSON differ first, in the order of their keys.

    Returns:
        The dotted name of the field and both values, cut to 80 characters; None if they are alike.
    """
    if isinstance(stored, Mapping) and isinstance(asked, Mapping):
        for key in sorted({*stored, *asked}):
            found = first_difference(stored.get(key), asked.get(key), f"{name}.{key}" if name else key)
            if found is not None:
                return found
        return None
    if isinstance(stored, list) and isinstance(asked, list) and len(stored) == len(asked):
        for place, pair in enumerate(zip(stored, asked, strict=True)):
            found = first_difference(*pair, f"{name}[{place}]")
            if found is not None:
                return found
        return None
    return None if stored == asked else (name, _short(stored), _short(asked))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
