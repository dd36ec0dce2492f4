"""States and vectors on the device, in each type of number, against plain transformers in fp32 on the CPU."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from embedkit import Encoder
from embedkit.config import ModelConfig
from embedkit.inference.batching import make_batches
from embedkit.models.base import tensors
from embedkit.models.repository.resolve import resolve_model
from embedkit.models.select_backend import load_model
from embedkit.types import Batch
from tests import tiny_models
from tests.models.test_architectures import alone, random_tokens, saved
from tests.oracle import Oracle, pool

#: By type of number: the largest error of a layer's states, measured by their size (both root mean squares).
#: The models are random, and amplify what rounding does: on a CPU the worst had 6e-7, 6e-3 and 5e-2. Texts that
#: see each other are off by more than 0.5.
TOLERANCE = {"fp32": 5e-6, "fp16": 1.5e-2, "bf16": 0.12}
#: How transformers' code runs them: packed (BERT's kin; windows, one and both ways; fewer heads of keys), padded,
#: in batches of one length. What embedkit has a forward of its own for runs packed in that.
KINDS = {
    "packed": (
        *("bert", "roberta", "distilbert", "modernbert", "gemma3_text", "gemma3_text both ways"),
        *("gpt2", "qwen2 sliding"),
    ),
    "padded": ("mpnet", "deberta-v2", "gpt_neo"),
    "equal": ("convbert",),
}
POOLINGS = ("cls", "mean", "max", "min", "mean_sqrt_len", "weightedmean", "lasttoken")


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("way", "kind"), [(way, kind) for way, kinds in KINDS.items() for kind in kinds])
def test_every_state_of_every_text_is_that_of_the_text_alone_in_fp32(way, kind, dtype, device, tmp_path):
    folder = saved(kind, tmp_path)
    config = ModelConfig(str(folder), device=device, dtype=dtype)
    loaded = load_model(resolve_model(config), config)
    layers = tuple(range(loaded.n_layers + 1))
    tokens = random_tokens(pad_id=0, seed=1)
    expected = alone(folder, tokens, fewest=1)
    encoder, notice = loaded.make_encoder(layers, tokens, for_pooler=False)
    assert notice is None
    if encoder.backend != "transformers":
        way = "packed"
    assert (encoder.packed, encoder.equal_lengths) == (way == "packed", way == "equal")
    found: dict[int, list[np.ndarray]] = {layer: [np.empty(0)] * len(expected) for layer in layers}

    def take(layer: int, states: torch.Tensor) -> None:
        here, start = states.float().cpu().numpy(), 0
        for row, (text, length) in enumerate(zip(batch.texts.tolist(), batch.lengths.tolist(), strict=True)):
            found[layer][text] = here[0, start : start + length] if encoder.packed else here[row, :length]
            start += length

    of_one_length = {"padded": not encoder.packed, "equal_lengths": encoder.equal_lengths}
    for batch in make_batches(tokens.lengths, max_tokens=200, **of_one_length):
        encoder.run(tokens, batch, take)
    for layer in layers:
        wanted = np.concatenate([states[layer] for states in expected])
        assert error(np.concatenate(found[layer]), wanted) < TOLERANCE[dtype], f"layer {layer}"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("kind", "max_length"),
    [("bert", 64), ("modernbert", 64), ("deberta-v2", 64), ("t5", tiny_models.T5_MAX_LENGTH)],
)
def test_every_pooling_of_every_layer_is_that_of_the_text_alone_in_fp32(
    kind, max_length, dtype, device, folder_of
):
    poolings = POOLINGS[1:] if kind == "t5" else POOLINGS  # it puts no [CLS] before a text
    encoder = Encoder(
        folder_of(kind),
        device=device,
        dtype=dtype,
        layers="all",
        layer_agg="separate",
        pool=",".join(poolings),
        batch_tokens=300,
    )
    found = encoder.encode_variants(tiny_models.TEXTS)
    oracle = Oracle(folder_of(kind), max_length=max_length)
    states = [oracle.states(text) for text in tiny_models.TEXTS]
    assert len(found) == len(states[0].layers)
    for layer, vectors in enumerate(found.values()):
        expected = np.stack([np.concatenate([pool(name, of.layers[layer]) for name in poolings]) for of in states])
        # Poolings differ in size: each is measured by its own.
        for place, name in enumerate(poolings):
            part = slice(place * tiny_models.HIDDEN_SIZE, (place + 1) * tiny_models.HIDDEN_SIZE)
            assert error(vectors[:, part], expected[:, part]) < TOLERANCE[dtype], f"layer {layer}, {name}"


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_models_own_pooling_head_gives_what_it_gives_in_fp32(dtype, device, folder_of):
    vectors = Encoder(folder_of("bert"), device=device, dtype=dtype, pool="pooler").encode(tiny_models.TEXTS)
    oracle = Oracle(folder_of("bert"), max_length=tiny_models.MAX_LENGTH)
    expected = np.stack([oracle.states(text).pooler for text in tiny_models.TEXTS])
    assert error(vectors, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["bert", "modernbert", "t5"])
def test_a_vector_hardly_moves_with_its_batch_mates(kind, dtype, device, folder_of):
    texts = tiny_models.TEXTS
    alone = np.concatenate(
        [encode([text]) for encode in [encoder(kind, dtype, device, folder_of, 64)] for text in texts]
    )
    together = encoder(kind, dtype, device, folder_of, 10_000)(texts)
    # 1e-5 is what is promised in fp32; in 16 bits it is what rounding does.
    assert np.abs(together - alone).max() <= (1e-5 if dtype == "fp32" else TOLERANCE[dtype] * np.abs(alone).max())


def encoder(kind, dtype, device, folder_of, batch_tokens):
    return Encoder(folder_of(kind), device=device, dtype=dtype, pool="mean", batch_tokens=batch_tokens).encode


@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen2 sliding"])
def test_a_forward_pass_never_waits_for_the_device(kind, cuda, tmp_path):
    """A wait would keep the host from starting the next batch while this one runs."""
    config = ModelConfig(str(saved(kind, tmp_path)), device=str(cuda), dtype="bf16")
    loaded = load_model(resolve_model(config), config)
    tokens = random_tokens(pad_id=0, seed=1)
    encoder, _ = loaded.make_encoder((1, loaded.n_layers), tokens, for_pooler=False)
    order = np.argsort(tokens.lengths, kind="stable")
    batch = Batch(order, tokens.lengths[order])
    inputs = tensors(encoder.prepare(tokens, batch), encoder.device)
    encoder.forward(inputs, batch, lambda *_: None)
    with waiting_is_an_error(cuda):
        encoder.forward(inputs, batch, lambda *_: None)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "gpt2"])
def test_from_tokens_to_vectors_the_host_waits_for_nothing_but_the_events_of_batches(kind, cuda, folder_of):
    encoder = Encoder(folder_of(kind), device=str(cuda), pool="mean,max,lasttoken", batch_tokens=200)
    expected = encoder.encode(tiny_models.TEXTS)
    with waiting_is_an_error(cuda):
        found = encoder.encode(tiny_models.TEXTS)
    assert np.array_equal(found, expected, equal_nan=True)


@contextmanager
def waiting_is_an_error(device):
    """Makes torch raise where the host waits for the device, as in a copy from memory that is not pinned."""
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
