"""The files of a sweep: scores, summaries, pictures, and what it writes of its winner.

The summary holds the SHA-256 of the others, so that files of two sweeps are not mixed. They hold no text; labels
and ids are in the predictions alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedkit.output.sweep_summary import COSTS, EVALUATION, NAMES, PREDICTIONS, RESULTS, SUMMARY, WINNER
from embedkit.storage.disk_errors import as_output_error
from embedkit.storage.filesystem import new_files, remove_file
from embedkit.study.sweep_charts import Cost, cost_chart, heat_map, shown_name
from embedkit.study.sweep_winner import Winner
from embedkit.study.verdict import Interval, Row, Verdict

_FLOAT32 = 4
#: What the suggested command lines do, each in a line before it.
_COMMANDS = {
    "fit": "The pooler of the best candidate, fitted to all rows that are not test rows:",
    "encode": "The vectors of the best candidate:",
    "predict": f"{WINNER} has its probe, trained on all rows that are not test rows. Predictions for new rows:",
}


def write_files(
    folder: Path, verdict: Verdict, winner: Winner, facts: Mapping[str, Any], commands: Mapping[str, str]
) -> None:
    """Writes all files and publishes them together.

    Args:
        folder: of the sweep.
        verdict: its result.
        winner: the winner in full.
        facts: input, models and method, for the summary.
        commands: command lines by what they do: `encode` makes the winner's vectors, `predict` uses its file.
    """
    source = BytesIO()
    seconds = {model["name"]: model["seconds_per_1000_rows"] for model in facts["models"]}
    only = next(iter(seconds.values()))
    costs = [
        Cost(seconds.get(row.candidate.model, only) if row.dims else None, _FLOAT32 * row.dims)
        for row in verdict.rows
    ]
    rows = pa.Table.from_pylist([_columns(row, cost) for row, cost in zip(verdict.rows, costs, strict=True)])
    pq.write_table(rows, source, write_page_checksum=True)
    contents = {
        RESULTS: source.getvalue(),
        EVALUATION: _json(winner.evaluation),
        PREDICTIONS: winner.predictions,
        **({WINNER: winner.file} if winner.file is not None else {}),
        "summary.txt": "".join(f"{line}\n" for line in _summary_lines(verdict, facts, commands)).encode(
            errors="surrogateescape"
        ),
        **_pictures(verdict, facts, costs),
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(contents.items())}
    of_winner = {"command": commands["encode"], "commands": commands}
    contents[SUMMARY] = _json({**facts, **_verdict_json(verdict), **of_winner, "files": hashes})
    files = new_files(folder)
    try:
        for name, content in contents.items():
            with files.create(name) as file, as_output_error(folder / name):
                file.write(content)
        files.publish(last=SUMMARY)
    finally:
        files.discard()
    # Of a former sweep in this folder, which had several models.
    for name in set(NAMES) - {*contents, COSTS}:
        with as_output_error(folder / name):
            remove_file(folder / name)


def _json(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace")


def _pictures(verdict: Verdict, facts: Mapping[str, Any], costs: Sequence[Cost]) -> dict[str, bytes]:
    metric, models = verdict.metric.replace("_", " "), facts["models"]
    of = f"{facts['rows']['judged']:,} rows, label {shown_name(facts['label'])}"
    several = len(models) > 1
    title = [f"{metric} by layer and pooling", of if several else f"{of}, {shown_name(models[0]['name'])}"]
    pictures = {"heatmap": heat_map(verdict, title)}
    if several:
        pictures["cost"] = cost_chart(verdict, costs, [f"{metric} against cost", of])
    return {f"{name}.{form}": image for name, images in pictures.items() for form, image in images.items()}


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    winner = verdict.winner
    return {
        "metric": verdict.metric,
        "sentence": verdict.sentence,
        "winner": {"options": winner.candidate.options, **_scores(winner)},
        "nested": _intervals(verdict.nested),
        "nested_versus": _intervals(verdict.nested_versus),
        "test": None if verdict.test is None else _intervals(verdict.test),
        "test_versus": _intervals(verdict.test_versus),
        "undefined_folds": verdict.undefined,
        "baselines": {row.baseline: _scores(row) for row in verdict.baselines},
        "not_distinguishable": [row.candidate.name for row in verdict.ranked if not row.distinguishable],
        "candidates": verdict.n_candidates,
    }


def _intervals(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    ends = ("mean", "low", "high")
    return {name: {end: _finite(getattr(of, end)) for end in ends} for name, of in intervals.items()}


def _summary_lines(verdict: Verdict, facts: Mapping[str, Any], commands: Mapping[str, str]) -> list[str]:
    """Returns the lines of summary.txt."""
    rows, near = facts["rows"], facts["near_duplicates"]
    no_vector = f"have no vector{' in every model' * (len(facts['models']) > 1)}"
    reasons = {no_vector: rows["without_vector"], **facts["left_out"]}
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
    parts = ", ".join(f"{count:,} {part}" for part, count in facts["split"].items()) or f"{facts['folds']} folds"
    judged = f"{rows['judged']:,} of {rows['input']:,} rows judged{f' ({left_out})' * bool(left_out)}"
    scores = {"Nested estimate": verdict.nested, "On the test rows": verdict.test or {}}
    found = [
        f"{verdict.sentence}.",
        *(
            f"{where}: {', '.join(f'{name} {verdict.value(of, name)}' for name, of in estimate.items())}."
            for where, estimate in scores.items()
            if estimate
        ),
        f"{judged}; {parts}; {verdict.n_candidates} candidates; ± is a 95 % confidence interval.",
        *(
            f"{name} is undefined in {count} of {len(verdict.winner.folds[name])} folds, which are left out of it."
            for name, count in verdict.undefined.items()
        ),
    ]
    if near["texts"]:
        kept = "kept in one fold each" if facts["dedupe"] else f"{near['pairs_across_folds']:,} pairs across folds"
        found.append(f"{near['texts']:,} texts have a near-duplicate: {kept}.")
    return [
        *found,
        f"{PREDICTIONS} has a prediction for each row by a probe that has not seen it, {EVALUATION} its measures.",
        "",
        *(line for name, text in _COMMANDS.items() if name in commands for line in (text, commands[name])),
        *(["QUERY.sql stands for a file with the query."] if "@QUERY.sql" in commands["encode"] else []),
    ]


def _columns(row: Row, cost: Cost) -> dict[str, Any]:
    """Returns a row of results.parquet."""
    return {
        **_scores(row),
        "model": row.candidate.model,
        "bytes_per_vector": cost.bytes_per_vector,
        "seconds_per_1000_rows": cost.seconds_per_1000_rows,
    }


def _scores(row: Row) -> dict[str, Any]:
    """Returns a candidate with its scores."""
    candidate = row.candidate
    scores: dict[str, Any] = {}
    for name, interval in row.intervals.items():
        scores |= _named(name, interval) | {f"{name}_folds": [_finite(score) for score in row.folds[name]]}
    for name, interval in row.versus.items():
        scores |= _named(f"versus_{name.replace('-', '_').replace(' ', '_').lower()}", interval)
    scores |= _named("versus_winner", row.versus_winner)
    return {
        "name": candidate.name,
        "layers": list(candidate.layers),
        "layer_agg": candidate.layer_agg,
        "pool": candidate.pool,
        "dims": row.dims,
        **scores,
        "is_baseline": bool(row.baseline),
        "is_winner": row.is_winner,
        "distinguishable": row.distinguishable,
    }


def _named(name: str, interval: Interval) -> dict[str, float | None]:
    ends = {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {key: _finite(value) for key, value in ends.items()}


def _finite(value: float) -> float | None:
    """Returns None for what is undefined: NaN is no JSON."""
    return value if math.isfinite(value) else None
