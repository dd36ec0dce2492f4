"""Compares poolings and poolers on package descriptions: the tables of the guides on choosing and training.

    python -m benchmarks.compared_poolers DESCRIPTIONS.csv -o benchmarks/results/poolers-cpu-2026-11-29

DESCRIPTIONS.csv has `id`, `section` and `text`. The same texts are taken each time: PER_SECTION of each of
SECTIONS, by their ids' hashes. The folder gets the summary, the evaluation and the heat map of the sweep, and its
results as results.csv; no text is in them. `make docs-tables` puts the newest results into the guide.
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
    options.add_argument("descriptions", type=Path)
    options.add_argument("-o", "--output", type=Path, required=True)
    options.add_argument("--rows", type=int, default=PER_SECTION, help="texts of each section")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        texts, sweep = Path(folder) / "descriptions.csv", Path(folder) / "sweep"
        _write(texts, asked.descriptions, asked.rows)
        command = ["embedkit", "sweep", str(texts), "--label", "section", "--dedupe", "--offline"]
        command += ["--pooler", ",".join(POOLERS), "-o", str(sweep)]
        subprocess.run([sys.executable, "-m", *command], check=True)
        _store(sweep, asked.output)


def page() -> str:
    """Returns the newest results of poolers, the best pooling and the baselines in Markdown, if there are any."""
    newest = max(RESULTS.glob("poolers-cpu-*"), default=None)
    if newest is None:
        return ""
    summary = json.loads((newest / "summary.json").read_text(encoding="utf-8"))
    with (newest / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: -float(row["accuracy"] or 0))
    poolers = [
        row for row in rows if row["pool"] in POOLERS and (row["pool"] not in {"mean", "cls"} or _trained(row))
    ]
    static = [row for row in rows if row not in poolers]
    shown = [row for row in rows if row in poolers or row in static[:1] or row["is_baseline"] == "True"]
    lines = [
        "| candidate | dimensions | accuracy | macro-F1 | against the last layer's mean |",
        "| --- " * 5 + "|",
    ]
    for row in shown:
        scores = [_interval(row, name) for name in ("accuracy", "macro_f1", "versus_last_layer_mean")]
        kind = "; baseline" if row["is_baseline"] == "True" else "" if row in poolers else "; the best pooling"
        lines.append(f"| {row['name']}{kind} | {row['dims']} | {' | '.join(scores)} |")
    heading = (
        f"{summary['rows']['judged']:,} package descriptions of {summary['classes']} sections, {summary['folds']} "
        "folds, measured by `python -m benchmarks.compared_poolers`. Values are in per cent, with 95 % intervals."
    )
    return "\n".join([heading, "", *lines])


def _trained(row: dict[str, str]) -> bool:
    return row["name"].endswith("trained")


def _interval(row: dict[str, str], name: str) -> str:
    """Returns a score and half of its interval in per cent."""
    if not row[name]:
        return ""
    value, half = float(row[name]), (float(row[f"{name}_high"]) - float(row[f"{name}_low"])) / 2
    sign = "+" if name.startswith("versus") else ""
    return f"{100 * value:{sign}.1f} ± {100 * half:.1f}"


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
    """Returns a list as words, and a number with as many digits as it is worth."""
    if isinstance(value, list):
        return " ".join(str(_cell(item)) for item in value)
    return f"{value:.4f}" if isinstance(value, float) else value


if __name__ == "__main__":
    main()
