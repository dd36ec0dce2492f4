"""`embedkit.Encoder`: texts in memory to vectors in memory, by the options of `embedkit encode`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedkit.assembly import assemble
from embedkit.config import BatchConfig, ModelConfig, PoolingConfig, TextConfig
from embedkit.errors import InputError, ModelError, UsageError
from embedkit.request import find_model

if TYPE_CHECKING:
    from embedkit.records import RawVectors


class Encoder:
    """A frozen encoder with a pooling. Its arguments are the options of `embedkit encode`, by the same names.

    Args:
        model: folder, alias or hub id.
        revision: branch, tag or commit on the hub.
        offline: open no socket.
        trust_remote_code: run code that comes with the model; needs a commit as revision.
        lowercase: auto, yes or no.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto, fp32, bf16 or fp16.
        max_length: most tokens of a text, special tokens counted; None or auto = what the model can take.
        on_long: truncate, chunk or error.
        stride: tokens that a window shares with the one before it.
        chunk_pool: mean, max or first: one vector of all windows.
        prompt: put before each text.
        prompt_name: a name among the model's own prompts.
        layers: such as `-1`, `-4:`, `9:13`, `all`.
        layer_agg: concat, mean, sum, max or separate.
        pool: a pooling, a file of `embedkit fit`, the name of an installed pooler, or a comma list of these.
        exclude_special: leave special tokens out of the pooling.
        normalize: scale to length 1; None = as the model's recipe says under `auto`, else not.
        truncate_dim: keep the first dimensions.
        batch_tokens: tokens in a batch.
        batch_size: most texts in a batch.

    Raises:
        UsageError: a value that cannot be used.
        ModelError: the model cannot be had, or lacks what is asked of it.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "minilm",
        *,
        revision: str | None = None,
        offline: bool = False,
        trust_remote_code: bool = False,
        lowercase: str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        max_length: int | Literal["auto"] | None = None,
        on_long: str = "truncate",
        stride: int | None = None,
        chunk_pool: str | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        layers: str = "-1",
        layer_agg: str = "concat",
        pool: str = "auto",
        exclude_special: bool = False,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        models = ModelConfig(os.fspath(model), revision, offline, trust_remote_code, lowercase, device, dtype)
        texts = TextConfig(
            None if max_length == "auto" else max_length, on_long, stride, chunk_pool, prompt, prompt_name
        )
        pooling = PoolingConfig(layers, layer_agg, pool, exclude_special, normalize, truncate_dim)
        request = find_model(models, texts, pooling)
        assembly = assemble(request, models, texts, pooling, BatchConfig(batch_tokens, batch_size))
        self._embedder = assembly.embedder
        self.recipe: dict[str, Any] = assembly.recipe
        self.fingerprint: str = assembly.fingerprint
        self.notices: tuple[str, ...] = assembly.notices

    @property
    def dims(self) -> dict[str, int]:
        """Dimensions of each variant; one with the name "" unless layers are kept separate."""
        return {variant.name: variant.dims for variant in self._embedder.variants}

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One vector a text: float32 [N, D]. An empty or blank text has none: its row is NaN.

        Raises:
            UsageError: several vectors a text were asked for; `encode_variants` and `encode_tokens` give them.
        """
        variants = self.encode_variants(texts)
        if len(variants) > 1:
            raise UsageError(
                f"layer_agg='separate' gives {len(variants)} vectors a text", hint="use encode_variants(texts)"
            )
        return next(iter(variants.values()))

    def encode_variants(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """For each variant float32 [N, D]; NaN where the text is empty.

        Raises:
            UsageError: pool='none' was asked for.
            ModelError: a vector is not finite.
        """
        from embedkit.pooling.finish import finish

        if not self._embedder.pooling.poolings:
            raise UsageError("pool='none' gives a vector a token", hint="use encode_tokens(texts)")
        raw = self._embed(texts)
        out: dict[str, NDArray[np.float32]] = {}
        for name, vectors in raw.vectors.items():
            broken = raw.texts[~np.isfinite(vectors).all(axis=1)]
            if len(broken):
                raise ModelError(
                    f"a vector is not finite (NaN or infinite): texts[{broken[0]}]", hint="use dtype='fp32'"
                )
            done = finish(vectors, normalize=self._embedder.normalize, truncate_dim=self._embedder.truncate_dim)
            out[name] = np.full((len(texts), done.shape[1]), np.nan, np.float32)
            out[name][raw.texts] = done
        return out

    def encode_tokens(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """Token vectors: N arrays float32 [tokens that take part, D]; [0, D] where the text is empty.

        Raises:
            UsageError: pool is not 'none', or layers are kept separate.
        """
        if self._embedder.pooling.poolings or len(self.dims) > 1:
            raise UsageError("encode_tokens needs pool='none' and one vector a token", hint="pool='none'")
        raw = self._embed(texts)
        out = [np.zeros((0, self.dims[""]), np.float32) for _ in texts]
        for text, states in zip(raw.texts.tolist(), raw.vectors[""], strict=True):
            out[text] = states
        return out

    def _embed(self, texts: Sequence[str]) -> RawVectors:
        from embedkit.embedding import embed
        from embedkit.tokenizer import refuse_long

        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InputError("texts must be a list of str", hint="encode([text]) for a single text")
        tokenized = self._embedder.tokenizer.tokenize(texts)
        if tokenized.faults:
            text, code = min(tokenized.faults.items())
            raise InputError(
                f"texts[{text}] has a token or a character that the model does not know ({code})",
                hint="change that text, or leave it out; encoder.notices tell what the model cannot take",
            )
        if self._embedder.on_long == "error":
            refuse_long(tokenized.n_tokens, self._embedder.tokenizer.max_length, range(len(texts)))
        raw = embed(tokenized, self._embedder, lambda *_: None)
        if raw.unfit:
            raise ModelError(
                f"text {min(raw.unfit)} does not fit into memory even alone", hint="use a smaller max_length"
            )
        return raw
