"""The recipe that a model's authors ship with it: sentence-transformers' `modules.json` and prompts.

Reads JSON only. What it cannot carry out exactly it refuses by name, when asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedkit.errors import ModelError
from embedkit.models.resolve import ModelFolder

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


@dataclass(frozen=True, slots=True)
class ShippedRecipe:
    """What `--pool auto` means for a model.

    Attributes:
        poolings: in the order in which they are concatenated.
        normalize: whether vectors are scaled to length 1.
        max_length: the authors' limit in tokens, or None.
        lowercase: whether texts are lowercased before the tokenizer.
        default_prompt: the name of the one used unless another is asked for, or None.
    """

    poolings: tuple[str, ...] = ("mean",)
    normalize: bool = False
    max_length: int | None = None
    lowercase: bool = False
    default_prompt: str | None = None


def shipped_recipe(model: ModelFolder) -> ShippedRecipe | None:
    """The recipe in the model's folder, or None where there is none.

    Raises:
        ModelError: it has a part that embedkit cannot carry out.
    """
    modules = model.read_json("modules.json")
    if not modules:
        return None
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    paths = [str(module.get("path", "")) for module in modules]
    for kind in kinds:
        if kind not in {"Transformer", "Pooling", "Normalize"}:
            raise ModelError(
                f"the recipe that model '{model.name}' ships has a module '{kind}', which embedkit cannot run",
                hint="choose the pooling yourself, such as --pool mean; it is then the plain encoder's vector",
            )
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise ModelError(
            f"the recipe that model '{model.name}' ships has its modules in an order embedkit does not know",
            hint="choose the pooling yourself, such as --pool mean",
        )
    transformer = paths[0] + "/" if paths[0] else ""
    limits = model.read_json(f"{transformer}sentence_bert_config.json") or {}
    settings = model.read_json("config_sentence_transformers.json") or {}
    prompts = settings.get("prompts") or {}
    return ShippedRecipe(
        poolings=_poolings(
            model, model.read_json(f"{paths[1]}/config.json") or {}, has_prompt=any(prompts.values())
        ),
        normalize="Normalize" in kinds,
        max_length=limits.get("max_seq_length"),
        lowercase=bool(limits.get("do_lower_case", False)),
        default_prompt=settings.get("default_prompt_name"),
    )


def _poolings(model: ModelFolder, config: dict[str, object], *, has_prompt: bool) -> tuple[str, ...]:
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    names = [modes] if isinstance(modes, str) else list(modes)  # type: ignore[call-overload]
    unknown = next((name for name in names if name not in _MODES), None)
    if unknown is not None or (has_prompt and config.get("include_prompt") is False):
        what = f"pooling mode '{unknown}'" if unknown else "a pooling that leaves the prompt out"
        raise ModelError(
            f"the recipe that model '{model.name}' ships has {what}, which embedkit cannot run",
            hint="choose the pooling yourself, such as --pool mean",
        )
    return tuple(_MODES[name] for name in names)
