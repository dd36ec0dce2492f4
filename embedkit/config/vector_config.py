"""Options of texts, pooling, units and groups."""

from __future__ import annotations

from dataclasses import dataclass

from embedkit.config.checks import at_least, one_of
from embedkit.config.poolings import LAYER_AGGREGATIONS, parse_layers, parse_poolings
from embedkit.config.remote_inputs import check_no_secret
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
    """The steps from a text to tokens."""

    #: Tokens of a text, special ones included; None: as a pooler's file says, else the model's limit.
    max_length: int | None = None
    on_long: str | None = None  # truncate, chunk or error; None: as a pooler's file says, else truncate
    stride: int | None = None  # tokens that a window shares with the one before; None: 0
    chunk_pool: str | None = None  # one of CHUNK_POOLINGS, for the vectors of windows; None: mean
    prompt: str | None = None  # put before each text; None: the model's default prompt, if it ships one
    prompt_name: str | None = None  # of a prompt that the model ships

    def __post_init__(self) -> None:
        one_of("--on-long", self.on_long or "truncate", ("truncate", "chunk", "error"))
        at_least("--stride", self.stride, 0)
        one_of("--chunk-pool", self.chunk_pool or "mean", CHUNK_POOLINGS)
        if self.on_long != "chunk" and not (self.stride is None and self.chunk_pool is None):
            raise UsageError(
                f"--stride and --chunk-pool are for windows, and --on-long is {self.on_long or 'truncate'}",
                hint="add --on-long chunk, or leave them out",
            )
        at_least("--max-length", self.max_length, 1)
        if self.prompt is not None and self.prompt_name is not None:
            raise UsageError("--prompt and --prompt-name exclude each other", hint="give one of the two")
        if any("\ud800" <= letter <= "\udfff" for letter in self.prompt or ""):
            raise UsageError("--prompt is not valid UTF-8", hint="give it in UTF-8")


@dataclass(frozen=True, slots=True)
class PoolingConfig:
    """The steps from hidden states to vectors."""

    layers: str = "-1"  # such as -1, -4:, 9:13, all; resolved once the model is known
    layer_agg: str = "concat"  # one of LAYER_AGGREGATIONS
    pool: str = "auto"  # a name, or a comma list of names
    exclude_special: bool = False  # leave the tokenizer's special tokens out of the pooling
    normalize: bool | None = None  # scale to length 1; None: as a shipped recipe says under `auto`, else not
    truncate_dim: int | None = None  # keep the first dimensions
    precision: str = "float32"  # one of PRECISIONS
    with_head: bool = False  # add the predictions of the head in the pooler's file

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
    """The unit of a vector."""

    level: str = "text"  # one of LEVELS; spans are a level of their own
    subtoken_pooling: str | None = None  # one of SUBTOKEN_POOLINGS, for words; None: mean
    spans: str | None = None  # a file of character ranges, by id
    spans_column: str | None = None  # a column of them

    def __post_init__(self) -> None:
        one_of("--level", self.level, LEVELS)
        one_of("--subtoken-pooling", self.subtoken_pooling or "mean", SUBTOKEN_POOLINGS)
        if self.subtoken_pooling is not None and self.level != "word":
            raise UsageError(
                f"--subtoken-pooling is for words, and --level is {self.level}", hint="add --level word"
            )
        if self.spans == "-":
            raise UsageError("--spans is read from a file, not from stdin", hint="save the spans to a file first")
        if self.spans is not None:
            check_no_secret("--spans", self.spans)
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
    """The groups of rows that get one vector each."""

    by: tuple[str, ...] = ()  # columns, the finest first: each groups the groups of the one before
    pool: str | None = None  # one of GROUP_POOLINGS; None: mean
    order_by: str | None = None  # column that decides which row is the last

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
