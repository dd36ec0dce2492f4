"""Everything a run is told, as frozen dataclasses: one a subject, together a `RunConfig`.

Values are checked where they are made; nothing here opens a file or imports a model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from embedkit.errors import UsageError
from embedkit.pooling.names import LAYER_AGGREGATIONS, parse_layers, parse_poolings

FORMATS = ("auto", "csv", "tsv", "jsonl", "ndjson", "parquet", "arrow", "txt")
DTYPES = ("auto", "fp32", "bf16", "fp16")
PRECISIONS = ("float32", "float16", "int8", "binary")
OUTPUT_FORMATS = ("parquet", "npy", "jsonl", "arrow")


@dataclass(frozen=True, slots=True)
class InputConfig:
    """Which rows are read, and what of them.

    Attributes:
        inputs: files, globs, folders, or `-` for stdin, as the user typed them.
        format: one of FORMATS; `auto` goes by the file's name.
        text_columns: columns that make the text; () = `text`, else the first of the usual names.
        template: such as `"{title}. {body}"`; None = the text columns joined by a newline.
        id_column: None = `id` if there, else the row number.
        keep: columns that go through to the output.
        limit: read no more than this many rows; None = all.
        max_expansion: how many times its size a compressed file may grow to.
        max_decompressed_gb: how many GB (10^9 bytes) it may grow to.
    """

    inputs: tuple[str, ...]
    format: str = "auto"
    text_columns: tuple[str, ...] = ()
    template: str | None = None
    id_column: str | None = None
    keep: tuple[str, ...] = ()
    limit: int | None = None
    max_expansion: int = 1000
    max_decompressed_gb: int = 1000

    def __post_init__(self) -> None:
        one_of("--format", self.format, FORMATS)
        at_least("--limit", self.limit, 0)
        at_least("--max-expansion", self.max_expansion, 1)
        at_least("--max-decompressed-gb", self.max_decompressed_gb, 1)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model is loaded, and how.

    Attributes:
        model: a folder, an alias or a hub id.
        revision: branch, tag or commit on the hub; None = its default branch.
        offline: open no socket: only folders, installed packages and what is cached.
        trust_remote_code: run code that comes with the model; needs a commit as revision.
        lowercase: auto, yes or no.
        device: auto, cpu, cuda, cuda:N or mps; a comma list is a process for each.
        dtype: one of DTYPES; auto = fp32 on CPU, bf16 on a GPU that has it.
    """

    model: str = "minilm"
    revision: str | None = None
    offline: bool = False
    trust_remote_code: bool = False
    lowercase: str = "auto"
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        one_of("--lowercase", self.lowercase, ("auto", "yes", "no"))
        if self.dtype == "int8":
            raise UsageError("--dtype int8 is not in this version", hint=f"use one of: {', '.join(DTYPES)}")
        one_of("--dtype", self.dtype, DTYPES)
        if not all(re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device) for device in self.devices):
            raise UsageError(
                f"--device cannot be '{self.device}'",
                hint="use auto, cpu, cuda, cuda:N, mps, or a comma list such as cuda:0,cuda:1",
            )
        if self.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise UsageError(
                "--trust-remote-code runs code that somebody else can change, so it needs a fixed commit",
                hint="add --revision with the 40 hexadecimal digits of a commit that you have read",
            )

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices named, one a process."""
        return tuple(self.device.split(","))


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


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """What one forward pass holds. Changes the speed, not the numbers.

    Attributes:
        batch_tokens: tokens in a batch; None = chosen for the device.
        batch_size: most texts in a batch; None = as many as the tokens allow.
    """

    batch_tokens: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        at_least("--batch-tokens", self.batch_tokens, 1)
        at_least("--batch-size", self.batch_size, 1)


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """Where the vectors go.

    Attributes:
        output: a file, a folder, or `-` for JSON Lines on stdout.
        format: one of OUTPUT_FORMATS.
        shard_rows: most rows in a shard; None = chosen for the device.
        on_exists: error, resume or overwrite.
        on_bad_row: fail, null or skip.
        verify: on resume, hold what is committed against the recorded hashes, too.
    """

    output: str
    format: str
    shard_rows: int | None = None
    on_exists: str = "error"
    on_bad_row: str = "fail"
    verify: bool = False

    def __post_init__(self) -> None:
        one_of("--output-format", self.format, OUTPUT_FORMATS)
        one_of("--on-exists", self.on_exists, ("error", "resume", "overwrite"))
        one_of("--on-bad-row", self.on_bad_row, ("fail", "null", "skip"))
        at_least("--shard-rows", self.shard_rows, 1)
        if self.verify and self.on_exists != "resume":
            raise UsageError(
                f"--verify looks at what a former run committed, and --on-exists is {self.on_exists}",
                hint="use --on-exists resume --verify; `embedkit verify OUT` checks a finished output",
            )

    @property
    def is_stdout(self) -> bool:
        """Whether the rows go to stdout."""
        return self.output == "-"


@dataclass(frozen=True, slots=True)
class ShareConfig:
    """What part of the work is this process's, and how many it starts for it. Not part of the plan.

    Attributes:
        rank: this process's number, from 0.
        world_size: how many processes there are, on all machines; 1 = it is not told of others.
        workers: local processes to start; None = one a device.
        place: its number among the processes of its machine, which picks its GPU; None = it is alone there.
        source: what in the environment says so; empty if the options do.
    """

    rank: int = 0
    world_size: int = 1
    workers: int | None = None
    place: int | None = None
    source: str = ""

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
        """Whether other processes work on the same output, which this one did not start."""
        return self.world_size > 1


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One `embedkit encode`."""

    input: InputConfig
    output: OutputConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    text: TextConfig = field(default_factory=TextConfig)
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    share: ShareConfig = field(default_factory=ShareConfig)

    @property
    def workers(self) -> int:
        """How many processes compute: more than one are started for it."""
        return self.share.workers or len(self.model.devices)

    def __post_init__(self) -> None:
        self._refuse_sharing()
        alone = self.output.is_stdout or self.output.output.endswith(".jsonl")
        if alone and self.pooling.precision in {"int8", "binary"}:
            raise UsageError(
                f"JSON Lines alone have no place for what turns {self.pooling.precision} into numbers again",
                hint="use --precision float32 or float16, or write to a folder or a .parquet file",
            )

    def _refuse_sharing(self) -> None:
        if self.workers < len(self.model.devices):
            raise UsageError(
                f"--workers {self.workers} is fewer than the {len(self.model.devices)} devices of --device",
                hint="name as many devices as there are workers, or leave --workers out",
            )
        if not self.share.several and self.workers == 1:
            return
        if "-" in self.input.inputs or self.output.is_stdout:
            raise UsageError(
                "several processes can neither read stdin nor write to stdout",
                hint="name files for INPUT and -o; --num-shards 1 --workers 1 and one --device is one process",
            )
        if self.share.several and self.output.on_exists == "overwrite":
            raise UsageError(
                "--on-exists overwrite with several ranks: each would remove what the others have done",
                hint="remove the old output first, or use --on-exists resume",
            )


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not among those allowed, with UsageError."""
    if value not in allowed:
        raise UsageError(f"{option} cannot be '{value}'", hint=f"use one of: {', '.join(allowed)}")


def at_least(option: str, value: int | None, least: int) -> None:
    """Refuse a number below `least`, with UsageError; None passes."""
    if value is not None and value < least:
        raise UsageError(f"{option} cannot be {value}", hint=f"use a whole number from {least}")
