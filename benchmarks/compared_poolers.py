"""Compares poolings and poolers on package descriptions: the tables of the guides on choosing and training.

    python -m benchmarks.compared_poolers DESCRIPTIONS.csv -o benchmarks/results/poolers-cpu-2026-11-29
    python -m benchmarks.compared_poolers --picture docs/images/sweep-heatmap.png

DESCRIPTIONS.csv has `id`, `section` and `text`. The same texts are taken each time: PER_SECTION of each of
SECTIONS, by their ids' hashes. The folder gets the summary, the evaluation and the heat map of the sweep, and its
results as results.csv; no text is in them. `make docs-tables` puts the newest results into the guides, and
`--picture` draws the heat map of the poolings among them.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from embedkit.study.verdict import Verdict

RESULTS = Path(__file__).parent / "results"
SECTIONS = ("admin", "doc", "fonts", "games", "graphics", "net", "science", "sound", "text", "web")
PER_SECTION = 500
POOLERS = (
    *("attention", "attention-tanh", "multihead-attention", "weighted-layers", "lstm", "mean", "cls"),
    *("idf", "pca:64", "whiten"),
)
_COPIED = ("summary.json", "summary.txt", "evaluation.json", "heatmap.svg", "heatmap.png")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("descriptions", type=Path, nargs="?")
    options.add_argument("-o", "--output", type=Path)
    options.add_argument("--picture", type=Path, help="PNG of the newest stored results; nothing is computed")
    options.add_argument("--rows", type=int, default=PER_SECTION, help="texts of each section")
    asked = options.parse_args()
    if asked.picture:
        asked.picture.write_bytes(_picture())
        return
    if not asked.descriptions or not asked.output:
        options.error("DESCRIPTIONS.csv and -o are needed, or --picture")
    with tempfile.TemporaryDirectory() as folder:
        texts, sweep = Path(folder) / "descriptions.csv", Path(folder) / "sweep"
        _write(texts, asked.descriptions, asked.rows)
        command = ["embedkit", "sweep", str(texts), "--label", "section", "--dedupe", "--offline"]
        command += ["--pooler", ",".join(POOLERS), "-o", str(sweep)]
        subprocess.run([sys.executable, "-m", *command], check=True)
        _store(sweep, asked.output)


def page() -> str:
    """Returns the newest results of poolers, the best pooling and the baselines in Markdown."""
    summary, rows = _newest()
    rows = _from_the_best(rows)
    static = [row for row in rows if not _is_pooler(row)]
    shown = [row for row in rows if _is_pooler(row) or row in static[:1] or row["is_baseline"] == "True"]
    lines = [
        "| candidate | dimensions | accuracy | macro-F1 | against the last layer's mean |",
        "| --- " * 5 + "|",
    ]
    for row in shown:
        scores = [_interval(row, name) for name in ("accuracy", "macro_f1", "versus_last_layer_mean")]
        kind = "; baseline" if row["is_baseline"] == "True" else "" if _is_pooler(row) else "; the best pooling"
        lines.append(f"| {row['name']}{kind} | {row['dims']} | {' | '.join(scores)} |")
    return "\n".join([_heading(summary), "", *lines])


def page_of_poolings() -> str:
    """Returns the newest results of the best poolings, the baselines and the nested estimate in Markdown."""
    summary, rows = _newest()
    static = [row for row in _from_the_best(rows) if not _is_pooler(row)]
    shown = [row for row in static if row in static[:5] or row["is_baseline"] == "True"]
    metrics = ("accuracy", "macro_f1", "auroc")
    lines = [
        "| candidate | dimensions | accuracy | macro-F1 | AUROC | against the last layer's mean |",
        "| --- " * 6 + "|",
    ]
    for row in shown:
        scores = [_interval(row, name) for name in (*metrics, "versus_last_layer_mean")]
        kind = "; baseline" if row["is_baseline"] == "True" else "; the best" if row["is_winner"] == "True" else ""
        lines.append(f"| {row['name']}{kind} | {row['dims']} | {' | '.join(scores)} |")
    scores = [_printed(**summary["nested"][name]) for name in metrics]
    versus = _printed(**summary["nested_versus"]["last-layer mean"], sign="+")
    lines.append(f"| nested estimate of the choice | | {' | '.join(scores)} | {versus} |")
    return "\n".join([_heading(summary), "", *lines])


def _newest() -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Returns the newest summary, and its candidates."""
    newest = max(RESULTS.glob("poolers-cpu-*"))
    summary = json.loads((newest / "summary.json").read_text(encoding="utf-8"))
    with (newest / "results.csv").open(encoding="utf-8", newline="") as file:
        return summary, list(csv.DictReader(file))


def _from_the_best(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return sorted(rows, key=lambda row: -float(row["accuracy"] or 0))


def _heading(summary: dict[str, Any]) -> str:
    return (
        f"{summary['rows']['judged']:,} package descriptions of {summary['classes']} sections, {summary['folds']} "
        "folds, measured by `python -m benchmarks.compared_poolers`. Values are in per cent, with 95 % intervals."
    )


def _picture() -> bytes:
    """Returns the heat map of the poolings, without poolers, as PNG."""
    from embedkit.study.candidates import Candidate
    from embedkit.study.sweep_charts import heat_map
    from embedkit.study.verdict import Interval, Row

    summary, rows = _newest()
    drawn = []
    for row in rows:
        if not row["layers"] or _is_pooler(row):
            continue
        candidate = Candidate(
            tuple(map(int, row["layers"].split())), row["layer_agg"], tuple(row["pool"].split(","))
        )
        ends = (float(row[name]) for name in ("accuracy", "accuracy_low", "accuracy_high"))
        baseline = candidate.baseline_name if row["is_baseline"] == "True" else ""
        intervals = {"accuracy": Interval(*ends)}
        versus = Interval(*(float(row[f"versus_winner{end}"]) for end in ("", "_low", "_high")))
        is_winner = row["is_winner"] == "True"
        drawn.append(Row(candidate, int(row["dims"]), {}, intervals, {}, versus, baseline, is_winner))
    shown = cast("Verdict", SimpleNamespace(metric="accuracy", rows=drawn))
    judged = f"{summary['rows']['judged']:,} package descriptions, {summary['model']['name']}"
    return heat_map(shown, ["accuracy by layer and pooling", judged])["png"]


def _is_pooler(row: dict[str, str]) -> bool:
    return row["pool"] in POOLERS and (row["pool"] not in {"mean", "cls"} or _trained(row))


def _trained(row: dict[str, str]) -> bool:
    return row["name"].endswith("trained")


def _interval(row: dict[str, str], name: str) -> str:
    """Returns a score and half of its interval in per cent."""
    if not row[name]:
        return ""
    sign = "+" if name.startswith("versus") else ""
    return _printed(float(row[name]), float(row[f"{name}_low"]), float(row[f"{name}_high"]), sign=sign)


def _printed(mean: float, low: float, high: float, *, sign: str = "") -> str:
    return f"{100 * mean:{sign}.1f} ± {50 * (high - low):.1f}"


def _write(target: Path, descriptions: Path, per_section: int) -> None:
    with descriptions.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["section"] in SECTIONS]
    rows.sort(key=lambda row: (row["section"], hashlib.sha256(row["id"].encode()).digest()))
    chosen = [row for _, of in groupby(rows, itemgetter("section")) for row in list(of)[:per_section]]
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "section", "text"])
        writer.writeheader()
        writer.writerows(chosen)


def _store(sweep: Path, folder: Path) -> None:
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for name in _COPIED:
        shutil.copy(sweep / name, folder / name)
    with (folder / "results.csv").open("w", encoding="utf-8", newline="") as file:
        rows = pq.read_table(sweep / "results.parquet").to_pylist()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([_cell(value) for value in row.values()] for row in rows)


def _cell(value: object) -> object:
    """Returns a list as words. Numbers keep all digits: those of a rounded one could not be printed with fewer."""
    return " ".join(map(str, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
