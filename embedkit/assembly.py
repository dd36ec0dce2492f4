"""From what the user asked for to what will run: model found, loaded and checked, everything resolved.

Both the command line and the Python class come through here, so that they mean the same by the same names.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from embedkit.config import BatchConfig, GroupConfig, ModelConfig, PoolingConfig, TextConfig, UnitConfig
from embedkit.errors import ModelError, UsageError
from embedkit.models.resolve import ModelFolder
from embedkit.models.shipped import ShippedRecipe
from embedkit.pooling.chosen import settled_by, spelled
from embedkit.pooling.names import resolve_layers
from embedkit.recipe import fingerprint, make_recipe
from embedkit.request import Request, find_model, rough_width

if TYPE_CHECKING:  # torch is imported when the model is loaded, and not before
    from embedkit.embedding import Embedder
    from embedkit.models.load import LoadedModel
    from embedkit.tokenizer import TextTokenizer

__all__ = ["Assembly", "Request", "assemble", "find_model", "rough_width"]

#: Tokens in a batch where the user did not say. On 2 cores the activations of 4,096 tokens stay in the
#: caches that they share; a GPU wants enough to be busy.
_BATCH_TOKENS = {"cpu": 4096, "cuda": 65536, "mps": 16384}
#: Texts for the check at load: of different lengths, so that mixing them up shows. The long one spans the
#: windows of models that see only near tokens; it is cut at the model's limit like any text.
_PROBES = ("a cat", "a dog", "the dog did not see it, and we went on", "one two three four five six seven " * 60)
_TEXTS = UnitConfig()
_NO_GROUPS = GroupConfig()


@dataclass(frozen=True, slots=True)
class Assembly:
    """A model ready to run.

    Attributes:
        embedder: texts → vectors.
        recipe: all that decides the numbers.
        fingerprint: SHA-256 of the recipe.
        notices: what the user should know, a sentence each.
        device: where it runs.
        source: where the model's files are from: the `name` that finds them again, and their `hub` id and
            `revision` (a commit), None for a plain folder; and the `pool` that finds poolers again.
    """

    embedder: Embedder
    recipe: dict[str, Any]
    fingerprint: str
    notices: tuple[str, ...]
    device: str
    source: dict[str, str | None]


def assemble(
    request: Request,
    model: ModelConfig,
    text: TextConfig,
    pooling: PoolingConfig,
    batch: BatchConfig,
    units: UnitConfig = _TEXTS,
    groups: GroupConfig = _NO_GROUPS,
    *,
    plainly: bool = False,
) -> Assembly:
    """Load the model and settle the rest.

    Args:
        request: the model, found.
        model: how it is loaded.
        text: how a text becomes tokens.
        pooling: what is made of its states.
        batch: what one forward pass holds.
        units: what a vector is of.
        groups: how rows become groups; told in the recipe, and carried out elsewhere.
        plainly: let transformers' own code run as it is and collect the states; to be given one text at a time.

    Raises:
        ModelError: it cannot be loaded, or lacks what is asked of it.
        UsageError: a layer, a length or a device that it does not have.
    """
    from embedkit.embedding import Embedder
    from embedkit.memory import TokenBudget
    from embedkit.models.head import load_head, load_layer_weights, refuse_norm_behind
    from embedkit.models.load import load_model, make_encoder, plain_encoder
    from embedkit.models.tokenizing import lowercase_first, prompt_length, stated_length
    from embedkit.pooling.plan import PoolingPlan
    from embedkit.tokenizer import TextTokenizer, load_tokenizer, usable_length

    folder, shipped = request.folder, request.shipped
    pooling = settled_by(request.poolers, pooling)
    with ThreadPoolExecutor(1) as hasher:
        # Reading the weights for their hash warms the cache that loading them reads from.
        hashes = hasher.submit(folder.hashes)
        loaded = load_model(folder, model)
        lowers = shipped is not None and shipped.transformer.lowercase and model.lowercase != "no"
        raw_tokenizer, casing = load_tokenizer(
            str(folder.folder),
            casing="auto" if lowers else model.lowercase,
            known_casing=folder.alias.stated_casing if folder.alias else None,
            states_casing=states_casing(folder),
        )
        max_length = usable_length(
            text.max_length,
            positions=loaded.max_positions,
            stated=stated_length(raw_tokenizer, loaded.model.config, shipped.transformer.max_length)
            if shipped
            else raw_tokenizer.model_max_length,
        )
        by_us = casing.by_us or (lowers and not lowercase_first(raw_tokenizer))
        prompt_left_out = shipped is not None and not shipped.include_prompt
        skipped = prompt_length(raw_tokenizer, request.prompt, max_length) if prompt_left_out else 0
        tokenizer = TextTokenizer(
            raw_tokenizer,
            max_length=max_length,
            prompt=request.prompt,
            skipped=skipped,
            lowercase_first=by_us,
            overlap=(text.stride or 0) if text.on_long == "chunk" else None,
            locates=units.unit != "text",
        )
        lowercase = casing.lowercase or lowers or tokenizer.lowercase_first
        layers, layer_agg = _layers(shipped, pooling, loaded.n_layers)
        _refuse_impossible(request, loaded, tokenizer, layers)
        if layer_agg == "weighted":
            refuse_norm_behind(loaded, raw_tokenizer(_PROBES[0], return_tensors="pt")["input_ids"])
        probe = tokenizer.tokenize(_PROBES).tokens
        if plainly:
            encoder, notice = plain_encoder(loaded, layers), None
        else:
            encoder, notice = make_encoder(loaded, layers, probe, for_pooler="pooler" in request.poolings)
        files = hashes.result()
    for chosen in request.poolers.values():
        chosen.refuse_other_model(
            {"type": folder.model_type, "files": files}, raw_tokenizer.get_vocab(), lowercase=lowercase
        )
    plan = PoolingPlan(
        layers,
        layer_agg,
        request.poolings,
        cls_is_last=tokenizer.closes_with_cls and not shipped,
        told_as="" if units.unit == "token" else "_".join(request.unit_poolings),
        poolers={name: chosen.pooler(encoder.device) for name, chosen in request.poolers.items()},
    )
    if shipped is not None:
        head = load_head(folder, shipped)
        plan = replace(
            plan,
            layer_weights=load_layer_weights(folder, shipped, loaded.n_layers) if layer_agg == "weighted" else (),
            skipped=skipped,
            head=head.to(encoder.device) if head else None,
            head_width=shipped.out_features,
        )
        shipped.refuse_width(plan.pooled_width(encoder.hidden_size))
    embedder = Embedder(
        tokenizer=tokenizer,
        encoder=encoder,
        pooling=plan,
        exclude_special=pooling.exclude_special,
        normalize=request.normalize,
        truncate_dim=request.truncate_dim,
        precision=pooling.precision,
        on_long=text.on_long,
        budget=TokenBudget(batch.batch_tokens or _BATCH_TOKENS[encoder.device.type]),
        batch_size=batch.batch_size,
        level=units.unit,
        chunk_pool=text.chunk_pool or "mean",
        unit_poolings=request.unit_poolings,
        head=request.head,
    )
    widest = max(variant.dims for variant in embedder.raw_variants)
    if pooling.truncate_dim is not None and pooling.truncate_dim > widest:
        raise UsageError(
            f"--truncate-dim {pooling.truncate_dim} is more than the {widest} dimensions that there are",
            hint=f"use at most {widest}, or leave it out",
        )
    recipe = make_recipe(
        model_type=folder.model_type,
        files=files,
        lowercase=lowercase,
        max_length=max_length,
        on_long=text.on_long,
        stride=text.stride or 0,
        chunk_pool=text.chunk_pool or "mean",
        prompt=request.prompt,
        level=units.unit,
        groups={"by": list(groups.by), "pool": groups.pool or "mean", "order_by": groups.order_by}
        if groups.by
        else None,
        layers=layers,
        layer_agg=layer_agg,
        pool=("token",) if units.unit == "token" else request.unit_poolings or request.poolings,
        poolers={name: chosen.identity for name, chosen in request.poolers.items()},
        exclude_special=pooling.exclude_special,
        normalize=request.normalize,
        truncate_dim=request.truncate_dim,
        precision=pooling.precision,
        dtype=loaded.dtype,
        shipped={"modules": shipped.steps(), "similarity": shipped.similarity} if shipped else None,
    )
    notices = (casing.notice, notice, _of_weights(folder), *_said_aloud(request, layers, layer_agg, max_length))
    return Assembly(
        embedder=embedder,
        recipe=recipe,
        fingerprint=fingerprint(recipe),
        notices=tuple(sentence for sentence in notices if sentence),
        device=str(encoder.device),
        source={
            "name": folder.name if folder.hub else str(folder.folder),
            "hub": folder.hub,
            "revision": folder.revision,
            **({"pool": spelled(request.poolings, request.poolers)} if request.poolers else {}),
        },
    )


def _layers(shipped: ShippedRecipe | None, pooling: PoolingConfig, n_layers: int) -> tuple[tuple[int, ...], str]:
    """The layers wanted and how they are aggregated: by the recipe's weights, or as the user says."""
    weighted = shipped.weighted_layers(n_layers) if shipped else ()
    if not weighted:
        return resolve_layers(pooling.layers, n_layers), pooling.layer_agg
    if (pooling.layers, pooling.layer_agg) != ("-1", "concat"):
        raise UsageError(
            "--layers and --layer-agg with a recipe that weighs the layers itself (WeightedLayerPooling)",
            hint="leave them out, or choose the pooling yourself, such as --pool mean",
        )
    return weighted, "weighted"


def states_casing(folder: ModelFolder) -> bool:
    """Whether a file of the model says how it is cased; `vocab.txt` alone does not."""
    settings = folder.read_json("tokenizer_config.json") or {}
    return "do_lower_case" in settings or (folder.folder / "tokenizer.json").is_file()


def _refuse_impossible(
    request: Request, loaded: LoadedModel, tokenizer: TextTokenizer, layers: tuple[int, ...]
) -> None:
    if "pooler" in request.poolings:
        if not loaded.has_pooler:
            raise ModelError(
                f"--pool pooler: the checkpoint of '{request.folder.name}' has no weights for a pooling head",
                hint="its numbers would be random; use --pool cls or --pool mean",
            )
        if layers != (loaded.n_layers,):
            raise UsageError(
                "--pool pooler is computed from the last layer only",
                hint="leave --layers out, or leave pooler out of --pool",
            )
    has_cls = tokenizer.opens_with_cls or tokenizer.closes_with_cls
    if "cls" in request.poolings and not has_cls and request.shipped is None:
        raise ModelError(
            f"--pool cls: the tokenizer of '{request.folder.name}' puts no [CLS] or <s> before a text",
            hint="use --pool lasttoken" if loaded.architecture.causal else "use --pool mean",
        )


def _of_weights(folder: ModelFolder) -> str | None:
    if not folder.pickles():
        return None
    return (
        f"weights of '{folder.name}' are a pickle ({', '.join(folder.pickles())}): tensors alone are read from "
        "it, no code; a model.safetensors cannot hold any"
    )


def _said_aloud(
    request: Request, layers: tuple[int, ...], layer_agg: str, max_length: int
) -> tuple[str | None, str | None]:
    followed = joined = None
    if request.shipped is not None:
        shipped = request.shipped
        steps = [",".join(shipped.poolings), *(module.kind for module in shipped.modules)]
        if shipped.layer_start is not None:
            steps.insert(0, f"layers {shipped.layer_start} to {layers[-1]} by weights")
        if request.normalize:
            steps.append("scaled to length 1")
        if request.prompt and not shipped.include_prompt:
            steps.append("the prompt's tokens left out")
        followed = f"--pool auto follows the recipe of the model: {', '.join(steps)}, at most {max_length} tokens"
    if layer_agg == "concat" and len(layers) > 1:
        joined = f"{len(layers)} layers are concatenated (--layer-agg concat)"
    return followed, joined
