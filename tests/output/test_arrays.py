"""Arrays that are made from their buffers are those that pyarrow makes of the same values."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.output.formats.arrays import (
    column_numbers,
    number_array,
    numbers_of,
    plain_array,
    text_array,
    valid_rows,
)


@given(texts=st.lists(st.none() | st.text()))
@settings(deadline=None)
def test_texts_give_the_array_of_pyarrow(texts):
    found = text_array(texts)
    found.validate(full=True)
    assert found.equals(pa.array(texts, pa.string()))


VALUES = (
    st.text(),
    st.booleans(),
    st.integers(-(2**66), 2**66) | st.integers(-128, 255),
    st.floats(),
    st.floats() | st.integers(),
    st.just([1]),
)


KINDS = ("string", "bool", "int8", "int32", "int64", "uint8", "uint64", "float", "double")


@given(
    values=st.one_of(*(st.lists(st.none() | kind) for kind in VALUES)),
    kind=st.sampled_from([None, *map(pa.type_for_alias, KINDS)]),
)
@settings(deadline=None)
def test_values_give_the_array_of_pyarrow_or_none(values, kind):
    found = plain_array(values, kind)
    types = {type(value) for value in values} - {type(None)}
    if found is not None:
        found.validate(full=True)
        # As text: NaN is no number that equals itself.
        assert repr((found.type, found.to_pylist())) == repr(
            (pa.array(values, kind).type, pa.array(values, kind).to_pylist())
        )
    elif kind is None and len(types) == 1 and types != {list}:
        with pytest.raises(OverflowError):
            pa.array(values, pa.int64())


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "int64", "float16", "float32"])
@pytest.mark.parametrize("count", [0, 1, 8, 19])
def test_numbers_give_the_array_of_pyarrow(dtype, count):
    numbers = np.random.default_rng(count).integers(0, 2 if dtype == "bool" else 100, 2 * count).astype(dtype)
    for each in (numbers, numbers[::2], numbers[::-1]):
        found = number_array(each)
        found.validate(full=True)
        assert found.equals(pa.array(each))


@given(flags=st.lists(st.booleans()), start=st.integers(0, 9), width=st.integers(1, 3))
@settings(deadline=None)
def test_nulls_and_numbers_are_read_as_pyarrow_reads_them(flags, start, width):
    numbers = np.arange(width * len(flags), dtype=np.float32)
    nulls = pa.array([not flag for flag in flags], pa.bool_())
    lists = pa.FixedSizeListArray.from_arrays(pa.array(numbers), width, mask=nulls)
    for column in (pa.chunked_array([lists]).slice(start), pa.chunked_array([lists, lists.slice(start)])):
        assert valid_rows(column).tolist() == column.is_valid().to_pylist()
        values = pa.chunked_array([chunk.flatten() for chunk in column.chunks], pa.float32())
        assert column_numbers(values).tolist() == values.to_pylist()
    found = numbers_of(lists.flatten())
    assert not (found.flags.writeable and len(found))


def test_a_column_of_nulls_alone_has_no_valid_row():
    assert valid_rows(pa.chunked_array([pa.nulls(3), pa.nulls(0)])).tolist() == [False] * 3


def test_shards_are_written_and_read_without_pandas(tmp_path):
    pytest.importorskip("pandas")
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "import embedkit\n"
        "from embedkit.output.formats import FORMATS\n"
        "from embedkit.output.formats.values import fits_parquet\n"
        "from tests.output.shards import KEPT_TYPES, layout, make_shard, write_output\n"
        "assert fits_parquet('string')\n"
        "for form in FORMATS:\n"
        "    like = layout(kept_types={name: kind for name, kind in KEPT_TYPES.items() if name != 'seen'})\n"
        "    write_output(Path(sys.argv[1]) / form, form, like, [make_shard(like, [True, False, True])])\n"
        "    out = embedkit.read(Path(sys.argv[1]) / form, check=False)\n"
        "    assert len(out.ids) == len(out.vectors) == 2\n"
        "assert 'pandas' not in sys.modules\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
