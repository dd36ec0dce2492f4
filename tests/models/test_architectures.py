"""Every model type in the table, compared with plain transformers, one text at a time.

The models are tiny and random; texts are random token ids, up to several windows long and as long as the model
can take, several of one length, with the pad id among them. A wrong mask, position or window would be off by far
more than 1e-3. `make test` runs one type for each code path, `make test-all` all of them.
`python -m tests.models.test_architectures` prints the largest differences as a table.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from embedkit.config import ModelConfig
from embedkit.errors import ModelError, UsageError
from embedkit.inference.batching import make_batches
from embedkit.models.repository.architectures import ARCHITECTURES
from embedkit.models.repository.resolve import resolve_model
from embedkit.models.transformers.load import TransformersModel, load_model
from embedkit.models.transformers.transformers_encoder import TransformersEncoder
from embedkit.pooling.batch_pooler import BatchPooler, TokenGroup
from embedkit.pooling.pooling_spec import PoolingSpec
from embedkit.types import Batch, Tokens
from tests.models.kinds import CONFIGS, FEWEST, FUNNEL, HEADS, SHORTENED
from tests.oracle import pool

POOLINGS = ("cls", "mean", "max", "lasttoken")
#: Tokens: the last is what the models with learned positions have room for.
LENGTHS = (1, 3, 9, 9, 9, 17, 40, 66, 66, 80)
#: Budgets of a batch: long texts alone and short ones together; all at once, the shortest with the longest.
BUDGETS = (60, 100_000)
#: One for each code path: batches, positions, forward hooks, loaders, windows, layers that are called repeatedly.
SMOKE = {
    *("albert two groups", "bart", "big_bird", "canine", "deberta-v2", "funnel", "gemma3_text", "gpt2", "mamba"),
    *("modernbert", "mpnet", "phi3 longrope", "prophetnet", "roberta", "t5", "xlnet"),
}
EVERY_KIND = [
    pytest.param(kind, marks=() if kind in SMOKE else pytest.mark.all_architectures) for kind in sorted(CONFIGS)
]
REFUSED = sorted(name for name, known in ARCHITECTURES.items() if any(one.when is None for one in known.refusals))


def model_type(kind: str) -> str:
    return kind.split(" ", maxsplit=1)[0]


def random_tokens(pad_id: int, seed: int) -> Tokens:
    """Texts of random ids; some are the pad's, as a text may spell it."""
    random = np.random.default_rng(seed)
    ids = random.integers(5, 99, sum(LENGTHS)).astype(np.int32)
    ids[30::13] = pad_id
    return Tokens(ids, None, np.array(LENGTHS), 0, 0)


def saved(kind: str, folder: Path) -> Path:
    """Returns a folder with a random model whose every weight matters, as a user's would be."""
    config = transformers.CONFIG_MAPPING[model_type(kind)](**CONFIGS[kind])
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            is_norm = weights.dim() == 1 and name.endswith("weight")
            # T5's attention is not scaled down: larger weights would make it a hard maximum.
            spread = (0.2 if "t5" in kind else 0.3) if weights.dim() > 1 else 0.2
            weights.copy_(torch.randn_like(weights) * spread + (1 if is_norm else 0))
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def alone(folder: Path, tokens: Tokens, fewest: int, dtype: torch.dtype = torch.float32) -> list[list[np.ndarray]]:
    """Returns every hidden state of every text as transformers gives them for it alone: [text][layer] is [T, D].

    The whole model, encoder and decoder, and a new copy for each text: some carry over what they saw before.
    """
    pristine = transformers.AutoModel.from_pretrained(folder, dtype=dtype).eval()
    states = []
    for text in np.split(tokens.input_ids.astype(np.int64), np.cumsum(tokens.lengths)[:-1]):
        short = max(0, fewest - len(text))
        inputs = {
            "input_ids": torch.from_numpy(np.pad(text, (0, short)))[None],
            "attention_mask": torch.from_numpy(np.pad(np.ones(len(text), np.int64), (0, short)))[None],
        }
        model = copy.deepcopy(pristine)
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.zeros(1, 1, dtype=torch.int64)
            output = model(**inputs, output_hidden_states=True)
            layers = [*output.encoder_hidden_states[:-1], output.encoder_last_hidden_state]
        else:
            output = model(**inputs, output_hidden_states=True)
            layers = [*output.hidden_states[:-1], output.last_hidden_state]
        # Pegasus-X and BigBird leave the padding to whole blocks on.
        states.append([layer[0, : len(text)].numpy() for layer in layers])
    return states


def load(kind: str, folder: Path) -> TransformersModel:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return load_model(resolve_model(ModelConfig(str(saved(kind, folder)))), ModelConfig(str(folder)))


@dataclass(frozen=True)
class Way:
    """A way to run a model, and the largest difference that it made."""

    batches: str
    hooked: bool
    states: float
    pooled: float


def every_way(chosen: Chosen, expected: list[list[np.ndarray]]) -> Iterator[Way]:
    """Yields the way that was chosen, and the slower ones that it would fall back to."""
    first = chosen.batches
    names = ("packed", "padded", "equal")
    for batches in names[names.index(first) :]:
        for hooked in (True, False) if chosen.encoder._hooks is not None else (False,):
            is_first = (batches, hooked) == (first, chosen.encoder._hooks is not None)
            encoder = chosen.encoder if is_first else chosen.other(batches, hooked=hooked)
            yield measured(encoder, batches, chosen.tokens, expected, BUDGETS)


def measured(
    encoder: TransformersEncoder,
    batches: str,
    tokens: Tokens,
    expected: list[list[np.ndarray]],
    budgets: tuple[int, ...],
) -> Way:
    states = pooled = 0.0
    for max_tokens in budgets:
        seen: list[int] = []
        for batch in make_batches(
            tokens.lengths,
            max_tokens=max_tokens,
            padded=not encoder.packed,
            equal_lengths=encoder.equal_lengths,
        ):
            found, vectors = run(encoder, tokens, batch)
            assert list(found) == list(encoder.layers)
            start = 0
            for place, (text, length) in enumerate(zip(batch.texts, batch.lengths, strict=True)):
                for layer, state in found.items():
                    of_text = state[0, start : start + length] if encoder.packed else state[place, :length]
                    wanted = expected[text][layer]
                    states = max(states, difference(of_text, wanted))
                    of_layer = vectors[f"L{layer:02d}_{'_'.join(POOLINGS)}"][place]
                    pooled = max(
                        pooled, difference(of_layer, np.concatenate([pool(name, wanted) for name in POOLINGS]))
                    )
                start += length
                seen.append(int(text))
        assert sorted(seen) == list(range(len(LENGTHS)))
    return Way(batches, encoder._hooks is not None, states, pooled)


def run(
    encoder: TransformersEncoder, tokens: Tokens, batch: Batch
) -> tuple[dict[int, np.ndarray], dict[str, np.ndarray]]:
    """States of a batch by layer, and its pooled vectors."""
    if encoder.packed:
        groups = [TokenGroup(group, None) for group in batch.length_groups()]
    else:
        mask = torch.from_numpy(np.arange(batch.lengths[-1]) < batch.lengths[:, None])
        groups = [TokenGroup(None, mask)]
    pooler = BatchPooler(PoolingSpec(encoder.layers, "separate", POOLINGS), groups)
    found: dict[int, np.ndarray] = {}

    def take(layer: int, hidden_states: torch.Tensor) -> None:
        found[layer] = hidden_states.numpy().copy()
        pooler.take(layer, hidden_states)

    with torch.inference_mode():
        encoder.run(tokens, batch, take)
        return found, {name: vectors.numpy() for name, vectors in pooler.vectors().items()}


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest |Δ|, as a share of the largest state where that is more than 1; a NaN is infinitely far."""
    assert found.shape == wanted.shape
    furthest = np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max())
    return float(furthest) if np.isfinite(furthest) else np.inf


@dataclass(frozen=True)
class Chosen:
    loaded: TransformersModel
    encoder: TransformersEncoder
    notice: str | None
    tokens: Tokens
    own_attention: str

    @property
    def batches(self) -> str:
        return "packed" if self.encoder.packed else "equal" if self.encoder.equal_lengths else "padded"

    def other(self, batches: str, *, hooked: bool) -> TransformersEncoder:
        """Returns the same model run in another way; the chosen encoder must not be used after it."""
        if batches != "packed":
            self.loaded.model.set_attn_implementation(self.own_attention)
        return TransformersEncoder(
            self.loaded.model,
            self.loaded.architecture,
            self.encoder.layers,
            n_layers=self.encoder.n_layers,
            hidden_size=self.encoder.hidden_size,
            batches=batches,
            hooked=hooked,
        )


def choose(kind: str, folder: Path) -> Chosen:
    loaded = load(kind, folder)
    own_attention = loaded.model.config._attn_implementation
    pad_id = getattr(loaded.model.config, "pad_token_id", None) or 0
    layers = tuple(layer for layer in range(loaded.n_layers + 1) if layer not in SHORTENED.get(kind, ()))
    encoder, notice = loaded.make_encoder(layers, random_tokens(pad_id, seed=2), for_pooler=False)
    return Chosen(loaded, encoder, notice, random_tokens(pad_id, seed=1), own_attention)


def test_every_type_in_the_table_is_tested_here():
    assert {model_type(kind) for kind in CONFIGS} == set(ARCHITECTURES) - set(REFUSED)


@pytest.mark.parametrize("field", ["batches", "positions", "encoder", "causal", "has_layers", "loader"])
def test_the_smoke_has_every_value_of_each_field_of_the_table(field):
    def values(types):
        known = (ARCHITECTURES[name] for name in types)
        if field == "loader":
            return {one.loader == "AutoModel" for one in known}
        return {one.layers is not None if field == "has_layers" else getattr(one, field) for one in known}

    assert values(map(model_type, SMOKE)) == values(set(ARCHITECTURES) - set(REFUSED))


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_state_and_pooling_of_every_text_is_the_same_in_a_batch_as_alone(kind, tmp_path, capfd):
    chosen = choose(kind, tmp_path)
    loaded, encoder = chosen.loaded, chosen.encoder
    # It runs in the way that the table promises, not in one that the check fell back to.
    assert chosen.notice is None
    architecture = ARCHITECTURES[model_type(kind)]
    promised = "equal" if kind == "phi3 longrope" else architecture.batches
    assert (chosen.batches, encoder._hooks is not None) == (promised, architecture.layers is not None)
    assert loaded.max_positions is None or loaded.max_positions >= max(LENGTHS)

    expected = alone(tmp_path, chosen.tokens, FEWEST.get(kind, 1))
    assert len(expected[0]) == loaded.n_layers + 1
    way = measured(encoder, chosen.batches, chosen.tokens, expected, BUDGETS)
    allowed = 1e-5
    if max(way.states, way.pooled) > allowed:
        # On some processors the rounding of a text alone is as large as that, which is no fault of a batch.
        exact = alone(tmp_path, chosen.tokens, FEWEST.get(kind, 1), torch.float64)
        allowed += max(
            difference(a, b) for of in zip(expected, exact, strict=True) for a, b in zip(*of, strict=True)
        )
    assert max(way.states, way.pooled) <= allowed, way
    if chosen.batches == "packed":
        padded = chosen.other("padded", hooked=True)
        way = measured(padded, "padded", chosen.tokens, expected, BUDGETS[-1:])
        assert max(way.states, way.pooled) <= 1e-5, way
    assert capfd.readouterr() == ("", "")


def config_only(folder: Path, **config: object) -> ModelConfig:
    """Returns a folder that claims to be a model; to be refused before its weights are read."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file({}, folder / "model.safetensors")
    return ModelConfig(str(folder))


@pytest.mark.parametrize("kind", ["fsmt", "seamless_m4t"])
def test_an_unknown_encoder_decoder_is_refused_and_the_known_ones_are_named(kind, tmp_path):
    config = config_only(tmp_path, model_type=kind, is_encoder_decoder=True)
    with pytest.raises(ModelError, match="which part of a") as caught:
        load_model(resolve_model(config), config)
    assert "t5" in caught.value.hint


@pytest.mark.parametrize(
    "config",
    [
        *({"model_type": kind} for kind in REFUSED),
        {"model_type": "xmod", "languages": ["en_XX"]},
        {"model_type": "yoso", "use_expectation": False},
        {"model_type": "nystromformer", "num_landmarks": 64, "segment_means_seq_len": 512},
        {"model_type": "funnel", "truncate_seq": False},
    ],
    ids=lambda config: config["model_type"],
)
def test_a_model_that_cannot_be_computed_exactly_is_refused_with_reason_and_hint(config, tmp_path):
    asked = config_only(tmp_path, **config)
    with pytest.raises(ModelError, match=rf"\({config['model_type']}\): (it|its|without) ") as caught:
        load_model(resolve_model(asked), asked)
    assert caught.value.hint


@pytest.mark.parametrize("kind", sorted(SHORTENED))
def test_a_layer_with_fewer_states_than_tokens_is_refused_and_the_others_are_named(kind, tmp_path):
    loaded = load(kind, tmp_path)
    there = sorted(set(range(loaded.n_layers + 1)) - SHORTENED[kind])
    for layer in SHORTENED[kind]:
        with pytest.raises(UsageError, match=f"layer {layer} of this model has fewer states") as caught:
            loaded.make_encoder((0, layer), random_tokens(0, seed=2), for_pooler=False)
        assert caught.value.hint.endswith(": " + ", ".join(map(str, there)))


def test_only_the_first_layers_of_funnels_base_model_are_available(tmp_path):
    config = transformers.FunnelConfig(**FUNNEL | {"architectures": ["FunnelBaseModel"]})
    transformers.FunnelBaseModel(config).save_pretrained(tmp_path)
    loaded = load_model(resolve_model(ModelConfig(str(tmp_path))), ModelConfig(str(tmp_path)))
    with pytest.raises(UsageError, match="layer 5 of this model has fewer states") as caught:
        loaded.make_encoder((loaded.n_layers,), random_tokens(0, seed=2), for_pooler=False)
    assert caught.value.hint.endswith(": 0, 1, 2")


def test_layers_of_different_width_are_not_combined(tmp_path):
    # OPT-350m is such a model: its last states are projected down to the width of its embeddings.
    config = transformers.OPTConfig(**CONFIGS["opt"] | {"word_embed_proj_dim": 16, "do_layer_norm_before": False})
    transformers.OPTModel(config).save_pretrained(tmp_path)

    def made(*layers: int) -> TransformersEncoder:
        loaded = load_model(resolve_model(ModelConfig(str(tmp_path))), ModelConfig(str(tmp_path)))
        return loaded.make_encoder(layers, random_tokens(1, seed=2), for_pooler=False)[0]

    with pytest.raises(UsageError, match=r"different width \(2: 32, 3: 16\)"):
        made(2, 3)
    assert (made(3).hidden_size, made(1, 2).hidden_size) == (16, 32)


def test_a_type_that_is_not_in_the_table_never_sees_padding(tmp_path):
    config = transformers.SeedOssConfig(**HEADS)
    transformers.SeedOssModel(config).save_pretrained(tmp_path)
    loaded = load_model(resolve_model(ModelConfig(str(tmp_path))), ModelConfig(str(tmp_path)))
    encoder, notice = loaded.make_encoder((1, 3), random_tokens(0, seed=2), for_pooler=False)
    assert (encoder.packed, encoder.equal_lengths, notice) == (False, True, None)


def test_a_model_of_no_text_is_refused(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"\(vit\) reads images"):
        load_model(resolve_model(ModelConfig(str(tmp_path))), ModelConfig(str(tmp_path)))


def main() -> None:
    """Prints the table of differences, as Markdown."""
    print("| model | batches | layers | states from 0 to | largest difference: states | pooled |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind in sorted(CONFIGS):
        with tempfile.TemporaryDirectory() as name:
            chosen = choose(kind, Path(name))
            short = SHORTENED.get(kind)
            last = f"{chosen.loaded.n_layers}" + (
                f" without {', '.join(map(str, sorted(short)))}" if short else ""
            )
            for way in every_way(chosen, alone(Path(name), chosen.tokens, FEWEST.get(kind, 1))):
                taken = "hooked" if way.hooked else "collected"
                row = f"{kind} | {way.batches} | {taken} | {last} | {way.states:.1e} | {way.pooled:.1e}"
                print(f"| {row} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
