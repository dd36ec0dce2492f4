"""What a model's small files and the options decide together, before any weight is read.

`assemble` goes on from here with the weights, `embedkit plan` does without them. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedkit.config import GroupConfig, ModelConfig, PoolingConfig, TextConfig, UnitConfig
from embedkit.config.poolings import resolve_layers
from embedkit.errors import ModelError, UsageError
from embedkit.inference.model_spec import ModelSpec
from embedkit.manifest.recipe import make_recipe
from embedkit.models.repository.architectures import has_position_table, rotates_by_history
from embedkit.models.repository.config_facts import architecture_of, n_embeddings
from embedkit.models.repository.model_folder import ModelFolder
from embedkit.models.repository.shipped_recipe import ShippedRecipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedkit.tokenizer import TextTokenizer


_USUAL_LENGTH = 512


@dataclass(frozen=True, slots=True)
class TokenizerSetup:
    """A run without its weights.

    Attributes:
        tokenizer: with casing, prompt and length settled.
        lowercase: whether texts are lowercased.
        layers: resolved.
        layer_agg: resolved.
        variant_suffix: what names of separate layers say of the pooling; "" = the poolings.
        raw_tokenizer: of transformers, which `tokenizer` uses.
        notices: what the user should know, a sentence each.
    """

    tokenizer: TextTokenizer
    lowercase: bool
    layers: tuple[int, ...]
    layer_agg: str
    variant_suffix: str
    raw_tokenizer: Any
    notices: tuple[str | None, ...]


def draft(
    request: ModelSpec,
    model: ModelConfig,
    text: TextConfig,
    pooling: PoolingConfig,
    units: UnitConfig,
    *,
    config: Any,
    positions: int | None,
    n_layers: int,
) -> TokenizerSetup:
    """Settle what takes no weights.

    Args:
        request: the model, found.
        model: how it is loaded.
        text: how a text becomes tokens.
        pooling: what is made of its states.
        units: what a vector is of.
        config: the encoder's, with its keys as attributes.
        positions: most tokens that the model has positions for; None = any number.
        n_layers: encoder layers.

    Raises:
        ModelError: there is no tokenizer that can be used.
        UsageError: a layer, a length or a number of dimensions that it does not have.
    """
    from embedkit.tokenizer import (
        TextTokenizer,
        check_vocabulary,
        load_tokenizer,
        unknown_characters_notice,
        usable_length,
    )
    from embedkit.tokenizer.casing import prepend_lowercase
    from embedkit.tokenizer.lengths import prompt_length, stated_length

    folder, shipped = request.folder, request.shipped
    lowers = shipped is not None and shipped.transformer.lowercase and model.lowercase != "no"
    raw_tokenizer, casing = load_tokenizer(
        str(folder.folder),
        casing="auto" if lowers else model.lowercase,
        known_casing=folder.alias.stated_casing if folder.alias else None,
        states_casing=states_casing(folder),
        code=request.own_tokenizer,
        trust_remote_code=folder.runs_code,
    )
    shipped_length = shipped.transformer.max_length if shipped else None
    if text.max_length is None and shipped_length is None:
        _refuse_stated_length(folder, raw_tokenizer, positions)
    embedded = n_embeddings(folder, config)
    oversized = check_vocabulary(raw_tokenizer, embedded)
    architecture = architecture_of(folder)
    trained = None if has_position_table(config, architecture) else positions
    max_length = usable_length(
        text.max_length,
        positions=positions if trained is None else None,
        stated=stated_length(raw_tokenizer, config, shipped_length) if shipped else raw_tokenizer.model_max_length,
        trained=trained if shipped_length is None else None,
    )
    beyond = _beyond(folder, config, max_length, trained)
    by_us = casing.by_us or (lowers and not prepend_lowercase(raw_tokenizer))
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
        n_embeddings=None if oversized is None else embedded,
    )
    layers, layer_agg = _layers(shipped, pooling, n_layers)
    variant_suffix = "" if units.unit == "token" else "_".join(request.unit_poolings)
    return TokenizerSetup(
        tokenizer=tokenizer,
        lowercase=casing.lowercase or lowers or tokenizer.lowercase_first,
        layers=layers,
        layer_agg=layer_agg,
        variant_suffix=variant_suffix,
        raw_tokenizer=raw_tokenizer,
        notices=(
            *(folder.notice, *request.notices, casing.notice, oversized, unknown_characters_notice(tokenizer)),
            *(*_said_aloud(request, layers, layer_agg, max_length), beyond),
        ),
    )


def recipe_of(
    request: ModelSpec,
    setup: TokenizerSetup,
    text: TextConfig,
    pooling: PoolingConfig,
    units: UnitConfig,
    groups: GroupConfig,
    *,
    files: Mapping[str, str],
    dtype: str,
) -> dict[str, Any]:
    """The recipe of a run; see make_recipe.

    Args:
        request: the model, found.
        setup: what was settled.
        text: how a text becomes tokens.
        pooling: what is made of its states.
        units: what a vector is of.
        groups: which rows make one vector.
        files: SHA-256 of each of the model's files, by name.
        dtype: what it computes in.
    """
    shipped = request.shipped
    return make_recipe(
        model_type=request.folder.model_type,
        files=files,
        lowercase=setup.lowercase,
        max_length=setup.tokenizer.max_length,
        on_long=text.on_long,
        stride=text.stride or 0,
        chunk_pool=text.chunk_pool or "mean",
        prompt=request.prompt,
        level=units.unit,
        groups={"by": list(groups.by), "pool": groups.pool or "mean", "order_by": groups.order_by}
        if groups.by
        else None,
        layers=setup.layers,
        layer_agg=setup.layer_agg,
        pool=("token",) if units.unit == "token" else request.unit_poolings or request.poolings,
        poolers={name: chosen.identity for name, chosen in request.poolers.items()},
        exclude_special=pooling.exclude_special,
        normalize=request.normalize,
        truncate_dim=request.truncate_dim,
        precision=pooling.precision,
        dtype=dtype,
        shipped={"modules": shipped.steps(), "similarity": shipped.similarity} if shipped else None,
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


def _refuse_stated_length(folder: ModelFolder, raw_tokenizer: Any, positions: int | None) -> None:
    """Refuse a model whose own files leave no room for a text: --max-length was not given, and is not at fault."""
    stated = raw_tokenizer.model_max_length
    counter = getattr(raw_tokenizer, "backend_tokenizer", None) or raw_tokenizer
    n_special = int(counter.num_special_tokens_to_add(False))
    is_number = isinstance(stated, int | float)
    if not is_number or stated <= n_special:
        fault = f"leaves no room for a text beside {n_special} special tokens" if is_number else "is no number"
        raise ModelError(
            f"tokenizer_config.json of model '{folder.name}' says model_max_length {str(stated)[:20]!r}, "
            f"which {fault}",
            hint=f"give --max-length {positions or _USUAL_LENGTH}, or mend tokenizer_config.json",
        )


def states_casing(folder: ModelFolder) -> bool:
    """Whether a file of the model says how it is cased; `vocab.txt` alone does not."""
    settings = folder.read_json("tokenizer_config.json") or {}
    return "do_lower_case" in settings or (folder.folder / "tokenizer.json").is_file()


def _beyond(folder: ModelFolder, config: Any, max_length: int, trained: int | None) -> str | None:
    """Say that texts may be longer than those that the model was trained on; its positions go on.

    Raises:
        UsageError: its positions would then depend on what else it has read.
    """
    if trained is None or max_length <= trained:
        return None
    if rotates_by_history(config):
        raise UsageError(
            f"{max_length} tokens are more than the {trained} positions of '{folder.name}', and its rotary "
            "positions of type 'dynamic' change with the longest text that it has read",
            hint=f"use --max-length {trained}",
        )
    return (
        f"texts may have {max_length} tokens, and '{folder.name}' states {trained} positions "
        "(max_position_embeddings): it computes more, but may not have been trained on them"
    )


def _said_aloud(
    request: ModelSpec, layers: tuple[int, ...], layer_agg: str, max_length: int
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
