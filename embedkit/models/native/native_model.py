"""Opens a checkpoint for embedkit's own forward pass, and picks the encoder that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from embedkit.errors import ModelError
from embedkit.models.base import LayerEncoder, LoadedModel, NotExactError
from embedkit.models.device import (
    check_torch_version,
    disable_reduced_precision,
    limit_onednn_cache,
    tune_malloc,
)
from embedkit.models.native.checkpoint import Checkpoint
from embedkit.models.native.config import NativeConfig, read_config
from embedkit.models.native.config_reader import NotNativeError
from embedkit.models.native.cpu_encoder import CpuEncoder
from embedkit.models.native.gpu_encoder import GpuEncoder
from embedkit.models.native.kernels import why_no_kernels
from embedkit.models.repository.architectures import ARCHITECTURES
from embedkit.models.repository.model_folder import ModelFolder
from embedkit.models.selfcheck import matches_reference, states_alone
from embedkit.models.varlen_attention import usable
from embedkit.types import Tokens

#: Matrix shapes in a forward pass on the CPU: four linear layers and GELU, in whole blocks and the rest.
_SHAPES = 16
#: The same with compiled kernels: four linear layers, rows in multiples of 16 up to a part of a batch.
_SHAPES_WITH_KERNELS = 256
#: Most tokens of a probe text on the CPU; the long one is for models with attention windows.
_SHORT = 64


@dataclass(frozen=True, kw_only=True)
class NativeModel(LoadedModel):
    """A checkpoint of a family that embedkit computes itself; weights are read when the layers are known."""

    config: NativeConfig
    checkpoint: Checkpoint  # the weights; closed by `make_encoder`

    def make_encoder(
        self, layers: tuple[int, ...], probe: Tokens, *, for_pooler: bool
    ) -> tuple[LayerEncoder, str | None]:
        """Returns the fastest exact encoder; see LoadedModel."""
        if self.device.type != "cpu":
            return self._on_device(layers, probe, for_pooler=for_pooler)
        encoder = CpuEncoder(self, layers, for_pooler=for_pooler)
        short = np.flatnonzero(probe.lengths <= max(_SHORT, int(np.sort(probe.lengths)[1])))
        probe = probe.select(short)
        if not matches_reference(encoder, states_alone(encoder, probe, self.dtype), probe):
            # transformers has no int8 to fall back to.
            raise _inexact(ModelError if self.dtype == "int8" else NotExactError)
        return encoder, why_no_kernels()

    def has_final_norm(self, input_ids: Sequence[int]) -> bool:  # noqa: ARG002 - no text is needed
        """Returns False: where a norm follows the last layer, transformers' last hidden state is after it, too."""
        return False

    def _on_device(
        self, layers: tuple[int, ...], probe: Tokens, *, for_pooler: bool
    ) -> tuple[GpuEncoder, str | None]:
        """Uses the first kernel for packed attention that gives what torch's own gives for each text alone."""
        encoder = GpuEncoder(self, layers, for_pooler=for_pooler)
        # The whole probe: its long text takes a kernel several blocks.
        expected = states_alone(encoder, probe, self.dtype)
        notice = None
        for name in usable(encoder.device, encoder.dtype, encoder.head_dim):
            encoder.attention = name
            try:
                exact = matches_reference(encoder, expected, probe)
            except (ImportError, RuntimeError, TypeError, ValueError):
                exact = False
            if exact:
                return encoder, notice
            notice = f"packed attention by '{name}' does not work here, or not exactly: a slower one is used"
        # The error's traceback keeps this frame, and transformers needs the device's memory for its own weights.
        del encoder, expected
        raise _inexact(NotExactError)


def open_native(folder: ModelFolder, dtype: str, device: torch.device) -> NativeModel:
    """Opens a model's folder without reading its weights.

    Args:
        folder: the model.
        dtype: fp32, bf16 or int8 on a CPU; fp32, bf16 or fp16 on a GPU.
        device: the device that it will run on.

    Raises:
        NotNativeError: it is left to transformers.
        ModelError: its weights are a pickle, and torch is too old to read it safely.
    """
    if folder.runs_own_encoder:
        raise NotNativeError("it runs code of its own")
    config = read_config(folder.config)
    check_torch_version(folder, Path(folder.weights))
    if device.type == "cpu":
        tune_malloc()
        limit_onednn_cache(_SHAPES if why_no_kernels() else _SHAPES_WITH_KERNELS)
    elif any(of_layer.bias or of_layer.disentangled for of_layer in config.attention):
        raise NotNativeError("no kernel for packed attention adds its relative positions")
    disable_reduced_precision(device)
    checkpoint = Checkpoint(folder, config)
    return NativeModel(
        architecture=ARCHITECTURES[config.family.model_type],
        config=config,
        device=device,
        dtype=dtype,
        n_layers=config.n_layers,
        has_pooler=checkpoint.has_pooler,
        max_positions=config.usable_positions,
        checkpoint=checkpoint,
    )


def _inexact(kind: type[ModelError]) -> ModelError:
    return kind(
        "this model gives other vectors in a batch than for a text alone, so embedkit cannot trust it",
        hint="please report the model's config.json and `embedkit doctor`",
    )
