"""Finds the hidden states that a model of transformers gives, by running a short text through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from embedkit.errors import ModelError, UsageError
from embedkit.models.repository.architectures import UNPROVEN, Architecture

#: Tokens of the text: no multiple of a window, a block or a molecule.
_N_TOKENS = 9


@dataclass(frozen=True, slots=True)
class StateLayout:
    """The `hidden_states` that a model gives, the last one as the model returns it.

    Attributes:
        widths: [n_layers + 1] dimensions of a state of each layer.
        of_tokens: [n_layers + 1] True if the layer has a state for each token.
    """

    widths: tuple[int, ...]
    of_tokens: tuple[bool, ...]

    def width(self, layers: Sequence[int]) -> int:
        """Returns the dimensions of the states of these layers.

        Raises:
            UsageError: a layer does not have a state for each token, or they differ in width.
        """
        short = [layer for layer in layers if not self.of_tokens[layer]]
        if short:
            usable = [str(layer) for layer, of_tokens in enumerate(self.of_tokens) if of_tokens]
            raise UsageError(
                f"layer {short[0]} of this model has fewer states than the text has tokens",
                hint=f"these layers have a state for each token: {', '.join(usable) or 'none'}",
            )
        widths = {self.widths[layer] for layer in layers}
        if len(widths) > 1:
            listed = ", ".join(f"{layer}: {self.widths[layer]}" for layer in layers)
            raise UsageError(
                f"these layers have states of different width ({listed})",
                hint="ask for layers of one width, in a run for each",
            )
        return widths.pop()


@torch.inference_mode()
def probe_states(model: Any, name: str, architecture: Architecture, dtype: str) -> StateLayout:
    """Runs a text through a model to find its states.

    Raises:
        ModelError: it cannot be run on a text alone, or gives no states.
    """
    length = max(_N_TOKENS, architecture.least_tokens(model.config))
    mask = (torch.arange(length, device=model.device) < _N_TOKENS).long()[None]
    try:
        output = model(input_ids=5 * mask, attention_mask=mask, output_hidden_states=True)
        found = [*output.hidden_states[:-1], output.last_hidden_state]
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"model '{name}' ({model.config.model_type}) cannot be run on a plain text in {dtype} "
            f"({type(error).__name__})",
            hint="embedkit takes encoders and decoders of text" if dtype == "fp32" else "use --dtype fp32",
        ) from None
    # Models known to embedkit may pad the text to a window; in an unknown one, more states may mean anything.
    may_pad = architecture is not UNPROVEN
    lengths = [states.shape[1] for states in found]
    return StateLayout(
        widths=tuple(int(states.shape[-1]) for states in found),
        of_tokens=tuple(length == _N_TOKENS or (may_pad and length > _N_TOKENS) for length in lengths),
    )
