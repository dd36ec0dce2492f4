"""`embedkit.Encoder`: texts in memory to vectors in memory, by the options of `embedkit encode`.

Threads may share an Encoder, and make several at once. A process forked from one with an Encoder cannot use it:
the child lacks torch's threads and would wait for them forever.
"""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedkit.config import VectorConfig, arguments
from embedkit.config.arguments import Layers, Pool
from embedkit.errors import InputError, ModelError, UsageError
from embedkit.inference.build import build
from embedkit.inference.model_spec import find_model
from embedkit.models.load_lock import LOAD_LOCK
from embedkit.pooling.fitted_model import with_model_of_poolers
from embedkit.sources.in_memory import Texts, texts_of

if TYPE_CHECKING:
    from embedkit.pooling.heads import PredictionHead
    from embedkit.types import RawVectors

_SPAWN = 'make the Encoder in the child process, or start it with multiprocessing.get_context("spawn")'


class Encoder:
    """A frozen encoder with a pooling. Its arguments are the options of `embedkit encode`, by the same names.

    Several threads may use one Encoder: they take turns. It is pickled and copied by its arguments; the copy loads
    the model again.

    Args:
        model: folder, alias or hub id; None: the model that a fitted file in `pool` names, else "minilm".
        revision: branch, tag or commit on the hub.
        offline: open no socket.
        trust_remote_code: run code that comes with the model; needs a commit as revision.
        lowercase: auto, yes or no.
        device: auto, cpu, cuda, cuda:N or mps, or a torch.device.
        dtype: auto, fp32, bf16, fp16 or int8, or a dtype of torch or numpy.
        max_length: most tokens of a text, special tokens included; None or auto = as a pooler's file says, else
            the model's limit.
        on_long: truncate, chunk or error; None: as a pooler's file says, else truncate.
        stride: tokens that a window shares with the one before it.
        chunk_pool: mean, max or first: one vector of all windows.
        prompt: put before each text.
        prompt_name: a name among the model's own prompts.
        layers: such as `-1`, `-4:`, `9:13`, `all`; or a number, a list of numbers, a range or a slice.
        layer_agg: concat, mean, sum, max or separate.
        pool: a pooling, a file of `embedkit fit` or `sweep`, the name of an installed pooler, or a list of these.
        exclude_special: leave special tokens out of the pooling.
        normalize: scale to length 1; None: as the model's recipe says under `auto`, else not.
        truncate_dim: keep the first dimensions.
        batch_tokens: tokens in a batch; None or auto = what fits.
        batch_size: most texts in a batch.

    Raises:
        UsageError: a value that cannot be used.
        ModelError: the model is unavailable, or lacks the requested pooling.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        revision: str | None = None,
        offline: bool = False,
        trust_remote_code: bool = False,
        lowercase: str = "auto",
        device: str | object = "auto",
        dtype: str | object = "auto",
        max_length: int | Literal["auto"] | None = None,
        on_long: str | None = None,
        stride: int | None = None,
        chunk_pool: str | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        layers: Layers = "-1",
        layer_agg: str = "concat",
        pool: Pool = "auto",
        exclude_special: bool = False,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        batch_tokens: int | Literal["auto"] | None = None,
        batch_size: int | None = None,
    ) -> None:
        options = {name: value for name, value in locals().items() if name != "self"}
        self._config = arguments.vector_config(**options)
        notices: tuple[str, ...] = ()
        if model is None:
            self._config, notices = with_model_of_poolers(self._config)
        self._load(notices)

    def _load(self, notices: tuple[str, ...] = ()) -> None:
        model = self._config.model
        in_full = model.dtype == "fp32" or (model.dtype == "auto" and model.device == "cpu")
        with LOAD_LOCK.loading(exclusive=not in_full):
            spec = find_model(self._config)
            ready = build(spec)
        self._spec = spec
        self._embedder = ready.embedder
        self._turn = threading.Lock()
        self._made_in = os.getpid()
        self.recipe = dict(ready.facts.recipe)
        self.fingerprint: str = ready.facts.fingerprint
        self.notices: tuple[str, ...] = (*notices, *ready.facts.notices)

    def __getstate__(self) -> tuple[VectorConfig, str]:
        """Pickles the arguments, without weights."""
        return self._config, self.fingerprint

    def __setstate__(self, state: tuple[VectorConfig, str]) -> None:
        """Loads the model again.

        Raises:
            ModelError: the model is a different one here.
        """
        self._config, fingerprint = state
        self._load()
        if self.fingerprint != fingerprint:
            raise ModelError(
                f"model '{self._config.model.model}' is not the one of the pickled Encoder: files or dtype differ",
                hint="make the Encoder where it is used, or with a fixed revision and dtype",
            )

    def __repr__(self) -> str:
        """Returns the model and what its vectors are made of, such as `Encoder('minilm', layers=[6], …)`."""
        recipe, model = self.recipe, self._config.model.model
        dims = "+".join(map(str, self.dims.values()))
        return (
            f"Encoder({model!r}, layers={recipe['layers']}, pool={recipe['pool']}, dtype={recipe['dtype']!r}, "
            f"max_length={recipe['text']['max_length']}, normalize={recipe['normalize']}) -> [N, {dims}]"
        )

    @property
    def dims(self) -> dict[str, int]:
        """Dimensions of each variant; one with the name "" unless layers are kept separate."""
        return {variant.name: variant.dims for variant in self._embedder.variants}

    def encode(self, texts: Texts) -> NDArray[np.float32]:
        """Returns one vector a text: float32 [N, D]; NaN for an empty, blank or missing text.

        Args:
            texts: a list, generator, array or column (of pandas, polars, pyarrow, datasets) of str, taken by
                position; None and NaN are missing texts.

        Raises:
            UsageError: several vectors a text were asked for (`encode_variants` and `encode_tokens` give them), or
                this is a fork of the process that made the Encoder.
            InputError: `texts` is a table, or contains something other than texts.
            ModelError: a vector is not finite, or a text does not fit into memory.
        """
        variants = self.encode_variants(texts)
        if len(variants) > 1:
            raise UsageError(
                f"layer_agg='separate' gives {len(variants)} vectors a text", hint="use encode_variants(texts)"
            )
        return next(iter(variants.values()))

    def encode_variants(self, texts: Texts) -> dict[str, NDArray[np.float32]]:
        """Returns the vectors of each variant: float32 [N, D]; NaN for an empty text.

        Args:
            texts: see `encode`.

        Raises:
            UsageError: pool='none' was asked for, or this is a fork of the process that made the Encoder.
            InputError: see `encode`.
            ModelError: see `encode`.
        """
        from embedkit.pooling.postprocess import finish

        n_texts, raw = self._pooled(texts)
        out: dict[str, NDArray[np.float32]] = {}
        for name, vectors in raw.vectors.items():
            done = finish(vectors, normalize=self._embedder.normalize, truncate_dim=self._embedder.truncate_dim)
            out[name] = np.full((n_texts, done.shape[1]), np.nan, np.float32)
            out[name][raw.texts] = done
        return out

    def predict_proba(self, texts: Texts) -> NDArray[np.float32]:
        """Returns the probability of each class of the head in the pooler's file, for each text.

        Args:
            texts: see `encode`.

        Returns:
            float32 [N, K] in the order of `embedkit.read_head(FILE).classes`; NaN for an empty text.

        Raises:
            UsageError: the pooler has no head, a head that predicts values, or one that was trained on texts in
                another casing or with another prompt.
            InputError: see `encode`.
            ModelError: see `encode`; or the pooler's file has changed.
        """
        head = self._head
        n_texts, raw = self._pooled(texts)
        found = head.predict_proba(raw.vectors[""])
        probabilities = np.full((n_texts, found.shape[1]), np.nan, np.float32)
        probabilities[raw.texts] = found
        return probabilities

    def predict(self, texts: Texts) -> list[Any]:
        """Returns what the head in the pooler's file predicts: N classes, lists of labels, or values.

        None for an empty text.

        Args:
            texts: see `encode`.

        Raises:
            UsageError: the pooler has no head, or one that was trained on texts in another casing or with another
                prompt.
            InputError: see `encode`.
            ModelError: see `encode`; or the pooler's file has changed.
        """
        head = self._head
        n_texts, raw = self._pooled(texts)
        predicted: list[Any] = [None] * n_texts
        for text, label in zip(raw.texts.tolist(), head.labels(head.scores(raw.vectors[""])), strict=True):
            predicted[text] = label
        return predicted

    def encode_tokens(self, texts: Texts) -> list[NDArray[np.float32]]:
        """Returns token vectors: N arrays float32 [pooled tokens, D]; [0, D] for an empty text.

        Args:
            texts: see `encode`.

        Raises:
            UsageError: pool is not 'none', layers are kept separate, or this is a fork of the process that made
                the Encoder.
            InputError: see `encode`.
            ModelError: see `encode`.
        """
        if self._embedder.pooling.poolings or len(self.dims) > 1:
            raise UsageError("encode_tokens needs pool='none' and one vector a token", hint="pool='none'")
        n_texts, raw = self._embed(texts)
        out = [np.zeros((0, self.dims[""]), np.float32) for _ in range(n_texts)]
        for text, states in zip(raw.texts.tolist(), raw.vectors[""], strict=True):
            out[text] = states
        return out

    @cached_property
    def _head(self) -> PredictionHead:
        """The head of the pooler, for texts as this Encoder reads them."""
        config = replace(self._config, pooling=replace(self._config.pooling, with_head=True))
        spec = find_model(config, self._spec.folder)
        was, now = ([one.identity for one in of.poolers.values()] for of in (self._spec, spec))
        if spec.head is None or was != now:
            raise ModelError("the pooler's file has changed", hint="make the Encoder again")
        return spec.head

    def _pooled(self, texts: Texts) -> tuple[int, RawVectors]:
        """Returns the number of texts, and the vectors of those that are not empty, before they are finished."""
        if not self._embedder.pooling.poolings:
            raise UsageError("pool='none' gives a vector a token", hint="use encode_tokens(texts)")
        n_texts, raw = self._embed(texts)
        for vectors in raw.vectors.values():
            broken = raw.texts[~np.isfinite(vectors).all(axis=1)]
            if len(broken):
                raise ModelError(
                    f"a vector is not finite (NaN or infinite): texts[{broken[0]}]", hint="use dtype='fp32'"
                )
        return n_texts, raw

    def _embed(self, texts: Texts) -> tuple[int, RawVectors]:
        """Returns the number of texts, and the vectors of those that are not empty."""
        from embedkit.inference.embedder import embed
        from embedkit.tokenizer import check_length

        if os.getpid() != self._made_in:
            raise UsageError("this Encoder was made before this process was forked", hint=_SPAWN)
        # Before the lock is taken: a generator may call this Encoder itself.
        all_texts = texts_of(texts)
        with self._turn, LOAD_LOCK.encoding():
            tokenized = self._embedder.tokenizer.tokenize(all_texts)
            if tokenized.faults:
                text, code = min(tokenized.faults.items())
                raise InputError(
                    f"texts[{text}] has a token or a character that the model does not know ({code})",
                    hint="change that text, or leave it out; see encoder.notices for what the model cannot take",
                )
            if self._embedder.on_long == "error":
                check_length(tokenized.n_tokens, self._embedder.tokenizer.max_length, range(len(all_texts)))
            raw = embed(tokenized, self._embedder, lambda *_: None)
        if raw.oom:
            raise ModelError(
                f"text {min(raw.oom)} does not fit into memory even alone", hint="use a smaller max_length"
            )
        return len(all_texts), raw
