"""Document frequencies for `--pool idf:FILE`: one pass over the texts with the tokenizer alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.config import RunConfig
from embedkit.engines.accounting import unreadable_rows
from embedkit.errors import InputError, Stopped
from embedkit.inference.model_spec import find_model
from embedkit.inference.tokenizer_setup import set_up_without_weights
from embedkit.sources import open_table
from embedkit.types import Record, TokenizedTexts

#: Texts that are tokenized at once.
_TEXTS_AT_ONCE = 4096


def count_frequencies(
    config: RunConfig, stop: threading.Event, notice: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, NDArray[np.int64]]]:
    """In how many texts each token is; no model's weights are read.

    Texts are tokenized as `encode` would: prompt, casing, the cut at the length limit. A text without tokens is no
    document. Special tokens are counted like any other: they are in every text, and have the least weight.

    Args:
        config: input, model and text; the rest has no say.
        stop: set from outside to end it.
        notice: told what the user should know of the table, a sentence each.

    Returns:
        The recipe and the arrays of a pooler's file.

    Raises:
        InputError: a row cannot be read, or there is no text.
        Stopped: a signal came.
    """
    table = open_table(config.input)
    from embedkit.pooling.idf import vocabulary_hash

    settled, _ = set_up_without_weights(find_model(config))
    tokenizer, entries = settled.tokenizer, settled.raw_tokenizer.get_vocab()
    frequencies = np.zeros(max(entries.values()) + 1, np.int64)
    n_documents = rows = 0
    texts: list[str | None] = []

    def count() -> None:
        nonlocal n_documents
        tokenized = tokenizer.tokenize(texts)
        n_documents += _count(tokenized, frequencies)
        texts.clear()

    for item in table.records():
        rows += 1
        if isinstance(item, Record):
            texts.append(item.text)
        elif config.output.on_bad_row == "fail":
            raise unreadable_rows([item], 1)
        if len(texts) == _TEXTS_AT_ONCE:
            if stop.is_set():
                raise Stopped("stopped by a signal; nothing is written", hint="run the same command again")
            count()
    count()
    for sentence in table.take_notes():
        notice(sentence)
    if not n_documents:
        raise InputError(f"none of {rows} rows has a text to count", hint="check --text-column")
    recipe = {
        "kind": "idf",
        "vocabulary": vocabulary_hash(entries, lowercase=settled.lowercase),
        "n_documents": n_documents,
        "text": {
            "prompt": tokenizer.prompt,
            "max_length": tokenizer.max_length,
            "on_long": config.text.on_long,
        },
        "rows": rows,
    }
    return recipe, {"document_frequencies": frequencies}


def _count(tokenized: TokenizedTexts, frequencies: NDArray[np.int64]) -> int:
    """Add a portion's texts to the frequencies; how many of them have a token.

    A text that is read in several windows is one document.
    """
    tokens = tokenized.tokens
    text = np.repeat(tokenized.texts, tokens.lengths)
    pairs = np.unique(text * len(frequencies) + tokens.input_ids)
    frequencies += np.bincount(pairs % len(frequencies), minlength=len(frequencies))
    return len(np.unique(tokenized.texts))
