"""Poolers on tiny inputs: the arithmetic by hand, what the mask leaves out, gradients, files."""

from __future__ import annotations

import json
import pickle
import struct

import numpy as np
import pytest
import torch

from embedkit.errors import ModelError
from embedkit.pooling.batch_pooler import BatchPooler, TokenGroup
from embedkit.pooling.heads import PredictionHead
from embedkit.pooling.pooler_files import pooler_bytes, read_pooler
from embedkit.pooling.poolers import (
    IdfPooler,
    LayerwisePooler,
    inverse_document_frequencies,
    vocabulary_hash,
)
from embedkit.pooling.pooling_spec import PoolingSpec
from embedkit.pooling.select import choose
from embedkit.pooling.trained import PoolerShape, make_pooler
from embedkit.types import LengthGroup

SHAPES = [
    PoolerShape("attention", 2, 8, width=6),
    PoolerShape("attention-tanh", 1, 8, width=5),
    PoolerShape("multihead-attention", 1, 8, heads=2),
    PoolerShape("weighted-layers", 3, 8, of_tokens="mean"),
    PoolerShape("lstm", 3, 8, width=4, of_tokens="cls"),
    PoolerShape("mean", 2, 8, width=3, of_tokens="mean"),
    PoolerShape("cls", 1, 8, width=4, of_tokens="cls"),
    PoolerShape("pca", 1, 8, width=2, of_tokens="mean"),
]


def pooler_of(shape):
    torch.manual_seed(1)
    module = make_pooler(shape)
    for buffer in module.buffers():
        buffer.copy_(torch.randn(buffer.shape))
    return module


def texts(shape, lengths, width=None):
    """States [L, N, T, D], mask and ids of texts of these lengths; the padding is NaN."""
    torch.manual_seed(2)
    width = width or max(lengths)
    states = torch.randn(shape.n_layers, len(lengths), width, shape.hidden_size)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return (
        states.masked_fill(~mask[..., None], torch.nan),
        mask,
        torch.arange(len(lengths) * width).view(mask.shape),
    )


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.kind)
def test_padding_and_batch_mates_change_nothing(shape):
    pooler = pooler_of(shape).eval()
    states, mask, ids = texts(shape, (5, 1, 9, 3), width=12)
    together = pooler(states, mask, ids)
    assert together.shape == (4, pooler.dims(shape.n_layers, shape.hidden_size))
    assert together.dtype == torch.float32
    for text, length in enumerate((5, 1, 9, 3)):
        alone = (slice(None), slice(text, text + 1), slice(0, length))
        found = pooler(states[alone], mask[alone[1:]], ids[alone[1:]])
        assert (found[0] - together[text]).abs().max() <= 1e-6


@pytest.mark.parametrize("shape", SHAPES[:7], ids=lambda shape: shape.kind)
def test_a_gradient_flows_to_every_parameter(shape):
    pooler = pooler_of(shape)
    states, mask, ids = texts(shape, (5, 2, 9))
    pooler(states, mask, ids).square().sum().backward()
    parameters = dict(pooler.named_parameters())
    assert parameters
    for name, parameter in parameters.items():
        # A softmax does not feel what is added to all its scores, nor attention what is added to all its keys.
        if name == "score.3.bias" or (shape.kind == "attention-tanh" and name == "score.2.bias"):
            continue
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0, name


def test_attention_is_the_average_by_the_softmax_of_the_scores():
    pooler = pooler_of(PoolerShape("attention-tanh", 1, 2, width=1))
    with torch.no_grad():
        pooler.score[0].weight.copy_(torch.tensor([[1.0, 0.0]]))
        pooler.score[2].weight.fill_(2.0)
        for layer in (0, 2):
            pooler.score[layer].bias.zero_()
    states = torch.tensor([[[[0.0, 1.0], [0.5, 3.0], [9.0, 9.0]]]])
    found = pooler(states, torch.tensor([[True, True, False]]))[0]
    # scores: 2 tanh(0) = 0, 2 tanh(0.5) = 0.92423; weights 1 / (1 + e^0.92423) = 0.28409 and 0.71591
    assert found.tolist() == pytest.approx([0.71591 * 0.5, 0.28409 + 0.71591 * 3], abs=1e-4)


def test_weighted_layers_are_weighed_by_a_softmax_of_one_weight_each():
    pooler = pooler_of(PoolerShape("weighted-layers", 2, 1, of_tokens="mean"))
    with torch.no_grad():
        pooler.weights.copy_(torch.tensor([0.0, np.log(3.0)]))
    states = torch.tensor([[[[2.0], [4.0]]], [[[8.0], [0.0]]]])
    # The means are 3 and 4, their weights 1/4 and 3/4.
    assert pooler(states, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2)).item() == pytest.approx(3.75)


def test_idf_is_scikit_learns_smooth_one_and_weighs_the_tokens_that_take_part():
    weights = inverse_document_frequencies(np.array([3, 1, 0]), 3)
    # One more than ln(4/4), ln(4/2) and ln(4/1).
    assert weights.tolist() == pytest.approx([1, 1 + np.log(2), 1 + np.log(4)])
    assert weights.dtype == np.float32
    pooler = IdfPooler(torch.tensor([1.0, 3.0, 50.0]))
    states = torch.tensor([[[1.0], [5.0], [torch.inf]], [[2.0], [2.0], [2.0]]])
    ids, mask = torch.tensor([[0, 1, 99], [2, 2, 2]]), torch.tensor([[True, True, False], [True] * 3])
    # (1 x 1 + 3 x 5) / (1 + 3) = 4
    assert pooler.of_layer(states, mask, ids).tolist() == [[4.0], [2.0]]
    assert pooler.of_layer(states[1:], None, ids[1:]).tolist() == [[2.0]]


def test_a_vocabulary_is_its_entries_their_ids_and_the_casing():
    one = vocabulary_hash({"a": 0, "b": 1}, lowercase=True)
    assert one == vocabulary_hash({"b": 1, "a": 0}, lowercase=True)
    others = [({"a": 1, "b": 0}, True), ({"a": 0, "b": 1}, False), ({"a": 0}, True)]
    assert one not in {vocabulary_hash(entries, lowercase=lowercase) for entries, lowercase in others}


# In a batch ------------------------------------------------------------------------------------------


class Spread(LayerwisePooler):
    """Layer by layer: the largest minus the smallest value of each dimension."""

    def dims(self, n_layers, hidden_size):
        return n_layers * hidden_size

    def of_layer(self, hidden_states, mask, input_ids):
        hidden_states = hidden_states if mask is None else hidden_states.masked_fill(~mask[..., None], torch.nan)
        states = hidden_states.nan_to_num(-torch.inf).amax(1), hidden_states.nan_to_num(torch.inf).amin(1)
        return states[0] - states[1]

    def of_layers(self, pooled):
        return pooled.transpose(0, 1).flatten(1)


class Whole:
    """All layers at once, and the ids: the same as Spread, followed by the largest id."""

    layers = None

    def dims(self, n_layers, hidden_size):
        return n_layers * hidden_size + 1

    def __call__(self, hidden_states, mask, input_ids):
        spread = Spread()(hidden_states, mask, input_ids)
        return torch.cat([spread, input_ids.masked_fill(~mask, -1).amax(1, keepdim=True).float()], dim=1)


@pytest.mark.parametrize("aggregation", ["concat", "mean", "separate"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_pooler_gets_the_states_of_its_layers_packed_or_padded(aggregation, packed):
    lengths, hidden = (2, 2, 4), torch.randn(3, 8, 5)
    ids = torch.arange(8)
    spec = PoolingSpec(
        (2, 0), aggregation, ("mean", "spread", "whole"), poolers={"spread": Spread(), "whole": Whole()}
    )
    if packed:
        groups = [
            TokenGroup(LengthGroup(0, 2, 2), None, ids[:4].view(2, 2)),
            TokenGroup(LengthGroup(4, 1, 4), None, ids[4:].view(1, 4)),
        ]
        states = hidden[:, None]
    else:
        mask = torch.arange(4) < torch.tensor(lengths)[:, None]
        states = torch.full((3, 3, 4, 5), torch.nan)
        states[:, mask] = hidden
        padded = torch.full((3, 4), -7)
        padded[mask] = ids
        groups = [TokenGroup(None, mask, padded)]
    pooler = BatchPooler(spec, groups)
    for layer in (0, 2):  # as they come, in order of depth
        pooler.take(layer, states[layer])
    found = pooler.vectors()
    assert {variant.name: variant.dims for variant in spec.variants(5)} == {
        n: v.shape[1] for n, v in found.items()
    }
    given = {"concat": [[2, 0]], "mean": ["mean"], "separate": [[2], [0]]}[aggregation]
    for of_variant, layers in zip(found.values(), given, strict=True):
        stack = hidden[[2, 0]].mean(0, keepdim=True) if layers == "mean" else hidden[layers]
        for text, part in enumerate((slice(0, 2), slice(2, 4), slice(4, 8))):
            states_of = stack[:, part]
            spread = (states_of.amax(1) - states_of.amin(1)).flatten()
            expected = torch.cat([states_of.mean(1).flatten(), spread, spread, ids[part].max()[None].float()])
            assert torch.allclose(of_variant[text], expected, atol=1e-6)


def test_a_pooler_that_returns_another_shape_than_declared_is_refused():
    class Wrong(Whole):
        def dims(self, n_layers, hidden_size):
            return 7

    spec = PoolingSpec((0,), "concat", ("wrong",), poolers={"wrong": Wrong()})
    pooler = BatchPooler(spec, [TokenGroup(None, None, torch.zeros(1, 2, dtype=torch.int64))])
    pooler.take(0, torch.randn(1, 2, 3))
    with pytest.raises(ModelError, match=r"'wrong' returned .* \[1, 4\]; its dims\(\) .* \[1, 7\]"):
        pooler.vectors()


# Heads and files -------------------------------------------------------------------------------------


def test_a_head_predicts_probabilities_and_a_class_or_a_value():
    head = PredictionHead(
        np.array([[1.0], [-1.0]], np.float32), np.zeros(2, np.float32), ("no", "yes"), "classification"
    )
    cells = head.cells(np.array([[0.0], [1.0], [-1.0]], np.float32))
    assert list(cells) == list(head.columns) == ["score_no", "score_yes", "predicted"]
    # e^1 / (e^1 + e^-1) = 0.880797
    assert cells["score_no"] == pytest.approx([0.5, 0.880797, 0.119203], abs=1e-6)
    assert cells["predicted"][1:] == ["no", "yes"]
    value = PredictionHead(np.array([[2.0]], np.float32), np.ones(1, np.float32), (), "regression")
    assert value.cells(np.array([[0.1]], np.float32)) == {"prediction": [1.2]}


def file_of(shape, tmp_path, *, name="p.safetensors", change=(), recipe=()):
    module = pooler_of(shape)
    tensors = {key: tensor.detach().numpy() for key, tensor in module.state_dict().items()}
    fields = {key: getattr(shape, key) for key in ("n_layers", "hidden_size", "width", "heads", "of_tokens")}
    content = {
        "kind": shape.kind,
        "shape": fields,
        "input": {"layers": [0, 2], "layer_agg": "concat", "exclude_special": False},
        "model": {"type": "bert", "files": {"config.json": "00"}},
        **dict(recipe),
    }
    (tmp_path / name).write_bytes(pooler_bytes(content, tensors | dict(change)))
    return module, str(tmp_path / name)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.kind)
def test_a_file_gives_the_same_pooler_back_and_the_same_bytes_again(shape, tmp_path):
    module, path = file_of(shape, tmp_path)
    names, poolers = choose((path,))
    states, mask, ids = texts(shape, (4, 2))
    found = poolers[names[0]].pooler("cpu")(states, mask, ids)
    assert torch.allclose(found, module.eval()(states, mask, ids), atol=1e-6)
    again = tmp_path / "again.safetensors"
    file_of(shape, tmp_path, name=again.name)
    assert again.read_bytes() == (tmp_path / "p.safetensors").read_bytes()
    assert read_pooler(str(again)).sha256 == poolers[names[0]].identity["sha256"]
    poolers[names[0]].check_model({"type": "bert", "files": {"config.json": "00"}}, {}, lowercase=True)
    with pytest.raises(ModelError, match="another model"):
        poolers[names[0]].check_model({"type": "bert", "files": {"config.json": "01"}}, {}, lowercase=True)


def damages(tmp_path):
    file_of(SHAPES[0], tmp_path)
    whole = (tmp_path / "p.safetensors").read_bytes()
    header = int.from_bytes(whole[:8], "little")
    plain = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    yield "cut short", whole[:-9]
    yield "a changed number", whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]
    yield "a pickle", pickle.dumps({"weights": [1.0]})
    yield "empty", b""
    yield "of others", struct.pack("<Q", len(plain)) + plain + b"\0\0\0\0"
    yield (
        "another version",
        whole[:8] + whole[8 : 8 + header].replace(b'version\\": 1', b'version\\": 9') + whole[8 + header :],
    )
    for wrong in (
        {"score.0.weight": np.zeros((6, 15), np.float32)},
        {"score.0.weight": np.full((6, 16), np.nan, np.float32)},
        {"score.0.weight": np.zeros((6, 16), np.float64)},
        {"kind": "unheard-of"},
        {"shape": {"width": 3}},
        {"shape": {"n_layers": 2, "hidden_size": 8, "width": 2**40, "heads": 0, "of_tokens": ""}},
        {"shape": {"n_layers": 2, "hidden_size": 8, "width": "6", "heads": 0, "of_tokens": ""}},
        {"input": {}},
        {"task": "classification", "classes": ["a", "b"], "dims": 16},
    ):
        where = "change" if "score.0.weight" in wrong else "recipe"
        file_of(SHAPES[0], tmp_path, **{where: wrong})
        yield str(wrong)[:40], (tmp_path / "p.safetensors").read_bytes()


def test_damaged_files_pickles_and_files_of_others_are_refused(tmp_path):
    path = tmp_path / "bad.safetensors"
    seen = 0
    for what, content in damages(tmp_path):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"bad.safetensors") as refused:
            chosen = choose((str(path),))[1]
            for pooler in chosen.values():
                pooler.pooler("cpu")
                pooler.head()
        assert refused.value.hint, what
        seen += 1
    assert seen == 15
    with pytest.raises(ModelError, match="cannot read"):
        read_pooler(str(tmp_path / "nowhere.safetensors"))
