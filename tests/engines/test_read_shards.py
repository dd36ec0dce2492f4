"""Shards in any order are those of one pass from the first row to the last."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedkit.arrow_values import plain_value
from embedkit.config import InputConfig
from embedkit.engines.read_shards import read_shards
from embedkit.engines.segments import Cut, scan_segment, sharding_of
from embedkit.errors import InputError
from embedkit.sources import open_table
from embedkit.types import Record
from tests.sources.random_tables import TABLES, written


def plain(shard):
    """Returns all of a shard that can be compared: kept values of Arrow are cells of an array of their own."""
    rows = [(of.row, of.id, of.text, [repr(plain_value(cell)) for cell in of.kept]) for of in shard.records]
    return shard.index, shard.start, shard.stop, rows, list(shard.faults)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(files=TABLES, limit=st.none() | st.integers(0, 30), data=st.data())
def test_shards_in_any_order_are_those_of_one_pass(files, limit, data):
    with tempfile.TemporaryDirectory() as folder:
        config = written(Path(folder), files, limit=limit)
        rows = list(open_table(config).records())
        table = open_table(config)
        cut = Cut(data.draw(st.integers(1, 9)), data.draw(st.integers(5, 100)))
        sharding = sharding_of(cut, [table.whole], [scan_segment(table, None, table.whole, cut)])
        assert sharding.rows == len(rows)
        ranges = sharding.ranges
        order = data.draw(st.lists(st.sampled_from(sorted(ranges)), max_size=12)) if ranges else []
        on_bad_row = data.draw(st.sampled_from(["null", "skip"]))
        # An older version's plan says nothing of places.
        for known in (sharding, replace(sharding, file_rows=None, offsets=None, stretches=None)):
            shards = list(read_shards(open_table(config), known, on_bad_row, iter(order)))
            assert [shard.index for shard in shards] == order
            for shard in shards:
                _, _, _, found, faults = plain(shard)
                start, stop = ranges[shard.index]
                expected = [
                    item if isinstance(item, Record) else Record(item.row, None, None, (None,) * len(config.keep))
                    for item in rows[start:stop]
                    if isinstance(item, Record) or on_bad_row == "null"
                ]
                assert found == plain(replace(shard, records=expected))[3]
                assert faults == [item for item in rows[start:stop] if not isinstance(item, Record)]


@pytest.mark.parametrize(("rows", "found"), [(9, 9), (12, 12)])
def test_an_input_of_other_rows_than_planned_is_refused(tmp_path, rows, found):
    path = tmp_path / "t.txt"
    path.write_text("x\n" * 10)
    table, cut = open_table(InputConfig((str(path),))), Cut(4, 100)
    sharding = sharding_of(cut, [table.whole], [scan_segment(table, None, table.whole, cut)])
    path.write_text("x\n" * rows)
    with pytest.raises(InputError, match=f"has {found} rows now and had 10"):
        list(read_shards(table, sharding, "fail", [0, 2]))
