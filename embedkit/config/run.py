"""One run, whole: the parts, and what they rule out together."""

from __future__ import annotations

from dataclasses import dataclass, field

from embedkit.config.inputs import InputConfig
from embedkit.config.models import BatchConfig, ModelConfig
from embedkit.config.outputs import OutputConfig, ShareConfig
from embedkit.config.vectors import PoolingConfig, TextConfig
from embedkit.errors import UsageError


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
