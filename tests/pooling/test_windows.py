"""Windows, their combination, and which token belongs to which unit: against counting by hand, one at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.pooling.unit_pooler import combine_windows
from embedkit.pooling.units import units_of, words_of
from embedkit.tokenizer.lengths import windows
from embedkit.types import Record, Span, TokenizedTexts, TokenOffsets, Tokens


@given(content=st.integers(0, 300), room=st.integers(1, 40), data=st.data())
def test_windows_hold_every_token_and_each_adds_what_no_earlier_one_has(content, room, data):
    overlap = data.draw(st.integers(0, room - 1))
    cut = windows(content, room, overlap)
    seen: set[int] = set()
    before = None
    for start, stop, added in zip(cut.starts.tolist(), cut.stops.tolist(), cut.added.tolist(), strict=True):
        here = set(range(start, stop))
        assert added == len(here - seen)
        assert len(here) == room or stop == content
        if before is not None:
            assert added > 0
            assert len(here & before) == overlap
        seen, before = seen | here, here
    assert seen == set(range(content))
    assert sum(cut.added.tolist()) == content
    if content <= room:
        assert len(cut.starts) == 1


@pytest.mark.parametrize("overlap", [-1, 3, 4])
def test_an_overlap_that_does_not_advance_is_refused(overlap):
    with pytest.raises(ValueError, match="overlap"):
        windows(10, 3, overlap)


@settings(max_examples=60)
@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 99), data=st.data())
def test_the_vectors_of_windows_are_combined_text_by_text(counts, seed, data):
    texts = np.repeat(np.arange(len(counts)) * 3, counts)
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(len(texts), 3)).astype(np.float32)
    weights = random.integers(0, 50, len(texts))
    how = data.draw(st.sampled_from(["mean", "max", "first"]))
    found = combine_windows(vectors, texts, weights, how)
    assert found.dtype == np.float32
    for row, text in enumerate(np.unique(texts).tolist()):
        of_text = [place for place in range(len(texts)) if texts[place] == text]
        rows = [vectors[place].astype(np.float64) for place in of_text]
        shares = [max(1, int(weights[place])) for place in of_text]
        expected = {
            "mean": sum(share * vector for share, vector in zip(shares, rows, strict=True)) / sum(shares),
            "max": np.array([max(column) for column in zip(*rows, strict=True)]),
            "first": rows[0],
        }[how]
        np.testing.assert_allclose(found[row], expected, rtol=1e-6, atol=1e-7)
        if len(of_text) == 1:
            assert found[row].tobytes() == vectors[of_text[0]].tobytes()


@st.composite
def shards(draw: st.DrawFn) -> tuple[TokenizedTexts, list[Record]]:
    """Texts of tokens with any characters (none, shared, blanks between), in windows with a frame around each."""
    room = draw(st.integers(2, 6))
    overlap = draw(st.integers(0, room - 1))
    records, texts, lengths, numbers, starts, stops = [], [], [], [], [], []
    for text in range(draw(st.integers(1, 3))):
        moves = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=12))
        place, where = 0, []
        for gap, width in moves:
            place += gap
            where.append((place, place + width))
            # The next token may share its last character, as the bytes of one letter do.
            place += max(0, width - (1 if draw(st.booleans()) else 0))
        size = max([stop for _, stop in where], default=0) + 1
        edges = st.integers(0, size)
        pairs = draw(st.lists(st.tuples(edges, edges), max_size=4))
        spans = tuple(Span(min(pair), max(pair), "x") for pair in pairs if pair[0] != pair[1])
        records.append(Record(text, str(text), "a" * size, spans=spans))
        if not where:
            continue
        cut = windows(len(where), room, overlap)
        for start, stop in zip(cut.starts.tolist(), cut.stops.tolist(), strict=True):
            texts.append(text)
            lengths.append(stop - start + 2)
            numbers += [-1, *range(start, stop), -1]
            starts += [0, *(where[number][0] for number in range(start, stop)), 0]
            stops += [0, *(where[number][1] for number in range(start, stop)), 0]
    ids = np.arange(len(numbers), dtype=np.int32)
    offsets = TokenOffsets(*(np.array(of, np.int32) for of in (numbers, starts, stops)))
    tokens = Tokens(ids, None, np.array(lengths, np.int64), 1, 1)
    n = np.zeros(len(records), np.int32)
    return TokenizedTexts(
        tokens, np.array(texts, np.int64), np.zeros(len(texts), np.int64), n, n, n, n_unknown=None, offsets=offsets
    ), records


def best_places(tokenized: TokenizedTexts) -> dict[int, dict[int, int]]:
    """text → number of a token → its place in the window where the nearer end is farthest."""
    numbers = tokenized.offsets.number.tolist()
    best: dict[int, dict[int, tuple[float, int]]] = {}
    last = dict.fromkeys(tokenized.texts.tolist(), -1)
    opens = (np.cumsum(tokenized.tokens.lengths) - tokenized.tokens.lengths).tolist()
    bounds = list(zip(tokenized.texts.tolist(), opens, tokenized.tokens.lengths.tolist(), strict=True))
    for text, start, length in bounds:
        last[text] = max(last[text], *numbers[start : start + length])
    for text, start, length in bounds:
        own = [number for number in numbers[start : start + length] if number >= 0]
        for place in range(start, start + length):
            number = numbers[place]
            if number < 0:
                continue
            left = float("inf") if own[0] == 0 else number - own[0]
            right = float("inf") if own[-1] == last[text] else own[-1] - number
            context = min(left, right)
            if number not in best.setdefault(text, {}) or context > best[text][number][0]:
                best[text][number] = (context, place)
    return {text: {number: place for number, (_, place) in of.items()} for text, of in best.items()}


@settings(max_examples=150, deadline=None)
@given(shards())
def test_a_span_has_the_tokens_that_share_a_character_with_it_where_they_have_most_context(shard):
    tokenized, records = shard
    best = best_places(tokenized)
    found = units_of("span", tokenized, records)
    expected = [(text, number, span) for text in sorted(best) for number, span in enumerate(records[text].spans)]
    assert found.texts.tolist() == [text for text, _, _ in expected]
    assert found.columns["span"].tolist() == [number for _, number, _ in expected]
    starts, stops = tokenized.offsets.start.tolist(), tokenized.offsets.stop.tolist()
    members = list(zip(found.members.unit.tolist(), found.members.place.tolist(), strict=True))
    assert members == [
        (unit, place)
        for unit, (text, _, span) in enumerate(expected)
        for _, place in sorted(best[text].items())
        if set(range(starts[place], stops[place])) & set(range(span.start, span.stop))
    ]
    for unit, empty in enumerate(found.empty.tolist()):
        assert empty == (unit not in {of for of, _ in members})
    for how, keep in (("first", 0), ("last", -1)):
        only = found.members.only(how)
        kept = {unit: [p for u, p in members if u == unit][keep] for unit, _ in members}
        assert dict(zip(only.unit.tolist(), only.place.tolist(), strict=True)) == kept


@settings(max_examples=80, deadline=None)
@given(shards())
def test_each_token_of_a_text_is_a_unit_once(shard):
    tokenized, records = shard
    best = best_places(tokenized)
    found = units_of("token", tokenized, records)
    expected = [(text, number, place) for text in sorted(best) for number, place in sorted(best[text].items())]
    assert found.texts.tolist() == [text for text, _, _ in expected]
    assert found.columns["token"].tolist() == [number for _, number, _ in expected]
    assert found.members.place.tolist() == [place for _, _, place in expected]
    chunks = units_of("chunk", tokenized, records)
    counts = [tokenized.texts.tolist().count(text) for text in sorted(best)]
    assert chunks.columns["chunk"].tolist() == [number for count in counts for number in range(count)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("BP 142/88, T 37.2°C.", ["BP", "142/88", ",", "T", "37.2", "°", "C", "."]),
        ("can't x-ray\r\n\tpt\u2019s 3x12mg", ["can't", "x-ray", "pt\u2019s", "3x12mg"]),
        ("cafe\u0301s na\u0308chste A\u030a", ["cafe\u0301s", "na\u0308chste", "A\u030a"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("\u0645\u06cc\u200c\u062e\u0648", ["\u0645\u06cc\u200c\u062e\u0648"]),
        ("👩\u200d⚕\ufe0f👍🏽 ❤\ufe0f!", ["👩\u200d⚕\ufe0f", "👍🏽", "❤\ufe0f", "!"]),
        ("\u0301 İstanbul \u00a0", ["\u0301", "İstanbul"]),
    ],
)
def test_texts_are_split_into_words(text, words):
    assert [text[word.start : word.stop] for word in words_of(text)] == words


@given(st.text(max_size=40))
def test_every_character_but_blanks_is_in_one_word(text):
    inside = [place for word in words_of(text) for place in range(word.start, word.stop)]
    assert len(inside) == len(set(inside))
    assert {place for place, letter in enumerate(text) if not letter.isspace()} == set(inside)
