"""What a loaded model gives for a text alone: how its states are numbered, and whether batches give the same.

Runs transformers' own code, a text at a time; what `models/encoder.py` does is held against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedkit.errors import ModelError, UsageError
from embedkit.models.native.cpu_encoder import CpuEncoder
from embedkit.models.repository.architectures import UNPROVEN, Architecture
from embedkit.models.transformers.transformers_encoder import TransformersEncoder
from embedkit.types import Batch, Tokens

#: Largest difference between two right ways to compute the states of a text: root mean square, each dimension
#: measured by its own size, or one that is a thousand times larger than the rest would hide them. In MiniLM, texts
#: that see each other are off by 0.6 after one layer, and states of the next layer by 1.2, in fp32 as in bf16.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}
#: What the user is told where a way to batch texts fails this check and another one is taken.
SLOWER = "this model does not give the same vectors in embedkit's fast path: a slower one is used"
#: Tokens of the text that shows what states there are: no multiple of a window, a block or a molecule.
_N_TOKENS = 9


@dataclass(frozen=True, slots=True)
class States:
    """The `hidden_states` that a model gives, the last as the model hands it out.

    Attributes:
        widths: [n_layers + 1] dimensions of a state of each layer.
        of_tokens: [n_layers + 1] whether the layer has a state for each token.
    """

    widths: tuple[int, ...]
    of_tokens: tuple[bool, ...]

    @property
    def n_layers(self) -> int:
        """Hidden states are numbered 0..n_layers."""
        return len(self.widths) - 1

    def width(self, layers: Sequence[int]) -> int:
        """Dimensions of the states of these layers.

        Raises:
            UsageError: a layer does not have a state for each token, or they differ in width.
        """
        short = [layer for layer in layers if not self.of_tokens[layer]]
        there = [layer for layer, is_one in enumerate(self.of_tokens) if is_one]
        if short:
            raise UsageError(
                f"layer {short[0]} of this model has fewer states than the text has tokens",
                hint=f"these layers have a state for each token: {', '.join(map(str, there)) or 'none'}",
            )
        widths = {self.widths[layer] for layer in layers}
        if len(widths) > 1:
            told = ", ".join(f"{layer}: {self.widths[layer]}" for layer in layers)
            raise UsageError(
                f"these layers have states of different width ({told})",
                hint="ask for layers of one width, in a run for each",
            )
        return widths.pop()


@torch.inference_mode()
def survey(model: Any, name: str, architecture: Architecture, dtype: str) -> States:
    """Run a text through a model to see what states it gives.

    Raises:
        ModelError: it cannot be run on a text alone, or gives no states.
    """
    inputs = _inputs(np.full(_N_TOKENS, 5), None, model, architecture)
    try:
        output = model(**inputs, output_hidden_states=True)
        found = [*output.hidden_states[:-1], output.last_hidden_state]
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as fault:
        in_full = dtype == "fp32"
        precision = "" if in_full else f" in {dtype}"
        raise ModelError(
            f"model '{name}' ({model.config.model_type}) cannot be run on a plain text{precision} "
            f"({type(fault).__name__})",
            hint="embedkit takes encoders and decoders of text" if in_full else "use --dtype fp32",
        ) from None
    wide = architecture is not UNPROVEN
    return States(
        widths=tuple(int(states.shape[-1]) for states in found),
        # More of them are padding to a window, behind the text, in the models for which this was proven.
        of_tokens=tuple(
            states.shape[1] == _N_TOKENS or (wide and states.shape[1] > _N_TOKENS) for states in found
        ),
    )


@torch.inference_mode()
def states_alone(
    model: Any, architecture: Architecture, layers: tuple[int, ...], probe: Tokens
) -> list[dict[int, Tensor]]:
    """The states of each probe text as transformers gives them for it alone: per text {layer: [T, D]}.

    Raises:
        ModelError: a state is not finite.
    """
    states: list[dict[int, Tensor]] = []
    for text in range(len(probe.lengths)):
        places, _ = probe.indices_of(np.array([text]))
        types = None if probe.token_type_ids is None else probe.token_type_ids[places]
        inputs = _inputs(probe.input_ids[places], types, model, architecture)
        output = model(**inputs, output_hidden_states=True)
        of_layers = [*output.hidden_states[:-1], output.last_hidden_state]
        states.append({layer: of_layers[layer][0, : len(places)] for layer in layers})
        broken = [layer for layer in sorted(layers) if not bool(states[-1][layer].isfinite().all())]
        if broken:
            raise ModelError(
                f"the states of this model are not finite (NaN or infinite) from layer {broken[0]} on",
                hint="use --dtype fp32, or check the weights",
            )
    return states


def _inputs(
    ids: np.ndarray[Any, Any], types: np.ndarray[Any, Any] | None, model: Any, architecture: Architecture
) -> Mapping[str, Tensor]:
    short = max(0, architecture.least_tokens(model.config) - len(ids))
    arrays = {"input_ids": np.pad(ids, (0, short)), "attention_mask": np.pad(np.ones(len(ids)), (0, short))}
    if types is not None:
        arrays["token_type_ids"] = np.pad(types, (0, short))
    return {
        name: torch.from_numpy(array.astype(np.int64))[None].to(model.device) for name, array in arrays.items()
    }


def matches_reference(
    encoder: TransformersEncoder | CpuEncoder, expected: Sequence[dict[int, Tensor]], probe: Tokens
) -> bool:
    """Whether the probe texts, batched as the encoder wants them, give the states that they have alone."""
    order = np.argsort(probe.lengths, kind="stable")
    # Texts of one length stand together, so where each batch may have but one length, that is where to cut.
    cuts = np.flatnonzero(np.diff(probe.lengths[order])) + 1
    groups = np.split(order, cuts) if encoder.equal_lengths else [order]
    batches = [Batch(texts, probe.lengths[texts]) for texts in groups]
    sizes = {layer: _sizes([of_text[layer] for of_text in expected]) for layer in encoder.layers}
    verdicts: list[bool] = []

    def compare(layer: int, hidden_states: Tensor) -> None:
        start = 0
        for place, (text, length) in enumerate(zip(batch.texts.tolist(), batch.lengths.tolist(), strict=True)):
            found = hidden_states[0, start : start + length] if encoder.packed else hidden_states[place, :length]
            start += length
            wanted = expected[text][layer]
            near = found.shape == wanted.shape and (
                float(((found.float() - wanted.float()) / sizes[layer]).square().mean().sqrt())
                <= _TOLERANCE[wanted.dtype]
            )
            verdicts.append(near)

    for batch in batches:
        encoder.run(probe, batch, compare)
    return len(verdicts) == len(probe.lengths) * len(encoder.layers) and all(verdicts)


def _sizes(states: Sequence[Tensor]) -> Tensor:
    """Root mean square of each dimension of a layer's states, float32 [D]; at least a tenth of the usual."""
    sizes = torch.cat(list(states)).float().square().mean(dim=0).sqrt()
    return sizes.clamp_min(max(1e-12, 0.1 * float(sizes.median())))
