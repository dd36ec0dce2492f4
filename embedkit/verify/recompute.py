"""The texts of sampled rows through the model: each alone, unpacked, unpadded, in fp32.

All layers run, and transformers collects their states. Of the way that `encode` goes, this shares the tokenizer
and the pooling functions; it has no packing, no attention of embedkit's, no batches, no shards, no early stop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedkit.config import BatchConfig, ModelConfig, PoolingConfig, TextConfig, VectorConfig
from embedkit.errors import EmbedkitError, ModelError, OutputError
from embedkit.inference.build import build
from embedkit.inference.model_spec import find_model
from embedkit.manifest.identity import first_difference
from embedkit.pooling.postprocess import Int8Range, finish
from embedkit.verify.compare import Resampled
from embedkit.verify.provenance import Provenance
from embedkit.verify.sample import Sampled

if TYPE_CHECKING:
    from embedkit.inference.embedder import Embedder


@dataclass(frozen=True, slots=True)
class Again:
    """What to compute with.

    Attributes:
        model: where the model is now; None = what the output says.
        revision: branch, tag or commit on the hub; None = the commit that the output says.
        offline: open no socket.
        trust_remote_code: run code that comes with the model.
        device: as `--device`.
    """

    model: str | None = None
    revision: str | None = None
    offline: bool = False
    trust_remote_code: bool = False
    device: str = "cpu"

    def compare(self, provenance: Provenance, sampled: Sequence[Sampled], texts: Mapping[int, str]) -> Resampled:
        """Compute the rows again, and compare.

        Raises:
            ModelError: the model cannot be had, or is another one.
            OutputError: the recipe is one that this version cannot carry out.
        """
        from embedkit.inference.embedder import embed

        recipe = provenance.stored.recipe
        if recipe["level"] != "text" or "groups" in recipe:
            what = "groups of rows" if "groups" in recipe else f"a {recipe['level']} each"
            raise OutputError(
                f"--resample takes vectors of whole texts, and these are of {what}",
                hint="encode some of the texts without --level, spans or --group-by, and resample that",
            )
        embedder = self._embedder(provenance)
        ranges = {
            name: Int8Range(np.asarray(of["min"], np.float32), np.asarray(of["max"], np.float32))
            for name, of in provenance.stored.int8_ranges.items()
        }
        came = Resampled(recipe["dtype"], recipe["precision"])
        columns = {variant.name: variant.column for variant in provenance.stored.layout.variants}
        for one in sampled:
            tokenized = embedder.tokenizer.tokenize([texts[one.row]])
            raw = embed(tokenized, embedder, lambda *_: None).vectors
            for name, column in columns.items():
                vectors = raw[name][0]
                if embedder.pooling.poolings:
                    vectors = finish(
                        vectors[None], normalize=embedder.normalize, truncate_dim=embedder.truncate_dim
                    )
                came.add(one.row, column, one.vectors[name], vectors, ranges.get(name))
            came.rows += 1
        return came

    def _embedder(self, provenance: Provenance) -> Embedder:
        recipe = provenance.stored.recipe
        source = provenance.stored.source
        name = self.model or source.name
        if name is None:
            raise ModelError("a single file does not say where its model is", hint="say it with --model")
        revision = self.revision or (source.revision if self.model is None else None)
        model = ModelConfig(
            *(name, revision, self.offline, self.trust_remote_code),
            lowercase="yes" if recipe["text"]["lowercase"] else "no",
            device=self.device,
            dtype="fp32",
        )
        told: EmbedkitError | None = None
        if "poolers" in recipe and source.pool is None:
            raise OutputError(
                "a single file does not say where its poolers are", hint="encode to a folder to resample it later"
            )
        folder = None
        for text, pooling in _ways(recipe, source.pool):
            config = VectorConfig(model=model, text=text, pooling=pooling, batch=BatchConfig(batch_size=1))
            spec = find_model(config, folder)
            folder, ready = spec.folder, build(spec, plainly=True)
            found = first_difference({**recipe, "dtype": "fp32"}, ready.facts.recipe)
            if found is None:
                return ready.embedder
            told = _other_recipe(name, *found)
        raise told or OutputError("the recipe asks for nothing", hint="encode again")


def _ways(recipe: Mapping[str, Any], pool: str | None) -> Iterator[tuple[TextConfig, PoolingConfig]]:
    """What may have been asked for: what the recipe says in so many words, or the model's own that is the same."""
    asked = recipe["text"]
    windows = {name: asked.get(name) for name in ("stride", "chunk_pool")}
    text = TextConfig(asked["max_length"], asked["on_long"], prompt=asked["prompt"], **windows)
    shipped = recipe.get("shipped") is not None
    weighted = recipe["layer_agg"] == "weighted"  # by the recipe that the model ships, which takes no other layers
    named = pool or ",".join(recipe["pool"])
    for asked_pool in ("auto",) if shipped else (named, "auto"):
        yield (
            text,
            PoolingConfig(
                layers="-1" if weighted else ",".join(map(str, recipe["layers"])),
                layer_agg="concat" if weighted else recipe["layer_agg"],
                pool=asked_pool,
                exclude_special=recipe["exclude_special"],
                normalize=recipe["normalize"],
                truncate_dim=recipe["truncate_dim"],
                precision=recipe["precision"],
            ),
        )


def _other_recipe(model: str, field: str, was: str, now: str) -> EmbedkitError:
    if field.startswith("model."):
        return ModelError(
            f"model '{model}' is not the one of the output: {field} was {was} and is {now}",
            hint="say with --model where that one is",
        )
    return OutputError(
        f"this version cannot compute the output again: {field} would be {now}, and the recipe says {was}",
        hint="verify it with the version of embedkit that made it",
    )
