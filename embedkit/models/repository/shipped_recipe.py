"""The recipe that a model's authors ship with it: sentence-transformers' `modules.json`, settings and prompts.

Reads JSON only; the weights of its modules are read by `models/head.py`. What cannot be carried out exactly is
refused by name, when it is asked for. The meaning of each setting is that of sentence-transformers 6.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from embedkit.errors import ModelError, UsageError
from embedkit.models.repository.folder_checks import refuse_damaged
from embedkit.models.repository.model_folder import ModelFolder
from embedkit.models.repository.transformer_settings import TransformerSettings, transformer_settings

#: sentence-transformers' pooling modes by our names.
_MODES = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weightedmean",
    "lasttoken": "lasttoken",
}
#: Its older flags, in the order in which it concatenates what they stand for.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
#: The settings of a module that are followed, or decide no number.
_KNOWN = {
    "Dense": {"in_features", "out_features", "bias", "activation_function", "use_residual"},
    "LayerNorm": {"dimension"},
    "Normalize": set[str](),
    "Pooling": {"word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt", *_FLAGS},
    "WeightedLayerPooling": {
        "word_embedding_dimension",
        "embedding_dimension",
        "layer_start",
        "num_hidden_layers",
    },
}
#: What may stand behind the pooling. Dropout does nothing once a model is trained.
_BEHIND = ("Dense", "LayerNorm", "Normalize", "Dropout")
#: The modules that are followed.
MODULES = ("Transformer", "WeightedLayerPooling", "Pooling", *_BEHIND)
#: sentence-transformers leaves the prompts of these out of the pooling, whatever their files say.
_INSTRUCTORS = ("hkunlp/instructor-base", "hkunlp/instructor-large", "hkunlp/instructor-xl")
_CHOOSE = "choose the pooling yourself, such as --pool mean; it is then the plain encoder's vector"


@dataclass(frozen=True, slots=True)
class ShippedModule:
    """A module behind the pooling: float32 [N, in] → [N, out].

    Attributes:
        kind: Dense, LayerNorm or Normalize.
        path: of its folder, from the model's root.
        settings: of Dense `in_features`, `out_features`, `bias`, `activation` (a class of torch.nn) and
            `use_residual`; of LayerNorm `dimension`.
    """

    kind: str
    path: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def in_features(self) -> int | None:
        """Dimensions that it takes; None = any."""
        width: int | None = self.settings.get("in_features", self.settings.get("dimension"))
        return width

    @property
    def out_features(self) -> int | None:
        """Dimensions that it gives; None = as many as it takes."""
        width: int | None = self.settings.get("out_features", self.settings.get("dimension"))
        return width


@dataclass(frozen=True, slots=True)
class ShippedRecipe:
    """What `--pool auto` means for a model.

    Attributes:
        transformer: settings of the tokenizer and of the encoder.
        poolings: in the order in which they are concatenated.
        include_prompt: whether the prompt's tokens take part in the pooling.
        layer_start: the first of the layers whose states are averaged by weights; None = the last layer alone.
        layer_weights_path: folder of these weights, from the model's root.
        modules: what comes behind the pooling, in order; a Normalize at the end is not among them.
        normalize: whether vectors are scaled to length 1 at the end.
        truncate_dim: dimensions kept of a finished vector; None = all.
        prompts: by name.
        default_prompt: the name of the one used unless another is asked for, or None.
        similarity: the function that the vectors were trained for, such as cosine, where it is stated.
    """

    transformer: TransformerSettings
    poolings: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    layer_start: int | None = None
    layer_weights_path: str = ""
    modules: tuple[ShippedModule, ...] = ()
    normalize: bool = False
    truncate_dim: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str | None = None

    @property
    def in_features(self) -> int | None:
        """Dimensions that the modules behind the pooling take; None = any."""
        return next((module.in_features for module in self.modules if module.in_features), None)

    @property
    def out_features(self) -> int | None:
        """Dimensions that they give; None = as many as they take."""
        return next((module.out_features for module in reversed(self.modules) if module.out_features), None)

    def weighted_layers(self, n_layers: int) -> tuple[int, ...]:
        """The layers that are averaged by weights; () where the last one alone is taken.

        Raises:
            ModelError: the model has no layer `layer_start`.
        """
        if self.layer_start is None:
            return ()
        if not 0 <= self.layer_start <= n_layers:
            raise ModelError(
                f"the model's recipe averages the layers from {self.layer_start}, and it has 0 to {n_layers}",
                hint=_CHOOSE,
            )
        return tuple(range(self.layer_start, n_layers + 1))

    def refuse_width(self, width: int) -> None:
        """Refuse pooled vectors of another width than the modules behind the pooling take.

        Raises:
            UsageError: they take another.
        """
        if self.in_features not in {None, width}:
            raise UsageError(
                f"the model's recipe goes on with {self.in_features} dimensions, and its pooling gives {width}",
                hint="leave --layers and --layer-agg out, or choose the pooling yourself, such as --pool mean",
            )

    def steps(self) -> list[dict[str, Any]]:
        """The modules in words, for the recipe of a run."""
        steps: list[dict[str, Any]] = []
        if self.layer_start is not None:
            steps.append({"type": "WeightedLayerPooling", "layer_start": self.layer_start})
        steps.append({"type": "Pooling", "poolings": list(self.poolings), "include_prompt": self.include_prompt})
        steps += [{"type": module.kind, **module.settings} for module in self.modules]
        return [*steps, {"type": "Normalize"}] if self.normalize else steps


def shipped_recipe(model: ModelFolder) -> ShippedRecipe | None:
    """The recipe in the model's folder, or None where there is none.

    Raises:
        ModelError: it has a part that embedkit cannot carry out.
    """
    modules = model.modules()
    if not modules:
        return None
    try:
        return _followed(model, modules)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise _refusal(model, "has a setting of another type than sentence-transformers writes") from None


def _followed(model: ModelFolder, modules: tuple[tuple[str, str], ...]) -> ShippedRecipe:
    settings = model.read_recipe("config_sentence_transformers.json")
    of_kind = settings.get("model_type", "SentenceTransformer")
    if of_kind != "SentenceTransformer":
        raise _refusal(model, f"is that of a {of_kind}, not of a SentenceTransformer")
    for kind, _ in modules:
        if not kind.startswith("sentence_transformers."):
            raise _refusal(model, f"has a module '{kind}', which is code of its own")
    kinds = [kind.rsplit(".", 1)[-1] for kind, _ in modules]
    paths = [path for _, path in modules]
    unknown = next((kind for kind in kinds if kind not in MODULES), None)
    if unknown is not None:
        raise _refusal(model, f"has a module '{unknown}', which embedkit cannot run")
    weighted = kinds[1:2] == ["WeightedLayerPooling"]
    at = 2 if weighted else 1
    if kinds[0] != "Transformer" or kinds[at : at + 1] != ["Pooling"] or not set(kinds[at + 1 :]) <= {*_BEHIND}:
        raise _refusal(model, f"has its modules in an order embedkit does not know: {', '.join(kinds)}")
    transformer = transformer_settings(model, paths[0])
    pooling = model.read_recipe(f"{paths[at]}/config.json")
    if not pooling:
        raise _refusal(model, f"has no {paths[at]}/config.json, which says how it pools")
    _refuse_unknown(model, "Pooling", pooling)
    behind = [
        _module(model, kind, path)
        for kind, path in zip(kinds[at + 1 :], paths[at + 1 :], strict=True)
        if kind != "Dropout"
    ]
    normalize = bool(behind) and behind[-1].kind == "Normalize"
    _refuse_misfit(model, behind)
    _refuse_damaged_modules(model, paths)
    # Without this setting sentence-transformers hands out no layers, and leaves their weights aside in silence.
    weighted = weighted and transformer.gives_layers(model.config)
    return ShippedRecipe(
        transformer=transformer,
        poolings=_poolings(model, pooling),
        include_prompt=bool(pooling.get("include_prompt", True)) and model.hub not in _INSTRUCTORS,
        layer_start=_layer_start(model, paths[1]) if weighted else None,
        layer_weights_path=paths[1] if weighted else "",
        modules=tuple(behind[:-1] if normalize else behind),
        normalize=normalize,
        truncate_dim=_count(settings["truncate_dim"]) if settings.get("truncate_dim") is not None else None,
        prompts=model.prompts(),
        default_prompt=_default_prompt(model, settings),
        similarity=settings.get("similarity_fn_name"),
    )


def _refuse_unknown(model: ModelFolder, kind: str, config: Mapping[str, Any]) -> None:
    ends = {"module_input_name", "module_output_name"}
    for key, value in config.items():
        if key not in _KNOWN[kind] | ends and value not in (None, False):
            raise _refusal(
                model, f"has a module '{kind}' with the setting '{key[:80]}', which embedkit does not know"
            )


def _layer_start(model: ModelFolder, path: str) -> int:
    config = model.read_recipe(f"{path}/config.json")
    _refuse_unknown(model, "WeightedLayerPooling", config)
    return int(config.get("layer_start", 4))


def _count(value: Any) -> int:
    if int(value) < 1:
        raise ValueError(value)
    return int(value)


def _default_prompt(model: ModelFolder, settings: Mapping[str, Any]) -> str | None:
    name: str | None = settings.get("default_prompt_name")
    # sentence-transformers knows two prompts that are empty where a model does not ship them.
    if name is not None and name not in {*model.prompts(), "query", "document"}:
        raise _refusal(model, f"names a default prompt '{name}' that it does not have")
    return name


def _poolings(model: ModelFolder, config: Mapping[str, Any]) -> tuple[str, ...]:
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    names = [modes] if isinstance(modes, str) else list(modes)
    for name in names:
        if name not in _MODES:
            raise _refusal(model, f"has pooling mode '{name}', which embedkit cannot run")
    return tuple(_MODES[name] for name in names)


def _module(model: ModelFolder, kind: str, path: str) -> ShippedModule:
    config = model.read_recipe(f"{path}/config.json")
    _refuse_unknown(model, kind, config)
    for end in ("input", "output"):
        name = config.get(f"module_{end}_name") or "sentence_embedding"
        if name != "sentence_embedding":
            raise _refusal(model, f"has a module '{kind}' with {name} as {end}, which embedkit cannot run")
    try:
        match kind:
            case "Dense":
                settings = {
                    "in_features": _count(config["in_features"]),
                    "out_features": _count(config["out_features"]),
                    "bias": bool(config.get("bias", True)),
                    "activation": _activation(model, config.get("activation_function", "torch.nn.Tanh")),
                    "use_residual": bool(config.get("use_residual", False)),
                }
            case "LayerNorm":
                settings = {"dimension": _count(config["dimension"])}
            case _:
                settings = {}
    except (KeyError, TypeError, ValueError):
        raise _refusal(model, f"has a module '{kind}' without dimensions in {path}/config.json") from None
    return ShippedModule(kind, path, settings)


def _activation(model: ModelFolder, name: Any) -> str:
    if not str(name).startswith("torch.nn."):
        raise _refusal(model, f"has a Dense with the activation '{name}', which is not one of torch.nn")
    return str(name).rsplit(".", 1)[-1]


def _refuse_misfit(model: ModelFolder, modules: list[ShippedModule]) -> None:
    width: int | None = None
    for module in modules:
        if width is not None and module.in_features not in {None, width}:
            what = f"has a module '{module.kind}' of {module.in_features} dimensions behind one of {width}"
            raise _refusal(model, what)
        width = module.out_features or width


def _refuse_damaged_modules(model: ModelFolder, paths: list[str]) -> None:
    """Refuse weights of modules that are a pointer, a web page, empty or cut; of the encoder's, it is known."""
    files = [file for path in paths if path for file in model.module_weights(path)]
    try:
        refuse_damaged(model.name, model.root, files)
    except ModelError as error:
        raise ModelError(error.message, hint=f"{error.hint}; or {_CHOOSE}") from None


def _refusal(model: ModelFolder, what: str) -> ModelError:
    return ModelError(f"the recipe that model '{model.name}' ships {what}", hint=_CHOOSE)
