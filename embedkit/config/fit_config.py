"""Options of `embedkit fit` besides those that it shares with `encode`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from embedkit.config.checks import at_least, one_of, value_hint
from embedkit.config.label_config import LabelConfig
from embedkit.config.poolings import POOLER_KINDS
from embedkit.errors import UsageError
from embedkit.suggest import closest_names

#: Other tools' names of a kind.
_USUAL_KINDS = {
    **dict.fromkeys(("attn", "attention pooling", "self attention", "gated attention"), "attention"),
    **dict.fromkeys(("tanh", "attn tanh", "additive attention"), "attention-tanh"),
    **dict.fromkeys(("mha", "multi head attention", "multihead", "transformer"), "multihead-attention"),
    **dict.fromkeys(("elmo", "scalar mix", "layer weights", "weighted", "weighted layer"), "weighted-layers"),
    **dict.fromkeys(("rnn", "bilstm", "gru"), "lstm"),
    **dict.fromkeys(("tfidf", "tf-idf", "bm25", "sif"), "idf"),
    **dict.fromkeys(("svd", "components"), "pca"),
    **dict.fromkeys(("whitening", "zca"), "whiten"),
    **dict.fromkeys(("average", "avg"), "mean"),
}
#: Kinds that are made without labels.
WITHOUT_LABELS = ("idf", "pca", "whiten")
#: Kinds that take the vectors of several layers as a sequence.
OVER_LAYERS = ("weighted-layers", "lstm")
#: All kinds, without their numbers; those trained on labels; those that take one vector per layer.
KINDS = tuple(name.partition(":")[0] for name in POOLER_KINDS)
TRAINED = tuple(kind for kind in KINDS if kind not in WITHOUT_LABELS)
WITH_LAYER_POOL = (*OVER_LAYERS, "pca", "whiten")
#: Kinds that take vectors of layers, not of tokens.
OF_VECTORS = (*OVER_LAYERS, "mean", "cls", "pca", "whiten")


def check_kind(pooler: str) -> None:
    """Checks the name of a pooler that `fit` makes, such as `attention` or `pca:64`.

    Raises:
        UsageError: there is no such kind, or its number is missing or misplaced.
    """
    name = pooler.partition(":")[0]
    if name not in KINDS or not re.fullmatch(r"pca:[1-9]\d*|whiten(:[1-9]\d*)?|[a-z-]+", pooler):
        kind = closest_names(name, KINDS, synonyms=_USUAL_KINDS, most=1)
        near = tuple(known for known in POOLER_KINDS if known.partition(":")[0] in kind)
        raise UsageError(
            f"--pooler cannot be '{pooler}'",
            hint=value_hint("--pooler", near[0] if near else pooler, tuple(POOLER_KINDS)),
        )
    if pooler == "pca":
        raise UsageError("--pooler pca does not say how many dimensions", hint="such as --pooler pca:128")


@dataclass(frozen=True, slots=True)
class FitConfig:
    """One `embedkit fit`, besides its RunConfig."""

    pooler: str  # one of POOLER_KINDS
    output: str
    labels: LabelConfig = field(default_factory=LabelConfig)  # its label is None for the kinds that need none
    layer_start: int | None = None  # of OVER_LAYERS; None: as --layers says, else the first encoder layer
    layer_pool: str = "mean"  # mean or cls, for WITH_LAYER_POOL
    project: int | None = None  # width of a learned projection after mean or cls
    hidden_size: int | None = None  # of attention's network or of the LSTM's state; None: the kind's own
    heads: int | None = None  # of multihead-attention; None: 8, or fewer if 8 does not divide the dimensions
    epochs: int = 30  # at most
    lr: float = 1e-3  # of AdamW
    batch_size: int = 32  # rows per step
    class_weight: str = "none"  # balanced or none
    validation: float = 0.15  # share of the rows, for early stopping
    test: float = 0.15  # share of the rows, for the final score
    patience: int = 4  # epochs without a lower validation loss before training stops
    states: str = "float16"  # float16 or float32, of token states on disk
    overwrite: bool = False

    @property
    def label(self) -> str | None:
        """The column of labels."""
        return self.labels.label

    @property
    def group(self) -> str | None:
        """The column of groups."""
        return self.labels.group

    @property
    def seed(self) -> int:
        """Decides the split, the first weights and the order of rows."""
        return self.labels.seed

    @property
    def kind(self) -> str:
        """The pooler's kind without its number: `pca` of `pca:64`."""
        return self.pooler.partition(":")[0]

    @property
    def kept_dims(self) -> int | None:
        """N of `pca:N` or `whiten:N`; None if not stated."""
        number = self.pooler.partition(":")[2]
        return int(number) if number else None

    def __post_init__(self) -> None:
        check_kind(self.pooler)
        if not self.output.endswith(".safetensors"):
            raise UsageError(
                f"-o {self.output}: a pooler is a .safetensors file", hint="such as -o pooler.safetensors"
            )
        one_of("--layer-pool", self.layer_pool, ("mean", "cls"))
        one_of("--class-weight", self.class_weight, ("none", "balanced"))
        one_of("--states", self.states, ("float16", "float32"))
        for option in ("project", "hidden_size", "heads", "epochs", "patience"):
            at_least(f"--{option.replace('_', '-')}", getattr(self, option), 1)
        at_least("--batch-size", self.batch_size, 2)
        for option in ("validation", "test"):
            if not 0 < getattr(self, option) < 0.5 and (option == "validation" or self.test != 0):
                raise UsageError(
                    f"--{option} cannot be {getattr(self, option)}",
                    hint="use a share of the rows below 0.5, such as 0.15"
                    + ("; --test may be 0" * (option == "test")),
                )
        if not 0 < self.lr < 1000:
            raise UsageError(f"--lr cannot be {self.lr}", hint="use a number such as 0.001")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.kind not in WITHOUT_LABELS and self.labels.label is None:
            raise UsageError(f"--pooler {self.pooler} is trained on labels", hint="name their column with --label")
        if self.kind in WITHOUT_LABELS and self.labels != LabelConfig(seed=self.labels.seed):
            raise UsageError(
                f"--pooler {self.pooler} needs no labels", hint="leave out --label and the options about labels"
            )
        belongs = {
            "project": ("mean", "cls"),
            "hidden_size": ("attention", "attention-tanh", "lstm"),
            "heads": ("multihead-attention",),
            "layer_start": OVER_LAYERS,
        }
        for option, kinds in belongs.items():
            if getattr(self, option) is not None and self.kind not in kinds:
                raise UsageError(
                    f"--{option.replace('_', '-')} is not for --pooler {self.pooler}",
                    hint=f"it is for {', '.join(kinds)}",
                )
