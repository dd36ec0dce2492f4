"""Runs a model by transformers' code, and returns its hidden states layer by layer as they are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    """A frozen encoder of transformers for some of its layers.

    If it is `hooked`, forward hooks on the layers take their states, and the pass stops after the deepest wanted
    one; else transformers collects the states of all layers. `attention`, a key of `varlen_attention.BACKENDS`, is
    used if `batches` is packed (see Architecture).
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
        hooked: bool,
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
        self._hooks = _LayerHooks(model, architecture) if hooked else None
        if self.packed:
            model.set_attn_implementation(packed_attention.register(attention))

    def prepare(self, tokens: Tokens, batch: Batch) -> Arrays:
        """See LayerEncoder."""
        return self._packed(tokens, batch) if self.packed else self._padded(tokens, batch)

    def _forward(self, inputs: Inputs, batch: Batch, take: TakeLayer, wanted: frozenset[int]) -> Tensor | None:
        width = batch.tokens if self.packed else int(batch.lengths[-1])
        arguments: dict[str, Any] = dict(inputs)
        if self.packed:
            # Made once for each batch, on the host, so that no layer waits for the device.
            arguments[packed_attention.PACKING] = Packing.of(batch, arguments.pop(CU_SEQLENS))

        def take_cut(layer: int, hidden_states: Tensor) -> None:
            # Some models pad to whole windows, and keep that padding between layers.
            take(layer, hidden_states[:, :width])

        if self._hooks is None:
            output = self.model(**arguments, output_hidden_states=True)
            for layer in sorted(wanted):
                is_last = layer == self.n_layers
                take_cut(layer, output.last_hidden_state if is_last else output.hidden_states[layer])
            return _pooler_output(output)
        with self._hooks.active(take_cut, wanted):
            try:
                output = self.model(**arguments)
            except _DeepestReached:
                return None
        # A final norm may follow the last layer.
        take_cut(self.n_layers, output.last_hidden_state)
        return _pooler_output(output)

    def drop_unused_layers(self) -> None:
        """Frees the weights of the layers after the deepest wanted one."""
        if self._hooks is not None:
            stack = self.model.get_submodule(str(self.architecture.layers))
            # The next layer stays: its hook stops the forward pass.
            del stack[max(self.layers) + 1 :]

    def _packed(self, tokens: Tokens, batch: Batch) -> Arrays:
        """Makes the arguments for concatenated texts, int64 [1, T], and the start of each text."""
        indices, position = tokens.indices_of(batch.texts)
        ids = tokens.input_ids[indices].astype(np.int64)
        if self.architecture.positions == "after_pad":
            position = positions_after_pad(ids, position, self.pad_id)
        arrays: Arrays = {"input_ids": ids[None], "position_ids": position[None], CU_SEQLENS: cu_seqlens(batch)}
        if tokens.token_type_ids is not None:
            arrays["token_type_ids"] = tokens.token_type_ids[indices].astype(np.int64)[None]
        return arrays

    def _padded(self, tokens: Tokens, batch: Batch) -> Arrays:
        """Makes the arguments for a rectangle, int64 [n, longest], padded on the right.

        It is wider than the longest text only if the model's code cannot take so few tokens.
        """
        indices, _ = tokens.indices_of(batch.texts)
        # From the lengths, not from the ids: a text may contain the pad id.
        width = max(int(batch.lengths[-1]), self._least_tokens)
        mask = np.arange(width) < batch.lengths[:, None]
        arrays: Arrays = {
            "input_ids": _rectangle(mask, tokens.input_ids[indices], self.pad_id),
            "attention_mask": mask.astype(np.int64),
        }
        if tokens.token_type_ids is not None:
            arrays["token_type_ids"] = _rectangle(mask, tokens.token_type_ids[indices], 0)
        return arrays


class _DeepestReached(Exception):  # noqa: N818 - a signal, not an error
    """Stops a forward pass after the deepest wanted layer."""


class _LayerHooks:
    """Forward hooks on the stack of layers: the input of its k-th call is hidden_states[k]."""

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        self.layers: frozenset[int] = frozenset()
        self.calls = 0
        self.take: TakeLayer | None = None
        for module in model.get_submodule(str(architecture.layers)).children():
            module.register_forward_pre_hook(self._before, with_kwargs=True)

    @contextmanager
    def active(self, take: TakeLayer, layers: frozenset[int]) -> Iterator[None]:
        """Passes the states of `layers` to `take` during one forward pass, and stops it after the deepest."""
        self.calls, self.take, self.layers = 0, take, layers
        try:
            yield
        finally:
            self.take = None

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.take is None:
            return
        layer = self.calls
        self.calls += 1
        if layer in self.layers:
            self.take(layer, args[0] if args else kwargs["hidden_states"])
        if layer == max(self.layers):
            raise _DeepestReached


def _pooler_output(output: Any) -> Tensor | None:
    pooled: Tensor | None = getattr(output, "pooler_output", None)
    return pooled


def _rectangle(mask: NDArray[np.bool_], flat: NDArray[np.int32], fill: int) -> NDArray[np.int64]:
    filled = np.full(mask.shape, fill, np.int64)
    filled[mask] = flat
    return filled
