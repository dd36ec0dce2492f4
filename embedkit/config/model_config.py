"""Options of the model and its batches."""

from __future__ import annotations

import re
from dataclasses import dataclass

from embedkit.config.checks import at_least, one_of, value_hint
from embedkit.errors import UsageError

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "fp32", "bf16", "fp16", "int8")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The model, and how it is loaded."""

    model: str = "minilm"  # a folder, an alias or a hub id
    revision: str | None = None  # branch, tag or commit on the hub; None: its default branch
    offline: bool = False  # open no socket
    trust_remote_code: bool = False  # run the model's own code; needs a commit as revision
    lowercase: str = "auto"  # auto, yes or no
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps; for a comma list, one process each
    dtype: str = "auto"  # one of DTYPES; auto: fp32 on a CPU, bf16 on a GPU that supports it

    def __post_init__(self) -> None:
        one_of("--lowercase", self.lowercase, ("auto", "yes", "no"))
        one_of("--dtype", self.dtype, DTYPES)
        for device in self.devices:
            if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
                every = "use auto, cpu, cuda, cuda:N, mps, or a comma list such as cuda:0,cuda:1"
                raise UsageError(
                    f"--device cannot be '{self.device}'", hint=value_hint("--device", device, DEVICES, every)
                )
        if self.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise UsageError(
                "--trust-remote-code runs code that somebody else can change, so it needs a fixed commit",
                hint="add --revision with the 40 hexadecimal digits of a commit that you have read",
            )

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices, one for each process."""
        return tuple(self.device.split(","))


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """Limits of a batch. They change the speed, not the numbers."""

    batch_tokens: int | None = None  # None: chosen for the device
    batch_size: int | None = None  # most texts; None: as many as the tokens allow

    def __post_init__(self) -> None:
        at_least("--batch-tokens", self.batch_tokens, 1)
        at_least("--batch-size", self.batch_size, 1)
