"""Heads: linear layers that predict from pooled vectors; in outputs, from Python, and in scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import ArrayLike, NDArray

from embedkit.errors import UsageError

#: Tasks that predict one value, and all tasks.
VALUE_TASKS = ("ordinal", "regression")
HEAD_TASKS = ("classification", "multilabel", *VALUE_TASKS)
#: Names of columns: the start of a class's, of the predicted class or labels, of the predicted value.
SCORE, PREDICTED, PREDICTION = "score_", "predicted", "prediction"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PredictionHead:
    """A linear layer on pooled vectors: W v + b, one logit for each class, or the predicted value.

    Attributes:
        weight: float32 [C, D], W; C is 1 for ordinal and regression; float64 for values beyond float32's range.
        bias: float32 [C], b.
        classes: names of the classes; of an ordinal head in ascending order; () for regression.
        task: classification, multilabel, ordinal or regression.
        recipe: the content of its file besides the arrays: kind, layers, poolings, model, scores.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    classes: tuple[str, ...]
    task: str
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Describes it without its numbers."""
        classes = f", {len(self.classes):,} classes" if self.classes else ""
        return f"<PredictionHead: {self.task}{classes}, of vectors of {self.weight.shape[1]:,} dimensions>"

    @property
    def columns(self) -> dict[str, str]:
        """The columns that it adds to an output, with their types."""
        match self.task:
            case "regression":
                return {PREDICTION: str(self.weight.dtype)}
            case "ordinal":
                return {PREDICTION: str(self.weight.dtype), PREDICTED: "string"}
        scores = {f"{SCORE}{name}": "float32" for name in self.classes}
        return {**scores, PREDICTED: "string" if self.task == "classification" else _list_of_strings()}

    def scores(self, vectors: ArrayLike) -> NDArray[np.float32]:
        """Returns probabilities or values for vectors [N, D]: [N, C] of the weight's dtype.

        Probabilities are softmax(W v + b), those of a multilabel head sigmoid(W v + b). The value of an ordinal
        head is a position among its classes, from 0 to K - 1.

        Raises:
            UsageError: the vectors do not have the dimensions that the head was trained on.
        """
        given = np.asarray(vectors)
        if given.ndim != 2 or given.shape[1] != self.weight.shape[1]:
            raise UsageError(
                f"the head takes vectors [N, {self.weight.shape[1]}], and these are {list(given.shape)}",
                hint="give the vectors of the layers and poolings in its recipe",
            )
        # In float64, so that neither the other rows nor the number of threads change the float32 result.
        logits = given.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias
        if self.task == "classification":
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            logits = odds / odds.sum(axis=1, keepdims=True)
        elif self.task == "ordinal":
            logits = logits.clip(0, len(self.classes) - 1)
        elif self.task == "multilabel":
            logits = np.exp(-np.logaddexp(0.0, -logits))  # 1 / (1 + exp(-x)), without overflow
        return logits.astype(self.weight.dtype)

    def predict_proba(self, vectors: ArrayLike) -> NDArray[np.float32]:
        """Returns the probability of each class, in the order of `classes`: float32 [N, K].

        They add up to 1, but those of a multilabel head do not: there each is of one label alone.

        Args:
            vectors: float [N, D], such as `embedkit.read(OUT).vectors`, neither scaled to length 1 nor cut.

        Raises:
            UsageError: the head predicts values, or the vectors have other dimensions.
        """
        if self.task in VALUE_TASKS:
            raise UsageError(
                f"a head for {self.task} predicts values, no probabilities", hint="use predict(vectors)"
            )
        return self.scores(vectors)

    def predict(self, vectors: ArrayLike) -> NDArray[Any]:
        """Returns the most probable class of each vector, str [N].

        A multilabel head gives bool [N, K], True for each label with a probability of 0.5 or more; an ordinal head
        the class nearest to its value, str [N]; a head for regression its value, float32 [N].

        Args:
            vectors: float [N, D]; see `predict_proba`.

        Raises:
            UsageError: the vectors have other dimensions.
        """
        return self._decide(self.scores(vectors))

    def cells(self, vectors: NDArray[np.float32]) -> dict[str, list[Any]]:
        """Returns N values for each column."""
        scores = self.scores(vectors)
        # By way of the shortest text that gives the same float32, for JSON Lines.
        text = orjson.dumps(np.ascontiguousarray(scores.T), option=orjson.OPT_SERIALIZE_NUMPY)
        values = orjson.loads(text)
        cells = dict(zip(self.columns, values, strict=False))
        if self.task != "regression":
            cells[PREDICTED] = self.labels(scores)
        return cells

    def labels(self, scores: NDArray[np.float32]) -> list[Any]:
        """Returns what is predicted by N `scores`: a class, a list of labels, or a value each."""
        decided = self._decide(scores)
        if self.task != "multilabel":
            return list(decided.tolist())
        return [[self.classes[label] for label in np.flatnonzero(row)] for row in decided]

    def to_sklearn(self) -> Any:
        """Returns a fitted `sklearn.pipeline.Pipeline` of one step, `head`, that predicts from vectors [N, D].

        The step is a LogisticRegression, for multilabel a OneVsRestClassifier of them, and for values a
        LinearRegression (of an ordinal head: the position among the classes, not limited to these). It can be
        cloned and fitted again.

        Raises:
            UsageError: scikit-learn is not installed, or there is one class only.
        """
        try:
            from sklearn.pipeline import Pipeline
        except ImportError:
            raise UsageError(
                "to_sklearn() needs scikit-learn, which is not installed", hint="pip install 'scikit-learn>=1.6'"
            ) from None
        weight, bias = self.weight.astype(np.float64), self.bias.astype(np.float64)
        match self.task:
            case "classification":
                estimator = _logistic_regression(weight, bias, self.classes)
            case "multilabel":
                estimator = _one_vs_rest(weight, bias, self.classes)
            case _:
                from sklearn.linear_model import LinearRegression

                estimator = _fitted(LinearRegression, coef_=weight[0], intercept_=float(bias[0]))
        return Pipeline([("head", estimator)])

    def _decide(self, scores: NDArray[np.float32]) -> NDArray[Any]:
        if self.task == "regression":
            return scores[:, 0]
        if self.task == "multilabel":
            return np.asarray(scores >= 0.5)
        numbers = scores.argmax(axis=1)
        if self.task == "ordinal":  # the nearest; halves are rounded up
            numbers = np.floor(scores[:, 0] + 0.5).astype(np.int64)
        return np.asarray(np.array(self.classes)[numbers])


def _list_of_strings() -> str:
    # Here, since `Encoder` needs no pyarrow, whose import takes 0.06 s.
    import pyarrow as pa

    from embedkit.arrow_values import type_name

    return type_name(pa.list_(pa.string()))


def _fitted(make: Callable[[], Any], **attributes: Any) -> Any:
    """Makes an estimator of scikit-learn with the attributes that `fit` would set."""
    estimator = make()
    for name, value in attributes.items():
        setattr(estimator, name, value)
    estimator.n_features_in_ = np.shape(attributes["coef_"])[-1]
    return estimator


def _logistic_regression(weight: NDArray[np.float64], bias: NDArray[np.float64], classes: tuple[str, ...]) -> Any:
    from sklearn.linear_model import LogisticRegression

    if len(classes) < 2:
        raise UsageError("the head has one class, and a LogisticRegression needs two", hint="use predict(vectors)")
    if len(classes) == 2:  # softmax of two logits is the sigmoid of their difference, which scikit-learn holds
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    fitted = {"coef_": weight, "intercept_": bias, "classes_": np.array(classes)}
    return _fitted(LogisticRegression, **fitted, n_iter_=np.zeros(1, np.int32))


def _one_vs_rest(weight: NDArray[np.float64], bias: NDArray[np.float64], classes: tuple[str, ...]) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.preprocessing import LabelBinarizer

    of_labels = zip(weight[:, None], bias[:, None], strict=True)
    steps = [
        _fitted(LogisticRegression, coef_=of, intercept_=base, classes_=np.array([0, 1]), n_iter_=np.zeros(1))
        for of, base in of_labels
    ]
    model = OneVsRestClassifier(LogisticRegression())
    model.estimators_, model.n_features_in_ = steps, weight.shape[1]
    # Rows of several labels, which tell it that the targets are multilabel indicators.
    model.label_binarizer_ = LabelBinarizer(sparse_output=True).fit(np.ones((2, max(2, len(classes))), np.int64))
    model.label_binarizer_.classes_ = model.classes_ = np.array(classes)
    return model
