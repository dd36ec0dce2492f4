"""The winner of a sweep in full: predictions for rows that it has not seen, their evaluation, and its probe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedkit.pooling.fitted_model import source_recipe
from embedkit.pooling.heads import PredictionHead
from embedkit.pooling.pooler_files import pooler_bytes, probe_bytes
from embedkit.study.candidates import Candidate
from embedkit.study.evaluation import evaluate
from embedkit.study.final_probe import Predictions, fit_final
from embedkit.study.judge_candidates import Candidates, Judged, Method
from embedkit.study.labels import Labels
from embedkit.study.pooler_candidates import FinalPooler, PoolerCandidate
from embedkit.study.sweep_models import EncodedModel

_TEST = "test"


@dataclass(frozen=True, slots=True, eq=False)
class Winner:
    """What a sweep writes of its winner."""

    candidate: Candidate
    model: EncodedModel
    evaluation: Mapping[str, Any]  # content of evaluation.json
    predictions: bytes  # of predictions.parquet
    file: bytes | None  # of winner.safetensors; None for the pooler of a package, which has no file


def judge_winner(candidates: Candidates, judged: Judged, method: Method, facts: Mapping[str, Any]) -> Winner:
    """Evaluates the winner's predictions, and trains its probe for new rows on all rows that are not test rows.

    Args:
        candidates: of the sweep.
        judged: names the winner.
        method: of the comparison.
        facts: of summary.json; those that a stranger to the sweep needs go into the winner's file.
    """
    best = judged.verdict.winner.candidate
    model, labels = candidates.models[best], method.labels
    ids = model.vectors.ids.take(pa.array(candidates.rows))
    evaluation = evaluate(labels, judged.predictions)
    measured = {name: of["value"] for name, of in evaluation["metrics"].items()}
    of_file = {
        **{name: facts[name] for name in ("label", "group", "rows", "folds", "seed", "versions")},
        **source_recipe(model.config.model.model, model.revision),
        "candidate": best.name,
        "scores": {evaluation["estimate"]: measured},
    }
    file = None
    if judged.final is not None and "head.weight" in judged.final.tensors:
        file = pooler_bytes({**judged.final.recipe, **of_file}, judged.final.tensors)
    elif judged.final is not None or not isinstance(best, PoolerCandidate):
        vectors = candidates.vectors(best, method.folds)
        final = fit_final(vectors, labels, method.folds, method.metrics, method.probe)
        of_file["penalty"] = final.penalty
        file = _file_with(final.head, best, judged.final, model.vectors.recipe, of_file)
    return Winner(best, model, evaluation, predictions_parquet(labels, ids, judged.predictions), file)


def _file_with(
    head: PredictionHead,
    candidate: Candidate,
    pooler: FinalPooler | None,
    recipe: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> bytes:
    """Returns winner.safetensors of a head on the vectors of built-in poolings, or of a pooler."""
    if pooler is None:
        return probe_bytes(
            head,
            recipe,
            layers=candidate.layers,
            layer_agg=candidate.layer_agg,
            poolings=candidate.poolings,
            facts=facts,
        )
    of_head = {"task": head.task, "classes": list(head.classes), "dims": head.weight.shape[1]}
    tensors = {**pooler.tensors, "head.weight": head.weight, "head.bias": head.bias}
    return pooler_bytes({**pooler.recipe, **facts, **of_head}, tensors)


def predictions_parquet(labels: Labels, ids: pa.Array, predictions: Predictions) -> bytes:
    """Returns predictions.parquet: id, label, fold (number or `test`), and the columns of `encode --with-head`."""
    rows = np.flatnonzero(~np.isnan(predictions.scores[:, 0]))
    scores = predictions.scores[rows]
    # Its columns and decisions are those of a head; it has no weights here.
    head = PredictionHead(np.zeros((0, 0), np.float32), np.zeros(0, np.float32), labels.classes, labels.task)
    columns: dict[str, Any] = dict(zip(head.columns, scores.T, strict=False))
    if labels.task != "regression":
        columns["predicted"] = head.labels(scores)
    folds = [_TEST if fold < 0 else str(fold) for fold in predictions.fold[rows].tolist()]
    table = pa.table(
        {"id": ids.take(pa.array(rows)), "label": _names(labels, rows), "fold": pa.array(folds), **columns}
    )
    file = BytesIO()
    pq.write_table(table, file, write_page_checksum=True)
    return file.getvalue()


def _names(labels: Labels, rows: NDArray[np.int64]) -> pa.Array:
    """Returns the labels of rows: names of classes, lists of them, or values."""
    targets = labels.targets[rows]
    match labels.task:
        case "regression":
            return pa.array(targets)
        case "multilabel":
            return pa.array([[labels.classes[place] for place in np.flatnonzero(row)] for row in targets])
        case _:
            return pa.array([labels.classes[number] for number in targets.tolist()])
