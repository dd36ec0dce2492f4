"""`embedkit sweep`: one forward pass of each model, then a probe on the labels for every layer and pooling."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.config import LabelConfig, one_of
from embedkit.config.poolings import parse_poolings
from embedkit.engines.base import Callbacks
from embedkit.engines.run import other_outputs_spared
from embedkit.errors import EmbedkitError, OutputError, Stopped, UsageError
from embedkit.manifest.versions import library_versions, processor
from embedkit.output.sweep_summary import NAMES, VECTORS, WINNER, read_summary
from embedkit.pooling.heads import VALUE_TASKS
from embedkit.sources.locate import check_not_read, expanded
from embedkit.storage.filesystem import remove_empty
from embedkit.storage.replace_folder import Replacement
from embedkit.study.cross_validation import check_defined
from embedkit.study.judge_candidates import Method, judge, open_candidates
from embedkit.study.labelled_rows import InputRows, LabelledRows, labelled_rows, read_rows, with_test_files
from embedkit.study.labels import TEST, TRAIN, VALIDATION, Labels
from embedkit.study.metrics import METRICS
from embedkit.study.near_duplicates import pairs_across
from embedkit.study.pooler_candidates import PoolerCandidate, pooler_candidates
from embedkit.study.splits import Folds, make_folds
from embedkit.study.sweep_config import SweepConfig
from embedkit.study.sweep_files import write_files
from embedkit.study.sweep_folder import clear, prepare_folder, vector_folders
from embedkit.study.sweep_models import EncodedModel, encode_models, find_models
from embedkit.study.sweep_winner import Winner, judge_winner
from embedkit.study.verdict import Verdict

#: Rows that a stopped sweep computes again at most.
SHARD_ROWS = 1024


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
    command: Callable[[str, Mapping[str, str]], str],
    on_candidate: Callable[[int, int], None],
) -> SweepResult | None:
    """Carries out one `embedkit sweep`.

    Args:
        config: of the sweep.
        callbacks: receives the progress of the encoding.
        stop: ends the sweep between two batches or two candidates when it is set.
        command: makes the command line to `encode` or to `predict` with the winner, from the options that the
            sweep has chosen.
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
    runs = [replace(run, input=with_test_files(run.input, config.labels)) for run in config.runs]
    inputs = expanded(runs[0].input.inputs, [])
    check_not_read([config.folder / name for name in NAMES], inputs)
    check_not_read([config.folder / VECTORS], inputs, whole_folders=True)
    replacement = Replacement(config.folder, clear)
    with other_outputs_spared(config.run):
        folder = prepare_folder(config.folder, config.run.output.on_exists, replacement)
    models = find_models(runs)
    places = vector_folders(folder, [model.name for model in models], [model.spec for model in models])
    callbacks.notice("reading the labels")
    rows = read_rows(config.run.input, config.labels, [model.setup for model in models])
    # Errors in the labels and the poolers are raised before a model runs for hours.
    for model in models:
        poolings = parse_poolings(model.config.pooling.pool)
        pooler_candidates(config.poolers, model.setup.layers, poolings, model.n_layers)
    found, folds = _divide(rows, rows.has_text, config)
    metrics = _metrics(found.labels, config)
    undefined = check_defined(found.labels, folds, metrics)
    for sentence in (*found.labels.notes, *found.warnings, *undefined):
        callbacks.notice(sentence)
    if pairs := _pairs(found, folds):
        callbacks.notice(
            f"{pairs:,} pairs of near-duplicate texts are in different folds, so scores may be too high; --dedupe "
            "keeps near-duplicates in one fold"
        )
    if folder != config.folder and config.run.output.on_exists == "overwrite":
        replacement.start()
    try:
        encoded = encode_models(models, places, folder, callbacks, stop)
    except EmbedkitError:
        remove_empty(replacement.next)
        raise
    rows.table.check_unchanged()
    settings = _settings(config, encoded)
    if _is_finished(read_summary(folder, NAMES), settings):
        _finish(config, folder, replacement, callbacks)
        callbacks.notice(f"{config.folder} is finished already: the same rows and options")
        return None
    has_vector = np.all([model.vectors.has_vector for model in encoded], axis=0)
    found, folds = _divide(rows, has_vector, config)
    facts = _facts(encoded, found, folds, has_vector, settings, folder)
    places_of_rows = np.flatnonzero(has_vector)[found.labels.rows]
    method = Method(found, folds, metrics, config.probe, config.labels)
    with _resumable(), open_candidates(encoded, places_of_rows, config.poolers, callbacks, stop) as candidates:
        judged = judge(candidates, method, on_candidate, stop)
        for sentence in judged.left_out:
            callbacks.notice(sentence)
        facts["warnings"] += judged.left_out
        winner = judge_winner(candidates, judged, method, facts)
    write_files(folder, judged.verdict, winner, facts, _commands(winner, command))
    _finish(config, folder, replacement, callbacks)
    return SweepResult(judged.verdict, facts)


@contextmanager
def _resumable() -> Iterator[None]:
    """Says how a sweep that a signal stopped continues: its folder is not empty, so not by the same command."""
    try:
        yield
    except Stopped as stopped:
        hint = "run the same command with --on-exists resume: it continues from what is computed"
        raise Stopped(stopped.message, hint=hint) from None


def _facts(
    encoded: Sequence[EncodedModel],
    found: LabelledRows,
    folds: Folds,
    has_vector: NDArray[np.bool_],
    settings: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Returns what summary.json says of the input and the method."""
    labels = found.labels
    parts = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    counts = {} if labels.split is None else {of: int((labels.split == part).sum()) for of, part in parts.items()}
    first = encoded[0].vectors
    return {
        "version": 1,
        **settings,
        "task": labels.task,
        "rows": {
            "input": len(has_vector),
            "without_vector": int((~has_vector).sum()),
            "without_label": int(has_vector.sum()) - len(labels.rows),
            "judged": len(labels.rows),
        },
        "split": {name: count for name, count in counts.items() if count},
        "left_out": dict(labels.left_out),
        "warnings": list(found.warnings),
        "classes": len(labels.classes),
        "versions": library_versions(),
        "processor": processor(),
        "near_duplicates": {"texts": found.n_near_duplicates, "pairs_across_folds": _pairs(found, folds)},
        "models": [model.to_json(folder) for model in encoded],
        **({"layers": list(first.layers), "poolings": list(first.poolings)} if len(encoded) == 1 else {}),
    }


def _pairs(found: LabelledRows, folds: Folds) -> int:
    """Counts the pairs of near-duplicates in different folds."""
    in_folds = (folds.of_row >= 0) & (folds.of_row < folds.count)
    return pairs_across(found.cluster[in_folds], folds.of_row[in_folds])


def _commands(winner: Winner, command: Callable[[str, Mapping[str, str]], str]) -> dict[str, str]:
    """Returns the command lines that make the winner's vectors, fit its pooler, and predict new rows."""
    model, best = winner.model.options, winner.candidate
    commands, options, pool = {}, best.options, WINNER
    if isinstance(best, PoolerCandidate) and best.fit_options:
        file = f"{best.pooler.replace(':', '-')}.safetensors"
        commands["fit"] = command("fit", {**model, **best.fit_options, "output": file})
        # The file says which layers it takes.
        pool = f"idf:{WINNER}" if best.kind == "idf" else WINNER
        options = {"pool": pool}
    commands["encode"] = command("encode", {**model, **options})
    if winner.file is not None:
        commands["predict"] = command("predict", {**model, "pool": pool})
    return commands


def _settings(config: SweepConfig, encoded: Sequence[EncodedModel]) -> dict[str, Any]:
    """Returns the part of summary.json on which the results depend, besides the plans of the vectors."""
    first, labels = encoded[0], asdict(config.labels)
    task, test_files = labels.pop("task"), labels.pop("test")
    model = (
        {"model": {"name": config.run.model.model, "fingerprint": first.fingerprint}}
        if len(encoded) == 1
        else {"fingerprints": {model.name: model.fingerprint for model in encoded}}
    )
    return {
        **labels,
        **{name: getattr(config, name) for name in ("probe", "folds", "poolers")},
        "asked": {"task": task, "metric": config.metric},
        "test_files": list(test_files),
        **model,
    }


def _is_finished(former: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> bool:
    """Checks whether a summary is of the same settings; older ones lack some, which then had their defaults."""
    if former is None:
        return False
    defaults = {field.name: field.default for field in fields(LabelConfig)}
    before = {**defaults, "test_files": [], "poolers": [], **former}
    stored = json.loads(json.dumps({name: before.get(name) for name in settings}))
    return bool(stored == json.loads(json.dumps(settings)))


def _finish(config: SweepConfig, folder: Path, replacement: Replacement, callbacks: Callbacks) -> None:
    """Moves a sweep that replaces another one to its folder."""
    if folder != config.folder:
        for sentence in replacement.finish():
            callbacks.notice(sentence)


def _divide(rows: InputRows, has_vector: NDArray[np.bool_], config: SweepConfig) -> tuple[LabelledRows, Folds]:
    """Returns the labelled rows with a vector, and their folds."""
    if len(has_vector) != len(rows):
        raise OutputError(
            f"the vectors have {len(has_vector)} rows, and the input has {len(rows)}",
            hint="do not change the input while embedkit reads it; start again with --on-exists overwrite",
        )
    found = labelled_rows(rows, has_vector, config.labels)
    return found, make_folds(found.labels, found.groups, count=config.folds, seed=config.labels.seed)


def _metrics(labels: Labels, config: SweepConfig) -> tuple[str, ...]:
    """Returns the task's metrics, the deciding one first."""
    names = METRICS[labels.task]
    deciding = config.metric or names[0]
    one_of("--metric", deciding, names)
    if labels.task in VALUE_TASKS and config.probe == "logistic":
        kind = "values" if labels.task == "regression" else "ranks"
        raise UsageError(f"--probe logistic is for classes, and these labels are {kind}", hint="use --probe ridge")
    return (deciding, *(name for name in names if name != deciding))
