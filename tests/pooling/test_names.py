"""The meaning of `--layers` and `--pool`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkit.config.poolings import parse_poolings, resolve_layers
from embedkit.errors import UsageError


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("-1", (12,)),
        ("0", (0,)),
        ("12", (12,)),
        ("-13", (0,)),
        ("-1,-2,-3,-4", (12, 11, 10, 9)),
        ("-4:", (9, 10, 11, 12)),
        ("9:13", (9, 10, 11, 12)),
        (":2", (0, 1)),
        ("all", tuple(range(13))),
        ("0,-4:", (0, 9, 10, 11, 12)),
        (" 3 , 1 ", (3, 1)),
    ],
)
def test_layers_are_hidden_states_of_a_model_with_12_layers(text, layers):
    assert resolve_layers(text, 12) == layers


@pytest.mark.parametrize("text", ["13", "-14", "9:14", "-20:", "0,99"])
def test_a_layer_out_of_range_is_refused_with_the_range(text):
    with pytest.raises(UsageError, match=r"layers 0 \(embeddings\) to 12 \(last\)"):
        resolve_layers(text, 12)


@pytest.mark.parametrize(
    "text", ["", "x", "1:2:3", "1.5", "--1", ":x", "1,,2", "5:5", "9:3", "1,1", "-1,12", "all,0"]
)
def test_invalid_layers_are_refused(text):
    with pytest.raises(UsageError):
        resolve_layers(text, 12)


@given(st.integers(1, 30), st.data())
def test_slices_are_pythons(n_layers, data):
    bound = st.none() | st.integers(-n_layers - 1, n_layers + 1)
    start, stop = data.draw(bound), data.draw(bound)
    expected = tuple(range(n_layers + 1))[start:stop]
    text = f"{'' if start is None else start}:{'' if stop is None else stop}"
    if expected:
        assert resolve_layers(text, n_layers) == expected
    else:
        with pytest.raises(UsageError):
            resolve_layers(text, n_layers)


@pytest.mark.parametrize("text", ["meen", "mean,mean", "auto,mean", "none,cls", "", "idf:", "none,idf:x"])
def test_invalid_poolings_are_refused(text):
    with pytest.raises(UsageError):
        parse_poolings(text)


def test_poolings_keep_their_order():
    assert parse_poolings("max, cls ,mean") == ("max", "cls", "mean")
    assert parse_poolings("idf:a b.safetensors,x/y.safetensors") == ("idf:a b.safetensors", "x/y.safetensors")
