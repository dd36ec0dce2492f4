"""A model that was found, with everything that its small files and the options decide. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from embedkit.config import TextConfig, UnitConfig, VectorConfig
from embedkit.config.poolings import parse_poolings, resolve_layers
from embedkit.errors import UsageError
from embedkit.models.repository.config_facts import stated_sizes
from embedkit.models.repository.model_folder import ModelFolder
from embedkit.models.repository.remote_code import RemoteClass, check_remote_code
from embedkit.models.repository.resolve import resolve_model
from embedkit.models.repository.shipped_recipe import ShippedRecipe, shipped_recipe
from embedkit.pooling.fitted_texts import with_texts_of
from embedkit.pooling.heads import PredictionHead
from embedkit.pooling.select import ChosenPooler, choose, head_of, with_needs_of
from embedkit.suggest import did_you_mean


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that was found, and what is asked of it; nothing is loaded yet. Can be pickled."""

    config: VectorConfig  # as asked for; what was not given is as in the files of poolers
    folder: ModelFolder
    shipped: ShippedRecipe | None  # the recipe that the model ships, if `--pool auto` follows it
    poolings: tuple[str, ...]  # resolved names; (): token vectors
    unit_poolings: tuple[str, ...]  # from vectors of tokens to those of units; (): units are texts or windows
    normalize: bool  # resolved, as are the next two
    truncate_dim: int | None
    prompt: str
    poolers: Mapping[str, ChosenPooler]  # trained and installed ones, by their names in `poolings`
    head: PredictionHead | None  # whose predictions `--with-head` adds
    remote_classes: tuple[RemoteClass, ...] = ()  # classes of the model's own code that run
    notices: tuple[str, ...] = ()  # what the user should know, a sentence each

    @property
    def own_tokenizer(self) -> RemoteClass | None:
        """The tokenizer's class, if it is the model's own code."""
        return next((remote for remote in self.remote_classes if remote.part == "tokenizer"), None)


def find_model(config: VectorConfig, folder: ModelFolder | None = None) -> ModelSpec:
    """Finds the model and resolves what its small files decide. Called once per command.

    Args:
        config: the user's options.
        folder: the model's files, if found already.

    Raises:
        ModelError: there is no such model, it needs code that may not run, its own recipe cannot be carried out,
            or a pooler cannot be read.
        UsageError: the model lacks the requested prompt or head.
    """
    folder = folder or resolve_model(config.model)
    remote_classes, notices = check_remote_code(folder, trust=config.model.trust_remote_code)
    folder = replace(folder, runs_code=bool(remote_classes))
    names, poolers = choose(parse_poolings(config.pooling.pool))
    of_poolers = replace(config.of_vectors, pooling=with_needs_of(poolers, config.pooling))
    own_prompt = None if config.text.prompt_name is None else _prompt(folder, config.text, None)
    of_poolers, taken = with_texts_of(
        poolers, of_poolers, config.text.prompt if own_prompt is None else own_prompt
    )
    pooling = of_poolers.pooling
    head = head_of(names, poolers) if pooling.with_head else None
    unit_poolings = _unit_poolings(config.units, names)
    if unit_poolings:
        names = ("none",)
    shipped = shipped_recipe(folder) if names == ("auto",) else None
    if names == ("auto",):
        poolings = shipped.poolings if shipped else ("mean",)
    else:
        poolings = () if names == ("none",) else names
    normalize = pooling.normalize if pooling.normalize is not None else bool(shipped and shipped.normalize)
    truncate_dim = pooling.truncate_dim if pooling.truncate_dim or not shipped else shipped.truncate_dim
    return ModelSpec(
        config=of_poolers,
        folder=folder,
        shipped=shipped,
        poolings=poolings,
        unit_poolings=unit_poolings,
        normalize=normalize,
        truncate_dim=truncate_dim,
        prompt=_prompt(folder, of_poolers.text, shipped),
        poolers=poolers,
        head=head,
        remote_classes=remote_classes,
        notices=(*notices, *taken),
    )


def _unit_poolings(units: UnitConfig, names: tuple[str, ...]) -> tuple[str, ...]:
    match units.unit:
        case "token":
            return ("first",)
        case "word":
            return (units.subtoken_pooling or "mean",)
        case "span":
            return ("mean",) if names == ("auto",) else tuple(name.replace("lasttoken", "last") for name in names)
        case _:
            return ()


def rough_width(spec: ModelSpec) -> int:
    """Estimates the values in the vectors of a text from config.json; for cutting shards only."""
    if spec.shipped and spec.shipped.out_features:
        return spec.shipped.out_features
    pooling, (hidden_size, n_layers) = spec.config.pooling, stated_sizes(spec.folder)
    keeps_all = pooling.layer_agg in {"concat", "separate"}
    layers = len(resolve_layers(pooling.layers, n_layers or 12)) if keeps_all else 1
    # Vectors of tokens, words and maybe spans: about a hundred a text.
    return (hidden_size or 768) * layers * (len(spec.poolings) or 100 * max(1, len(spec.unit_poolings)))


def _prompt(folder: ModelFolder, text: TextConfig, shipped: ShippedRecipe | None) -> str:
    if text.prompt is not None:
        return text.prompt
    prompts = folder.prompts()
    if text.prompt_name is not None:
        if text.prompt_name not in prompts:
            known = ", ".join(prompts) or "none"
            raise UsageError(
                f"model '{folder.name}' has no prompt '{text.prompt_name}'; it has: {known}",
                hint=did_you_mean(
                    text.prompt_name,
                    prompts,
                    "choose one of these, or give the text itself with --prompt",
                    prefix="--prompt-name ",
                ),
            )
        return prompts[text.prompt_name]
    return prompts.get(shipped.default_prompt or "", "") if shipped else ""
