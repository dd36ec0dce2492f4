"""Training of a pooler and a linear head on the states of a frozen encoder.

The same seed on the same machine gives the same weights.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedkit.config.fit_config import FitConfig
from embedkit.errors import ModelError, Stopped
from embedkit.pooling.heads import PredictionHead
from embedkit.pooling.trained import PoolerShape, TrainedPooler, make_pooler
from embedkit.study.hidden_states import States
from embedkit.study.labels import Labels
from embedkit.study.splits import Split

#: Rows of a batch without gradients.
_ROWS = 256
#: Rows from which the scale of the untrained pooler's vectors is computed.
_FIRST_ROWS = 2048


@dataclass(frozen=True, slots=True)
class Epoch:
    """Progress after an epoch."""

    number: int  # from 1
    loss: float  # mean over the training rows, during the epoch
    validation_loss: float
    score: float  # accuracy or R² on the validation rows
    best: bool  # the validation loss is the lowest so far


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained pooler with its head, at its best epoch."""

    pooler: TrainedPooler  # without gradients
    head: PredictionHead
    epochs: int  # that were run
    best_epoch: int  # from 1
    scores: Mapping[str, Mapping[str, float]]  # `validation` and `test` → metric → value


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

    AdamW; cross-entropy, or squared error on values scaled to mean 0 and variance 1.

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
        ModelError: the loss is not finite.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = _Network(shape, len(labels.classes) or 1).to(device)
    training = _Training(network, states, labels, split, config, device, stop)
    training.learn_scale()
    best, best_loss, best_epoch, epoch = copy.deepcopy(network.state_dict()), np.inf, 0, 0
    for epoch in range(1, config.epochs + 1):
        loss = training.one_epoch()
        outputs = training.outputs(split.validation)
        validation_loss = float(training.loss(outputs, split.validation))
        if not np.isfinite(loss + validation_loss):
            raise ModelError(
                f"the loss is not finite in epoch {epoch}", hint="use a smaller --lr, or check the labels"
            )
        is_best = validation_loss < best_loss
        if is_best:
            best, best_loss, best_epoch = copy.deepcopy(network.state_dict()), validation_loss, epoch
        score = next(iter(training.metrics(outputs, split.validation).values()))
        on_epoch(Epoch(epoch, loss, validation_loss, score, is_best))
        if epoch - best_epoch >= config.patience:
            break
    network.load_state_dict(best)
    parts = {"validation": split.validation, "test": split.test}
    scores = {name: training.metrics(training.outputs(rows), rows) for name, rows in parts.items() if len(rows)}
    network.eval().requires_grad_(requires_grad=False)
    return Fitted(network.pooler, training.head(), epoch, best_epoch, scores)


@dataclass
class _Training:
    """Network, optimizer and data of a training."""

    network: _Network
    states: States
    labels: Labels
    split: Split
    config: FitConfig
    device: torch.device
    stop: threading.Event

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.config.seed)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.config.lr)
        targets, train = self.labels.targets, self.labels.targets[self.split.train]
        self.mean, self.spread = 0.0, 1.0
        self.class_weight: Tensor | None = None
        if n_classes := len(self.labels.classes):
            self.targets = torch.from_numpy(targets.astype(np.int64))
            if self.config.class_weight == "balanced":
                # As in scikit-learn, n / (classes x rows of the class), but a class may have no training row.
                counts = np.bincount(train.astype(np.int64), minlength=n_classes)
                weight = len(train) / (n_classes * np.maximum(counts, 1))
                self.class_weight = torch.from_numpy(weight.astype(np.float32)).to(self.device)
        else:
            self.mean, self.spread = float(train.mean()), float(train.std()) or 1.0
            self.targets = torch.from_numpy(((targets - self.mean) / self.spread).astype(np.float32))

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
        # Batches of nearly equal size: a last batch of one row would have no variance.
        for batch in np.array_split(rows, -(-len(rows) // self.config.batch_size)):
            self._raise_if_stopped()
            self.optimizer.zero_grad()
            vectors = self.states.pooled(self.network.pooler, self.labels.rows[batch], self.device)
            loss = self.loss(self.network.of_vectors(vectors), batch)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.item() * len(batch)
        return total / len(rows)

    @torch.no_grad()
    def outputs(self, rows: NDArray[np.int64]) -> Tensor:
        """Returns logits, or scaled values, of some labelled rows, [n, outputs]."""
        self.network.eval()
        return torch.cat([self.network.of_vectors(vectors) for vectors in self._vectors(rows)])

    def loss(self, outputs: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """Returns the mean loss of outputs [n, outputs] for these rows."""
        targets = self.targets[rows].to(self.device)
        if self.labels.classes:
            return nn.functional.cross_entropy(outputs, targets, weight=self.class_weight)
        return nn.functional.mse_loss(outputs[:, 0], targets)

    def metrics(self, outputs: Tensor, rows: NDArray[np.int64]) -> dict[str, float]:
        """Returns accuracy and macro-F1, or R² and the mean absolute error in the labels' unit."""
        from sklearn import metrics

        targets, found = self.labels.targets[rows], outputs.cpu().numpy()
        if self.labels.classes:
            chosen = found.argmax(axis=1)
            return {
                "accuracy": float(metrics.accuracy_score(targets, chosen)),
                "macro_f1": float(metrics.f1_score(targets, chosen, average="macro", zero_division=0.0)),
            }
        values = found[:, 0].astype(np.float64) * self.spread + self.mean
        return {
            "r2": float(metrics.r2_score(targets, values)),
            "mean_absolute_error": float(metrics.mean_absolute_error(targets, values)),
        }

    def head(self) -> PredictionHead:
        """Returns the head with the scaling folded in: W (v - m) / s + b = (W / s) v + (b - (W / s) m)."""
        scale, linear = self.network.scale, self.network.linear
        if scale.running_mean is None or scale.running_var is None:
            raise ValueError("the scaling has no statistics")
        deviation = torch.sqrt(scale.running_var.double() + scale.eps)
        weight = linear.weight.double() / deviation
        bias = linear.bias.double() - weight @ scale.running_mean.double()
        weight, bias = weight * self.spread, bias * self.spread + self.mean
        arrays = weight.float().cpu().numpy(), bias.float().cpu().numpy()
        return PredictionHead(*arrays, self.labels.classes, self.labels.task)

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
