"""All options of a run, and the combinations that are errors."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from embedkit.config.checks import value_hint
from embedkit.config.engine_config import EngineConfig
from embedkit.config.input_config import InputConfig
from embedkit.config.model_config import BatchConfig, ModelConfig
from embedkit.config.output_config import OutputConfig, ShareConfig
from embedkit.config.remote_inputs import is_remote
from embedkit.config.reuse_config import ReuseConfig
from embedkit.config.vector_config import SPAN_POOLINGS, GroupConfig, PoolingConfig, TextConfig, UnitConfig
from embedkit.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorConfig:
    """The options that decide how texts become vectors, apart from input and output."""

    model: ModelConfig = field(default_factory=ModelConfig)
    text: TextConfig = field(default_factory=TextConfig)
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    units: UnitConfig = field(default_factory=UnitConfig)
    groups: GroupConfig = field(default_factory=GroupConfig)

    @property
    def of_vectors(self) -> VectorConfig:
        """These options alone, without those that RunConfig adds."""
        return VectorConfig(**{each.name: getattr(self, each.name) for each in fields(VectorConfig)})


@dataclass(frozen=True, slots=True)
class RunConfig(VectorConfig):
    """One `embedkit encode`."""

    input: InputConfig
    output: OutputConfig
    share: ShareConfig = field(default_factory=ShareConfig)
    reuse: ReuseConfig = field(default_factory=ReuseConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    store: tuple[str, ...] = ()  # values of --store-option, KEY=VALUE; never keys or secrets

    @property
    def workers(self) -> int:
        """Number of processes that compute."""
        return self.share.workers or len(self.model.devices)

    @property
    def group_columns(self) -> tuple[str, ...]:
        """Columns that decide the group of a row, and its order in it."""
        return (*self.groups.by, *((self.groups.order_by,) if self.groups.order_by else ()))

    @property
    def input_of_rows(self) -> InputConfig:
        """The input of an encode of rows for groups, which keeps their group columns as well.

        A group column `id` is the id column.
        """
        names = (*self.input.keep, *self.group_columns)
        if "id" not in self.group_columns or self.input.id_column not in {None, "id"}:
            return replace(self.input, keep=tuple(dict.fromkeys(names)))
        kept = tuple(dict.fromkeys(name for name in names if name != "id" or name in self.input.keep))
        return replace(self.input, keep=kept, id_column="id")

    @property
    def table(self) -> InputConfig:
        """The input, with the column of spans after the kept ones."""
        column = self.units.spans_column
        return self.input if column is None else replace(self.input, keep=(*self.input.keep, column))

    @property
    def keeps_hashes(self) -> bool:
        """True if the output has hashes of texts; JSON Lines alone, which hold no recipe, have none."""
        return bool(self.reuse) and not self.output.is_jsonl_alone

    def __post_init__(self) -> None:
        remote = next((name for name in (*self.input.inputs, self.output.output) if is_remote(name)), None)
        if remote is not None and self.model.offline:
            hint = (
                "leave out --offline; HF_HUB_OFFLINE=1 forbids the hub alone"
                if not remote.startswith("hf:")
                else ""
            )
            raise UsageError(f"{remote}: --offline forbids the network", hint=hint or "download the files first")
        if self.engine.is_ray:
            self._check_ray()
        else:
            self._check_sharing()
        self._check_units()
        self._check_groups()
        self._check_reuse()
        if self.output.is_stdout and self.output.on_exists == "resume":
            raise UsageError(
                "a run that writes to stdout cannot be resumed: which rows arrived is unknown",
                hint="leave out --on-exists, or write to a file or a folder with -o",
            )
        if self.output.is_jsonl_alone and self.pooling.precision in {"int8", "binary"}:
            raise UsageError(
                f"a single JSON Lines file has no place for the ranges that decode {self.pooling.precision}",
                hint="use --precision float32 or float16, or write to a folder or a .parquet file",
            )

    def _check_sharing(self) -> None:
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
                "--on-exists overwrite with several ranks: each would remove the shards of the others",
                hint="remove the old output first, or use --on-exists resume",
            )

    def _check_ray(self) -> None:
        if "-" in self.input.inputs or self.output.is_stdout:
            raise UsageError(
                "workers of Ray can neither read stdin nor write to stdout",
                hint="name files for INPUT and -o, on a disk that all nodes share or in an object store",
            )
        if self.groups.by:
            raise UsageError(
                "--group-by needs all rows in one place, and --engine ray spreads them",
                hint="leave out --engine ray: --workers uses several processes of this machine",
            )
        if self.share.several:
            raise UsageError(
                f"--engine ray spreads the work itself, and this is rank {self.share.rank} of "
                f"{self.share.world_size}{f', as {self.share.source} say' if self.share.source else ''}",
                hint="run it once, in a task of its own; --num-shards 1 says so",
            )
        device = self.model.device
        if device not in {"auto", "cpu", "cuda", "mps"}:
            raise UsageError(
                f"--device {device}: Ray gives each worker a GPU of its own",
                hint="use --device cuda, and --workers for their number; --workers-per-gpu puts several on one",
            )
        if device in {"cpu", "mps"} and self.engine.workers_per_gpu is not None:
            raise UsageError(f"--workers-per-gpu with --device {device}", hint="leave out one of the two")

    def _check_units(self) -> None:
        unit, poolings = self.units.unit, self.pooling.pool.split(",")
        if unit == "span" and not set(poolings) <= {"auto", *SPAN_POOLINGS}:
            raise UsageError(
                f"--pool {self.pooling.pool} is not for spans",
                hint=value_hint("--pool", self.pooling.pool, SPAN_POOLINGS),
            )
        if unit in {"word", "token"} and self.pooling.pool not in {"auto", "none"}:
            raise UsageError(
                f"--pool makes one vector of many tokens, and --level is {unit}",
                hint="leave --pool out; --subtoken-pooling combines the tokens of a word",
            )
        if unit in {"text", "chunk"} and self.pooling.pool == "none" and self.text.on_long == "chunk":
            raise UsageError(
                "--pool none gives one vector per token, and --on-long chunk would give a token several",
                hint="use --level token: each token has its vector from the window where it has most context",
            )
        if unit == "chunk" and self.text.chunk_pool is not None:
            raise UsageError(
                "--chunk-pool makes one vector of the windows, and --level chunk writes each",
                hint="leave out one of the two",
            )
        if unit == "span" and self.units.spans is not None and "-" in self.input.inputs:
            raise UsageError(
                "--spans FILE is checked against the ids of the input, and stdin can be read only once",
                hint="put the spans into a column (--spans-column), or give a file for INPUT",
            )

    def _check_reuse(self) -> None:
        option = "--update" if self.reuse.update else "--keep-hashes"
        if self.reuse and self.groups.by:
            raise UsageError(
                f"{option} is for vectors of texts, and --group-by stores those of groups alone",
                hint="encode the rows without --group-by, with --keep-hashes: that output can be updated",
            )
        if self.reuse and self.units.unit != "text":
            what = "spans" if self.units.has_spans else f"--level {self.units.unit}"
            raise UsageError(
                f"{option} is for one row a text, and {what} may give a text several rows",
                hint="leave out one of the two",
            )
        has_key = self.reuse.hash_key is not None or bool(self.reuse.update)
        if self.reuse.keep_hashes and self.output.is_remote and not has_key:
            raise UsageError(
                "--keep-hashes: a key beside the output could be read by whoever can read the bucket",
                hint="name a key of your own with --hash-key FILE, which `openssl rand -hex 32 > FILE` makes",
            )
        if self.reuse.keep_hashes and self.output.is_jsonl_alone:
            raise UsageError(
                "--keep-hashes: JSON Lines alone do not hold the recipe, so that they cannot be updated later",
                hint="write to a folder, or to a .parquet, .arrow or .npy file",
            )

    def _check_groups(self) -> None:
        if not self.groups.by:
            return
        if self.pooling.with_head:
            raise UsageError("--with-head scores rows, and --group-by makes one of several", hint="leave one out")
        if self.units.unit != "text" or self.pooling.pool == "none":
            raise UsageError(
                "--group-by takes one vector a row", hint="leave out --level, the spans or --pool none"
            )
        if self.output.is_remote:
            raise UsageError(
                "--group-by pools the rows in a folder next to the output, which must be on a disk",
                hint="write to a local path, then copy the output",
            )
        if self.output.is_stdout or self.share.several:
            raise UsageError(
                "--group-by needs all rows in one place, so neither stdout nor several ranks",
                hint="name a file or folder with -o; --workers uses several processes on one machine",
            )
        if self.pooling.precision == "int8":
            raise UsageError(
                "--precision int8 is calibrated before the vectors of groups are known",
                hint="use --precision float16",
            )
