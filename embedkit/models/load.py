"""A model's folder → a FrozenEncoder that has been checked against transformers' own code.

Finds the device, loads the weights without a word from the library, says what is missing, and settles
by a test on the loaded weights whether the fast ways of running the model are exact for it.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.torch_version import TorchVersion

from embedkit.config import ModelConfig
from embedkit.errors import ModelError, UsageError
from embedkit.models.architectures import ARCHITECTURES, UNPROVEN, Architecture
from embedkit.models.encoder import FrozenEncoder
from embedkit.models.resolve import ModelFolder
from embedkit.records import Batch, Tokens

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SAFE_TORCH = "2.10"
#: Largest |Δ| between two right ways to compute a state, as a share of the largest state. What goes wrong
#: when texts see each other, or positions are miscounted, is a hundred times larger.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 1e-2}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A transformers model on its device, before it is known which layers are wanted.

    Attributes:
        model: the module, in eval mode.
        architecture: what is known of its kind.
        dtype: fp32, bf16 or fp16, resolved.
        has_pooler: whether the checkpoint has weights for its pooling head.
        max_positions: most tokens it has positions for; None = any number.
    """

    model: Any
    architecture: Architecture
    dtype: str
    has_pooler: bool
    max_positions: int | None

    @property
    def n_layers(self) -> int:
        """Encoder layers; hidden states are numbered 0..n_layers."""
        return int(self.model.config.num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        """Dimensions of a state."""
        return int(self.model.config.hidden_size)


def pick_device(name: str) -> torch.device:
    """The device that `--device` names; auto = a GPU if there is one.

    Raises:
        UsageError: there is no such device here.
    """
    found = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    found += ["mps"] if torch.backends.mps.is_available() else []
    found += ["cpu"]
    wanted = found[0] if name == "auto" else ("cuda:0" if name == "cuda" else name)
    if wanted not in found:
        raise UsageError(f"there is no device '{name}' here", hint=f"use one of: {', '.join(found)}")
    return torch.device(wanted)


def load_model(folder: ModelFolder, config: ModelConfig) -> LoadedModel:
    """Load the encoder of a model's folder onto its device.

    Raises:
        ModelError: transformers does not know it, weights outside the pooling head are missing or of
            another shape, or a file is damaged.
        UsageError: there is no such device.
    """
    refuse_old_torch(folder, Path(folder.weights))
    device = pick_device(config.device)
    dtype = _pick_dtype(config.dtype, device)
    architecture = ARCHITECTURES.get(folder.model_type, UNPROVEN)
    if architecture is UNPROVEN and folder.config.get("is_encoder_decoder"):
        raise ModelError(
            f"embedkit does not know which part of a '{folder.model_type}' model encodes",
            hint=f"known model types: {', '.join(ARCHITECTURES)}; or a model that is an encoder alone",
        )
    if device.type == "cpu":
        keep_freed_memory()
        forget_shapes()
    model, missing = _from_pretrained(folder, architecture, _DTYPES[dtype], trust=config.trust_remote_code)
    lost = sorted(key for key in missing if not _in_pooler(key))
    if lost:
        raise ModelError(
            f"the checkpoint of '{folder.name}' lacks {len(lost)} of the encoder's weights, such as {lost[0]}",
            hint="they would be random numbers; check that the weights belong to config.json",
        )
    has_pooler = getattr(model, "pooler", None) is not None and not any(_in_pooler(key) for key in missing)
    if architecture.encoder:
        model = model.get_encoder()
    model.eval().requires_grad_(requires_grad=False)
    return LoadedModel(
        model=model.to(device),
        architecture=architecture,
        dtype=dtype,
        has_pooler=has_pooler,
        max_positions=_max_positions(model.config, architecture),
    )


def make_encoder(
    loaded: LoadedModel, layers: tuple[int, ...], probe: Tokens, *, for_pooler: bool
) -> tuple[FrozenEncoder, str | None]:
    """The fastest way to run a model that gives the same states as transformers, one text at a time.

    Args:
        loaded: the model.
        layers: those wanted.
        probe: at least two short texts of different length.
        for_pooler: whether the model's own pooling head is wanted. It reads the first token of each row,
            and a packed batch is one row.

    Returns:
        The encoder, and a notice for the user where a way that should have worked does not.

    Raises:
        ModelError: no way to batch texts gives what they give alone.
    """
    expected = _alone(loaded, layers, probe)
    every = ("packed", "padded", "equal")
    kinds = every[every.index(loaded.architecture.batches) :]
    taps = (True, False) if loaded.architecture.layers is not None else (False,)
    ways = [(kind, tap) for kind in kinds for tap in taps if not (kind == "packed" and for_pooler)]
    own_attention = loaded.model.config._attn_implementation  # noqa: SLF001 - its only name
    notice = None
    for batches, tapped in ways:
        if batches != "packed":
            loaded.model.set_attn_implementation(own_attention)
        try:
            encoder = FrozenEncoder(loaded.model, loaded.architecture, layers, batches=batches, tapped=tapped)
            exact = _agrees(encoder, expected, probe)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            exact = False
        if exact:
            encoder.drop_unused_layers()
            return encoder, notice
        notice = "this model does not give the same vectors in embedkit's fast path: a slower one is used"
    raise ModelError(
        "this model gives other vectors in a batch than for a text alone, so embedkit cannot trust it",
        hint="please report the model's config.json",
    )


def plain_encoder(loaded: LoadedModel, layers: tuple[int, ...]) -> FrozenEncoder:
    """The way to run a model that has least of embedkit in it, to be given one text at a time."""
    return FrozenEncoder(loaded.model, loaded.architecture, layers, batches="padded", tapped=False)


def refuse_old_torch(folder: ModelFolder, weights: Path) -> None:
    """A pickle is read by a torch that reads tensors alone from it, without the holes that this had before.

    Args:
        folder: of the model.
        weights: which of its files, from there.

    Raises:
        ModelError: it is a pickle, and torch is too old.
    """
    version = TorchVersion(torch.__version__)
    if weights.name.startswith("pytorch_model.bin") and version < _SAFE_TORCH:
        raise ModelError(
            f"torch {version} does not read {weights} of model '{folder.name}' safely; 2.10 and newer do",
            hint="install a newer torch, or put a model.safetensors into the model's folder",
        )


def keep_freed_memory() -> None:
    """Let glibc keep big freed blocks for the next activation.

    It gives each one back to the kernel otherwise, and faults it in again page by page: 620,000 page faults
    in 600 rows, 5 to 10 % of the time.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold, one_gib = -1, -3, 1 << 30
        mallopt(m_mmap_threshold, one_gib)
        mallopt(m_trim_threshold, one_gib)


def forget_shapes() -> None:
    """Let oneDNN keep one primitive instead of 1,024.

    Each kept one holds a buffer as big as its output, and hardly two packed batches have the same shape: GELU
    alone held 600 MB after 90 batches of MiniLM. Making one anew takes 0.2 ms. oneDNN reads the variable when it
    is first used, which loading a model comes before.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1")


def _pick_dtype(name: str, device: torch.device) -> str:
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "fp32"


def _from_pretrained(
    folder: ModelFolder, architecture: Architecture, dtype: torch.dtype, *, trust: bool
) -> tuple[Any, set[str]]:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    loader = getattr(transformers, architecture.loader)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, info = loader.from_pretrained(
                folder.folder,
                local_files_only=True,
                output_loading_info=True,
                dtype=dtype,
                weights_only=True,
                # Not to load them, but to be told which they are instead of a report on stderr.
                ignore_mismatched_sizes=True,
                trust_remote_code=trust,
            )
    except Exception as fault:  # noqa: BLE001 - anything may come from there; no row is involved yet
        reason = str(fault).strip().split("\n", 1)[0][:200]
        raise ModelError(
            f"model '{folder.name}' ({folder.model_type}) cannot be loaded: {type(fault).__name__}: {reason}",
            hint="check that its files are whole and that this transformers knows the model type",
        ) from None
    if info["mismatched_keys"]:
        raise ModelError(
            f"weights of '{folder.name}' have other shapes than config.json says",
            hint="check that the weights belong to config.json",
        )
    return model, set(info["missing_keys"])


def _in_pooler(key: str) -> bool:
    return "pooler" in key.split(".")


def _max_positions(config: Any, architecture: Architecture) -> int | None:
    if architecture.position_limit is None:
        return None
    limit = getattr(config, architecture.position_limit, None)
    if limit is None or limit <= 0:
        return None
    # RoBERTa's positions start behind the pad's: of 514, 512 are for tokens.
    return int(limit) - (config.pad_token_id + 1 if architecture.positions == "after_pad" else 0)


@torch.inference_mode()
def _alone(loaded: LoadedModel, layers: tuple[int, ...], probe: Tokens) -> list[dict[int, Tensor]]:
    """The states of each probe text as transformers gives them for it alone: per text {layer: [T, D]}."""
    states: list[dict[int, Tensor]] = []
    for text in range(len(probe.lengths)):
        places, _ = probe.places(np.array([text]))
        inputs = {"input_ids": torch.from_numpy(probe.input_ids[places].astype(np.int64))[None]}
        if probe.token_type_ids is not None:
            inputs["token_type_ids"] = torch.from_numpy(probe.token_type_ids[places].astype(np.int64))[None]
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        on_device = {name: tensor.to(loaded.model.device) for name, tensor in inputs.items()}
        output = loaded.model(**on_device, output_hidden_states=True)
        if len(output.hidden_states) != loaded.n_layers + 1:
            raise ModelError(
                f"this model has {loaded.n_layers} layers but gives {len(output.hidden_states)} hidden states",
                hint="embedkit cannot number its layers; please report the model's config.json",
            )
        last = {loaded.n_layers: output.last_hidden_state}
        states.append({layer: last.get(layer, output.hidden_states[layer])[0] for layer in layers})
    return states


def _agrees(encoder: FrozenEncoder, expected: Sequence[dict[int, Tensor]], probe: Tokens) -> bool:
    """Whether the probe texts, batched as the encoder wants them, give the states that they have alone."""
    order = np.argsort(probe.lengths, kind="stable")
    # Texts of one length stand together, so where each batch may have but one length, that is where to cut.
    cuts = np.flatnonzero(np.diff(probe.lengths[order])) + 1
    groups = np.split(order, cuts) if encoder.equal_lengths else [order]
    batches = [Batch(texts, probe.lengths[texts]) for texts in groups]
    agrees: list[bool] = []

    def compare(layer: int, hidden_states: Tensor) -> None:
        start = 0
        for place, (text, length) in enumerate(zip(batch.texts.tolist(), batch.lengths.tolist(), strict=True)):
            found = hidden_states[0, start : start + length] if encoder.packed else hidden_states[place, :length]
            start += length
            wanted = expected[text][layer]
            scale = max(1.0, float(wanted.abs().max()))
            near = found.shape == wanted.shape and (
                float((found - wanted).abs().max()) <= scale * _TOLERANCE[wanted.dtype]
            )
            agrees.append(near)

    for batch in batches:
        encoder.run(probe, batch, compare)
    return len(agrees) == len(probe.lengths) * len(encoder.layers) and all(agrees)
