"""The files that a sweep leaves: results.parquet, summary.json, summary.txt and the heat map.

The summary names the others by their SHA-256, so that files of two sweeps are not taken for one. Holds no text, no
label and no name of a class.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedkit.errors import OutputError
from embedkit.storage.disk_errors import as_output_error, as_read_error
from embedkit.storage.filesystem import exists, new_files, read_file, sha256_of_file
from embedkit.study import heatmap
from embedkit.study.intervals import Interval
from embedkit.study.verdict import Row, Verdict

#: Appears last: where it is, all the others are.
SUMMARY = "summary.json"
NAMES = (SUMMARY, "summary.txt", "results.parquet", *(f"heatmap.{form}" for form in heatmap.FORMATS))


def write_files(folder: Path, verdict: Verdict, facts: Mapping[str, Any], *, command: str, title: str) -> None:
    """Write all of them; they get their names together, when they are whole.

    Args:
        folder: where.
        verdict: what was found.
        facts: how it was found, for the summary.
        command: makes the winner's vectors.
        title: of the heat map.

    Raises:
        OutputError: they cannot be written.
    """
    table = BytesIO()
    pq.write_table(results_table(verdict), table, write_page_checksum=True)
    contents = {
        "results.parquet": table.getvalue(),
        "summary.txt": "".join(f"{line}\n" for line in lines(verdict, facts, command)).encode(
            errors="surrogateescape"
        ),
        **{f"heatmap.{form}": drawn for form, drawn in heatmap.draw(verdict, title).items()},
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(contents.items())}
    summary = {**facts, **summary_of(verdict), "command": command, "files": hashes}
    contents[SUMMARY] = json.dumps(summary, indent=2, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
    files = new_files(folder)
    try:
        for name, content in contents.items():
            with files.create(name) as file, as_output_error(folder / name):
                file.write(content)
        files.publish(last=SUMMARY)
    finally:
        files.discard()


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished sweep; None where there is none.

    Raises:
        OutputError: it cannot be read, or one of the files that it names is another sweep's.
    """
    path = folder / SUMMARY
    with as_read_error(path):
        if not exists(path):
            return None
        try:
            found = json.loads(read_file(path))
            named = dict(found.get("files", {}))
        except (ValueError, TypeError, AttributeError):
            raise _not_one(folder) from None
        for name, digest in named.items():
            if name not in NAMES or not exists(folder / name) or sha256_of_file(folder / name) != digest:
                raise _not_one(folder)
        return dict(found)


def _not_one(folder: Path) -> OutputError:
    return OutputError(
        f"{folder}: {SUMMARY} and the files beside it are not of one sweep",
        hint="the same `embedkit sweep` with --on-exists resume writes them again, from its vectors",
    )


def results_table(verdict: Verdict) -> pa.Table:
    """A row a candidate: what it is, each metric with interval and folds, differences, marks."""
    return pa.Table.from_pylist([_columns(row) for row in verdict.rows])


def summary_of(verdict: Verdict) -> dict[str, Any]:
    """The verdict as JSON values."""
    winner = verdict.winner
    return {
        "metric": verdict.metric,
        "sentence": verdict.sentence,
        "winner": {"options": winner.candidate.options, **_columns(winner)},
        "nested": {name: _ends(interval) for name, interval in verdict.nested.items()},
        "nested_versus": {name: _ends(interval) for name, interval in verdict.nested_versus.items()},
        "baselines": {row.baseline: _columns(row) for row in verdict.baselines},
        "not_distinguishable": [row.candidate.name for row in verdict.ranked if not row.distinguishable],
        "candidates": len(verdict.rows),
    }


def lines(verdict: Verdict, facts: Mapping[str, Any], command: str) -> list[str]:
    """The summary for people."""
    rows, near = facts["rows"], facts["near_duplicates"]
    nested = ", ".join(f"{name} {verdict.value(of, name)}" for name, of in verdict.nested.items())
    ahead = " and ".join(f"{verdict.value(of)} above {name}" for name, of in verdict.nested_versus.items())
    left_out = f"{rows['without_vector']:,} have no vector, {rows['without_label']:,} no label or group"
    judged = f"{rows['judged']:,} of {rows['input']:,} rows judged ({left_out}), {facts['folds']} folds"
    told = [
        f"{verdict.sentence}.",
        f"Chosen inside of each fold, so that choosing does not flatter it: {nested}{'; ' * bool(ahead)}{ahead}.",
        f"{judged}, {len(verdict.rows)} candidates; ± is a 95 % confidence interval.",
    ]
    if near["texts"]:
        kept = (
            "kept in one fold each" if facts["dedupe"] else f"{near['pairs_across_folds']:,} pair(s) across folds"
        )
        told.append(f"{near['texts']:,} texts are nearly the same as another one: {kept}.")
    return [*told, "", command]


def _columns(row: Row) -> dict[str, Any]:
    candidate = row.candidate
    of_metrics: dict[str, Any] = {}
    for name, interval in row.intervals.items():
        of_metrics |= _named(name, interval) | {f"{name}_folds": list(row.folds[name])}
    versus: dict[str, Any] = {}
    for name, interval in row.versus.items():
        versus |= _named(f"versus_{name.replace('-', '_').replace(' ', '_').lower()}", interval)
    return {
        "name": candidate.name,
        "layers": list(candidate.layers),
        "layer_agg": candidate.layer_agg,
        "pool": candidate.pool,
        "dims": row.dims,
        **of_metrics,
        **versus,
        "is_baseline": bool(row.baseline),
        "is_winner": row.is_winner,
        "distinguishable": row.distinguishable,
    }


def _named(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _ends(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}
