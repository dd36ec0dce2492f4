"""Checks of option values, with hints."""

from __future__ import annotations

from embedkit.errors import UsageError
from embedkit.suggest import did_you_mean

#: Largest number of rows or tokens that Python, pyarrow and JSON readers take.
_MOST = 2**63 - 1
#: Largest seed of numpy.
MOST_SEED = 2**32 - 1
#: Other tools' words for a value, and ours; of several for one word, the first that an option allows counts.
_USUAL: tuple[tuple[str, str], ...] = (
    *((word, "fp16") for word in ("float16", "half", "f16", "16bit")),
    *((word, "float16") for word in ("fp16", "half", "f16", "bf16", "bfloat16")),
    *((word, "bf16") for word in ("bfloat16", "brainfloat16")),
    *((word, "fp32") for word in ("float32", "float", "single", "full", "f32", "float64", "double")),
    *((word, "float32") for word in ("fp32", "float", "single", "full", "f32", "float64", "double")),
    *((word, "int8") for word in ("8bit", "i8", "q8", "uint8", "qint8")),
    *((word, "binary") for word in ("bit", "bits", "bool", "ubinary", "1bit")),
    *((word, "yes") for word in ("true", "on", "1", "y", "lower", "uncased")),
    *((word, "no") for word in ("false", "off", "0", "n", "cased")),
    *((word, "mean") for word in ("average", "avg", "weighted")),
    *((word, "max") for word in ("maximum", "maxpool")),
    *((word, "min") for word in ("minimum", "minpool")),
    *((word, "concat") for word in ("concatenate", "concatenation", "cat", "join")),
    *((word, "separate") for word in ("stack", "none", "list", "each")),
    *((word, "sum") for word in ("add", "total")),
    *((word, "resume") for word in ("skip", "continue", "append", "restart")),
    *((word, "overwrite") for word in ("force", "replace", "truncate", "yes")),
    *((word, "error") for word in ("fail", "raise", "refuse", "abort")),
    *((word, "fail") for word in ("error", "raise", "abort", "stop")),
    *((word, "skip") for word in ("drop", "ignore", "omit", "warn")),
    *((word, "null") for word in ("none", "nan", "keep", "empty", "coerce")),
    *((word, "text") for word in ("sentence", "document", "doc", "row", "note")),
    *((word, "chunk") for word in ("window", "split", "sliding", "passage")),
    *((word, "token") for word in ("subword", "wordpiece", "piece")),
    *((word, "truncate") for word in ("truncation", "cut", "clip")),
    *((word, "jsonl") for word in ("json", "json lines", "ldjson", "ndjson")),
    *((word, "parquet") for word in ("pq", "parq")),
    *((word, "arrow") for word in ("feather", "ipc")),
    *((word, "npy") for word in ("numpy", "npz", "array")),
    *((word, "txt") for word in ("text", "plain", "lines")),
    *((word, "tsv") for word in ("tab", "tabs")),
    *((word, "bar") for word in ("tqdm", "rich", "yes")),
    *((word, "none") for word in ("off", "no", "quiet", "silent", "false")),
    *((word, "auto") for word in ("default", "lines", "plain")),
    *((word, "classification") for word in ("classif", "clf", "class", "binary", "multiclass", "categorical")),
    *((word, "multilabel") for word in ("multi label", "multioutput", "several")),
    *((word, "ordinal") for word in ("ordered", "rank", "ordinal regression")),
    *((word, "regression") for word in ("reg", "continuous", "regress")),
    *((word, "logistic") for word in ("logreg", "logistic regression", "lr")),
    *((word, "ridge") for word in ("linear", "ols")),
    *((word, "accuracy") for word in ("acc",)),
    *((word, "macro_f1") for word in ("f1", "f1 macro")),
    *((word, "auroc") for word in ("auc", "roc auc", "roc")),
    *((word, "r2") for word in ("r squared", "rsquared")),
    *((word, "spearman") for word in ("rho", "correlation")),
    *((word, "last") for word in ("last token", "final")),
    *((word, "first") for word in ("first token", "head")),
    *((word, "cuda") for word in ("gpu", "nvidia")),
    *((word, "mps") for word in ("metal", "apple")),
)


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises UsageError for a value that is not allowed."""
    if value not in allowed:
        raise UsageError(f"{option} cannot be '{value}'", hint=value_hint(option, value, allowed))


def value_hint(option: str, value: str, allowed: tuple[str, ...], every: str = "") -> str:
    """Returns the hint for a value that an option does not take.

    Args:
        option: as typed, such as `--dtype`.
        value: what was given.
        allowed: known values.
        every: replaces the list of `allowed` in the hint.

    Returns:
        "did you mean --dtype fp16? use one of: auto, fp32"; without its first half if nothing is like the value.
    """
    usual: dict[str, str] = {}
    for word, meant in _USUAL:
        if meant in allowed:
            usual.setdefault(word, meant)
    near = did_you_mean(str(value), allowed, "", prefix=f"{option} ", synonyms=usual)
    return " ".join(part for part in (near, every or f"use one of: {', '.join(allowed)}") if part)


def at_least(option: str, value: int | None, least: int, *, most: int = _MOST) -> None:
    """Raises UsageError for a number below `least` or above `most`; None passes."""
    if value is not None and not least <= value <= most:
        limit = f" to {most}" if value > most else ""
        raise UsageError(f"{option} cannot be {value}", hint=f"use a whole number from {least}{limit}")
