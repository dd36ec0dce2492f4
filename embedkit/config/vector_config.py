"""Options of texts, pooling, units and groups."""

from __future__ import annotations

from dataclasses import dataclass

from embedkit.config.checks import at_least, one_of
from embedkit.config.poolings import LAYER_AGGREGATIONS, parse_layers, parse_poolings
from embedkit.errors import UsageError

PRECISIONS = ("float32", "float16", "int8", "binary")
CHUNK_POOLINGS = ("mean", "max", "first")
LEVELS = ("text", "chunk", "word", "token")
SUBTOKEN_POOLINGS = ("mean", "first", "last", "max")
GROUP_POOLINGS = ("mean", "row_mean", "max", "last")
#: Poolings of the tokens of a span, by the names of `--pool`.
SPAN_POOLINGS = ("mean", "max", "min", "mean_sqrt_len", "lasttoken")


@dataclass(frozen=True, slots=True)
class TextConfig:
    """How a text becomes tokens.

    Attributes:
        max_length: most tokens of a text, special tokens included; None = the model's limit.
        on_long: truncate, chunk or error, for texts with more tokens.
        stride: tokens that a window shares with the one before it; None = 0. Only with chunk.
        chunk_pool: one of CHUNK_POOLINGS, which combines the vectors of the windows; None = mean.
        prompt: put before each text; None = the model's default prompt, if it ships one.
        prompt_name: a name among the prompts that the model ships.
    """

    max_length: int | None = None
    on_long: str = "truncate"
    stride: int | None = None
    chunk_pool: str | None = None
    prompt: str | None = None
    prompt_name: str | None = None

    def __post_init__(self) -> None:
        one_of("--on-long", self.on_long, ("truncate", "chunk", "error"))
        at_least("--stride", self.stride, 0)
        one_of("--chunk-pool", self.chunk_pool or "mean", CHUNK_POOLINGS)
        if self.on_long != "chunk" and not (self.stride is None and self.chunk_pool is None):
            raise UsageError(
                f"--stride and --chunk-pool are for windows, and --on-long is {self.on_long}",
                hint="add --on-long chunk, or leave them out",
            )
        at_least("--max-length", self.max_length, 1)
        if self.prompt is not None and self.prompt_name is not None:
            raise UsageError("--prompt and --prompt-name exclude each other", hint="give one of the two")
        if any("\ud800" <= letter <= "\udfff" for letter in self.prompt or ""):
            raise UsageError("--prompt is not UTF-8, which no tokenizer takes", hint="give it in UTF-8")


@dataclass(frozen=True, slots=True)
class PoolingConfig:
    """How hidden states become vectors.

    Attributes:
        layers: such as `-1`, `-4:`, `9:13`, `all`; resolved once the model is known.
        layer_agg: one of LAYER_AGGREGATIONS.
        pool: a name, or a comma list of names.
        exclude_special: leave the tokenizer's special tokens out of the pooling.
        normalize: scale to length 1; None = as a shipped recipe says under `auto`, else not.
        truncate_dim: keep the first dimensions; None = all.
        precision: one of PRECISIONS.
        with_head: add the scores of the classifier trained with the pooler.
    """

    layers: str = "-1"
    layer_agg: str = "concat"
    pool: str = "auto"
    exclude_special: bool = False
    normalize: bool | None = None
    truncate_dim: int | None = None
    precision: str = "float32"
    with_head: bool = False

    def __post_init__(self) -> None:
        parse_layers(self.layers)
        names = parse_poolings(self.pool)
        one_of("--layer-agg", self.layer_agg, tuple(LAYER_AGGREGATIONS))
        one_of("--precision", self.precision, PRECISIONS)
        at_least("--truncate-dim", self.truncate_dim, 1)
        stored_as_is = self.precision in {"float32", "float16"}
        if names == ("none",) and (self.normalize or self.truncate_dim or not stored_as_is):
            raise UsageError(
                "--normalize, --truncate-dim and --precision int8 or binary are for one vector a text, "
                "not for --pool none",
                hint="leave them out, or choose a pooling",
            )


@dataclass(frozen=True, slots=True)
class UnitConfig:
    """The unit of a vector.

    Attributes:
        level: one of LEVELS; spans, if given, are a level of their own.
        subtoken_pooling: one of SUBTOKEN_POOLINGS, for words; None = mean.
        spans: a file of character ranges, by id.
        spans_column: a column of them.
    """

    level: str = "text"
    subtoken_pooling: str | None = None
    spans: str | None = None
    spans_column: str | None = None

    def __post_init__(self) -> None:
        one_of("--level", self.level, LEVELS)
        one_of("--subtoken-pooling", self.subtoken_pooling or "mean", SUBTOKEN_POOLINGS)
        if self.subtoken_pooling is not None and self.level != "word":
            raise UsageError(
                f"--subtoken-pooling is for words, and --level is {self.level}", hint="add --level word"
            )
        if self.spans == "-":
            raise UsageError("--spans is read from a file, not from stdin", hint="save the spans to a file first")
        if self.spans is not None and self.spans_column is not None:
            raise UsageError("--spans and --spans-column exclude each other", hint="give one of the two")
        if self.has_spans and self.level != "text":
            raise UsageError(
                f"spans are units of their own, and --level is {self.level}", hint="leave out --level or the spans"
            )

    @property
    def has_spans(self) -> bool:
        """True if vectors of spans are requested."""
        return self.spans is not None or self.spans_column is not None

    @property
    def unit(self) -> str:
        """text, chunk, word, token or span."""
        return "span" if self.has_spans else self.level


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """How rows become one vector per group.

    Attributes:
        by: columns whose values form a group, the finest first: each groups the groups of the one before.
        pool: one of GROUP_POOLINGS.
        order_by: column that decides which row is the last.
    """

    by: tuple[str, ...] = ()
    pool: str | None = None
    order_by: str | None = None

    def __post_init__(self) -> None:
        one_of("--group-pool", self.pool or "mean", GROUP_POOLINGS)
        if not self.by and not (self.pool is None and self.order_by is None):
            raise UsageError("--group-pool and --order-by are for groups", hint="add --group-by COL")
        if (self.pool == "last") != (self.order_by is not None):
            raise UsageError(
                "--group-pool last and --order-by COL go together",
                hint="give both, or choose another --group-pool",
            )
        if len(set(self.by)) < len(self.by):
            raise UsageError("--group-by names a column twice", hint="name each once")
