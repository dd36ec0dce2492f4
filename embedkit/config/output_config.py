"""Options of the output, and of dividing the work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from embedkit.config.checks import at_least, one_of
from embedkit.config.remote_inputs import check_no_secret
from embedkit.errors import UsageError

OUTPUT_FORMATS = ("parquet", "npy", "jsonl", "arrow")


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """The output, and what to do with existing outputs and faulty rows."""

    output: str  # a file, a folder, or - for JSON Lines on stdout
    format: str  # one of OUTPUT_FORMATS
    shard_rows: int | None = None  # at most; None: chosen by the width of the vectors
    on_exists: str = "error"  # error, resume or overwrite
    on_bad_row: str = "fail"  # fail, null or skip
    verify: bool = False  # on resume, check committed shards against their recorded hashes

    def __post_init__(self) -> None:
        check_no_secret("-o", self.output)
        one_of("--output-format", self.format, OUTPUT_FORMATS)
        one_of("--on-exists", self.on_exists, ("error", "resume", "overwrite"))
        one_of("--on-bad-row", self.on_bad_row, ("fail", "null", "skip"))
        at_least("--shard-rows", self.shard_rows, 1)
        if self.verify and self.on_exists != "resume":
            raise UsageError(
                f"--verify looks at what a former run committed, and --on-exists is {self.on_exists}",
                hint="use --on-exists resume --verify; `embedkit verify OUT` checks a finished output",
            )
        if self.is_remote and self.is_single_file:
            raise UsageError(
                f"-o {self.output}: a single file is not written to an object store, where a run that is killed "
                "could not continue it",
                hint=f"use -o {self.output}/ for a folder of shards; or write to a local file, then copy it",
            )

    @property
    def is_stdout(self) -> bool:
        """True if the rows go to stdout."""
        return self.output == "-"

    @property
    def is_remote(self) -> bool:
        """True if the output is a URI, of an object store."""
        return "://" in self.output

    @property
    def is_jsonl_alone(self) -> bool:
        """True if the output is JSON Lines without a manifest: on stdout or as a single file."""
        return self.is_stdout or self.output.endswith(".jsonl")

    @property
    def is_single_file(self) -> bool:
        """True if the output has a file name of its format, without a slash at its end."""
        return Path(self.output).suffix == f".{self.format}" and not self.output.endswith(("/", os.sep))


@dataclass(frozen=True, slots=True)
class ShareConfig:
    """This process's part of the work. Not part of the plan."""

    rank: int = 0  # this process's number, from 0
    world_size: int = 1  # processes on all machines, local workers not counted
    workers: int | None = None  # local processes to start; None: one per device
    place: int | None = None  # number on its machine, which selects its GPU; None: it is alone there
    source: str = ""  # variables of the environment that decided the rank
    on_device: int = 1  # processes of this run that share its device
    note: str = ""  # notice about variables of the environment that were ignored

    def __post_init__(self) -> None:
        at_least("--num-shards", self.world_size, 1)
        at_least("--workers", self.workers, 1)
        if not 0 <= self.rank < self.world_size:
            raise UsageError(
                f"--shard-id cannot be {self.rank} of --num-shards {self.world_size}",
                hint=f"use a whole number from 0 to {self.world_size - 1}",
            )

    @property
    def several(self) -> bool:
        """True if processes that this one did not start work on the same output."""
        return self.world_size > 1
