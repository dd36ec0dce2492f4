"""Poolers fitted without labels: document frequencies (`idf`), PCA and whitening."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.config import RunConfig
from embedkit.engines.accounting import unreadable_rows
from embedkit.errors import InputError, Stopped
from embedkit.inference.model_spec import find_model
from embedkit.inference.tokenizer_setup import set_up_without_weights
from embedkit.pooling.fitted_model import source_recipe
from embedkit.sources import open_table
from embedkit.study.encode_states import tokenize_all
from embedkit.types import Record


def count_frequencies(
    config: RunConfig, stop: threading.Event, notice: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, NDArray[np.int64]]]:
    """Counts the texts that contain each token; reads no model weights.

    Texts are tokenized as by `encode`: prompt, casing, truncation. A text without tokens is not a document.
    Special tokens are counted like any other: they are in every text and so have the least weight.

    Args:
        config: input, model and text options; others are ignored.
        stop: ends the count when it is set.
        notice: receives notes about the table, a sentence each.

    Returns:
        The recipe and the arrays of a pooler's file.

    Raises:
        InputError: a row cannot be read, or no row has a text.
        Stopped: `stop` was set.
    """
    table = open_table(config.input)
    from embedkit.pooling.poolers import vocabulary_hash

    spec = find_model(config)
    setup, _ = set_up_without_weights(spec)
    tokenizer, entries = setup.tokenizer, setup.raw_tokenizer.get_vocab()
    frequencies = np.zeros(max(entries.values()) + 1, np.int64)
    n_documents = rows = 0

    def texts() -> Iterator[str | None]:
        nonlocal rows
        for item in table.records():
            rows += 1
            if isinstance(item, Record):
                yield item.text
            elif config.output.on_bad_row == "fail":
                raise unreadable_rows([item], 1)

    for tokenized in tokenize_all(texts(), tokenizer):
        if stop.is_set():
            raise Stopped("stopped by a signal; nothing is written", hint="run the same command again")
        # A text of several windows is one document.
        text = np.repeat(tokenized.texts, tokenized.tokens.lengths)
        pairs = np.unique(text * len(frequencies) + tokenized.tokens.input_ids)
        frequencies += np.bincount(pairs % len(frequencies), minlength=len(frequencies))
        n_documents += len(np.unique(tokenized.texts))
    for sentence in table.take_notes():
        notice(sentence)
    if not n_documents:
        raise InputError(f"none of {rows} rows has a text to count", hint="check --text-column")
    recipe = {
        "kind": "idf",
        "vocabulary": vocabulary_hash(entries, lowercase=setup.lowercase),
        "n_documents": n_documents,
        "text": {"prompt": tokenizer.prompt, "max_length": tokenizer.max_length, "on_long": setup.on_long},
        "rows": rows,
        **source_recipe(spec.folder.name, spec.folder.revision),
    }
    return recipe, {"document_frequencies": frequencies}


@dataclass(frozen=True, slots=True)
class Rotation:
    """Principal components: a vector v becomes (v - center) @ rotation."""

    center: NDArray[np.float32]  # float32 [D]
    rotation: NDArray[np.float32]  # float32 [D, dims]
    variance_kept: float  # share of the variance that the components explain
    shrinkage: float  # of the covariance, 0 to 1; 0 for PCA


def fit_rotation(
    blocks: Callable[[], Iterable[NDArray[np.float64]]], dims: int | None, *, whiten: bool
) -> Rotation:
    """Computes the principal components of vectors by the eigenvectors of their covariance.

    Whitening divides each component by its standard deviation (Su et al. 2021, arXiv 2103.15316), of a covariance
    shrunk towards a multiple of the identity (Ledoit & Wolf, "A well-conditioned estimator for large-dimensional
    covariance matrices", 2004): unless rows are many times the dimensions, the smallest deviations are noise, and
    dividing by them drowns what distinguishes the texts.

    Args:
        blocks: returns all the vectors, float64 [n, D] at a time; called twice.
        dims: components kept; None keeps all with variance.
        whiten: scale every component to variance 1.

    Raises:
        InputError: there is one row, or fewer than `dims` components have variance.
    """
    n_rows, total = 0, np.zeros(1)
    for block in blocks():
        n_rows, total = n_rows + len(block), total + block.sum(axis=0)
    if n_rows < 2:
        raise InputError(f"{n_rows} rows with a text are too few", hint="give at least two")
    center = total / n_rows
    products, fourth_powers = np.zeros((len(center), len(center))), 0.0
    for block in blocks():
        centred = block - center
        products += centred.T @ centred
        fourth_powers += float(np.square(np.square(centred).sum(axis=1)).sum())
    variances, directions = np.linalg.eigh(products / n_rows)
    variances, directions = np.maximum(variances[::-1], 0), directions[:, ::-1]
    # Less is rounding: of the eigenvalues, and of float32 values.
    least = max(float(variances[0]) * 1e-10, float(np.square(center).max()) * 1e-13)
    found = min(n_rows - 1, int((variances > least).sum()))
    if (dims or 1) > found:
        raise InputError(
            f"the vectors of {n_rows} rows vary in {found} directions, fewer than the {dims or 1} requested",
            hint=f"request at most {found}, or give more rows" if found else "give texts that differ",
        )
    # Components without variance in these rows are noise of rounding there, and not in other rows.
    kept = dims or found
    # The sign of a component is arbitrary: its largest entry is made positive on all machines.
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0, keepdims=True), axis=0)
    rotation = (directions * np.sign(largest))[:, :kept]
    shrinkage = _shrinkage(variances, n_rows, fourth_powers) if whiten else 0.0
    if whiten:
        shrunk = (1 - shrinkage) * variances[:kept] + shrinkage * variances.mean()
        rotation = rotation / np.sqrt(shrunk)
    share = float(variances[:kept].sum() / variances.sum())
    return Rotation(center.astype(np.float32), rotation.astype(np.float32), share, shrinkage)


def _shrinkage(variances: NDArray[np.float64], n_rows: int, fourth_powers: float) -> float:
    """Returns the shrinkage of Ledoit and Wolf: the covariance's error over its distance from the identity.

    Args:
        variances: [D], eigenvalues of the covariance.
        n_rows: n of the covariance.
        fourth_powers: the sum over the rows of the fourth power of their distance from the mean.
    """
    squares = float(np.square(variances).sum())
    distance = squares - variances.sum() ** 2 / len(variances)
    error = (fourth_powers / n_rows - squares) / n_rows
    return float(min(max(error / distance, 0.0), 1.0)) if distance > 0 else 1.0
