"""From a text to its vectors: how it becomes tokens, and what is made of their states."""

from __future__ import annotations

from dataclasses import dataclass

from embedkit.config.checks import at_least, one_of
from embedkit.errors import UsageError
from embedkit.pooling.names import LAYER_AGGREGATIONS, parse_layers, parse_poolings

PRECISIONS = ("float32", "float16", "int8", "binary")


@dataclass(frozen=True, slots=True)
class TextConfig:
    """How a text becomes tokens.

    Attributes:
        max_length: most tokens that go through the model, special tokens counted; None = what it can take.
        on_long: truncate or error, for texts with more tokens.
        prompt: put before each text; None = the one the model names as its default, if it ships any.
        prompt_name: a name among the prompts that the model ships.
    """

    max_length: int | None = None
    on_long: str = "truncate"
    prompt: str | None = None
    prompt_name: str | None = None

    def __post_init__(self) -> None:
        if self.on_long == "chunk":
            raise UsageError("--on-long chunk is not in this version", hint="use truncate (counted) or error")
        one_of("--on-long", self.on_long, ("truncate", "error"))
        at_least("--max-length", self.max_length, 1)
        if self.prompt is not None and self.prompt_name is not None:
            raise UsageError("--prompt and --prompt-name exclude each other", hint="give one of the two")


@dataclass(frozen=True, slots=True)
class PoolingConfig:
    """From hidden states to the numbers that are written.

    Attributes:
        layers: such as `-1`, `-4:`, `9:13`, `all`; resolved once the model is known.
        layer_agg: one of LAYER_AGGREGATIONS.
        pool: a name, or a comma list of names.
        exclude_special: leave the special tokens that the tokenizer added out of the pooling.
        normalize: scale to length 1; None = as the model's own recipe says under `auto`, else not.
        truncate_dim: keep the first dimensions; None = all.
        precision: one of PRECISIONS.
    """

    layers: str = "-1"
    layer_agg: str = "concat"
    pool: str = "auto"
    exclude_special: bool = False
    normalize: bool | None = None
    truncate_dim: int | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        parse_layers(self.layers)
        names = parse_poolings(self.pool)
        one_of("--layer-agg", self.layer_agg, tuple(LAYER_AGGREGATIONS))
        one_of("--precision", self.precision, PRECISIONS)
        at_least("--truncate-dim", self.truncate_dim, 1)
        if names == ("none",) and (self.normalize or self.truncate_dim or self.precision != "float32"):
            raise UsageError(
                "--normalize, --truncate-dim and --precision are for one vector a text, not for --pool none",
                hint="leave them out, or choose a pooling",
            )
