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
from embedkit.study.final_probe import Predictions, fit_final
from embedkit.study.labels import Labels
from embedkit.study.pooler_candidates import PoolerCandidate
from embedkit.study.splits import Folds
from embedkit.study.sweep_judging import Candidates, Judged
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


def judge_winner(
    candidates: Candidates,
    judged: Judged,
    labels: Labels,
    folds: Folds,
    metrics: Sequence[str],
    probe: str,
    facts: Mapping[str, Any],
) -> Winner:
    """Predicts each row by a probe that has not seen it, and trains the probe for new rows on all but test rows.

    Args:
        candidates: of the sweep.
        judged: names the winner.
        labels: of the N rows.
        folds: of the N rows.
        metrics: the deciding one first.
        probe: one of PROBES.
        facts: of summary.json; those that a stranger to the sweep needs go into the winner's file.
    """
    best = judged.verdict.winner.candidate
    model = candidates.models[best]
    ids = model.vectors.ids.take(pa.array(candidates.rows))
    evaluation = evaluate(labels, judged.predictions)
    measured = {name: of["value"] for name, of in evaluation["metrics"].items()}
    file = None
    if not isinstance(best, PoolerCandidate):
        final = fit_final(candidates.vectors(best, folds), labels, folds, metrics, probe)
        of_file = {
            **{name: facts[name] for name in ("label", "group", "rows", "folds", "seed", "versions")},
            "candidate": best.name,
            "scores": {evaluation["estimate"]: measured},
            "penalty": final.penalty,
        }
        file = probe_bytes(
            final.head,
            model.vectors.recipe,
            layers=best.layers,
            layer_agg=best.layer_agg,
            poolings=best.poolings,
            facts=of_file,
        )
    return Winner(best, model, evaluation, predictions_parquet(labels, ids, judged.predictions), file)


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
