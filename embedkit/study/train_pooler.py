"""Training of a pooler and a linear head on the states of a frozen encoder.

The same seed on the same machine gives the same weights.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedkit.config.fit_config import FitConfig
from embedkit.errors import InputError, ModelError, Stopped, UsageError
from embedkit.pooling.heads import PredictionHead
from embedkit.pooling.trained import PoolerShape, TrainedPooler, make_pooler
from embedkit.study.hidden_states import States
from embedkit.study.labels import Labels
from embedkit.study.splits import Split

#: Rows of a batch without gradients.
_ROWS = 256
#: Rows from which the scale of the untrained pooler's vectors is computed.
_FIRST_ROWS = 2048
#: Default of --hidden-size for `attention-tanh`, and the largest default of --heads.
_TANH_WIDTH = 512
_MOST_HEADS = 8
#: Standard deviations and means of values whose predictions are stored as float32.
_SMALLEST, _LARGEST = 1e-30, 1e30


@dataclass(frozen=True, slots=True)
class Epoch:
    """Progress after an epoch."""

    number: int  # from 1
    loss: float  # mean over the training rows, during the epoch
    validation_loss: float
    score: float | None  # the task's first metric on the validation rows; None if it is undefined there
    best: bool  # the validation loss is the lowest so far


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained pooler with its head, at its best epoch."""

    pooler: TrainedPooler  # without gradients
    head: PredictionHead
    classes: NDArray[np.int64]  # int64 [C], numbers of the head's classes in `Labels.classes`; [1] for values
    epochs: int  # that were run
    best_epoch: int  # from 1
    scores: Mapping[str, Mapping[str, float]]  # `validation` and `test` → metric → value; undefined ones left out

    def predictions(
        self, states: States, rows: NDArray[np.int64], n_outputs: int, device: torch.device
    ) -> NDArray[Any]:
        """Predicts rows: the probability of each class, 0 for those without training rows; or the value.

        Args:
            states: of all rows.
            rows: int64 [n], positions in `states`.
            n_outputs: classes of the labels; 1 for values.
            device: of the pooler.

        Returns:
            Float [n, n_outputs], of the dtype of the head's weights.
        """
        found = np.zeros((len(rows), n_outputs), self.head.weight.dtype)
        with torch.no_grad():
            for start in range(0, len(rows), _ROWS):
                part = slice(start, start + _ROWS)
                vectors = states.pooled(self.pooler, rows[part], device).cpu().numpy()
                found[part, self.classes] = self.head.scores(vectors)
        return found


class _Network(nn.Module):
    """Pooler, scaling to mean 0 and variance 1, linear head.

    The scaling has running statistics, so that it can be folded into the head's weights at the end.
    """

    def __init__(self, shape: PoolerShape, outputs: int) -> None:
        super().__init__()
        self.pooler: TrainedPooler = make_pooler(shape)
        self.scale = nn.BatchNorm1d(self.pooler.size, affine=False)
        self.linear = nn.Linear(self.pooler.size, outputs)

    def of_vectors(self, vectors: Tensor) -> Tensor:
        """Maps vectors [n, D'] to outputs [n, outputs]."""
        logits: Tensor = self.linear(self.scale(vectors))
        return logits


def pooler_shape(config: FitConfig, states: States, layer_pool: str, *, width: int = 0) -> PoolerShape:
    """Returns the sizes of a pooler, the user's or the defaults.

    Args:
        config: of the fit.
        states: that it is fitted to.
        layer_pool: pooling of each layer, if they are not of tokens.
        width: dimensions kept, of pca and whiten.

    Raises:
        UsageError: the number of heads does not divide the dimensions.
    """
    size = states.n_layers * states.hidden_size
    match config.kind:
        case "attention":
            width = config.hidden_size or size
        case "attention-tanh":
            width = config.hidden_size or _TANH_WIDTH
        case "lstm":
            width = config.hidden_size or states.hidden_size
        case "mean" | "cls":
            width = config.project or 0
    heads = 0
    if config.kind == "multihead-attention":
        heads = config.heads or next(heads for heads in range(_MOST_HEADS, 0, -1) if size % heads == 0)
        if size % heads:
            raise UsageError(f"--heads {heads} does not divide the {size} dimensions", hint="such as --heads 4")
    of_tokens = "" if states.of_tokens else layer_pool
    return PoolerShape(config.kind, states.n_layers, states.hidden_size, width, heads, of_tokens)


def fit_pooler(
    shape: PoolerShape,
    states: States,
    labels: Labels,
    split: Split,
    config: FitConfig,
    device: torch.device,
    on_epoch: Callable[[Epoch], None],
    stop: threading.Event,
) -> Fitted:
    """Trains until the validation loss has not improved for some epochs (`config.patience`).

    AdamW; cross-entropy for classes, binary cross-entropy for rows of several labels, squared error for values and
    for the ranks of ordinal classes, scaled to mean 0 and variance 1. The head has the classes of the training
    rows, as in scikit-learn; rows of other classes count as missed in the scores.

    Args:
        shape: of the pooler.
        states: of all rows; `labels.rows` are positions in them.
        labels: the targets.
        split: positions in `labels`.
        config: of the training.
        device: to train on.
        on_epoch: called after each epoch.
        stop: ends the training between two steps when it is set.

    Raises:
        Stopped: `stop` was set.
        InputError: there are fewer than two training rows, or no validation row has a class of theirs.
        ModelError: the loss is not finite.
    """
    if len(split.train) < 2:
        raise InputError(
            f"{len(split.train)} rows are left to train on",
            hint="label more rows, or lower --validation and --test",
        )
    targets = _targets(labels, split, balanced=config.class_weight == "balanced")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = _Network(shape, len(targets.classes)).to(device)
    training = _Training(network, states, labels, split, targets, config, device, stop)
    training.learn_scale()
    best, best_loss, best_epoch, epoch = copy.deepcopy(network.state_dict()), np.inf, 0, 0
    for epoch in range(1, config.epochs + 1):
        loss = training.one_epoch()
        outputs = training.outputs(split.validation)
        validation_loss = float(targets.loss(outputs, split.validation))
        if not np.isfinite(loss + validation_loss):
            raise ModelError(
                f"the loss is not finite in epoch {epoch}", hint="use a smaller --lr, or check the labels"
            )
        is_best = validation_loss < best_loss
        if is_best:
            best, best_loss, best_epoch = copy.deepcopy(network.state_dict()), validation_loss, epoch
        score = next(iter(targets.measures(outputs, split.validation).values()), None)
        on_epoch(Epoch(epoch, loss, validation_loss, score, is_best))
        if epoch - best_epoch >= config.patience:
            break
    network.load_state_dict(best)
    parts = {"validation": split.validation, "test": split.test}
    scores = {name: targets.measures(training.outputs(rows), rows) for name, rows in parts.items() if len(rows)}
    network.eval().requires_grad_(requires_grad=False)
    return Fitted(network.pooler, training.head(), targets.classes, epoch, best_epoch, scores)


@dataclass(frozen=True)
class _Targets:
    """The targets of a training, as its loss takes them."""

    labels: Labels
    #: [N]: int64, position of the row's class in `classes`, or -1; float32 [N, C], 1 for a row's labels; float64,
    #: values scaled to mean 0 and variance 1.
    scaled: NDArray[Any]
    classes: NDArray[np.int64]  # as in `Fitted`
    weight: NDArray[np.float32] | None  # [C] weights in the loss; None for equal ones
    mean: float  # of the training rows' values, in their unit; 0 for classes
    spread: float  # standard deviation of these; 1 for classes

    def loss(self, outputs: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """Returns the mean loss of outputs [n, C] for these rows, less those of a class not trained on."""
        targets = torch.from_numpy(self.scaled[rows]).to(outputs.device)
        weight = None if self.weight is None else torch.from_numpy(self.weight).to(outputs.device)
        if self.labels.task == "classification":
            return nn.functional.cross_entropy(outputs, targets, weight=weight, ignore_index=-1)
        if self.labels.task == "multilabel":
            return nn.functional.binary_cross_entropy_with_logits(outputs, targets, pos_weight=weight)
        return nn.functional.mse_loss(outputs[:, 0], targets.float())

    def measures(self, outputs: Tensor, rows: NDArray[np.int64]) -> dict[str, float]:
        """Returns the task's metrics for outputs [n, C] of these rows; those undefined for them are left out."""
        from sklearn import metrics

        truth, found = self.labels.targets[rows], outputs.double().cpu().numpy()
        if self.labels.task == "classification":
            chosen = self.classes[found.argmax(axis=1)]
            return {
                "accuracy": float(metrics.accuracy_score(truth, chosen)),
                "macro_f1": float(metrics.f1_score(truth, chosen, average="macro", zero_division=0.0)),
            }
        if self.labels.task == "multilabel":
            sets = np.zeros(truth.shape, np.bool_)
            sets[:, self.classes] = found >= 0
            return {
                f"{average}_f1": float(metrics.f1_score(truth, sets, average=average, zero_division=0.0))
                for average in ("macro", "micro")
            }
        # In the scaled unit: squares of values near 1e300 would overflow.
        scaled = self.scaled[rows]
        error = {"mean_absolute_error": float(np.abs(scaled - found[:, 0]).mean()) * self.spread}
        if self.labels.task == "ordinal":
            ranks = np.floor(found[:, 0] * self.spread + self.mean + 0.5).clip(0, len(self.labels.classes) - 1)
            kappa = metrics.cohen_kappa_score(truth, ranks.astype(np.int64), weights="quadratic")
            defined = {"qwk": float(kappa)} if np.isfinite(kappa) else {}
            return {**defined, "accuracy": float((ranks == truth).mean()), **error}
        return {**({"r2": float(metrics.r2_score(scaled, found[:, 0]))} if np.ptp(scaled) else {}), **error}


def _targets(labels: Labels, split: Split, *, balanced: bool) -> _Targets:
    targets = labels.targets
    train, weight = targets[split.train], None
    if labels.task == "classification":
        classes, counts = np.unique(train, return_counts=True)
        place = np.full(len(labels.classes), -1, np.int64)
        place[classes] = np.arange(len(classes))
        if not np.isin(targets[split.validation], classes).any():
            raise InputError(
                "no validation row has a class that training rows have",
                hint="label more rows, or larger --validation; groups and --dedupe keep rows together",
            )
        if balanced:  # as in scikit-learn
            weight = (len(train) / (len(classes) * counts)).astype(np.float32)
        return _Targets(labels, place[targets], classes, weight, 0.0, 1.0)
    if labels.task == "multilabel":
        counts = train.sum(axis=0)
        classes = np.flatnonzero(counts)
        if balanced:  # a label's rows weigh as much as all others together
            weight = ((len(train) - counts) / np.maximum(counts, 1))[classes].astype(np.float32)
        return _Targets(labels, targets[:, classes].astype(np.float32), classes, weight, 0.0, 1.0)
    # Divided by the largest value first: squares of values near 1e300 would overflow.
    unit = float(np.abs(train).max()) or 1.0
    mean, spread = float((train / unit).mean()), float((train / unit).std()) or 1.0
    return _Targets(
        labels, (targets / unit - mean) / spread, np.zeros(1, np.int64), None, mean * unit, spread * unit
    )


@dataclass
class _Training:
    """Network, optimizer and data of a training."""

    network: _Network
    states: States
    labels: Labels
    split: Split
    targets: _Targets
    config: FitConfig
    device: torch.device
    stop: threading.Event

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.config.seed)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.config.lr)

    def learn_scale(self) -> None:
        """Sets the scaling to the statistics of the untrained pooler's vectors."""
        rows = self.split.train[:: max(1, len(self.split.train) // _FIRST_ROWS)]
        vectors = torch.cat(list(self._vectors(rows)))
        self.network.scale.running_mean = vectors.mean(dim=0)
        self.network.scale.running_var = vectors.var(dim=0)

    def one_epoch(self) -> float:
        """Trains on every training row once; returns the mean loss."""
        self.network.train()
        rows = self.random.permutation(self.split.train)
        total = 0.0
        # Batches of nearly equal size, of at least two rows: a single one has no variance.
        n_batches = min(-(-len(rows) // self.config.batch_size), len(rows) // 2)
        for batch in np.array_split(rows, n_batches):
            self._raise_if_stopped()
            self.optimizer.zero_grad()
            vectors = self.states.pooled(self.network.pooler, self.labels.rows[batch], self.device)
            loss = self.targets.loss(self.network.of_vectors(vectors), batch)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.item() * len(batch)
        return total / len(rows)

    @torch.no_grad()
    def outputs(self, rows: NDArray[np.int64]) -> Tensor:
        """Returns logits, or scaled values, of some labelled rows, [n, outputs]."""
        self.network.eval()
        return torch.cat([self.network.of_vectors(vectors) for vectors in self._vectors(rows)])

    def head(self) -> PredictionHead:
        """Returns the head with the scaling folded in: W (v - m) / s + b = (W / s) v + (b - (W / s) m)."""
        scale, linear = self.network.scale, self.network.linear
        if scale.running_mean is None or scale.running_var is None:
            raise ValueError("the scaling has no statistics")
        deviation = torch.sqrt(scale.running_var.double() + scale.eps)
        weight = linear.weight.double() / deviation
        bias = linear.bias.double() - weight @ scale.running_mean.double()
        weight, bias = weight * self.targets.spread, bias * self.targets.spread + self.targets.mean
        # Predictions have the dtype of the weights, and values may be beyond the range of float32.
        fits = self.targets.spread > _SMALLEST and max(abs(self.targets.mean), self.targets.spread) < _LARGEST
        dtype = torch.float32 if fits else torch.float64
        names = self.labels.classes
        if self.labels.has_probabilities:
            names = tuple(names[number] for number in self.targets.classes)
        arrays = weight.to(dtype).cpu().numpy(), bias.to(dtype).cpu().numpy()
        return PredictionHead(*arrays, names, self.labels.task)

    @torch.no_grad()
    def _vectors(self, rows: NDArray[np.int64]) -> Iterator[Tensor]:
        for start in range(0, len(rows), _ROWS):
            self._raise_if_stopped()
            part = self.labels.rows[rows[start : start + _ROWS]]
            yield self.states.pooled(self.network.pooler, part, self.device)

    def _raise_if_stopped(self) -> None:
        if self.stop.is_set():
            raise Stopped(
                "stopped by a signal while training", hint="run the same command again; the states are kept"
            )
