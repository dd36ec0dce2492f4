"""Runs the layers on a GPU: a whole batch at once, in the number format of the run.

Texts go through linear layers and norms as one matrix, and through attention in one launch a layer if there is a
kernel for packed texts. Only that kernel is specific to GPUs: tests run the same code on a CPU.

A batch of 65,536 tokens is some 140 launches of a tenth of a millisecond and more. The host is far ahead of the
device, so a CUDA graph would gain nothing, and would need one graph for each number of tokens.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from embedkit.models.base import Arrays, Inputs, TakeLayer
from embedkit.models.native.attention import Texts
from embedkit.models.native.layer import Norms, activated
from embedkit.models.native.linear import Linear, TorchLinear
from embedkit.models.native.native_encoder import NativeEncoder
from embedkit.models.native.torch_compile import AddNorm, add_norm, compiled_add_norm, pays
from embedkit.models.varlen_attention import BACKENDS, CU_SEQLENS, Packing, cu_seqlens
from embedkit.types import Batch, Tokens

if TYPE_CHECKING:
    from embedkit.models.native.attention import SelfAttention
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
        self.head_dim = model.config.head_width
        super().__init__(model, layers, for_pooler=for_pooler)
        # Kernels for packed texts add no relative positions: `open_native` leaves such models to transformers.
        self._attention = [cast("SelfAttention", layer.attention) for layer in self._stack]

    def prepare(self, tokens: Tokens, batch: Batch) -> Arrays:
        """Makes the inputs of a forward pass, and int32 [n + 1] where each text begins; see LayerEncoder."""
        return {**super().prepare(tokens, batch), CU_SEQLENS: cu_seqlens(batch)}

    def _forward(self, inputs: Inputs, batch: Batch, take: TakeLayer, wanted: frozenset[int]) -> Tensor | None:
        packing = Packing.of(batch, inputs[CU_SEQLENS])
        texts = Texts(packing.groups, self._angles(inputs))
        attend = BACKENDS[self.attention]
        states = self._embed(inputs)
        if 0 in wanted:
            take(0, states[None])
        for number, (layer, attention) in enumerate(zip(self._stack, self._attention, strict=True), start=1):
            norms = layer.attention_norms
            projected = layer.qkv(states if norms.before is None else norms.before(states))
            context = attention.on_device(attend, projected, packing, texts)
            attended = self._joined(layer.attention_out(context), states, norms)
            norms = layer.ffn_norms
            up = layer.up(attended if norms.before is None else norms.before(attended))
            states = self._joined(layer.down(activated(layer, up)), attended, norms)
            if number in wanted:
                take(number, self._finished(states, number)[None])
        return self._pooler_output(self._finished(states, len(self._stack)), inputs)

    def _joined(self, update: Tensor, states: Tensor, norms: Norms) -> Tensor:
        """Adds the residual to an output, with the norms around that; overwrites `update`."""
        if norms.inner is not None:
            update = norms.inner(update)
        return update.add_(states) if norms.after is None else self.add_norm(update, states, norms.after)

    @torch.inference_mode()
    def compile_if_worthwhile(self, rows: int | None) -> str | None:
        """Compiles the norms for a run of so many rows; see LayerEncoder."""
        # The embeddings' norm may have another width than those of the layers.
        norm = self._stack[0].attention_norms.after if self._stack else None
        if norm is None or not pays(rows, self.device, has_triton=find_spec("triton") is not None):
            return None
        try:
            self.add_norm = compiled_add_norm(norm)
        except Exception as fault:  # noqa: BLE001 - compilers raise anything; no row is involved yet
            return f"torch.compile does not work here ({type(fault).__name__}): the run goes on without it"
        return None

    def _copy(self, weight: Tensor) -> Tensor:
        return weight.to(self.device, self.dtype, copy=True)

    def _linear(self, weight: Tensor, bias: Tensor, dtype: str) -> Linear:  # noqa: ARG002 - one for all weights
        return TorchLinear(self._copy(weight), self._copy(bias))
