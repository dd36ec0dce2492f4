"""`EmbedTransformer`: texts to vectors as a step of a scikit-learn pipeline."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from embedkit.config import one_of
from embedkit.errors import InputError
from embedkit.integrations.shared_encoder import checked_config, shared_encoder


class EmbedTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Embeds texts with a frozen encoder. Nothing is learned: `fit` checks the options.

    It is cloned and pickled by its options; the model is loaded by the first `transform` in a process, and shared
    there by all transformers of the same options, such as those of the folds of `cross_val_score`.

    Args:
        model, layers, layer_agg, pool, dtype, device, max_length, on_long, prompt, normalize, lowercase, revision,
            offline: options of `embedkit.Encoder`.
        on_empty: the vector of an empty or missing text: `error`, `zero` for zeros, or `nan`, which
            `sklearn.impute` can fill in.
    """

    def __init__(
        self,
        model: Any = "minilm",
        *,
        layers: Any = "-1",
        layer_agg: str = "concat",
        pool: Any = "auto",
        dtype: Any = "auto",
        device: Any = "auto",
        max_length: Any = None,
        on_long: str | None = None,
        prompt: str | None = None,
        normalize: bool | None = None,
        lowercase: str = "auto",
        revision: str | None = None,
        offline: bool = False,
        on_empty: str = "error",
    ) -> None:
        self.model = model
        self.layers = layers
        self.layer_agg = layer_agg
        self.pool = pool
        self.dtype = dtype
        self.device = device
        self.max_length = max_length
        self.on_long = on_long
        self.prompt = prompt
        self.normalize = normalize
        self.lowercase = lowercase
        self.revision = revision
        self.offline = offline
        self.on_empty = on_empty

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002, N803 - scikit-learn's names
        """Checks the options; learns nothing.

        Raises:
            UsageError: a value that cannot be used.
        """
        checked_config(self._options())
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:  # noqa: N803 - scikit-learn's name
        """Returns the vectors of N texts, float32 [N, D].

        Args:
            X: a list, array or column of texts, or a table or array of one column.

        Raises:
            UsageError: a value that cannot be used.
            InputError: X holds something other than texts, or an empty one under `on_empty="error"`.
            ModelError: the model is unavailable.
        """
        vectors = shared_encoder(self._options()).encode(_only_column(X))
        empty: NDArray[np.bool_] = np.isnan(vectors[:, 0])
        if empty.any() and self.on_empty == "error":
            raise InputError(
                f"{empty.sum():,} of {len(vectors):,} texts are empty, the first at position {empty.argmax()}",
                hint="leave them out, or use on_empty='zero' or 'nan'",
            )
        if self.on_empty == "zero":
            vectors[empty] = 0
        return vectors

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:  # noqa: ARG002 - scikit-learn's
        """Returns the names of the D dimensions: embedding0, embedding1, …; loads the model."""
        dims = sum(shared_encoder(self._options()).dims.values())
        return np.array([f"embedding{place}" for place in range(dims)], dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        """Returns True: there is nothing to fit."""
        return True

    def __sklearn_tags__(self) -> Any:
        """Returns tags that say: texts in one dimension go in, and no fit is needed."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.one_d_array, tags.input_tags.two_d_array = True, True, False
        tags.requires_fit = False
        return tags

    def _options(self) -> dict[str, Any]:
        """Returns the options of the Encoder."""
        one_of("on_empty", self.on_empty, ("error", "zero", "nan"))
        options: dict[str, Any] = self.get_params(deep=False)
        del options["on_empty"]
        return options


def _only_column(table: Any) -> Any:
    """Returns the column of a table or array of one column, as ColumnTransformer gives it; else the value."""
    shape: tuple[int, ...] = getattr(table, "shape", ())
    if len(shape) != 2 or shape[1] != 1:
        return table
    return table.iloc[:, 0] if hasattr(table, "iloc") else table[:, 0]
