"""Arrays that are made from their buffers are those that pyarrow makes of the same values."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkit.output.formats.arrays import number_array, text_array


@given(texts=st.lists(st.none() | st.text()))
def test_texts_give_the_array_of_pyarrow(texts):
    found = text_array(texts)
    found.validate(full=True)
    assert found.equals(pa.array(texts, pa.string()))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "int64", "float16", "float32"])
@pytest.mark.parametrize("count", [0, 1, 8, 19])
def test_numbers_give_the_array_of_pyarrow(dtype, count):
    numbers = np.random.default_rng(count).integers(0, 2 if dtype == "bool" else 100, 2 * count).astype(dtype)
    for each in (numbers, numbers[::2], numbers[::-1]):
        found = number_array(each)
        found.validate(full=True)
        assert found.equals(pa.array(each))


def test_writing_a_shard_imports_no_pandas():
    pytest.importorskip("pandas")
    script = (
        "import sys\n"
        "from io import BytesIO\n"
        "from embedkit.output.formats import FORMATS, make_sink\n"
        "from embedkit.output.formats.values import fits_parquet\n"
        "from tests.output.shards import layout, make_shard\n"
        "for form in FORMATS:\n"
        "    like = layout(kept_types={'ward': 'string'})\n"
        "    assert fits_parquet('string')\n"
        "    make_sink(form, like).write(make_shard(like, [True, False, True]), lambda name: BytesIO())\n"
        "assert 'pandas' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
