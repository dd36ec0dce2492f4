"""Which code computes a model: embedkit's own for BERT and its kin on a CPU or GPU, transformers' for all others.

transformers is imported only where it is needed: that alone takes longer than most small jobs.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from embedkit.config import ModelConfig
from embedkit.errors import ModelError, UsageError
from embedkit.models.device import (
    disable_reduced_precision,
    limit_onednn_cache,
    pick_device,
    pick_dtype,
    refuse_old_torch,
    tune_malloc,
)
from embedkit.models.native.checkpoint import Checkpoint
from embedkit.models.native.config import LEAN_TYPES, NotNativeError, read_shape
from embedkit.models.native.cpu_encoder import CpuEncoder, NativeModel
from embedkit.models.native.gpu_encoder import GpuEncoder
from embedkit.models.native.kernels import NO_COMPILER, load_kernels
from embedkit.models.native.linear import has_int8_dot_products
from embedkit.models.native.torch_compile import compiled_add_norm, pays
from embedkit.models.repository.model_folder import ModelFolder
from embedkit.models.selfcheck import matches_reference
from embedkit.models.varlen_attention import usable
from embedkit.types import Batch, Tokens

if TYPE_CHECKING:
    from embedkit.models.transformers.load import LoadedModel
    from embedkit.models.transformers.transformers_encoder import TransformersEncoder

#: A model before it is known which layers are wanted, and the same when it is.
Loaded: TypeAlias = "LoadedModel | NativeModel"
AnyEncoder: TypeAlias = "TransformersEncoder | CpuEncoder"
#: Shapes that a batch of the lean forward goes through: four linear layers and GELU, in whole blocks and the rest.
_SHAPES = 16
#: The same where kernels are compiled: four linear layers, rows in grains of 16 up to two parts of a batch.
_SHAPES_IN_GRAINS = 256
#: Tokens.
_SHORT = 64


class NotExactError(ModelError):
    """The lean forward gives other vectors in a batch than for a text alone."""


def load_model(folder: ModelFolder, config: ModelConfig, *, plainly: bool = False) -> Loaded:
    """Load the encoder of a model's folder.

    Args:
        folder: the model.
        config: how it is loaded.
        plainly: leave it to transformers.

    Raises:
        ModelError: it cannot be loaded, or not in int8.
        UsageError: there is no such device, or this machine has no int8.
    """
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    if dtype == "int8" and (device.type != "cpu" or not has_int8_dot_products()):
        raise UsageError(
            f"--dtype int8 needs a CPU that multiplies bytes (AVX-512 VNNI), and --device is {device.type} here",
            hint="leave --dtype out: that is the fastest here",
        )
    if not plainly and (device.type == "cuda" or (device.type == "cpu" and dtype in {"fp32", "int8"})):
        try:
            return _lean(folder, dtype, device)
        except NotNativeError as why:
            if dtype == "int8":
                raise ModelError(
                    f"--dtype int8: '{folder.name}' is not a model that embedkit quantises, because {why}",
                    hint=f"leave --dtype out; int8 is for plain models of these types: {', '.join(LEAN_TYPES)}",
                ) from None
    from embedkit.models.transformers import load

    return load.load_model(folder, config)


def make_encoder(
    loaded: Loaded, layers: tuple[int, ...], probe: Tokens, *, for_pooler: bool, plainly: bool = False
) -> tuple[AnyEncoder, str | None]:
    """The fastest way to run a model that gives the same states as transformers, one text at a time.

    Args:
        loaded: the model.
        layers: those wanted.
        probe: at least two short texts of different length.
        for_pooler: whether the model's own pooling head is wanted.
        plainly: the way that has least of embedkit in it, to be given one text at a time.

    Returns:
        The encoder, and a notice for the user where a way that should have worked does not.

    Raises:
        NotExactError: embedkit's own code does not give what it gives for a text alone; transformers may.
        ModelError: no way to batch texts gives what they give alone.
    """
    if not isinstance(loaded, NativeModel):
        from embedkit.models.transformers import load

        if plainly:
            return load.plain_encoder(loaded, layers), None
        return load.make_encoder(loaded, layers, probe, for_pooler=for_pooler)
    if loaded.device.type != "cpu":
        return _on_device(loaded, layers, probe, for_pooler=for_pooler)
    encoder = CpuEncoder(loaded, layers, for_pooler=for_pooler)
    probe = _short(probe)
    if not matches_reference(encoder, _alone(encoder, probe, loaded.dtype), probe):
        # There is nothing that int8 could fall back to.
        kind = ModelError if loaded.dtype == "int8" else NotExactError
        raise _inexact(kind)
    return encoder, NO_COMPILER if load_kernels() is None else None


def _on_device(
    loaded: NativeModel, layers: tuple[int, ...], probe: Tokens, *, for_pooler: bool
) -> tuple[GpuEncoder, str | None]:
    """The first kernel for packed attention that gives what torch's own gives for each text alone."""
    encoder = GpuEncoder(loaded, layers, for_pooler=for_pooler)
    # All of the probe: its long text is what takes a kernel several blocks.
    expected = _alone(encoder, probe, loaded.dtype)
    notice = None
    for backend in usable(encoder.device, encoder.dtype, encoder.head_dim):
        encoder.backend = backend
        try:
            exact = matches_reference(encoder, expected, probe)
        except (ImportError, RuntimeError, TypeError, ValueError):
            exact = False
        if exact:
            return encoder, notice
        notice = f"packed attention by '{backend}' does not work here, or not exactly: a slower one is used"
    # The error's traceback keeps this frame; transformers' weights are to have the device for themselves.
    del encoder, expected
    raise _inexact(NotExactError)


@torch.inference_mode()
def compile_if_worthwhile(encoder: AnyEncoder, rows: int | None) -> str | None:
    """Make an encoder ready for a run of so many rows of input; None = nobody knows.

    Returns:
        A notice for the user where what should have worked does not.
    """
    has_triton = find_spec("triton") is not None
    # Its first layer has a norm of the model's width, which that of the embeddings may not have.
    if (
        not isinstance(encoder, GpuEncoder)
        or not encoder.through
        or not pays(rows, encoder.device, has_triton=has_triton)
    ):
        return None
    try:
        encoder.add_norm = compiled_add_norm(encoder.through[0].norm)
    except Exception as fault:  # noqa: BLE001 - compilers raise anything; no row is involved yet
        return f"torch.compile does not work here ({type(fault).__name__}): the run goes on without it"
    return None


def _inexact(kind: type[ModelError]) -> ModelError:
    return kind(
        "this model gives other vectors in a batch than for a text alone, so embedkit cannot trust it",
        hint="please report the model's config.json and `embedkit doctor`",
    )


def _short(probe: Tokens) -> Tokens:
    """The short texts of the probe: the long one is for models that see only near tokens, and takes most time."""
    texts = np.flatnonzero(probe.lengths <= max(_SHORT, int(np.sort(probe.lengths)[1])))
    places, _ = probe.indices_of(texts)
    types = None if probe.token_type_ids is None else probe.token_type_ids[places]
    return replace(probe, input_ids=probe.input_ids[places], token_type_ids=types, lengths=probe.lengths[texts])


def _alone(encoder: CpuEncoder, probe: Tokens, dtype: str) -> list[dict[int, Tensor]]:
    """The states of each probe text by itself: per text {layer: [T, D]}.

    Raises:
        ModelError: a state is not finite.
    """
    states: list[dict[int, Tensor]] = []

    def take(layer: int, hidden_states: Tensor) -> None:
        if not bool(hidden_states.isfinite().all()):
            raise ModelError(
                f"the states of this model are not finite (NaN or infinite) from layer {layer} on",
                hint="use --dtype fp32, or check the weights"
                if dtype in {"bf16", "fp16"}
                else "check the weights",
            )
        states[-1][layer] = hidden_states[0]

    for text in range(len(probe.lengths)):
        states.append({})
        encoder.run(probe, Batch(np.array([text]), probe.lengths[[text]]), take)
    return states


def _lean(folder: ModelFolder, dtype: str, device: torch.device) -> NativeModel:
    if folder.runs_own_encoder:
        raise NotNativeError("it runs code of its own")
    shape = read_shape(folder.config)
    refuse_old_torch(folder, Path(folder.weights))
    if device.type == "cpu":
        tune_malloc()
        limit_onednn_cache(_SHAPES if load_kernels() is None else _SHAPES_IN_GRAINS)
    elif shape.model_type == "mpnet":
        raise NotNativeError("no kernel for packed attention adds MPNet's bias")
    disable_reduced_precision(device)
    return NativeModel(shape, Checkpoint(folder, shape), dtype, device)
