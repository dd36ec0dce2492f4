"""The base classes that every backend implements: a loaded model, and the encoder that it makes.

A backend computes hidden states from token ids: `transformers/` runs the code of that library, `native/` is
embedkit's own. Nothing here depends on one of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedkit.errors import ModelError
from embedkit.models.repository.architectures import Architecture
from embedkit.types import Batch, Tokens

#: Called with a layer's number and its states: [1, T, D] if packed, [B, T, D] if padded. With TakePart, they are
#: overwritten after the call.
TakeLayer: TypeAlias = Callable[[int, Tensor], None]
#: Called with consecutive texts of a batch, returns what is called with their states, in any thread.
TakePart: TypeAlias = Callable[[slice], TakeLayer]
#: The inputs of a forward pass, by names of the encoder's own.
Arrays: TypeAlias = dict[str, NDArray[Any]]
Inputs: TypeAlias = Mapping[str, Tensor]


class NotExactError(ModelError):
    """A backend gives other vectors in a batch than for a text alone; another backend may be exact."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel(ABC):
    """A model whose configuration was checked, before it is known which layers are wanted."""

    architecture: Architecture
    config: Any  # in the backend's own form
    device: torch.device
    dtype: str  # fp32, bf16, fp16 or int8; resolved
    n_layers: int  # hidden states are numbered 0..n_layers
    has_pooler: bool  # whether the checkpoint has weights of a pooling head
    max_positions: int | None  # most tokens that it has positions for; None if there is no limit
    notice: str | None = None  # what the user should know of its config.json; None if nothing

    @abstractmethod
    def make_encoder(
        self, layers: tuple[int, ...], probe: Tokens, *, for_pooler: bool
    ) -> tuple[LayerEncoder, str | None]:
        """Returns the fastest encoder that gives the same states in a batch as for a text alone.

        Args:
            layers: the layers wanted, resolved.
            probe: at least two short texts of different length, for the check.
            for_pooler: whether the model's own pooling head is wanted.

        Returns:
            The encoder, and a notice for the user where a faster way does not work; None if there is none.

        Raises:
            NotExactError: this backend has no exact way to batch texts; another may have one.
            ModelError: no backend has.
            UsageError: a layer does not have a state for each token, or layers differ in width.
        """

    @abstractmethod
    def has_final_norm(self, input_ids: Sequence[int]) -> bool:
        """Checks on a text, [T], whether a norm follows the last layer."""


class LayerEncoder(ABC):
    """A frozen encoder that hands out the wanted layers as they are computed."""

    backend: str  # the name of the code that computes the states; a run is not resumed by another one
    device: torch.device
    layers: tuple[int, ...]
    n_layers: int
    hidden_size: int  # dimensions of a state of the layers wanted
    packed: bool  # whether the texts of a batch are concatenated, [1, T, D]; else they are padded, [B, T, D]
    equal_lengths: bool  # whether a batch may only have texts of one length

    @abstractmethod
    def prepare(self, tokens: Tokens, batch: Batch) -> Arrays:
        """Makes the inputs of a forward pass. Uses numpy alone, so any thread may call it ahead."""

    @abstractmethod
    def _forward(self, inputs: Inputs, batch: Batch, take: TakeLayer, wanted: frozenset[int]) -> Tensor | None:
        """Computes up to the deepest of the layers in `wanted`; see `forward`."""

    @torch.inference_mode()
    def run(self, tokens: Tokens, batch: Batch, take: TakeLayer) -> Tensor | None:
        """Prepares a batch and computes its states; see `forward`."""
        return self.forward(tensors(self.prepare(tokens, batch), self.device), batch, take)

    @torch.inference_mode()
    def forward(self, inputs: Inputs, batch: Batch, take: TakeLayer) -> Tensor | None:
        """Computes the states of a batch.

        Args:
            inputs: the arrays of `prepare`, as tensors on the encoder's device.
            batch: the same batch.
            take: called once for each wanted layer, in order of depth. Padded states are as wide as the longest
                text; those after a text's last token are arbitrary.

        Returns:
            The output of the model's own pooling head, [n, D]; None if it has none, or the last layer is not
            computed.
        """
        return self._forward(inputs, batch, take, frozenset(self.layers))

    def forward_parts(self, inputs: Inputs, batch: Batch, take_part: TakePart) -> None:
        """Computes the states of a batch; those of several parts at once, where the encoder divides it.

        Args:
            inputs: see `forward`.
            batch: see `forward`.
            take_part: called for each part of the batch, in order; see `forward` for what it returns.
        """
        self.forward(inputs, batch, take_part(slice(0, len(batch.texts))))

    @torch.inference_mode()
    def first_non_finite_layer(self, tokens: Tokens, text: int) -> int | None:
        """Finds the first layer where a state of a text is NaN or infinite, by running the text alone.

        Layers from 0 to the deepest wanted are examined; None if all are finite, so that the pooling makes the
        vector non-finite.
        """
        length = int(tokens.lengths[text])
        broken: list[int] = []

        def look(layer: int, hidden_states: Tensor) -> None:
            if not bool(hidden_states[0, :length].isfinite().all()):
                broken.append(layer)

        batch = Batch(np.array([text]), tokens.lengths[[text]])
        inputs = tensors(self.prepare(tokens, batch), self.device)
        self._forward(inputs, batch, look, frozenset(range(max(self.layers) + 1)))
        return min(broken, default=None)

    def compile_if_worthwhile(self, rows: int | None) -> str | None:  # noqa: ARG002 - for encoders that compile
        """Compiles parts of the model if a run of so many input rows saves that time; None if unknown.

        Returns:
            A notice for the user if compiling fails; else None.
        """
        return None


def tensors(arrays: Arrays, device: torch.device) -> dict[str, Tensor]:
    """Converts arrays to tensors of the same shapes on a device; on a CPU they share the arrays' memory."""
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def positions_after_pad(ids: NDArray[np.int64], position: NDArray[np.int64], pad_id: int) -> NDArray[np.int64]:
    """Counts positions as RoBERTa does: from `pad_id + 1`; pad ids in a text get `pad_id` and are not counted.

    Args:
        ids: int64 [T], tokens of all texts, packed.
        position: int64 [T], the position of each token in its text, from 0.
        pad_id: id of the padding token.
    """
    content = (ids != pad_id).astype(np.int64)
    counted = np.cumsum(content)
    opens = np.maximum.accumulate(np.where(position == 0, np.arange(len(ids)), 0))
    before = (counted - content)[opens]
    positions: NDArray[np.int64] = (counted - before) * content + pad_id
    return positions
