"""Runs the layers on a GPU: a whole batch at once, in the number format of the run.

Texts go through linear layers and norms as one matrix, and through attention in one launch a layer if there is a
kernel for packed texts. Only that kernel is specific to GPUs: tests run the same code on a CPU.

A batch of 65,536 tokens is some 140 launches of a tenth of a millisecond and more. The host is far ahead of the
device, so a CUDA graph would gain nothing, and would need one graph for each number of tokens.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from embedkit.models.base import Arrays, Inputs, TakeLayer
from embedkit.models.native.layer import ACTIVATIONS
from embedkit.models.native.linear import Linear, TorchLinear
from embedkit.models.native.native_encoder import NativeEncoder
from embedkit.models.native.torch_compile import AddNorm, add_norm, compiled_add_norm, pays
from embedkit.models.varlen_attention import BACKENDS, CU_SEQLENS, FULL, Packing, cu_seqlens
from embedkit.types import Batch, Tokens

if TYPE_CHECKING:
    from embedkit.models.native.native_model import NativeModel

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class GpuEncoder(NativeEncoder):
    """A frozen encoder on a GPU; see NativeEncoder.

    Attributes:
        attention: the kernel's name in `varlen_attention.BACKENDS`; may be set to another.
        add_norm: adds a residual and normalises; may be set to a compiled kernel.
    """

    backend = "lean"
    scales_queries = False

    @torch.inference_mode()
    def __init__(self, model: NativeModel, layers: tuple[int, ...], *, for_pooler: bool) -> None:
        self.attention = "groups"
        self.add_norm: AddNorm = add_norm
        self.dtype = _DTYPES[model.dtype]
        self.head_dim = model.config.hidden_size // model.config.n_heads
        self._activation = ACTIVATIONS[model.config.activation]
        super().__init__(model, layers, for_pooler=for_pooler)

    def prepare(self, tokens: Tokens, batch: Batch) -> Arrays:
        """Makes the inputs of a forward pass, and int32 [n + 1] where each text begins; see LayerEncoder."""
        return {**super().prepare(tokens, batch), CU_SEQLENS: cu_seqlens(batch)}

    def _forward(self, inputs: Inputs, batch: Batch, take: TakeLayer, wanted: frozenset[int]) -> Tensor | None:
        packing = Packing.of(batch, inputs[CU_SEQLENS])
        attend = BACKENDS[self.attention]
        states = self._embed(inputs)
        if 0 in wanted:
            take(0, states[None])
        for number, layer in enumerate(self._stack, start=1):
            query, key, value = layer.qkv(states).view(len(states), 3, layer.n_heads, -1).unbind(1)
            context = attend(query, key, value, packing, FULL).reshape(states.shape)
            attended = self.add_norm(layer.attention_out(context), states, layer.attention_norm)
            inner = self._activation(layer.up(attended))
            states = self.add_norm(layer.down(inner), attended, layer.output_norm)
            if number in wanted:
                take(number, states[None])
        return self._pooler_output(states, inputs)

    @torch.inference_mode()
    def compile_if_worthwhile(self, rows: int | None) -> str | None:
        """Compiles the norms for a run of so many rows; see LayerEncoder."""
        # The embeddings' norm may have another width than those of the layers.
        if not self._stack or not pays(rows, self.device, has_triton=find_spec("triton") is not None):
            return None
        try:
            self.add_norm = compiled_add_norm(self._stack[0].attention_norm)
        except Exception as fault:  # noqa: BLE001 - compilers raise anything; no row is involved yet
            return f"torch.compile does not work here ({type(fault).__name__}): the run goes on without it"
        return None

    def _copy(self, weight: Tensor) -> Tensor:
        return weight.to(self.device, self.dtype, copy=True)

    def _linear(self, weight: Tensor, bias: Tensor, dtype: str) -> Linear:  # noqa: ARG002 - one for all weights
        return TorchLinear(self._copy(weight), self._copy(bias))
