"""Plans and records made up for the tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from embedkit.manifest.recipe import fingerprint
from embedkit.manifest.schema import InputFacts, InputFile, ModelSource, Plan, Sharding, ShardRecord
from embedkit.types import TextCounts, Variant

_RECIPE = {"layers": [6], "pool": ["mean"]}


def make_plan(rows: int = 10, shard_rows: int = 5, **changes: Any) -> Plan:
    plan = Plan(
        input=InputFacts(
            files=(InputFile("notes.csv", "csv", None, 1, 2, "3" * 64, "4" * 64),),
            text=("text",),
            template=None,
            id="id",
            keep=("age",),
            limit=None,
        ),
        sharding=Sharding(shard_rows, 1000, rows, tuple(range(0, rows, shard_rows)), None),
        kept_types={"age": "int64"},
        recipe=_RECIPE,
        fingerprint=fingerprint(_RECIPE),
        source=ModelSource("minilm", "minilm", "owner/minilm", "0a"),
        engine="native",
        format="parquet",
        precision="float32",
        variants=(Variant("", 4),),
        on_bad_row="fail",
    )
    return replace(plan, **changes)


def make_record(index: int, rows: int = 5, **changes: Any) -> ShardRecord:
    """Returns a record of a shard with one empty row."""
    counts = TextCounts(rows, {"empty": 1, "ok": rows - 1}, 9 * rows, 8 * rows)
    record = ShardRecord(index, index * rows, (index + 1) * rows, rows - 1, 0, counts, counts, has_units=False)
    return replace(record, **changes)
