"""`embedkit sweep`: one forward pass, then a probe on the user's labels for every layer and pooling."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedkit.config import LabelConfig, RunConfig, at_least, one_of, value_hint
from embedkit.config.poolings import POOLING_NAMES, parse_poolings
from embedkit.engines.base import Callbacks
from embedkit.engines.run import other_outputs_spared, run
from embedkit.engines.summary import Summary
from embedkit.errors import EmbedkitError, OutputError, Stopped, UsageError
from embedkit.inference.model_spec import ModelSpec, find_model
from embedkit.models.repository.architectures import ARCHITECTURES
from embedkit.output.commit import OutputFolder
from embedkit.output.sweep_summary import SUMMARY, VECTORS, read_summary
from embedkit.sources.locate import check_not_read, expanded
from embedkit.storage.atomic import is_former_mark, temporary_files
from embedkit.storage.disk_errors import as_output_error, as_read_error, check_no_link
from embedkit.storage.filesystem import exists, file_names, is_folder, remove_empty, remove_file
from embedkit.storage.replace_folder import Replacement
from embedkit.study.candidates import PooledVectors, all_candidates, baselines
from embedkit.study.labels import InputRows, Labels, read_labels, read_rows
from embedkit.study.metrics import METRICS
from embedkit.study.near_duplicates import clusters, pairs_across
from embedkit.study.probe import PROBES, ProbeScores, cross_validate_all
from embedkit.study.splits import Folds, make_folds, merge_groupings
from embedkit.study.sweep_files import NAMES, write_files
from embedkit.study.verdict import Verdict, decide
from embedkit.tokenizer import TextTokenizer, load_tokenizer

#: Rows that a stopped sweep computes again at most.
SHARD_ROWS = 1024
_POOLINGS = tuple(name for name in POOLING_NAMES if name != "pooler")


@dataclass(frozen=True, slots=True)
class SweepConfig:
    """The configuration of one `embedkit sweep`."""

    run: RunConfig  # its layers and poolings are compared
    folder: Path  # for the results and the vectors
    labels: LabelConfig
    metric: str | None = None  # the deciding metric; None takes the task's first
    probe: str = "ridge"  # one of PROBES
    folds: int = 5

    def __post_init__(self) -> None:
        one_of("--probe", self.probe, PROBES)
        known = [name for task, names in METRICS.items() if self.labels.task in {"auto", task} for name in names]
        if self.metric is not None:
            one_of("--metric", self.metric, tuple(known))
        at_least("--folds", self.folds, 3)
        if "-" in self.run.input.inputs:
            raise UsageError(
                "a sweep reads its input twice, and stdin can be read only once",
                hint="save it to a file first, and name the file",
            )
        for name in parse_poolings(self.run.pooling.pool):
            if name not in {*_POOLINGS, "auto"}:
                raise UsageError(
                    f"a sweep cannot compare '{name}'",
                    hint=value_hint("--pool", name, _POOLINGS, f"use any of: {', '.join(_POOLINGS)}"),
                )


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The result of a sweep."""

    verdict: Verdict
    facts: dict[str, Any]  # input and method, as in summary.json


def sweep(
    config: SweepConfig,
    callbacks: Callbacks,
    stop: threading.Event,
    *,
    command: Callable[[dict[str, str]], str],
    on_candidate: Callable[[int, int], None],
) -> SweepResult | None:
    """Carries out one `embedkit sweep`.

    Args:
        config: of the sweep.
        callbacks: receives the progress of the encoding.
        stop: ends the sweep between two batches or two candidates when it is set.
        command: makes the command line of `encode` from the winner's options.
        on_candidate: called after each candidate with the number done and the number of all.

    Returns:
        The result; None if the folder already holds the same sweep, finished.

    Raises:
        EmbedkitError: of any kind; committed vectors are kept.
    """
    missing = [name for name in ("sklearn", "matplotlib") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"sweep needs scikit-learn and matplotlib; missing: {', '.join(missing)}",
            hint="pip install scikit-learn matplotlib, or from the clone: pip install '.[study]'",
        )
    inputs = expanded(config.run.input.inputs, [])
    check_not_read([config.folder / name for name in NAMES], inputs)
    check_not_read([config.folder / VECTORS], inputs, whole_folders=True)
    replacement = Replacement(config.folder, _clear)
    with other_outputs_spared(config.run):
        folder = _prepare_folder(config, replacement)
    spec = find_model(config.run)
    encoding = _encoding_config(config.run, folder, spec)
    callbacks.notice("reading the labels")
    rows = read_rows(config.run.input, config.labels)
    # Errors in the labels are raised before a model runs for hours.
    metrics = _metrics(_divide(rows, rows.has_text, config)[0], config)
    if folder != config.folder and config.run.output.on_exists == "overwrite":
        replacement.start()
    try:
        summary = run(encoding, callbacks, stop, find_model(encoding, spec.folder))
    except EmbedkitError:
        remove_empty(replacement.next)
        raise
    rows.table.check_unchanged()
    former, settings = read_summary(folder, NAMES), _settings(config, summary)
    if former is not None and all(former.get(name) == value for name, value in settings.items()):
        _finish(config, folder, replacement, callbacks)
        callbacks.notice(f"{config.folder} is finished already: the same rows and options")
        return None
    with as_read_error(folder):
        vectors = PooledVectors(folder / VECTORS)
    labels, cluster, folds = _divide(rows, vectors.has_vector, config)
    candidates = all_candidates(vectors.layers, vectors.poolings)
    if config.run.text.chunk_pool == "max":
        # The maximum over windows of a mean of layers is not the mean of the layers' maxima.
        candidates = [candidate for candidate in candidates if candidate.layer_agg != "mean"]
    scores: list[ProbeScores] = []
    makers = [partial(vectors.of, candidate, labels.rows) for candidate in candidates]
    with closing(cross_validate_all(makers, labels, folds, metrics, config.probe)) as results:
        for of_candidate in results:
            scores.append(of_candidate)
            on_candidate(len(scores), len(candidates))
            if stop.is_set():
                raise Stopped(
                    "stopped by a signal while the probes were fitted; all vectors are committed",
                    hint="run the same command with --on-exists resume: it continues from the vectors",
                )
    verdict = decide(
        candidates,
        scores,
        [candidate.dims(vectors.hidden_size) for candidate in candidates],
        baselines(vectors.layers, vectors.poolings),
        metric=metrics[0],
        test_share=folds.test_share,
    )
    facts = {
        "version": 1,
        **settings,
        "task": labels.task,
        "rows": {
            "input": summary.input_rows,
            "without_vector": summary.input_rows - int(vectors.has_vector.sum()),
            "without_label": int(vectors.has_vector.sum()) - len(labels.rows),
            "judged": len(labels.rows),
        },
        "classes": len(labels.classes),
        "near_duplicates": {
            "texts": int((np.bincount(cluster)[cluster] > 1).sum()),
            "pairs_across_folds": pairs_across(cluster, folds.of_row),
        },
        "layers": list(vectors.layers),
        "poolings": list(vectors.poolings),
    }
    write_files(
        folder,
        verdict,
        facts,
        command=command(verdict.winner.candidate.options),
        title=f"{metrics[0]} by layer and pooling, {len(labels.rows):,} rows, {config.run.model.model}",
    )
    _finish(config, folder, replacement, callbacks)
    return SweepResult(verdict, facts)


def _settings(config: SweepConfig, summary: Summary) -> dict[str, Any]:
    """Returns the part of summary.json on which the results depend, besides the plan of the vectors."""
    return {
        **{name: getattr(config.labels, name) for name in ("label", "group", "seed", "dedupe")},
        **{name: getattr(config, name) for name in ("probe", "folds")},
        "asked": {"task": config.labels.task, "metric": config.metric},
        "model": {"name": config.run.model.model, "fingerprint": summary.fingerprint},
    }


def _finish(config: SweepConfig, folder: Path, replacement: Replacement, callbacks: Callbacks) -> None:
    """Moves a sweep that replaces another one to its folder."""
    if folder != config.folder:
        for sentence in replacement.finish():
            callbacks.notice(sentence)


def _divide(
    rows: InputRows, has_vector: NDArray[np.bool_], config: SweepConfig
) -> tuple[Labels, NDArray[np.int64], Folds]:
    """Returns the labels of rows with a vector, the near-duplicate clusters of their texts, and their folds."""
    if len(has_vector) != len(rows.has_text):
        raise OutputError(
            f"the vectors have {len(has_vector)} rows, and the input has {len(rows.has_text)}",
            hint="do not change the input while embedkit reads it; start again with --on-exists overwrite",
        )
    labelled = rows.labels.filter(pa.array(has_vector))
    labels = read_labels(labelled, config.labels)
    cluster = clusters(rows.signatures[has_vector][labels.rows])
    groupings = [of for of in (labels.groups, cluster if config.labels.dedupe else None) if of is not None]
    groups = merge_groupings(*groupings) if groupings else None
    return labels, cluster, make_folds(labels, groups, count=config.folds, seed=config.labels.seed)


def _metrics(labels: Labels, config: SweepConfig) -> tuple[str, ...]:
    """Returns the task's metrics, the deciding one first."""
    names = METRICS[labels.task]
    deciding = config.metric or names[0]
    one_of("--metric", deciding, names)
    if labels.task == "regression" and config.probe == "logistic":
        raise UsageError("--probe logistic is for classes, and these labels are values", hint="use --probe ridge")
    return (deciding, *(name for name in names if name != deciding))


def _encoding_config(config: RunConfig, folder: Path, spec: ModelSpec) -> RunConfig:
    """Returns the encoding of a sweep: into its folder, poolings by name, an output row for each input row."""
    pool = config.pooling.pool
    poolings = parse_poolings(pool) if pool != "auto" else _meaningful_poolings(config, spec)
    on_bad_row = "null" if config.output.on_bad_row == "skip" else config.output.on_bad_row
    output = replace(config.output, output=str(folder / VECTORS), on_bad_row=on_bad_row)
    return replace(config, pooling=replace(config.pooling, pool=",".join(poolings)), output=output)


def _meaningful_poolings(config: RunConfig, spec: ModelSpec) -> tuple[str, ...]:
    raw, _ = load_tokenizer(
        str(spec.folder.folder),
        casing=config.model.lowercase,
        known_casing=None,
        states_casing=True,
        code=spec.own_tokenizer,
        trust_remote_code=spec.folder.runs_code,
    )
    tokenizer = TextTokenizer(raw, max_length=512)
    architecture = ARCHITECTURES.get(spec.folder.model_type)
    causal = architecture is not None and architecture.causal
    # In a causal model the first token sees no other; only in such a model do later tokens see more.
    unsuitable = set() if causal else {"weightedmean"}
    if causal or not (tokenizer.opens_with_cls or tokenizer.closes_with_cls):
        unsuitable.add("cls")
    return tuple(name for name in _POOLINGS if name not in unsuitable)


def _prepare_folder(config: SweepConfig, replacement: Replacement) -> Path:
    """Checks that the folder is free, or holds a sweep that may be resumed or replaced; changes nothing in it.

    Returns the folder to write to: the sweep's own, or a temporary one that replaces it at the end.
    """
    folder, on_exists = config.folder, config.run.output.on_exists
    check_no_link(folder)
    check_no_link(replacement.next)
    replacement.recover()
    existing, next_names = _names(folder), _names(replacement.next)
    for place, names in ((folder, existing), (replacement.next, next_names)):
        if names - {VECTORS, f"{VECTORS}.next", *NAMES} and (place == folder or on_exists == "overwrite"):
            raise OutputError(
                f"{place} holds files that are not a sweep's", hint="choose an empty or new folder with -o"
            )
    for name in existing & set(NAMES):
        check_no_link(folder / name)
    if (existing or VECTORS in next_names) and on_exists == "error":
        raise OutputError(
            f"{folder} holds another sweep",
            hint="use --on-exists resume (which reuses its vectors) or overwrite, or another -o",
        )
    if on_exists == "resume" and VECTORS in next_names:
        return replacement.next
    if on_exists == "overwrite" and (existing or next_names):
        replacement.check_movable()
        return replacement.next
    return folder


def _names(folder: Path) -> set[str]:
    """Returns the names in a folder without hidden files; none if there is no folder."""
    with as_read_error(folder):
        if not exists(folder):
            return set()
        if not is_folder(folder):
            raise OutputError(f"{folder} is a file, not a folder", hint="choose another place with -o")
        return {name for name in file_names(folder) if not name.startswith(".")}


def _clear(folder: Path) -> None:
    """Removes a sweep's own files from a folder."""
    with as_output_error(folder):
        for name in (SUMMARY, *NAMES):
            remove_file(folder / name)
        for left in temporary_files(folder):
            if not is_former_mark(left.name):
                remove_file(left)
        for vectors in (folder / VECTORS, folder / f"{VECTORS}.next"):
            if exists(vectors):
                OutputFolder(vectors).clear()
                remove_empty(vectors)
