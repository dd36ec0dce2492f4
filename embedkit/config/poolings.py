"""Names for `--pool`, `--layers` and `--layer-agg`, and their resolution. Imports no torch."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from embedkit.errors import UsageError
from embedkit.suggest import did_you_mean

#: The entry-point group in which a package declares its poolers.
ENTRY_POINTS = "embedkit.poolers"
#: Each pooling with one line on when it helps; a table in the docs is made of these.
POOLING_NAMES: dict[str, str] = {
    "cls": "the [CLS] or <s> token: what fine-tuned classifiers read; weak in a model that was only pretrained",
    "mean": "average of the tokens: the safe first choice for frozen encoders",
    "max": "largest value of each dimension: a single finding in a long text stays visible",
    "min": "smallest value of each dimension: seldom alone, often with max",
    "mean_sqrt_len": "sum over the square root of the length: keeps some of how long the text was",
    "weightedmean": "average that weighs later tokens more: for causal (GPT-like) models",
    "lasttoken": "the last token: for causal models, where only it has seen the whole text",
    "pooler": "the model's own pooling head on [CLS]: only where the checkpoint trained it",
}
#: Names that cannot be part of a comma list.
WHOLE_NAMES: dict[str, str] = {
    "auto": "what the model's authors chose, if the model ships it, else mean",
    "none": "no pooling: one vector a token",
}
#: Kinds of `embedkit fit --pooler`; a table in the docs is made of these.
POOLER_KINDS: dict[str, str] = {
    "idf": "average of the tokens, rare ones weighing more: sum(idf h) / sum(idf); no labels",
    "pca:N": "the N directions in which the pooled vectors vary most; no labels",
    "whiten": "PCA to equal variance in every direction, which undoes a narrow cone of vectors; no labels",
    "mean": "the mean with a head on it; `--project N` puts a learned projection between",
    "cls": "as mean, of the [CLS] token",
    "weighted-layers": "the mean (or cls) of each layer, weighed by a learned softmax over the layers",
    "lstm": "an LSTM over the mean (or cls) of each layer, its last state",
    "attention": "weights by a network that scores each token: Linear, LayerNorm, GELU, Linear, softmax",
    "attention-tanh": "the same with Linear, Tanh, Linear, softmax",
    "multihead-attention": "a learned query attends to the tokens with several heads",
}
#: Other libraries' names of a pooling.
_SYNONYMS = {
    **dict.fromkeys(("average", "avg", "meanpooling", "mean_tokens", "mean_pooling"), "mean"),
    **dict.fromkeys(("first", "cls_token", "bos", "first_token", "[CLS]"), "cls"),
    **dict.fromkeys(("last", "eos", "last-token"), "lasttoken"),
    **dict.fromkeys(("maximum", "max_tokens", "maxpool"), "max"),
    **dict.fromkeys(("minimum", "minpool"), "min"),
    **dict.fromkeys(("pooler_output", "pooled"), "pooler"),
    **dict.fromkeys(("tokens", "token", "no"), "none"),
    "weighted_mean": "weightedmean",
}
LAYER_AGGREGATIONS: dict[str, str] = {
    "concat": "the layers' states side by side",
    "mean": "their average",
    "sum": "their sum",
    "max": "the largest value of each dimension",
    "separate": "no aggregation: one output column a layer",
}


def parse_poolings(text: str) -> tuple[str, ...]:
    """Returns the names of a comma list such as `cls,mean`, in order.

    Besides the names of this module it takes files of `embedkit fit` (`idf:FILE`, `FILE.safetensors`) and poolers
    that installed packages declare; nothing of these is opened or imported here.

    Raises:
        UsageError: an unknown name, a repeated one, or `auto` or `none` with others.
    """
    names = tuple(name.strip() for name in text.split(","))
    known = [*WHOLE_NAMES, *POOLING_NAMES]
    for name in names:
        if name not in known and not is_file(name) and not installed(name):
            own = sorted({entry.name for entry in entry_points(group=ENTRY_POINTS)})
            raise UsageError(
                f"unknown pooling '{name}'; known: {', '.join([*known, *own])}, idf:FILE, FILE.safetensors",
                hint=did_you_mean(
                    name,
                    [*known, *own],
                    "choose one of these, or a comma list of them",
                    prefix="--pool ",
                    synonyms=_SYNONYMS,
                ),
            )
        if name in WHOLE_NAMES and len(names) > 1:
            raise UsageError(f"pooling '{name}' cannot be part of a list", hint=f"--pool {name}")
    _check_no_repeats("--pool", names)
    return names


def is_file(name: str) -> bool:
    """Checks whether a pooling's name is that of a file of `embedkit fit`."""
    return (name.startswith("idf:") and len(name) > len("idf:")) or name.endswith(".safetensors")


def installed(name: str) -> list[EntryPoint]:
    """Returns the entry points of installed packages for a pooler of this name, not loaded."""
    return list(entry_points(group=ENTRY_POINTS, name=name))


def parse_layers(text: str) -> tuple[str, ...]:
    """Returns the parts of `--layers`, checked for their form: `-1`, `9:13`, `-4:`, `all`, or a comma list.

    Raises:
        UsageError: a part that is neither a whole number nor a slice of two.
    """
    parts = tuple(part.strip() for part in text.split(","))
    for part in parts:
        numbers = [] if part == "all" else part.split(":")
        if len(numbers) > 2 or not all(_is_whole(number) for number in numbers if number or len(numbers) == 1):
            raise UsageError(
                f"--layers cannot be '{text}'",
                hint="give layer numbers (-1 is the last), a slice such as -4: or 9:13, a comma list, or all",
            )
    return parts


def resolve_layers(text: str, n_layers: int) -> tuple[int, ...]:
    """Returns the layer numbers 0..n_layers of `--layers` for a model with `n_layers` encoder layers.

    Layer 0 is the embedding output, layer k the output of the k-th encoder layer, as in the `hidden_states` of
    transformers. Slices are Python's, over that list of n_layers + 1.

    Raises:
        UsageError: a number outside the model's range, an empty slice, a layer named twice.
    """
    states = n_layers + 1
    layers: list[int] = []
    for part in parse_layers(text):
        if part == "all":
            layers += range(states)
            continue
        bounds = [int(number) if number else None for number in part.split(":")]
        is_slice = len(bounds) == 2
        top = states if is_slice else n_layers
        for bound in bounds:
            if bound is not None and not -states <= bound <= top:
                raise UsageError(
                    f"layer {bound} is out of range: this model has layers 0 (embeddings) to {n_layers} (last)",
                    hint=f"use 0 to {n_layers}, or -{states} to -1 counted from the end",
                )
        chosen = list(range(states))[slice(*bounds)] if is_slice else [(bounds[0] or 0) % states]
        if not chosen:
            raise UsageError(
                f"--layers {part} selects no layer: this model has layers 0 (embeddings) to {n_layers} (last)",
                hint="a slice a:b takes layers a to b-1, as in Python",
            )
        layers += chosen
    _check_no_repeats("--layers", tuple(str(layer) for layer in layers))
    return tuple(layers)


def _is_whole(text: str) -> bool:
    return text.lstrip("-").isdecimal() and text.count("-") <= 1


def _check_no_repeats(option: str, names: tuple[str, ...]) -> None:
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UsageError(
            f"{option} names {repeated} twice", hint="name each once: a copy of a vector adds nothing"
        )
