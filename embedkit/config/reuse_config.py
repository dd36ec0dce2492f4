"""Options of hashes of texts, and of taking vectors from an earlier output."""

from __future__ import annotations

from dataclasses import dataclass

from embedkit.config.remote_inputs import check_no_secret
from embedkit.errors import UsageError


@dataclass(frozen=True, slots=True)
class ReuseConfig:
    """The earlier outputs whose vectors are taken, and the hashes by which their texts are recognised."""

    update: tuple[str, ...] = ()  # folders or files of earlier outputs; the first that has a text counts
    keep_hashes: bool = False  # write a keyed hash of each text; implied by `update`
    other_versions: bool = False  # take vectors that other versions of the libraries computed as well
    hash_key: str | None = None  # file with the key; None: the key beside the earlier output or beside this one

    def __post_init__(self) -> None:
        for name in self.update:
            check_no_secret("--update", name)
        if self.hash_key is not None and not (self.keep_hashes or self.update):
            raise UsageError(
                "--hash-key is for hashes of texts, and none are asked for",
                hint="add --keep-hashes, or leave it out",
            )
        if self.other_versions and not self.update:
            raise UsageError(
                "--other-versions is for vectors of an earlier output, and none is named",
                hint="add --update OLD, or leave it out",
            )
        twice = next((name for name in self.update if self.update.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"--update names {twice} twice", hint="name each earlier output once")

    def __bool__(self) -> bool:
        """Checks whether any of this is asked for."""
        return bool(self.update) or self.keep_hashes
