"""Sets up the tokenizer, layers and recipe of a run from the model's small files and the options, without weights.

`build` uses it and adds the weights; `plan`, `fit` and `sweep` need none. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedkit.config import PoolingConfig
from embedkit.config.poolings import resolve_layers
from embedkit.errors import ModelError, UsageError
from embedkit.inference.model_spec import ModelSpec
from embedkit.manifest.versioned_file import Json
from embedkit.models.repository.architectures import has_position_table, rotates_by_history
from embedkit.models.repository.config_facts import ConfigFacts, architecture_of, n_embeddings, read_config_facts
from embedkit.models.repository.model_folder import ModelFolder
from embedkit.models.repository.shipped_recipe import ShippedRecipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedkit.tokenizer import TextTokenizer


_USUAL_LENGTH = 512


@dataclass(frozen=True, slots=True)
class TokenizerSetup:
    """The parts of a model besides its weights."""

    tokenizer: TextTokenizer  # with casing, prompt and length resolved
    lowercase: bool  # True if texts are lowercased
    on_long: str  # truncate, chunk or error
    layers: tuple[int, ...]  # resolved
    layer_agg: str
    variant_suffix: str  # pooling in the names of separate layers; "": the poolings
    raw_tokenizer: Any  # of transformers, which `tokenizer` uses
    notices: tuple[str | None, ...]  # what the user should know, a sentence each


def set_up_without_weights(spec: ModelSpec) -> tuple[TokenizerSetup, ConfigFacts]:
    """Sets up the tokenizer by the model's small files alone.

    Raises:
        ModelError: there is no usable tokenizer.
        UsageError: the model lacks the requested layer or length.
    """
    facts = read_config_facts(spec.folder, trust_remote_code=spec.config.model.trust_remote_code)
    setup = set_up_tokenizer(spec, config=facts.config, positions=facts.positions, n_layers=facts.n_layers)
    return setup, facts


def set_up_tokenizer(spec: ModelSpec, *, config: Any, positions: int | None, n_layers: int) -> TokenizerSetup:
    """Sets up the tokenizer and resolves the layers.

    Args:
        spec: the model, found.
        config: of the encoder, with its keys as attributes.
        positions: most tokens that the model has positions for; None: any number.
        n_layers: encoder layers.

    Raises:
        ModelError: there is no usable tokenizer.
        UsageError: the model lacks the requested layer or length.
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

    folder, shipped, text = spec.folder, spec.shipped, spec.config.text
    model, unit = spec.config.model, spec.config.units.unit
    lowers = shipped is not None and shipped.lowercase and model.lowercase != "no"
    raw_tokenizer, casing = load_tokenizer(
        str(folder.folder),
        casing="auto" if lowers else model.lowercase,
        known_casing=folder.alias.stated_casing if folder.alias else None,
        states_casing=states_casing(folder),
        code=spec.own_tokenizer,
        trust_remote_code=folder.runs_code,
    )
    shipped_length = shipped.max_length if shipped else None
    if text.max_length is None and shipped_length is None:
        _check_stated_length(folder, raw_tokenizer, positions)
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
    too_long = _long_text_notice(folder, config, max_length, trained)
    by_us = casing.by_us or (lowers and not prepend_lowercase(raw_tokenizer))
    prompt_left_out = shipped is not None and not shipped.include_prompt
    skipped = prompt_length(raw_tokenizer, spec.prompt) if prompt_left_out else 0
    tokenizer = TextTokenizer(
        raw_tokenizer,
        max_length=max_length,
        prompt=spec.prompt,
        skipped=skipped,
        lowercase_first=by_us,
        overlap=(text.stride or 0) if text.on_long == "chunk" else None,
        with_offsets=unit != "text",
        n_embeddings=None if oversized is None else embedded,
    )
    layers, layer_agg = _layers(shipped, spec.config.pooling, n_layers)
    variant_suffix = "" if unit == "token" else "_".join(spec.unit_poolings)
    return TokenizerSetup(
        tokenizer=tokenizer,
        lowercase=casing.lowercase or lowers or tokenizer.lowercase_first,
        on_long=text.on_long or "truncate",
        layers=layers,
        layer_agg=layer_agg,
        variant_suffix=variant_suffix,
        raw_tokenizer=raw_tokenizer,
        notices=(
            *(folder.notice, *spec.notices, casing.notice, oversized, unknown_characters_notice(tokenizer)),
            *(*_recipe_notices(spec, layers, layer_agg, max_length), too_long),
        ),
    )


def recipe_of(spec: ModelSpec, setup: TokenizerSetup, *, files: Mapping[str, str], dtype: str) -> Json:
    """Returns the recipe of a run: all that decides its numbers, with everything resolved.

    Devices, workers, batch limits and progress are not part of it: they change the speed, not the vectors. Nor are
    names and paths: the same files under another path are the same model.

    Args:
        spec: the model, found.
        setup: tokenizer and layers.
        files: SHA-256 of each of the model's files, by name.
        dtype: what the model computes in.
    """
    config, shipped = spec.config, spec.shipped
    text, groups, unit = config.text, config.groups, config.units.unit
    windows = {"stride": text.stride or 0, "chunk_pool": None if unit == "chunk" else text.chunk_pool or "mean"}
    grouping = {"by": list(groups.by), "pool": groups.pool or "mean", "order_by": groups.order_by}
    pool = ("token",) if unit == "token" else spec.unit_poolings or spec.poolings or ("none",)
    poolers = {name: dict(chosen.identity) for name, chosen in spec.poolers.items()}
    return {
        "version": 1,
        "model": {"type": spec.folder.model_type, "files": dict(files)},
        "text": {
            "lowercase": setup.lowercase,
            "prompt": spec.prompt,
            "max_length": setup.tokenizer.max_length,
            "on_long": setup.on_long,
            **(windows if setup.on_long == "chunk" else {}),
        },
        "level": unit,
        **({"groups": grouping} if groups.by else {}),
        "layers": list(setup.layers),
        "layer_agg": setup.layer_agg,
        "pool": list(pool),
        "exclude_special": config.pooling.exclude_special,
        "normalize": spec.normalize,
        "truncate_dim": spec.truncate_dim,
        "precision": config.pooling.precision,
        "dtype": dtype,
        **({"poolers": poolers} if poolers else {}),
        "shipped": {"modules": shipped.steps(), "similarity": shipped.similarity} if shipped else None,
    }


def _layers(shipped: ShippedRecipe | None, pooling: PoolingConfig, n_layers: int) -> tuple[tuple[int, ...], str]:
    """Returns the layers and their aggregation, by the weights of a shipped recipe or as the user asked."""
    weighted = shipped.weighted_layers(n_layers) if shipped else ()
    if not weighted:
        return resolve_layers(pooling.layers, n_layers), pooling.layer_agg
    if (pooling.layers, pooling.layer_agg) != ("-1", "concat"):
        raise UsageError(
            "--layers and --layer-agg with a recipe that weighs the layers itself (WeightedLayerPooling)",
            hint="leave them out, or choose the pooling yourself, such as --pool mean",
        )
    return weighted, "weighted"


def _check_stated_length(folder: ModelFolder, raw_tokenizer: Any, positions: int | None) -> None:
    """Raises ModelError if the model's own files leave no room for a text; for runs without --max-length."""
    stated = raw_tokenizer.model_max_length
    counter = getattr(raw_tokenizer, "backend_tokenizer", None) or raw_tokenizer
    n_special = int(counter.num_special_tokens_to_add(False))
    is_number = isinstance(stated, int | float)
    if not is_number or stated <= n_special:
        fault = f"leaves no room for a text besides {n_special} special tokens" if is_number else "is not a number"
        raise ModelError(
            f"tokenizer_config.json of model '{folder.name}' says model_max_length {str(stated)[:20]!r}, "
            f"which {fault}",
            hint=f"give --max-length {positions or _USUAL_LENGTH}, or fix tokenizer_config.json",
        )


def states_casing(folder: ModelFolder) -> bool:
    """Checks whether a file of the model states its casing; `vocab.txt` alone does not."""
    settings = folder.read_json("tokenizer_config.json") or {}
    return "do_lower_case" in settings or (folder.folder / "tokenizer.json").is_file()


def _long_text_notice(folder: ModelFolder, config: Any, max_length: int, trained: int | None) -> str | None:
    """Returns a notice if texts may be longer than the model was trained on, for positions without a limit.

    Raises:
        UsageError: the model's positions would then depend on what it computed before.
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


def _recipe_notices(
    spec: ModelSpec, layers: tuple[int, ...], layer_agg: str, max_length: int
) -> tuple[str | None, str | None]:
    followed = joined = None
    if spec.shipped is not None:
        shipped = spec.shipped
        steps = [",".join(shipped.poolings), *(module.kind for module in shipped.modules)]
        if shipped.layer_start is not None:
            steps.insert(0, f"layers {shipped.layer_start} to {layers[-1]} by weights")
        if spec.normalize:
            steps.append("scaled to length 1")
        if spec.prompt and not shipped.include_prompt:
            steps.append("the prompt's tokens left out")
        followed = f"--pool auto follows the recipe of the model: {', '.join(steps)}, at most {max_length} tokens"
    if layer_agg == "concat" and len(layers) > 1:
        joined = f"{len(layers)} layers are concatenated (--layer-agg concat)"
    return followed, joined
