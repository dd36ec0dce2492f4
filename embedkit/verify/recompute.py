"""Reference vectors and scores: random rows of an output, computed again one text at a time, unpadded, in fp32.

All layers run, and transformers collects their states. Shared with `encode` are the tokenizer and the pooling
functions, but no packing, attention, batches, shards or early stop of embedkit's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedkit.config import BatchConfig, ModelConfig, PoolingConfig, TextConfig, VectorConfig
from embedkit.errors import ModelError, OutputError
from embedkit.inference.build import build
from embedkit.inference.model_spec import find_model
from embedkit.manifest.identity import first_difference
from embedkit.pooling.postprocess import finish
from embedkit.storage.protocol import FilePath
from embedkit.verify.compare import Comparison
from embedkit.verify.provenance import Provenance, provenance_of
from embedkit.verify.sample import choose, opened_input, texts_of

if TYPE_CHECKING:
    from embedkit.inference.embedder import Embedder
    from embedkit.pooling.heads import PredictionHead


@dataclass(frozen=True, slots=True)
class ReferenceModel:
    """The model that computes rows again; the fields are those of `ModelConfig`."""

    model: str | None = None  # None: the one that the output names
    revision: str | None = None  # None: the commit that the output names
    offline: bool = False
    trust_remote_code: bool = False
    device: str = "cpu"


def recompute(
    path: FilePath,
    rows: int,
    *,
    seed: int,
    inputs: Sequence[str],
    reference: ReferenceModel,
    sql: str | None = None,
) -> Comparison:
    """Computes random rows of an output again, and compares.

    Args:
        path: a folder, or a .parquet, .arrow or .npy file.
        rows: how many of those that have a vector; all of them if there are fewer.
        seed: of the choice.
        inputs: present paths of the input's files; () if they are those that the output names.
        reference: the model.
        sql: the query, if the input was a database.

    Raises:
        OutputError: the output is not finished, does not say how it was made, or has a recipe that this version
            cannot follow.
        InputError: the input is missing or has changed.
        ModelError: the model is unavailable, or is another one.
    """
    provenance = provenance_of(path)
    stored = provenance.stored
    table = opened_input(provenance, inputs, sql)
    sampled = choose(path, provenance, rows, seed)
    texts = texts_of(sampled, table)
    embedder, head = _reference_embedder(provenance, reference)
    from embedkit.inference.embedder import embed

    comparison = Comparison(stored.recipe["dtype"], stored.recipe["precision"])
    for row in sampled:
        tokenized = embedder.tokenizer.tokenize([texts[row.row]])
        raw = embed(tokenized, embedder, lambda *_: None).vectors
        for variant in stored.layout.variants:
            vectors = raw[variant.name][0]
            if embedder.pooling.poolings:
                vectors = finish(vectors[None], normalize=embedder.normalize, truncate_dim=embedder.truncate_dim)
            ranges = stored.int8_ranges.get(variant.name)
            comparison.add(row.row, variant.column, row.vectors[variant.name], vectors, ranges)
        if head is not None:
            comparison.add_scores(row.row, head, raw[""][:1], row.scores)
        comparison.rows += 1
    return comparison


def _reference_embedder(
    provenance: Provenance, reference: ReferenceModel
) -> tuple[Embedder, PredictionHead | None]:
    """Returns what computes vectors again, and the head whose scores the output has; None if it has none."""
    recipe, source = provenance.stored.recipe, provenance.stored.source
    if recipe["level"] != "text" or "groups" in recipe:
        what = "groups of rows" if "groups" in recipe else f"a {recipe['level']} each"
        raise OutputError(
            f"--resample takes vectors of whole texts, and these are of {what}",
            hint="encode some of the texts without --level, spans or --group-by, and resample that",
        )
    name = reference.model or source.name
    if name is None:
        raise ModelError("a single file does not say where its model is", hint="name it with --model")
    if "poolers" in recipe and source.pool is None:
        raise OutputError(
            "a single file does not say where its poolers are", hint="encode to a folder to resample it later"
        )
    text = recipe["text"]
    # By the recipe that the model ships, which takes no other layers.
    weighted = recipe["layer_agg"] == "weighted"
    config = VectorConfig(
        model=ModelConfig(
            model=name,
            revision=reference.revision or (source.revision if reference.model is None else None),
            offline=reference.offline,
            trust_remote_code=reference.trust_remote_code,
            lowercase="yes" if text["lowercase"] else "no",
            device=reference.device,
            dtype="fp32",
        ),
        text=TextConfig(
            max_length=text["max_length"],
            on_long=text["on_long"],
            stride=text.get("stride"),
            chunk_pool=text.get("chunk_pool"),
            prompt=text["prompt"],
        ),
        pooling=PoolingConfig(
            layers="-1" if weighted else ",".join(map(str, recipe["layers"])),
            layer_agg="concat" if weighted else recipe["layer_agg"],
            pool="auto" if recipe.get("shipped") else source.pool or ",".join(recipe["pool"]),
            exclude_special=recipe["exclude_special"],
            normalize=recipe["normalize"],
            truncate_dim=recipe["truncate_dim"],
            precision=recipe["precision"],
            with_head=bool(provenance.stored.scores),
        ),
        batch=BatchConfig(batch_size=1),
    )
    spec = find_model(config)
    ready = build(spec, reference=True)
    difference = first_difference({**recipe, "dtype": "fp32"}, ready.facts.recipe)
    if difference is None:
        return ready.embedder, spec.head
    field, was, now = difference
    if field.startswith("model."):
        raise ModelError(
            f"model '{name}' is not the one of the output: {field} was {was} and is {now}",
            hint="name the right one with --model",
        )
    raise OutputError(
        f"this version cannot compute the output again: {field} would be {now}, and the recipe says {was}",
        hint="verify it with the version of embedkit that made it",
    )
