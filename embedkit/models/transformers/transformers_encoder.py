"""A loaded model that hands out its hidden states layer by layer, as they are computed.

Takes token ids, gives states; knows nothing of texts, pooling or files. Runs packed or padded, as
`models/load.py` found right for the model at hand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedkit.models.base import Arrays, Inputs, LayerEncoder, TakeLayer, positions_after_pad
from embedkit.models.repository.architectures import Architecture
from embedkit.models.transformers import packed_attention
from embedkit.models.varlen_attention import CU_SEQLENS, Packing, cu_seqlens
from embedkit.types import Batch, Tokens


class TransformersEncoder(LayerEncoder):
    """A frozen encoder and the layers that are wanted of it.

    Args:
        model: the transformers module, in eval mode on its device.
        architecture: what is known of its kind.
        layers: the layers wanted, resolved.
        n_layers: the number of the last layer.
        hidden_size: dimensions of the states of the layers wanted.
        batches: packed, padded or equal; see Architecture.
        tapped: take states from the layer modules as they run, and stop after the deepest one wanted;
            else let transformers collect the states of all layers.
        attention: what computes the attention of packed texts, by its name in `varlen_attention.BACKENDS`.
    """

    backend = "transformers"

    def __init__(
        self,
        model: Any,
        architecture: Architecture,
        layers: tuple[int, ...],
        *,
        n_layers: int,
        hidden_size: int,
        batches: str,
        tapped: bool,
        attention: str = "groups",
    ) -> None:
        self.model = model
        self.architecture = architecture
        self.layers = layers
        self.packed = batches == "packed"
        self.equal_lengths = batches == "equal"
        self.n_layers = n_layers
        self.hidden_size = hidden_size
        self.device: torch.device = model.device
        self.pad_id: int = getattr(model.config, "pad_token_id", None) or 0
        self._least_tokens = architecture.least_tokens(model.config)
        self._tap = _LayerTap(_modules(model, architecture)) if tapped else None
        if self.packed:
            packed_attention.register(attention)
            model.set_attn_implementation(packed_attention.name_of(attention))

    def prepare(self, tokens: Tokens, batch: Batch) -> Arrays:
        """What a forward pass needs of a batch. Numpy alone: any thread may make it ahead.

        Args:
            tokens: the shard's texts.
            batch: which of them.
        """
        return self._packed(tokens, batch) if self.packed else self._padded(tokens, batch)

    def _forward(self, inputs: Inputs, batch: Batch, take: TakeLayer, wanted: frozenset[int]) -> Tensor | None:
        width = batch.tokens if self.packed else int(batch.lengths[-1])
        given: dict[str, Any] = dict(inputs)
        if self.packed:
            # Worked out once a batch, on the host: no layer does it again, or waits for the device.
            given[packed_attention.PACKING] = Packing.of(batch, given.pop(CU_SEQLENS))

        def hand_out(layer: int, hidden_states: Tensor) -> None:
            # Some models pad to whole windows, and do not take that away again inside.
            take(layer, hidden_states[:, :width])

        if self._tap is None:
            output = self.model(**given, output_hidden_states=True)
            for layer in sorted(wanted):
                is_last = layer == self.n_layers
                hand_out(layer, output.last_hidden_state if is_last else output.hidden_states[layer])
            return _pooler_output(output)
        with self._tap.giving(hand_out, wanted):
            try:
                output = self.model(**given)
            except _DeepEnough:
                return None
        # What the model hands out last may have one more norm behind it than the last layer.
        hand_out(self.n_layers, output.last_hidden_state)
        return _pooler_output(output)

    def drop_unused_layers(self) -> None:
        """Free the weights of the layers that no forward pass gets to."""
        if self._tap is not None:
            stack = self.model.get_submodule(str(self.architecture.layers))
            # The one behind the deepest stays: it is where the forward pass is stopped.
            del stack[max(self.layers) + 1 :]

    def _packed(self, tokens: Tokens, batch: Batch) -> Arrays:
        """Arguments of the model's forward for texts laid end to end, int64 [1, T]; and where each begins."""
        places, position = tokens.indices_of(batch.texts)
        ids = tokens.input_ids[places].astype(np.int64)
        arrays: Arrays = {
            "input_ids": ids[None],
            "position_ids": self._positions(ids, position)[None],
            CU_SEQLENS: cu_seqlens(batch),
        }
        if tokens.token_type_ids is not None:
            arrays["token_type_ids"] = tokens.token_type_ids[places].astype(np.int64)[None]
        return arrays

    def _padded(self, tokens: Tokens, batch: Batch) -> Arrays:
        """Arguments of the model's forward for a rectangle, int64 [n, longest], padded on the right.

        Wider than the longest text only where the model's code cannot take so few tokens.
        """
        places, _ = tokens.indices_of(batch.texts)
        # From the lengths, never from the ids: a pad id may be content.
        width = max(int(batch.lengths[-1]), self._least_tokens)
        mask = np.arange(width) < batch.lengths[:, None]
        arrays: Arrays = {
            "input_ids": _rectangle(mask, tokens.input_ids[places], self.pad_id),
            "attention_mask": mask.astype(np.int64),
        }
        if tokens.token_type_ids is not None:
            arrays["token_type_ids"] = _rectangle(mask, tokens.token_type_ids[places], 0)
        return arrays

    def _positions(self, ids: NDArray[np.int64], position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Position ids of packed tokens as the model would count them for each text alone: int64 [T]."""
        if self.architecture.positions != "after_pad":
            return position
        return positions_after_pad(ids, position, self.pad_id)


class _DeepEnough(Exception):  # noqa: N818 - a signal, not an error
    """Raised inside a forward pass once the deepest layer wanted has been handed out."""


class _LayerTap:
    """Listens at the stack of layers: what goes into its k-th call is hidden_states[k]."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.layers: frozenset[int] = frozenset()
        self.calls = 0
        self.take: TakeLayer | None = None
        for module in modules:
            module.register_forward_pre_hook(self._before, with_kwargs=True)

    def giving(self, take: TakeLayer, layers: frozenset[int]) -> _LayerTap:
        """Listen to the next forward pass, and end it at the deepest of `layers`."""
        self.calls = 0
        self.take = take
        self.layers = layers
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self.take = None

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.take is None:
            return
        layer = self.calls
        self.calls += 1
        if layer in self.layers:
            self.take(layer, args[0] if args else kwargs["hidden_states"])
        if layer == max(self.layers):
            raise _DeepEnough


def _modules(model: nn.Module, architecture: Architecture) -> list[nn.Module]:
    return list(model.get_submodule(str(architecture.layers)).children())


def _pooler_output(output: Any) -> Tensor | None:
    pooled: Tensor | None = getattr(output, "pooler_output", None)
    return pooled


def _rectangle(mask: NDArray[np.bool_], flat: NDArray[np.int32], fill: int) -> NDArray[np.int64]:
    filled = np.full(mask.shape, fill, np.int64)
    filled[mask] = flat
    return filled
