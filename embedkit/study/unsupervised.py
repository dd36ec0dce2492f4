"""Poolers fitted without labels: document frequencies (`idf`), PCA and whitening."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.config import RunConfig
from embedkit.engines.accounting import unreadable_rows
from embedkit.errors import InputError, Stopped
from embedkit.inference.model_spec import find_model
from embedkit.inference.tokenizer_setup import set_up_without_weights
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

    setup, _ = set_up_without_weights(find_model(config))
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
    }
    return recipe, {"document_frequencies": frequencies}


def fit_rotation(
    blocks: Iterable[NDArray[np.float64]], dims: int | None, *, whiten: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Computes the principal components of vectors, by the eigenvectors of their covariance in one pass.

    Whitening divides each component by its standard deviation (Su et al. 2021, arXiv 2103.15316).

    Args:
        blocks: float64 [n, D] each, all the vectors.
        dims: components kept; None keeps all with variance.
        whiten: scale every component to variance 1.

    Returns:
        The mean, float32 [D]; the rotation, float32 [D, dims], for (v - mean) @ rotation; and the explained share
        of the variance.

    Raises:
        InputError: fewer than `dims` components have variance.
    """
    n_rows, shift, total, products = 0, None, None, None
    for block in blocks:
        # Centred on the first block's mean: sums of squares far from zero would cancel.
        shift = block.mean(axis=0) if shift is None else shift
        centred = block - shift
        n_rows += len(block)
        total = centred.sum(axis=0) + (0 if total is None else total)
        products = centred.T @ centred + (0 if products is None else products)
    if shift is None or total is None or products is None or n_rows < 2:
        raise InputError(f"{n_rows} rows with a text are too few", hint="give at least two")
    off = total / n_rows
    covariance = (products - n_rows * np.outer(off, off)) / (n_rows - 1)
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = variances[::-1], directions[:, ::-1]
    found = min(n_rows - 1, int((variances > variances[0] * 1e-10).sum()))
    if (dims or 1) > found:
        raise InputError(
            f"the vectors of {n_rows} rows vary in {found} directions, fewer than the {dims} requested",
            hint=f"request at most {found}, or give more rows",
        )
    kept = dims or found
    # The sign of a component is arbitrary: its largest entry is made positive on all machines.
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0, keepdims=True), axis=0)
    rotation = (directions * np.sign(largest))[:, :kept]
    if whiten:
        rotation = rotation / np.sqrt(variances[:kept])
    share = float(variances[:kept].sum() / np.maximum(variances, 0).sum())
    return (shift + off).astype(np.float32), rotation.astype(np.float32), share
