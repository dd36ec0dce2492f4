"""What `embedkit plan` finds out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from embedkit.estimate.cost import Duration
from embedkit.estimate.counts import Tally
from embedkit.tokenizer.vocabulary import VocabularyCoverage


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run would come to.

    Attributes:
        model: as it was named.
        fits: most tokens of a text or window, special tokens counted.
        n_layers: of the model.
        layers: those used.
        on_long: truncate, chunk or error.
        lowercase: whether texts are lowercased.
        precision, format: of the output.
        shard_rows: most rows in a shard.
        tally: all that was counted.
        spelled: the first texts, as they are read.
        other_casing: the same in the other casing; None where the tokenizer cannot be switched.
        dims: dimensions of each variant.
        rows: of the output.
        bytes: of the output's files of vectors and facts; None if they cannot be told, and `why_no_bytes`.
        other_bytes: about what the other formats would take.
        duration: of the model's work.
        memory: bytes, about.
        notices: what the user should know, a sentence each.
    """

    model: str
    fits: int
    n_layers: int
    layers: tuple[int, ...]
    on_long: str
    lowercase: bool
    precision: str
    format: str
    shard_rows: int
    tally: Tally
    spelled: VocabularyCoverage
    other_casing: VocabularyCoverage | None
    dims: Mapping[str, int]
    rows: int
    bytes: int | None
    why_no_bytes: str
    other_bytes: Mapping[str, int]
    duration: Duration
    memory: int
    notices: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything, for machines; `lengths` as `[tokens, texts]` pairs."""
        tally = asdict(self.tally)
        lengths = [[length, int(texts)] for length, texts in enumerate(tally.pop("lengths")) if texts]
        told = asdict(self)
        del told["tally"]
        # The key of the versions before.
        told["flipped"] = told.pop("other_casing")
        return {**told, **tally, "rows": self.rows, "input_rows": self.tally.rows, "lengths": lengths}
