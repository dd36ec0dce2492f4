"""Hashes of texts, and the rows whose vectors are taken from earlier outputs: `--keep-hashes` and `--update`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from embedkit.config import RunConfig
from embedkit.errors import OutputError, UsageError
from embedkit.inference.pipeline import KnownTexts, ReusedRecords
from embedkit.manifest.recipe import as_text
from embedkit.manifest.schema import Int8Ranges, Plan
from embedkit.manifest.versioned_file import Json
from embedkit.manifest.versions import vector_versions
from embedkit.output.earlier import EarlierOutput
from embedkit.storage.filesystem import is_same_file, seems_there
from embedkit.storage.hash_key import HashKey, join_key, key_beside, read_key, required_key
from embedkit.storage.remote_path import as_path
from embedkit.types import EarlierRows, Record

_LOST = (
    "put it back, or give it with --hash-key FILE; if it is lost, start with a new one: --keep-hashes without "
    "--update, to a new output"
)


class TextReuse:
    """The key of a run's hashes, and its earlier outputs.

    Args:
        key: of the hashes; None for a new one.
        earlier: outputs whose hashes are of the same key; of a text in several, the first counts.
        key_file: where the key is to be kept for later runs; None if the user keeps it, or no hashes are written.
        other_versions: take vectors that other versions of the libraries computed as well.
    """

    def __init__(
        self, key: HashKey | None, earlier: Sequence[EarlierOutput], key_file: Path | None, other_versions: bool
    ) -> None:
        self.key = key or HashKey.new()
        self.earlier = tuple(earlier)
        self._key_file = key_file
        self._other_versions = other_versions

    def store_key(self) -> str:
        """Writes the key beside the output unless it is there, and returns its id.

        Of several ranks that make a key, the first one wins.

        Raises:
            OutputError: it cannot be written, or another key is there.
        """
        if self._key_file is not None:
            stored = join_key(self._key_file, self.key)
            if self.earlier and stored.id != self.key.id:
                raise _another_key(self._key_file)
            self.key = stored
        return self.key.id

    def check_recipe(
        self, recipe: Json, scores: Sequence[str], *, backend: str = "", without: Collection[str] = ()
    ) -> list[str]:
        """Checks the earlier outputs; see `EarlierOutput.check_recipe`. `backend` is the model's, if it is known.

        Returns:
            Sentences about vectors of other versions, if the user takes these.

        Raises:
            OutputError: an earlier output has vectors that are not this run's.
        """
        notices, now = [], vector_versions(backend)
        if backend:
            now.setdefault("attention", "fp32")
        for output in self.earlier:
            output.check_recipe(recipe, scores, without=without)
            difference = output.version_difference(now)
            if difference is None:
                continue
            if not self._other_versions:
                raise OutputError(
                    f"--update {output.path}: other versions computed it: {difference}",
                    hint="--other-versions takes its vectors all the same; or install those versions; or encode "
                    "all rows once more: --keep-hashes without --update",
                )
            notices.append(f"vectors of {as_text(output.path)} are of other versions: {difference}")
        return notices

    def versions(self, backend: str) -> tuple[Mapping[str, str], ...]:
        """Returns the versions of this run with its backend, then others of the earlier outputs; see Plan."""
        found: list[Mapping[str, str]] = [vector_versions(backend)]
        for versions in (of for output in self.earlier for of in output.stored.versions):
            if versions not in found:
                found.append(versions)
        return tuple(found)

    def int8_ranges(self) -> Int8Ranges | None:
        """Returns the ranges of int8 of the earlier outputs, whose vectors are taken as stored; None without any.

        Raises:
            OutputError: they differ.
        """
        if not self.earlier:
            return None
        first, *others = ({k: v.to_json() for k, v in of.stored.int8_ranges.items()} for of in self.earlier)
        for output, ranges in zip(self.earlier[1:], others, strict=True):
            if ranges != first:
                raise OutputError(
                    f"--update {output.path}: its int8 has other ranges than {self.earlier[0].path}, and an "
                    "output has one of each dimension",
                    hint="name one of the two, or use --precision float16",
                )
        return first

    def takes_from(self, output: str) -> bool:
        """Returns True if one of the earlier outputs is this one, to be replaced."""
        return any(is_same_file(of.path, output) for of in self.earlier)

    def find(self, records: Sequence[Record]) -> KnownTexts:
        """Looks up the texts of a shard."""
        hashes = tuple([None if record.text is None else self.key.hash(record.text) for record in records])
        records_left = np.array([at for at, of in enumerate(hashes) if of is not None], np.int64)
        asked = np.array([of for of in hashes if of is not None], "S16")
        sources, rows = (np.full(len(records), -1, np.int64) for _ in range(2))
        for source, output in enumerate(self.earlier):
            found = output.find(asked)
            is_new = (found >= 0) & (rows[records_left] < 0)
            rows[records_left[is_new]] = found[is_new]
            sources[records_left[is_new]] = source
        known = np.flatnonzero(rows >= 0)
        return KnownTexts(hashes, known, sources[known], rows[known])

    def rows(self, known: KnownTexts, plan: Plan) -> list[ReusedRecords]:
        """Reads the rows of known texts, for each earlier output that has some."""
        scores = {name: plan.kept_types[name] for name in plan.scores}
        reused = []
        for source, output in enumerate(self.earlier):
            of_source = known.sources == source
            if of_source.any():
                rows: EarlierRows = output.rows(known.rows[of_source], scores)
                reused.append(ReusedRecords(known.records[of_source], rows))
        return reused


def check_not_output(config: RunConfig) -> None:
    """Checks that the output replaces no earlier output of `--update`, unless the user said so.

    Raises:
        UsageError: it would.
    """
    out = config.output
    for path in config.reuse.update if out.on_exists == "error" and not out.is_stdout else ():
        if is_same_file(path, out.output):
            raise UsageError(
                f"--update {path} is the output of this run as well",
                hint="--on-exists overwrite replaces it when the new output is complete; or choose another place "
                "with -o",
            )


def open_reuse(config: RunConfig, stored: Plan | None) -> TextReuse | None:
    """Opens the earlier outputs and finds the key of the hashes; None if neither is asked for.

    The key is in the file of `--hash-key`; else beside the first earlier output, and its copy beside this output;
    else beside this output, where `TextReuse.store_key` makes it.

    Args:
        config: of the run.
        stored: the plan of the run if it was begun before.

    Raises:
        OutputError: an earlier output is missing, not finished, damaged or without hashes, or the key is missing
            or another one.
        UsageError: a file holds no key.
    """
    if not config.reuse:
        return None
    earlier = [EarlierOutput(path) for path in config.reuse.update]
    out = as_path(config.output.output)
    key_file = None
    if config.keeps_hashes and config.reuse.hash_key is None and isinstance(out, Path):
        key_file = key_beside(out)
    if config.reuse.hash_key is not None:
        path = Path(config.reuse.hash_key)
        key: HashKey | None = required_key(path)
    else:
        path, key = _key_beside([*(of.path for of in earlier[:1]), config.output.output])
    uses = [(output.path, output.hash_key) for output in earlier]
    uses += [(str(out), stored.hash_key)] if stored and stored.hash_key and config.keeps_hashes else []
    for name, asked in uses:
        if key is None:
            raise OutputError(f"{path}, the key of the hashes in {name}, does not exist", hint=_LOST)
        if key.id != asked:
            raise OutputError(
                f"{path} is not the key of the hashes in {name}: its id is {key.id}, and theirs is {asked}",
                hint="give the right one with --hash-key; outputs of different keys cannot be used together",
            )
    if key_file is not None and key is not None:
        found = read_key(key_file)
        if found is not None and found.id != key.id:
            raise _another_key(key_file)
    return TextReuse(key, earlier, key_file, config.reuse.other_versions)


def _key_beside(outputs: Sequence[str]) -> tuple[Path, HashKey | None]:
    """Returns the first key beside one of the outputs, and its path; None beside the first one if there is none.

    Raises:
        UsageError: all are in object stores, beside which no key is kept.
    """
    places = [place for place in map(as_path, outputs) if isinstance(place, Path)]
    if not places:
        raise UsageError(
            f"--update {outputs[0]}: no key of hashes is kept beside an output in an object store",
            hint="name the file of the key with --hash-key",
        )
    paths = [key_beside(place) for place in places]
    found = next((path for path in paths if seems_there(path)), paths[0])
    return found, read_key(found)


def _another_key(path: Path) -> OutputError:
    return OutputError(
        f"{path} exists and is another key than that of --update",
        hint="move it away if no output needs it, or choose another place with -o",
    )
