"""Outputs of an earlier version, in tests/data/previous: their input, their commands, and how they were made.

`tests/test_previous_outputs.py` checks that they are still read, verified, resumed and used. Commit 6593e5c wrote
them. They are never made again: outputs of a later version would prove nothing about this one. Outputs of another
version go into a folder of their own, made from a checkout of that version by

    python -m tests.previous_outputs FOLDER

All commands run in FOLDER with relative names. Only `plan.json` and `manifest.json` hold an absolute path, that of
the model's folder, so choose a FOLDER whose path may be published.
"""

from __future__ import annotations

import csv
import datetime as dt
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "data" / "previous"
MAX_LENGTH = 32  # positions of the model
N_LAYERS = 2
SHARD_ROWS = 5

_KEEP = "--keep age --keep weight --keep smoker --keep ward"
_TYPED = "--keep dose --keep seen --keep tags --keep vitals"

#: Finished outputs: the name for `-o`, and the input and options of `embedkit encode`; `encoding` adds the rest.
FINISHED = {
    "shards-parquet": f"notes.jsonl --on-bad-row null {_KEEP}",
    "shards-npy": "notes.jsonl --on-bad-row skip --keep ward --pool cls,mean --layers 1: --layer-agg separate "
    "--output-format npy",
    "shards-jsonl": f"notes.jsonl --on-bad-row null {_KEEP} --precision float16 --output-format jsonl",
    "shards-arrow": f"notes.parquet {_TYPED} --pool none --limit 7 --output-format arrow",
    "int8.parquet": f"notes.parquet {_TYPED} --precision int8",
    "float16.npy": "notes.jsonl --on-bad-row skip --keep age --precision float16",
    "spans.jsonl": "notes.jsonl --on-bad-row null --spans-column spans",
    "bits.arrow": "notes.parquet --keep ward --precision binary",
    "plain.jsonl": f"notes.jsonl --on-bad-row null {_KEEP} --layers -1,-2 --pool cls,mean",
    "windows.parquet": "notes.parquet --on-long chunk --stride 4 --layers -2: --layer-agg mean --normalize "
    "--truncate-dim 8",
    "chunks.parquet": "notes.parquet --level chunk --on-long chunk --keep ward",
    "words.npy": "notes.parquet --level word --subtoken-pooling first --limit 6",
    "tokens.parquet": "notes.parquet --level token --limit 3",
    "groups.parquet": "notes.parquet --group-by visit --group-by patient --group-pool row_mean --keep ward",
    "groups": "notes.parquet --group-by patient --group-pool last --order-by seen --output-format npy",
    "idf.npy": "notes.parquet --pool idf:idf.safetensors",
    "scored.parquet": "notes.parquet --pool attention.safetensors --with-head",
}
FITTED = {
    "idf.safetensors": "notes.parquet --pooler idf",
    "pca.safetensors": "notes.parquet --pooler pca:4",
    "attention.safetensors": "labelled.csv --label label --group patient --pooler attention --hidden-size 8 "
    "--epochs 3",
}
SWEPT = {"sweep": "labelled.csv --label label --group patient --folds 3 --layers 1: --pool cls,mean"}


@dataclass(frozen=True)
class Unfinished:
    """A run of `embedkit encode` that was killed.

    Attributes:
        options: as in FINISHED.
        renames: number of files that it had renamed into place when it was killed; the first is the plan.
        folder: where its shards are.
        done: number of shards that are committed.
    """

    options: str
    renames: int
    folder: str
    done: int


UNFINISHED = {
    "half-parquet": Unfinished(FINISHED["shards-parquet"], 5, "half-parquet", 2),
    "half-npy": Unfinished(FINISHED["shards-npy"], 6, "half-npy", 1),
    # The second shard's file has its name already; its record has not.
    "half.jsonl": Unfinished(FINISHED["shards-parquet"], 4, "half.jsonl.partial", 1),
    "half-int8.arrow": Unfinished(FINISHED["int8.parquet"], 3, "half-int8.arrow.partial", 1),
    "half-bf16.npy": Unfinished("notes.parquet --dtype bf16", 5, "half-bf16.npy.partial", 1),
    "half-groups.parquet": Unfinished(FINISHED["groups.parquet"], 3, "half-groups.parquet.rows.partial", 1),
    # Run over the finished output of FINISHED_FIRST.
    "replaced": Unfinished("notes.parquet --keep ward --on-exists overwrite", 3, "replaced.next", 1),
}
FINISHED_FIRST = {"replaced": "notes.parquet --limit 5"}


def encoding(output: str, options: str) -> list[str]:
    """Arguments of `embedkit` that make an output."""
    return ["encode", *_of(output, options), "--shard-rows", str(SHARD_ROWS)]


def fitting(output: str, options: str) -> list[str]:
    return ["fit", *_of(output, options)]


def sweeping(output: str, options: str) -> list[str]:
    return ["sweep", *_of(output, options), "--shard-rows", "24"]


def _of(output: str, options: str) -> list[str]:
    return [*shlex.split(options), "-o", output, "-m", "model", "--device", "cpu"]


# The input ---------------------------------------------------------------------------------------------

#: id, patient, visit, spans, text. Nobody wrote or is described in any of it.
_NOTES = (
    ("00101", "P1", "V1", [[0, 5], [15, 19, "finding"]], "cough and mild pain for three days"),
    ("00102", "P1", "V1", [[3, 8, "finding"]], "no fever, no pain"),
    ("00103", "P1", "V2", [], "pain came back at night; " * 6 + "better since"),
    ("00104", "P2", "V3", [], ""),
    ("00105", "P2", "V3", [[0, 4]], "Knee swollen after a fall, no fracture"),
    ("00106", "P2", "V4", [[5, 9]], "knee well again"),
    ("00107", "P3", "V5", [], None),
    ("00108", "P3", "V5", [[0, 6, "finding"], [11, 20]], "Fièvre à 38,5 °C, fatigue — unknown words: ☃"),
    ("00109", "P3", "V5", [[0, 5]], "cough and mild pain for three days"),
    ("00110", "P4", "V6", [[0, 300]], "?!"),  # a faulty span: it is not in its text
    ("00111", "P4", "V6", [], "the patient sleeps well and eats well"),
    ("00112", "P4", "V7", [[4, 8]], "the knee is stiff in the morning and hurts when it rains, " * 3),
)
_BROKEN = 10  # line of notes.jsonl that is no JSON, counted from 0


def notes() -> list[dict[str, Any]]:
    """Rows of notes.parquet."""
    start = dt.datetime(2021, 3, 1, 9, 30, 0, 250, tzinfo=dt.UTC)
    return [
        {
            "id": id_,
            "patient": patient,
            "visit": visit,
            "age": None if number == 2 else 40 + number,
            "weight": 60.5 + number / 7,
            "smoker": None if number == 5 else number % 3 == 0,
            "ward": None if number == 8 else ("north", "südlich")[number % 2],
            "dose": None if number == 3 else Decimal(1250 + number).scaleb(-3),
            "seen": start + dt.timedelta(days=(number * 5) % 12, microseconds=number),
            "tags": [] if number == 1 else ["a", None, "b"][: number % 4],
            "vitals": {"pulse": 60 + number, "note": "" if number % 2 else None},
            "spans": spans,
            "text": text,
        }
        for number, (id_, patient, visit, spans, text) in enumerate(_NOTES)
    ]


def labelled() -> list[dict[str, str]]:
    """Rows of labelled.csv: 24 texts of 2 classes, of 12 patients."""
    findings = {"lung": ("cough", "fever", "short breath"), "knee": ("swollen knee", "stiff knee", "a fall")}
    times = ("since yesterday", "for three days", "again at night", "in the morning")
    texts = [(label, f"{what} {when}") for label, whats in findings.items() for what in whats for when in times]
    return [
        {"id": str(number), "label": label, "patient": f"P{number // 2}", "text": text}
        for number, (label, text) in enumerate(texts)
    ]


def _write_input(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = [json.dumps(row, default=str, ensure_ascii=False) for row in notes()]
    lines.insert(_BROKEN, '{"id": "00000", "text": "cut sho')
    (folder / "notes.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    types = {
        "age": pa.int16(),
        "dose": pa.decimal128(9, 3),
        "seen": pa.timestamp("us", "Europe/Berlin"),
        "tags": pa.list_(pa.string()),
        "vitals": pa.struct({"pulse": pa.int8(), "note": pa.string()}),
    }
    columns = {
        name: pa.array([row[name] for row in notes()], types.get(name)) for name in notes()[0] if name != "spans"
    }
    pq.write_table(pa.table(columns), folder / "notes.parquet")
    with (folder / "labelled.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(labelled()[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(labelled())


def _write_model(folder: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    texts = [row["text"] or "" for row in (*notes(), *labelled())]
    words = sorted({word for text in texts for word in text.lower().split() if word.isascii() and word.isalpha()})
    letters = sorted({letter for text in texts for letter in text.lower() if letter.isascii() and letter != " "})
    inner = [f"##{letter}" for letter in letters if letter.isalnum()]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *inner]
    pieces += [word for word in words[::2] if word not in pieces]  # the others are spelled
    tokenizer = BertTokenizer(
        vocab={piece: place for place, piece in enumerate(pieces)}, model_max_length=MAX_LENGTH
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.4,  # larger than usual, so that tokens and layers differ much
    )
    BertModel(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# The outputs -------------------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
left = int(sys.argv.pop(1))
def counted(rename):
    def call(*names, **within):
        global left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return rename(*names, **within)
    return call
os.replace, os.link = counted(os.replace), counted(os.link)
from embedkit.__main__ import main
main()
"""


def _embedkit(folder: Path, arguments: list[str], *, renames: int | None = None) -> None:
    program = ["-m", "embedkit"] if renames is None else ["-c", _KILLED, str(renames)]
    ended = subprocess.run([sys.executable, *program, *arguments], cwd=folder, check=False)
    if ended.returncode != (0 if renames is None else -9):
        raise SystemExit(f"{shlex.join(arguments)} ended with {ended.returncode}")


def make(folder: Path) -> None:
    """Makes the model, the input and all outputs in a new folder."""
    folder.mkdir(parents=True)
    _write_input(folder)
    _write_model(folder / "model")
    for name, options in FITTED.items():
        _embedkit(folder, fitting(name, options))
    for name, options in (FINISHED | FINISHED_FIRST).items():
        _embedkit(folder, encoding(name, options))
    for name, run in UNFINISHED.items():
        _embedkit(folder, encoding(name, run.options), renames=run.renames)
    for name, options in SWEPT.items():
        _embedkit(folder, sweeping(name, options))
    for path in sorted(folder.rglob(".*.tmp")):  # left by the killed runs; their names tell the machine
        path.unlink()


if __name__ == "__main__":
    make(Path(sys.argv[1]).absolute())
