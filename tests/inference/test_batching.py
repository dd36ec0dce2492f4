"""Any texts, any budget: every text once, in a batch that keeps to it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkit.inference.batching import make_batches
from embedkit.types import Tokens

lengths = st.lists(st.integers(1, 600), max_size=80)


@given(lengths, st.integers(1, 2000), st.none() | st.integers(1, 9), st.booleans())
def test_every_text_is_in_one_batch_and_every_batch_keeps_to_its_budget(sizes, max_tokens, max_rows, padded):
    batches = make_batches(sizes, max_tokens=max_tokens, max_rows=max_rows, padded=padded)
    assert sorted(text for batch in batches for text in batch.texts.tolist()) == list(range(len(sizes)))
    for batch in batches:
        assert batch.lengths.tolist() == [sizes[text] for text in batch.texts]
        assert batch.lengths.tolist() == sorted(batch.lengths.tolist())
        cost = batch.padded_tokens if padded else batch.tokens
        assert cost <= max_tokens or len(batch.texts) == 1
        assert max_rows is None or len(batch.texts) <= max_rows
        runs = list(batch.length_groups())
        assert [length for run in runs for length in [run.length] * run.count] == batch.lengths.tolist()
        assert [run.start for run in runs] == np.cumsum([0, *(run.count * run.length for run in runs)])[
            :-1
        ].tolist()


@given(lengths, st.integers(1, 2000), st.booleans())
def test_no_two_neighbouring_batches_would_have_fitted_into_one(sizes, max_tokens, padded):
    batches = make_batches(sizes, max_tokens=max_tokens, padded=padded)
    for longer, shorter in pairwise(batches):
        # The longest of the next batch did not fit any more.
        count = len(longer.texts) + 1
        added = int(shorter.lengths[-1])
        assert (int(longer.lengths[-1]) * count if padded else longer.tokens + added) > max_tokens


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"max_tokens": 5, "max_rows": 0}])
def test_a_batch_without_room_is_refused(wrong):
    with pytest.raises(ValueError, match="room"):
        make_batches([1], **wrong, padded=True)


def test_a_text_without_tokens_is_refused():
    with pytest.raises(ValueError, match="without tokens"):
        make_batches([3, 0], max_tokens=10, padded=False)


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=9), st.data())
def test_texts_are_found_again_among_tokens_laid_end_to_end(texts, data):
    flat = np.array([token for text in texts for token in text], np.int32)
    tokens = Tokens(flat, None, np.array([len(text) for text in texts]), 0, 0)
    chosen = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=9))
    places, position = tokens.indices_of(np.array(chosen, np.int64))
    assert flat[places].tolist() == [token for text in chosen for token in texts[text]]
    assert position.tolist() == [place for text in chosen for place in range(len(texts[text]))]
    selected = tokens.select(np.array(chosen, np.int64))
    assert selected.input_ids.tolist() == flat[places].tolist()
    assert selected.lengths.tolist() == [len(texts[text]) for text in chosen]
