"""The winner of a sweep in full: predictions for rows that it has not seen, their evaluation, and its probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedkit.pooling.heads import PredictionHead
from embedkit.pooling.pooler_files import probe_bytes
from embedkit.study.candidates import Candidate
from embedkit.study.evaluation import evaluate
from embedkit.study.final_probe import Predictions, fit_final, out_of_fold
from embedkit.study.labels import Labels
from embedkit.study.probe import FoldVectors
from embedkit.study.splits import Folds

_TEST = "test"


@dataclass(frozen=True, slots=True, eq=False)
class Winner:
    """What a sweep writes of its winner."""

    evaluation: Mapping[str, Any]  # content of evaluation.json
    predictions: bytes  # of predictions.parquet
    file: bytes  # of winner.safetensors
    penalty: float | None  # of the final probe


def judge_winner(
    candidate: Candidate,
    vectors: NDArray[np.float32] | FoldVectors,
    recipe: Mapping[str, Any],
    labels: Labels,
    ids: pa.Array,
    folds: Folds,
    metrics: Sequence[str],
    probe: str,
    facts: Mapping[str, Any],
) -> Winner:
    """Trains the winner's probe on all rows but the test rows, and predicts each row by one that has not seen it.

    Args:
        candidate: the winner.
        vectors: of the N labelled rows, as in `cross_validate`.
        recipe: of the run that computed its vectors.
        labels: of the N rows.
        ids: string [N], of the rows.
        folds: of the N rows.
        metrics: the deciding one first.
        probe: one of PROBES.
        facts: what the probe's file says of its making, besides the recipe.
    """
    final = fit_final(vectors, labels, folds, metrics, probe)
    predictions = out_of_fold(vectors, labels, folds, metrics, probe)
    evaluation = evaluate(labels, predictions)
    measured = {name: of["value"] for name, of in evaluation["metrics"].items()}
    file = probe_bytes(
        final.head,
        recipe,
        layers=candidate.layers,
        layer_agg=candidate.layer_agg,
        poolings=candidate.poolings,
        facts={**facts, "scores": {evaluation["estimate"]: measured}, "penalty": final.penalty},
    )
    return Winner(evaluation, predictions_parquet(labels, ids, predictions), file, final.penalty)


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
