"""Reads the recipe that a model's authors ship: sentence-transformers' `modules.json`, settings and prompts.

Each setting means the same as in sentence-transformers 6.2; one that embedkit cannot follow is refused. Reads JSON
only: `models/dense_head.py` reads the weights of the modules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from embedkit.errors import ModelError, UsageError
from embedkit.models.repository.folder_checks import check_complete
from embedkit.models.repository.model_folder import ModelFolder

#: Pooling modes of sentence-transformers and our names for them.
_MODES = {
    mode: mode.removesuffix("_tokens")
    for mode in ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
}
#: Its older flags and their modes, in the order in which it concatenates them.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
#: Settings of each module that are followed, or do not affect the numbers.
_MODULE_SETTINGS = {
    "Dense": {"in_features", "out_features", "bias", "activation_function", "use_residual"},
    "LayerNorm": {"dimension"},
    "Normalize": set[str](),
    "Pooling": {"word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt", *_FLAGS},
    "WeightedLayerPooling": {
        *("word_embedding_dimension", "embedding_dimension", "layer_start", "num_hidden_layers"),
    },
}
#: Modules that may follow the pooling. Dropout does nothing in a trained model.
_AFTER_POOLING = ("Dense", "LayerNorm", "Normalize", "Dropout")
MODULES = ("Transformer", "WeightedLayerPooling", "Pooling", *_AFTER_POOLING)
#: sentence-transformers leaves the prompts of these out of the pooling, whatever their files say.
_INSTRUCTORS = ("hkunlp/instructor-base", "hkunlp/instructor-large", "hkunlp/instructor-xl")
_CHOOSE = "choose the pooling yourself, such as --pool mean; it is then the plain encoder's vector"

#: Files with the settings of the Transformer module, in the order in which sentence-transformers looks for them.
_TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
#: The default output of the Transformer module; others are for images, chats, classes or pairs of texts.
_TEXT_OUTPUT = {"method": "forward", "method_output_name": "last_hidden_state"}
#: Groups of arguments, by their older and newer name: arguments that do not affect the numbers, or that options of
#: embedkit (`--dtype`, `--device`) replace. The length is followed.
_ARGUMENT_GROUPS = {
    ("model_args", "model_kwargs"): {
        *("torch_dtype", "dtype", "attn_implementation", "device_map", "low_cpu_mem_usage", "use_safetensors"),
        *("add_pooling_layer", "weights_only", "trust_remote_code"),
    },
    ("tokenizer_args", "processor_kwargs"): {"model_max_length", "padding_side", "use_fast", "trust_remote_code"},
    ("config_args", "config_kwargs"): {
        *("use_cache", "output_hidden_states", "output_attentions", "trust_remote_code"),
    },
}
#: Other settings that are read, or that affect only speed, `encode_query` and `encode_document`.
_TRANSFORMER_SETTINGS = {
    *("max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name"),
    *("processing_kwargs", "unpad_inputs", "query_length", "document_length", "query_expansion"),
    *(name for names in _ARGUMENT_GROUPS for name in names),
}
_PROCESSING_SETTINGS = {
    *("max_length", "truncation", "padding", "padding_side", "pad_to_multiple_of", "return_tensors"),
}


@dataclass(frozen=True, slots=True)
class ShippedModule:
    """A module after the pooling: float32 [N, in] → [N, out].

    Attributes:
        kind: Dense, LayerNorm or Normalize.
        path: its folder, relative to the model's root.
        settings: for Dense `in_features`, `out_features`, `bias`, `activation` (a class of torch.nn) and
            `use_residual`; for LayerNorm `dimension`.
        in_features: input dimensions; None if any.
        out_features: output dimensions; None if the same as the input.
    """

    kind: str
    path: str
    settings: Mapping[str, Any]
    in_features: int | None
    out_features: int | None


@dataclass(frozen=True, slots=True)
class ShippedRecipe:
    """The recipe of `--pool auto` for a model.

    Attributes:
        max_length: the authors' limit in tokens; None if the tokenizer and the encoder decide.
        lowercase: True if texts are lowercased before the tokenizer.
        poolings: in the order in which they are concatenated.
        include_prompt: True if the prompt's tokens take part in the pooling.
        layer_start: the first layer of a weighted average of layers; None if only the last layer is used.
        layer_weights_path: folder of its weights, relative to the model's root.
        modules: those after the pooling, in order, without a Normalize at the end.
        normalize: True if vectors are scaled to length 1 at the end.
        truncate_dim: dimensions kept of a finished vector; None if all.
        prompts: by name.
        default_prompt: the name of the prompt used by default; None if none is.
        similarity: the function that the vectors were trained for, such as cosine; None if not stated.
    """

    max_length: int | None = None
    lowercase: bool = False
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
        """Input dimensions of the modules after the pooling; None if any."""
        return next((module.in_features for module in self.modules if module.in_features), None)

    @property
    def out_features(self) -> int | None:
        """Their output dimensions; None if the same as the input."""
        return next((module.out_features for module in reversed(self.modules) if module.out_features), None)

    def weighted_layers(self, n_layers: int) -> tuple[int, ...]:
        """Returns the layers of the weighted average; () if only the last layer is used.

        Raises:
            ModelError: the model has no layer `layer_start`.
        """
        if self.layer_start is None:
            return ()
        if not 0 <= self.layer_start <= n_layers:
            raise ModelError(
                f"the model's recipe averages the layers from {self.layer_start} on, and it has 0 to {n_layers}",
                hint=_CHOOSE,
            )
        return tuple(range(self.layer_start, n_layers + 1))

    def check_width(self, width: int) -> None:
        """Checks the width of the pooled vectors.

        Raises:
            UsageError: the modules after the pooling take vectors of another width.
        """
        if self.in_features not in {None, width}:
            raise UsageError(
                f"the model's recipe takes {self.in_features} dimensions, and the pooling gives {width}",
                hint="leave --layers and --layer-agg out, or choose the pooling yourself, such as --pool mean",
            )

    def steps(self) -> list[dict[str, Any]]:
        """Describes the modules, for the recipe of a run."""
        steps: list[dict[str, Any]] = []
        if self.layer_start is not None:
            steps.append({"type": "WeightedLayerPooling", "layer_start": self.layer_start})
        steps.append({"type": "Pooling", "poolings": list(self.poolings), "include_prompt": self.include_prompt})
        steps += [{"type": module.kind, **module.settings} for module in self.modules]
        return [*steps, {"type": "Normalize"}] if self.normalize else steps


def shipped_recipe(model: ModelFolder) -> ShippedRecipe | None:
    """Reads the recipe in the model's folder; None if there is none.

    Raises:
        ModelError: it has a part that embedkit cannot follow.
    """
    modules = model.modules()
    if not modules:
        return None
    try:
        return _read_recipe(model, modules)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise _refusal(model, "has a setting of another type than sentence-transformers writes") from None


def _read_recipe(model: ModelFolder, modules: tuple[tuple[str, str], ...]) -> ShippedRecipe:
    settings = model.read_recipe("config_sentence_transformers.json")
    model_kind = settings.get("model_type", "SentenceTransformer")
    if model_kind != "SentenceTransformer":
        raise _refusal(model, f"is that of a {model_kind}, not of a SentenceTransformer")
    for kind, _ in modules:
        if not kind.startswith("sentence_transformers."):
            raise _refusal(model, f"has a module '{kind}', which is defined by its own code")
    kinds, paths = [kind.rsplit(".", 1)[-1] for kind, _ in modules], [path for _, path in modules]
    unknown = next((kind for kind in kinds if kind not in MODULES), None)
    if unknown is not None:
        raise _refusal(model, f"has a module '{unknown}', which embedkit cannot run")
    weighted = kinds[1:2] == ["WeightedLayerPooling"]
    at = 2 if weighted else 1
    if (
        kinds[0] != "Transformer"
        or kinds[at : at + 1] != ["Pooling"]
        or not {*kinds[at + 1 :]} <= {*_AFTER_POOLING}
    ):
        raise _refusal(model, f"has its modules in an order that embedkit does not know: {', '.join(kinds)}")
    max_length, lowercase, all_layers = _transformer_settings(model, paths[0])
    pooling = model.read_recipe(f"{paths[at]}/config.json")
    if not pooling:
        raise _refusal(model, f"has no {paths[at]}/config.json, which says how it pools")
    _check_module(model, "Pooling", pooling)
    after = [
        _module(model, kind, path)
        for kind, path in zip(kinds[at + 1 :], paths[at + 1 :], strict=True)
        if kind != "Dropout"
    ]
    normalize = bool(after) and after[-1].kind == "Normalize"
    _check_widths(model, after)
    _check_module_weights(model, paths)
    # Unless the encoder outputs all layers, sentence-transformers ignores the weights of the layers.
    layer_start = None
    if weighted and all_layers:
        config = model.read_recipe(f"{paths[1]}/config.json")
        _check_module(model, "WeightedLayerPooling", config)
        layer_start = int(config.get("layer_start", 4))
    truncate_dim, default_prompt = settings.get("truncate_dim"), settings.get("default_prompt_name")
    # In sentence-transformers, these two are empty prompts if a model does not ship them.
    if default_prompt is not None and default_prompt not in {*model.prompts(), "query", "document"}:
        raise _refusal(model, f"names a default prompt '{default_prompt}' that it does not have")
    return ShippedRecipe(
        max_length=max_length,
        lowercase=lowercase,
        poolings=_poolings(model, pooling),
        include_prompt=bool(pooling.get("include_prompt", True)) and model.hub not in _INSTRUCTORS,
        layer_start=layer_start,
        layer_weights_path="" if layer_start is None else paths[1],
        modules=tuple(after[:-1] if normalize else after),
        normalize=normalize,
        truncate_dim=None if truncate_dim is None else _positive(truncate_dim),
        prompts=model.prompts(),
        default_prompt=default_prompt,
        similarity=settings.get("similarity_fn_name"),
    )


def _check_module(model: ModelFolder, kind: str, config: Mapping[str, Any]) -> None:
    known = _MODULE_SETTINGS[kind] | {"module_input_name", "module_output_name"}
    is_set = {key: value for key, value in config.items() if value not in (None, False)}
    _check_known(model, is_set, known, f" of its module '{kind}'")


def _positive(value: Any) -> int:
    if int(value) < 1:
        raise ValueError(value)
    return int(value)


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
    _check_module(model, kind, config)
    for end in ("input", "output"):
        name = config.get(f"module_{end}_name") or "sentence_embedding"
        if name != "sentence_embedding":
            raise _refusal(model, f"has a module '{kind}' with {name} as {end}, which embedkit cannot run")
    settings: dict[str, Any] = {}
    try:
        match kind:
            case "Dense":
                activation = str(config.get("activation_function", "torch.nn.Tanh"))
                if not activation.startswith("torch.nn."):
                    raise _refusal(model, f"has a Dense with the activation '{activation}', not one of torch.nn")
                settings = {
                    "in_features": _positive(config["in_features"]),
                    "out_features": _positive(config["out_features"]),
                    "bias": bool(config.get("bias", True)),
                    "activation": activation.rsplit(".", 1)[-1],
                    "use_residual": bool(config.get("use_residual", False)),
                }
            case "LayerNorm":
                settings = {"dimension": _positive(config["dimension"])}
    except (KeyError, TypeError, ValueError):
        raise _refusal(model, f"has a module '{kind}' without dimensions in {path}/config.json") from None
    width = settings.get("dimension")
    return ShippedModule(
        kind, path, settings, settings.get("in_features", width), settings.get("out_features", width)
    )


def _check_widths(model: ModelFolder, modules: list[ShippedModule]) -> None:
    width: int | None = None
    for module in modules:
        if width is not None and module.in_features not in {None, width}:
            raise _refusal(
                model, f"has a module '{module.kind}' of {module.in_features} dimensions after one of {width}"
            )
        width = module.out_features or width


def _check_module_weights(model: ModelFolder, paths: list[str]) -> None:
    files = [file for path in paths if path for file in model.module_weights(path)]
    try:
        check_complete(model.name, model.root, files)
    except ModelError as error:
        raise ModelError(error.message, hint=f"{error.hint}; or {_CHOOSE}") from None


def _transformer_settings(model: ModelFolder, path: str) -> tuple[int | None, bool, bool]:
    """Reads the settings of the Transformer module: length limit, lowercasing, and output of all layers."""
    folder = f"{path}/" if path else ""
    settings = next((found for file in _TRANSFORMER_FILES if (found := model.read_recipe(folder + file))), {})
    _check_output(model, settings)
    _check_known(
        model, {key: value for key, value in settings.items() if value is not None}, _TRANSFORMER_SETTINGS
    )
    _, tokenizer, config = (_arguments(model, settings, names) for names in _ARGUMENT_GROUPS)
    processing = settings.get("processing_kwargs") or {}
    processing = {**(processing.get("text") or {}), **(processing.get("common") or {})}
    _check_known(model, processing, _PROCESSING_SETTINGS, " in processing_kwargs")
    if processing.get("truncation", True) not in {True, "longest_first"}:
        raise _not_followed(model, "'truncation' in processing_kwargs")
    limits = (processing.get("max_length"), tokenizer.get("model_max_length"), settings.get("max_seq_length"))
    max_length = next((_positive(limit) for limit in limits if limit is not None), None)
    all_layers = config.get("output_hidden_states")
    if all_layers is None:
        all_layers = model.config.get("output_hidden_states", False)
    return max_length, bool(settings.get("do_lower_case", False)), bool(all_layers)


def _check_output(model: ModelFolder, settings: Mapping[str, Any]) -> None:
    task = settings.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise _not_followed(model, f"the task '{task}'")
    modalities = settings.get("modality_config", {"text": _TEXT_OUTPUT})
    output = settings.get("module_output_name", "token_embeddings")
    if "message" in modalities:
        raise _not_followed(model, "texts formatted as a chat (modality 'message')")
    if modalities.get("text") != _TEXT_OUTPUT or output != "token_embeddings":
        name = (modalities.get("text") or {}).get("method_output_name")
        raise _not_followed(model, f"an encoder's output other than last_hidden_state ('{name}' as '{output}')")


def _arguments(model: ModelFolder, settings: Mapping[str, Any], names: tuple[str, str]) -> Mapping[str, Any]:
    older, newer = names
    arguments: Mapping[str, Any] = settings.get(older) or settings.get(newer) or {}
    _check_known(model, arguments, _ARGUMENT_GROUPS[names], f" in {older if older in settings else newer}")
    return arguments


def _check_known(model: ModelFolder, settings: Mapping[str, Any], known: Collection[str], place: str = "") -> None:
    unknown = next((name for name in settings if name not in known), None)
    if unknown is not None:
        raise _not_followed(model, f"the setting '{unknown[:80]}'{place}")


def _not_followed(model: ModelFolder, what: str) -> ModelError:
    return _refusal(model, f"has {what}, which embedkit does not follow")


def _refusal(model: ModelFolder, what: str) -> ModelError:
    return ModelError(f"the recipe that model '{model.name}' ships {what}", hint=_CHOOSE)
