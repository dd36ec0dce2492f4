"""The labelled rows of an input: reads it once, and finds near-duplicates and what is on both sides of a split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress, islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.arrow_values import plain_values
from embedkit.config import InputConfig, LabelConfig
from embedkit.errors import UsageError
from embedkit.inference.tokenizer_setup import TokenizerSetup
from embedkit.sources import Table, open_table
from embedkit.sources.locate import STDIN, expanded
from embedkit.storage.filesystem import real_path
from embedkit.study.labels import TEST, TRAIN, VALIDATION, Labels, read_labels
from embedkit.study.near_duplicates import clusters, pairs_across, text_signature, token_signature
from embedkit.study.splits import merge_groupings
from embedkit.tokenizer.lengths import prompt_length
from embedkit.types import Record, TokenizedTexts

#: Texts of a batch of the tokenizer.
TEXTS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class InputRows:
    """The R rows of an input and of the files of test rows, without their texts."""

    table: Table  # to check at the end that its files are unchanged
    columns: dict[str, list[Any]]  # of labels, groups and parts, [R] values each; None for unreadable rows
    signatures: tuple[NDArray[np.uint32], ...]  # [R, 64] each: of words, and of each model's tokens
    has_text: NDArray[np.bool_]  # [R]
    in_test_file: NDArray[np.bool_] | None  # [R]; None without test files
    tokens: int  # of all texts as the first model reads them; 0 without a model

    def __len__(self) -> int:
        """Returns R."""
        return len(self.has_text)


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """The N rows that have a label and what else is needed, with the groups that no split may divide."""

    labels: Labels
    cluster: NDArray[np.int64]  # [N] near-duplicates have one number
    groups: NDArray[np.int64] | None  # [N] of `--group` and, with `--dedupe`, of near-duplicates; None without
    warnings: tuple[str, ...]  # sentences about what is in several parts of the user's split

    @property
    def n_near_duplicates(self) -> int:
        """The texts that have a near-duplicate."""
        return int((np.bincount(self.cluster)[self.cluster] > 1).sum())


def with_test_files(config: InputConfig, labels: LabelConfig) -> InputConfig:
    """Returns the input with the files of `--test` after its own.

    Raises:
        UsageError: a test file is also an input, or the rows are limited.
        InputError: a file does not exist.
    """
    if not labels.test:
        return config
    if config.limit is not None:
        raise UsageError(
            "--limit counts rows from the first file on, and --test FILE comes after the input",
            hint="leave out --limit, or use a shorter file",
        )
    if STDIN not in config.inputs:
        inputs = {real_path(name) for name in expanded(config.inputs, [])}
        both = [name for name in expanded(labels.test, []) if real_path(name) in inputs]
        if both:
            raise UsageError(
                f"--test {both[0]} is also part of the input: its rows would be trained on and tested",
                hint="name the training files as INPUT",
            )
    return replace(config, inputs=(*config.inputs, *labels.test))


def read_rows(config: InputConfig, labels: LabelConfig, models: Sequence[TokenizerSetup] = ()) -> InputRows:
    """Reads the input, the test files, and their columns of labels and splits once.

    Each text is reduced to signatures, of its words and of the tokens that each model reads.

    Raises:
        InputError: a file or a column is missing, or a file cannot be read.
        UsageError: as `with_test_files`.
    """
    table = open_table(replace(with_test_files(config, labels), keep=labels.columns))
    values: list[tuple[Any, ...]] = []
    has_text: list[bool] = []
    signed: list[list[NDArray[np.uint32]]] = [[] for _ in range(1 + len(models))]
    vocabularies = [len(model.raw_tokenizer.get_vocab()) for model in models]
    # The prompt is the same in all texts.
    skipped = [prompt_length(model.raw_tokenizer, model.tokenizer.prompt) for model in models]
    tokens = 0
    records = table.records()
    while batch := list(islice(records, TEXTS_AT_ONCE)):
        texts = []
        for item in batch:
            record = item if isinstance(item, Record) else None
            values.append(record.kept if record else (None,) * len(labels.columns))
            texts.append((record and record.text) or "")
            has_text.append(bool(texts[-1].strip()))
        signed[0] += map(text_signature, texts)
        for place, model in enumerate(models):
            found = model.tokenizer.tokenize(texts)
            signed[place + 1] += _token_signatures(found, vocabularies[place], skipped[place])
            tokens += int(found.n_used.sum()) if place == 0 else 0
    in_test_file = None
    if labels.test:
        n_files = len(expanded(config.inputs, []))
        first = table.first_rows[n_files] if len(table.first_rows) > n_files else len(values)
        in_test_file = np.arange(len(values)) >= first
    return InputRows(
        table=table,
        columns={
            name: plain_values([of_row[place] for of_row in values]) for place, name in enumerate(labels.columns)
        },
        signatures=tuple(np.array(of_kind, np.uint32).reshape(len(values), -1) for of_kind in signed),
        has_text=np.array(has_text, np.bool_),
        in_test_file=in_test_file,
        tokens=tokens,
    )


def _token_signatures(found: TokenizedTexts, vocabulary: int, skipped: int) -> Iterator[NDArray[np.uint32]]:
    """Yields the signature of each text's tokens after special ones or the first `skipped`, windows in a row."""
    stops = np.cumsum(found.tokens.lengths)
    bounds = np.searchsorted(found.texts, np.arange(len(found.n_used) + 1)).tolist()
    starts = (stops - found.tokens.lengths + max(found.tokens.prefix, skipped)).tolist()
    ends = (stops - found.tokens.suffix).tolist()
    are_cut = (found.n_used < found.n_tokens).tolist()
    for is_cut, (first, stop) in zip(are_cut, pairwise(bounds), strict=True):
        parts = [found.tokens.input_ids[starts[window] : ends[window]] for window in range(first, stop)]
        yield token_signature(np.concatenate(parts) if parts else np.zeros(0, np.int32), vocabulary, is_cut=is_cut)


def labelled_rows(rows: InputRows, chosen: NDArray[np.bool_], config: LabelConfig) -> LabelledRows:
    """Reads the labels of the chosen rows, bool [R], and finds their near-duplicates.

    With `--dedupe` and the user's own split, training rows are left out if they are near-duplicates of validation
    or test rows, and validation rows if they are near-duplicates of test rows.

    Raises:
        EmbedkitError: as `read_labels`.
    """
    columns = {name: list(compress(values, chosen)) for name, values in rows.columns.items()}
    in_test_file = None if rows.in_test_file is None else rows.in_test_file[chosen].tolist()
    labels = read_labels(columns, config, in_test_file=in_test_file)
    cluster = clusters(*(signed[chosen][labels.rows] for signed in rows.signatures))
    if config.dedupe and labels.split is not None:
        copied = (labels.split != TEST) & np.isin(cluster, cluster[labels.split == TEST])
        copied |= (labels.split == TRAIN) & np.isin(cluster, cluster[labels.split == VALIDATION])
        if copied.any():
            labels = labels.without(copied, "near-duplicate")
            note = f"rows left out: {int(copied.sum()):,} near-duplicates of validation or test rows (--dedupe)"
            labels, cluster = replace(labels, notes=(*labels.notes, note)), cluster[~copied]
    groupings = [of for of in (labels.groups, cluster if config.dedupe else None) if of is not None]
    groups = merge_groupings(*groupings) if groupings else None
    return LabelledRows(labels, cluster, groups, tuple(_warnings(labels, cluster, config)))


def _warnings(labels: Labels, cluster: NDArray[np.int64], config: LabelConfig) -> Iterator[str]:
    """Yields a sentence for what is on both sides of the user's split."""
    if labels.split is None:
        return
    for part, name in ((TEST, "test"), (VALIDATION, "validation")):
        tested, trained = (
            labels.split == part,
            labels.split == TRAIN if part == VALIDATION else labels.split != part,
        )
        used = tested | trained
        pairs = pairs_across(cluster[used], tested[used].astype(np.int64))
        if pairs:
            yield (
                f"pairs of near-duplicate texts in both training and {name} rows: {pairs:,}; scores may be too "
                "high, and --dedupe leaves out the training rows of these"
            )
        if labels.groups is not None:
            shared = np.intersect1d(labels.groups[tested], labels.groups[trained])
            if len(shared):
                rows = int(np.isin(labels.groups[tested], shared).sum())
                yield (
                    f"values of column '{config.group}' in both training and {name} rows: {len(shared):,}, with "
                    f"{rows:,} {name} rows; scores may be too high"
                )
