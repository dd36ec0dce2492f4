"""`--pool auto` against sentence-transformers itself: every model here is saved and read back by it."""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from sentence_transformers.util.quantization import quantize_embeddings

from embedkit import Encoder
from embedkit.config import ModelConfig
from embedkit.errors import EmbedkitError, ModelError, UsageError
from embedkit.models.dense_head import check_no_final_norm
from embedkit.models.repository.resolve import resolve_model
from embedkit.models.repository.shipped_recipe import shipped_recipe
from embedkit.models.transformers.load import load_model
from embedkit.pooling.postprocess import Int8Range, store
from tests import tiny_models
from tests.conftest import NOTES
from tests.models.test_architectures import saved

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = Path(__file__).parents[3] / "docs/reference/recipes.md"
MODES = modules.Pooling.POOLING_MODES
WIDTH = tiny_models.HIDDEN_SIZE
#: From one word to several windows, odd letters, a text of two punctuation marks.
TEXTS = tiny_models.TEXTS[::3]
#: These pad on the left, or count positions from there: only alone do they give what the text is worth.
ALONE = ("gpt2", "xlnet")
Ship = Callable[..., Path]


@pytest.fixture
def ship(bases, tmp_path) -> Ship:
    """Saves a model as its authors would: `ship(Pooling(...), Dense(...), kind="bert", prompts=...)`."""
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)

    def shipped(*behind: torch.nn.Module, kind: str = "bert", config_kwargs: Any = None, **settings: Any) -> Path:
        encoder = modules.Transformer(str(bases(kind)), config_kwargs=config_kwargs or {})
        if encoder.tokenizer.pad_token is None:
            encoder.tokenizer.pad_token = encoder.tokenizer.eos_token
        # XLNet states no limit: embedkit cuts at 512 then, and sentence-transformers does not.
        encoder.tokenizer.model_max_length = min(encoder.tokenizer.model_max_length, 96)
        model = SentenceTransformer(modules=[encoder, *behind], device="cpu", local_files_only=True, **settings)
        model.save(str(tmp_path / "shipped"), create_model_card=False)
        return tmp_path / "shipped"

    return shipped


def by_its_authors(folder: Path, texts: list[str] = TEXTS, **options: Any) -> np.ndarray:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return loaded(folder, tuple((file, file.stat().st_mtime_ns) for file in files)).encode(texts, **options)


@lru_cache(maxsize=1)
def loaded(folder: Path, _files: tuple[tuple[Path, int], ...]) -> SentenceTransformer:
    """Returns the model of a folder by sentence-transformers, read anew where a file has changed."""
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def assert_same(folder: Path, *texts: str, alone: bool = False, **prompt: str) -> Encoder:
    """On TEXTS, and on more of them."""
    encoder = Encoder(folder, **prompt)
    found = encoder.encode([*TEXTS, *texts])
    expected = by_its_authors(folder, [*TEXTS, *texts], batch_size=1 if alone else 32, **prompt)
    assert found.shape == expected.shape
    # A text that has no token beside those counted as the prompt's is empty here; there it is -inf, 0 or a prompt.
    empty = np.isnan(found).all(axis=1)
    assert not np.isfinite(expected[empty]).all(axis=1).any()
    found, expected = found[~empty], expected[~empty]
    assert len(found) >= len(TEXTS) - 2
    assert np.abs(found - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
    return encoder


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


def random_weights(module: torch.nn.Module) -> torch.nn.Module:
    """Such that leaving a bias or a norm's weight out is seen."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.5, generator=torch.Generator().manual_seed(1))
    return module


# --- pooling -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "include_prompt"),
    [
        *((kind, False) for kind in ("bert", "roberta", "mpnet", "modernbert", "t5", "gpt2", "xlnet")),
        *((kind, True) for kind in ("bert", "xlnet")),
    ],
)
def test_every_mode_with_the_prompt_in_and_out_is_what_sentence_transformers_gives(ship, kind, include_prompt):
    pooling = modules.Pooling(WIDTH, tuple(reversed(MODES)), include_prompt=include_prompt)
    prompts = {"query": "the patient has: ", "document": "pain "}
    folder = ship(pooling, kind=kind, prompts=prompts, default_prompt_name="document")
    alone = kind in ALONE
    by_default = assert_same(folder, alone=alone)
    assert_same(folder, alone=alone, prompt_name="query")
    assert_same(folder, alone=alone, prompt="")
    assert by_default.recipe["text"]["prompt"] == "pain "
    assert by_default.recipe["shipped"]["modules"][0]["include_prompt"] is include_prompt
    assert any("left out" in notice for notice in by_default.notices) is not include_prompt


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_alone(ship, mode):
    assert_same(ship(modules.Pooling(WIDTH, mode)))


def test_a_tokenizer_that_pads_on_the_left(ship):
    folder = ship(
        modules.Pooling(WIDTH, MODES, include_prompt=False), kind="modernbert", prompts={"query": "pain "}
    )
    edit_json(folder / "tokenizer_config.json", padding_side="left")
    assert_same(folder, prompt_name="query")


def test_the_older_flags_are_concatenated_in_the_order_of_sentence_transformers(ship):
    folder = ship(modules.Pooling(WIDTH, "mean"))
    path = folder / "1_Pooling" / "config.json"
    ours = {"mean_sqrt_len": "mean_sqrt_len_tokens"}
    flags = [f"pooling_mode_{mode}" for mode in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")]
    flags += ["pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"]
    for values in product([True, False], repeat=len(flags)):
        path.write_text(json.dumps({"word_embedding_dimension": WIDTH, **dict(zip(flags, values, strict=True))}))
        expected = modules.Pooling.load(str(folder), subfolder="1_Pooling").pooling_mode
        found = shipped_recipe(resolve_model(ModelConfig(str(folder)))).poolings
        named = [ours.get(name, name) for name in found]
        assert named == ([expected] if isinstance(expected, str) else list(expected))


def test_each_window_of_a_long_text_is_what_its_authors_give_for_the_window(ship):
    pooling = modules.Pooling(WIDTH, ("mean", "weightedmean"), include_prompt=False)
    folder = ship(pooling, dense(2 * WIDTH, 16), prompts={"query": "the patient: "})
    words = ["pain", "the", "of", "was", "chest", "and"] * 7  # each is one token
    room = 20 - 5  # beside [CLS] the patient : [SEP]
    windows = [words[start : start + room] for start in range(0, len(words), room)]
    vectors = by_its_authors(folder, [" ".join(window) for window in windows], prompt_name="query")
    encoder = Encoder(folder, prompt_name="query", max_length=20, on_long="chunk")
    found = encoder.encode([" ".join(words)])
    assert np.abs(found - np.average(vectors, axis=0, weights=[15, 15, 12])).max() <= 1e-5


def test_instructors_leave_their_prompts_out_whatever_their_files_say(ship):
    model = resolve_model(ModelConfig(str(ship(modules.Pooling(WIDTH, "mean")))))
    assert shipped_recipe(model).include_prompt
    assert not shipped_recipe(replace(model, name="hkunlp/instructor-base", revision="0" * 40)).include_prompt


def test_a_prompt_that_leaves_no_room_is_refused(ship):
    folder = ship(modules.Pooling(WIDTH, "mean", include_prompt=False))
    with pytest.raises(UsageError, match="leaves no room"):
        Encoder(folder, prompt="pain " * 100)


# --- behind the pooling ------------------------------------------------------------------------------------------


def dense(*sizes: int, **options: Any) -> torch.nn.Module:
    return random_weights(modules.Dense(*sizes, **options))


HEADS: dict[str, Callable[[], list[torch.nn.Module]]] = {
    "normalised": lambda: [modules.Normalize()],
    "dense": lambda: [dense(WIDTH, 16)],
    "dense_without_bias": lambda: [dense(WIDTH, 16, bias=False, activation_function=None), modules.Normalize()],
    "two_dense": lambda: [
        dense(WIDTH, 48, activation_function=torch.nn.GELU()),
        modules.Dropout(0.5),
        modules.Normalize(),
        dense(48, 8, activation_function=torch.nn.PReLU()),
    ],
    "layer_norm": lambda: [random_weights(modules.LayerNorm(WIDTH)), modules.Normalize(), modules.Dropout(0.1)],
    "residual": lambda: [dense(WIDTH, WIDTH, use_residual=True), dense(WIDTH, 16, use_residual=True)],
    "normalised_twice": lambda: [modules.Normalize(), modules.Normalize()],
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("safe", [True, False])
def test_what_stands_behind_the_pooling(ship, head, safe):
    behind = HEADS[head]()
    folder = ship(modules.Pooling(WIDTH, "mean"), *behind)
    if not safe:
        for file in folder.glob("*_*/model.safetensors"):
            torch.save(load_file(file), file.with_name("pytorch_model.bin"))
            file.unlink()
    encoder = assert_same(folder)
    steps = [step["type"] for step in encoder.recipe["shipped"]["modules"]]
    assert steps == [
        "Pooling",
        *(type(module).__name__ for module in behind if type(module) is not modules.Dropout),
    ]
    assert encoder.dims == {"": by_its_authors(folder, ["pain"]).shape[1]}


def test_the_last_normalize_can_be_left_out_and_truncation_comes_behind_it(ship):
    folder = ship(modules.Pooling(WIDTH, "mean"), dense(WIDTH, 16), modules.Normalize(), truncate_dim=6)
    assert assert_same(folder).recipe["truncate_dim"] == 6
    longer = Encoder(folder, truncate_dim=16, normalize=False).encode(TEXTS)
    norms = np.linalg.norm(longer, axis=1, keepdims=True)
    assert np.ptp(norms) > 0.1
    assert np.abs((longer / norms)[:, :6] - by_its_authors(folder)).max() <= 1e-5


def test_weights_of_modules_are_part_of_the_fingerprint(ship):
    folder = ship(modules.Pooling(WIDTH, "mean"), dense(WIDTH, 16))
    before = Encoder(folder).fingerprint
    assert Encoder(folder).fingerprint == before
    file = folder / "2_Dense" / "model.safetensors"
    weights = load_file(file)
    weights["linear.bias"][0] += 1
    save_file(weights, file)
    assert Encoder(folder).fingerprint != before


def test_a_pooling_of_another_width_than_the_dense_layer_takes_is_refused(ship):
    folder = ship(modules.Pooling(WIDTH, "mean"), dense(WIDTH, 16))
    with pytest.raises(UsageError, match="takes 32 dimensions, and the pooling gives 64"):
        Encoder(folder, layers="-2,-1")
    separate = Encoder(folder, layers="-2,-1", layer_agg="separate")
    assert list(separate.dims.values()) == [16, 16]
    assert Encoder(folder, layers="-2,-1", pool="mean").dims == {"": 2 * WIDTH}


# --- before the pooling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "modernbert", "t5"])
@pytest.mark.parametrize("layer_start", [0, 2])
def test_layers_are_averaged_by_their_weights_before_the_pooling(ship, kind, layer_start):
    n_layers = 4 if kind == "modernbert" else 3
    weights = torch.nn.Parameter(torch.linspace(0.5, 2.0, n_layers + 1 - layer_start))
    layers = modules.WeightedLayerPooling(WIDTH, n_layers, layer_start, weights)
    pooling = modules.Pooling(WIDTH, ("max", "mean"))
    folder = ship(layers, pooling, kind=kind, config_kwargs={"output_hidden_states": True})
    encoder = assert_same(folder)
    assert encoder.recipe["layers"] == list(range(layer_start, n_layers + 1))
    assert encoder.recipe["layer_agg"] == "weighted"
    with pytest.raises(UsageError, match="WeightedLayerPooling"):
        Encoder(folder, layers="-2")
    # Without the setting sentence-transformers leaves the weights aside, and so does embedkit.
    edit_json(folder / "config.json", output_hidden_states=False)
    assert assert_same(folder).recipe["layers"] == [n_layers]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "clip_text_model"])
def test_weights_of_layers_are_refused_where_a_norm_stands_behind_the_last(kind, tmp_path):
    model = ModelConfig(str(saved(kind, tmp_path)))
    loaded = load_model(resolve_model(model), model)
    with pytest.raises(ModelError, match="final norm") if kind == "clip_text_model" else nullcontext():
        check_no_final_norm(loaded, [5, 6, 7])


@pytest.mark.parametrize(
    ("stated", "max_length"),
    [
        ({"max_seq_length": 12}, 12),
        ({"max_seq_length": 60, "do_lower_case": True}, 60),
        ({"tokenizer_args": {"model_max_length": 10}, "max_seq_length": 60}, 10),
        ({"processing_kwargs": {"text": {"max_length": 9}}}, 9),
    ],
)
def test_lengths_and_casing_of_the_transformer_module(ship, stated, max_length):
    folder = ship(modules.Pooling(WIDTH, ("mean", "cls")), kind="distilbert")
    edit_json(folder / "tokenizer_config.json", model_max_length=32)
    (folder / "sentence_bert_config.json").write_text(json.dumps(stated))
    encoder = assert_same(folder, "ΟΔΟΣ")  # the last letter has another form in Python's lower()
    assert encoder.recipe["text"]["max_length"] == max_length
    assert encoder.recipe["text"]["lowercase"] is stated.get("do_lower_case", False)


def test_an_encoder_in_a_folder_of_its_own(ship):
    folder = ship(modules.Pooling(WIDTH, "mean"), dense(WIDTH, 16), prompts={"query": "pain: "})
    inside = folder / "0_Transformer"
    inside.mkdir()
    for file in folder.iterdir():
        if file.is_file() and file.name not in {"modules.json", "config_sentence_transformers.json"}:
            shutil.move(file, inside / file.name)
    entries = json.loads((folder / "modules.json").read_text())
    entries[0]["path"] = "0_Transformer"
    for entry in entries:
        entry["type"] = f"sentence_transformers.models.{entry['type'].rsplit('.', 1)[-1]}"
    (folder / "modules.json").write_text(json.dumps(entries))
    (inside / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20}))
    encoder = assert_same(folder, prompt_name="query")
    assert encoder.recipe["text"]["max_length"] == 20
    assert {"modules.json", "0_Transformer/model.safetensors", "2_Dense/model.safetensors"} <= set(
        encoder.recipe["model"]["files"]
    )


def test_a_model_without_a_recipe_is_pooled_as_sentence_transformers_pools_it(bases):
    assert assert_same(bases("bert")).recipe["shipped"] is None


def test_the_documentation_lists_the_modules_that_are_followed():
    from embedkit.models.repository.shipped_recipe import MODULES

    page = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)`", page, re.MULTILINE) == list(MODULES)


# --- what is told, and what is refused ---------------------------------------------------------------------------


def test_the_similarity_is_told_and_changes_no_number(ship, embedkit_cli, tmp_path):
    folder = ship(modules.Pooling(WIDTH, "mean"), similarity_fn_name="dot")
    assert assert_same(folder).recipe["shipped"]["similarity"] == "dot"
    out = tmp_path / "out"
    assert embedkit_cli("encode", NOTES, "-m", folder, "-o", out, "--limit", 3).code == 0
    assert '"similarity": "dot"' in embedkit_cli("inspect", out).out


@pytest.mark.parametrize("weighted", [True, False])
def test_an_output_can_be_verified_by_computing_rows_again(ship, embedkit_cli, tmp_path, weighted):
    layers = [modules.WeightedLayerPooling(WIDTH, 3, 1, torch.nn.Parameter(torch.tensor([1.0, 0.5, 2.0])))]
    pooling = modules.Pooling(WIDTH, ("mean", "weightedmean"), include_prompt=False)
    behind = [*(layers if weighted else []), pooling, dense(2 * WIDTH, 16), modules.Normalize()]
    folder = ship(*behind, prompts={"query": "pain: "}, config_kwargs={"output_hidden_states": True})
    out = tmp_path / "out"
    assert embedkit_cli("encode", NOTES, "-m", folder, "-o", out, "--prompt-name", "query").code == 0
    ran = embedkit_cli("verify", out, "--resample", 5)
    assert ran.code == 0, ran.err


def _module(folder: Path, kind: str) -> None:
    entries = json.loads((folder / "modules.json").read_text())
    path = f"{len(entries)}_{kind.rsplit('.', 1)[-1]}"
    entries.append({"idx": 9, "name": "9", "path": path, "type": kind})
    (folder / "modules.json").write_text(json.dumps(entries))


REFUSED: dict[str, tuple[str, Callable[[Path], None]]] = {
    **{
        kind: (f"'{kind}'", lambda folder, kind=kind: _module(folder, f"sentence_transformers.models.{kind}"))
        for kind in ("CNN", "LSTM", "BoW", "WordEmbeddings", "WordWeights", "Router", "Asym", "CLIPModel")
    },
    "order": ("order", lambda folder: _module(folder, "sentence_transformers.models.Pooling")),
    "code": (
        "'custom_st.Dense', which is defined by its own code",
        lambda folder: _module(folder, "custom_st.Dense"),
    ),
    "no pooling": ("no 1_Pooling/config.json", lambda folder: (folder / "1_Pooling/config.json").unlink()),
    "mode": ("'median'", lambda folder: edit_json(folder / "1_Pooling/config.json", pooling_mode=["median"])),
    "activation": (
        r"'transformers.activations.GELU', not one of torch.nn",
        lambda folder: edit_json(
            folder / "2_Dense/config.json", activation_function="transformers.activations.GELU"
        ),
    ),
    "no activation": (
        "'functional'",
        lambda folder: edit_json(folder / "2_Dense/config.json", activation_function="torch.nn.functional"),
    ),
    "other input": (
        "'Dense' with token_embeddings as input",
        lambda folder: edit_json(folder / "2_Dense/config.json", module_input_name="token_embeddings"),
    ),
    "shape": (
        "2_Dense .* do not fit",
        lambda folder: edit_json(folder / "2_Dense/config.json", out_features=17),
    ),
    "no weights": ("no weights in 2_Dense", lambda folder: (folder / "2_Dense/model.safetensors").unlink()),
    "damaged weights": (
        "2_Dense/model.safetensors .* cannot be read",
        lambda folder: (folder / "2_Dense/model.safetensors").write_bytes(b"no weights"),
    ),
    "task": (
        "'fill-mask'",
        lambda folder: edit_json(folder / "sentence_bert_config.json", transformer_task="fill-mask"),
    ),
    "chat": (
        "'message'",
        lambda folder: edit_json(folder / "sentence_bert_config.json", modality_config={"message": {}}),
    ),
    "argument": (
        "'num_hidden_layers' in config_args",
        lambda folder: edit_json(folder / "sentence_bert_config.json", config_args={"num_hidden_layers": 1}),
    ),
    "setting": ("'window'", lambda folder: edit_json(folder / "sentence_bert_config.json", window=1)),
    "sparse": (
        "SparseEncoder",
        lambda folder: edit_json(folder / "config_sentence_transformers.json", model_type="SparseEncoder"),
    ),
    "prompt": (
        "default prompt 'none'",
        lambda folder: edit_json(folder / "config_sentence_transformers.json", default_prompt_name="none"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name_and_there_is_a_way_out(ship, case):
    named, spoil = REFUSED[case]
    folder = ship(modules.Pooling(WIDTH, "mean"), dense(WIDTH, 16))
    spoil(folder)
    with pytest.raises(ModelError, match=named) as caught:
        Encoder(folder)
    assert "choose the pooling yourself" in caught.value.hint
    assert Encoder(folder, pool="mean").dims == {"": WIDTH}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.sampled_from(["mean", "sentence_embedding", "torch.nn.ReLU", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "message", "a"]), inner),
    max_leaves=4,
)
FILES = {
    "1_Pooling/config.json": ("pooling_mode", "include_prompt", "pooling_mode_cls_token"),
    "2_Dense/config.json": ("in_features", "out_features", "activation_function", "module_input_name", "bias"),
    "sentence_bert_config.json": (
        *("max_seq_length", "do_lower_case", "modality_config", "module_output_name", "processing_kwargs"),
        *("model_args", "config_args", "tokenizer_args", "transformer_task", "other"),
    ),
    "config_sentence_transformers.json": ("prompts", "default_prompt_name", "truncate_dim", "model_type"),
}


def test_whatever_stands_in_the_files_is_followed_or_refused(ship):
    folder = ship(modules.Pooling(WIDTH, "mean"), dense(WIDTH, 16))
    model = resolve_model(ModelConfig(str(folder)))
    places = [(folder / file, key) for file, keys in FILES.items() for key in (*keys, None)]

    @settings(deadline=None, max_examples=100)
    @given(st.sampled_from(places), JSON)
    def tried(place: tuple[Path, str | None], value: Any) -> None:
        file, key = place
        before = file.read_text()
        file.write_text(json.dumps(value if key is None else {**json.loads(before), key: value}))
        try:
            found = shipped_recipe(model)
        except ModelError:
            return
        finally:
            file.write_text(before)
        assert found.out_features >= 1
        assert found.max_length is None or found.max_length >= 1

    tried()


def test_a_module_outside_of_the_folder_is_refused(ship):
    folder = ship(modules.Pooling(WIDTH, "mean"))
    (folder / "modules.json").write_text(
        json.dumps([{"type": "sentence_transformers.models.Dense", "path": "../x"}])
    )
    with pytest.raises(EmbedkitError, match="outside"):
        Encoder(folder, pool="mean")


# --- fewer bits, and the real model ------------------------------------------------------------------------------


def test_binary_and_int8_are_those_of_sentence_transformers(ship):
    vectors = Encoder(ship(modules.Pooling(WIDTH, "mean"))).encode(tiny_models.TEXTS)
    assert np.array_equal(store(vectors, "binary", None), quantize_embeddings(vectors, "ubinary"))
    ranges = Int8Range.of(vectors[:9])
    found = store(vectors, "int8", ranges)
    theirs = quantize_embeddings(vectors, "int8", ranges=np.stack([ranges.minimum, ranges.maximum]))
    # They round down where embedkit rounds to the nearest step: half the error, at most a step apart.
    assert np.abs(found.astype(int) - theirs.astype(int)).max() == 1
    inside = (vectors >= ranges.minimum) & (vectors <= ranges.maximum)
    span = ranges.maximum - ranges.minimum
    errors = [
        np.abs(ranges.minimum + (stored.astype(np.float32) + 128) / 255 * span - vectors)[inside].max()
        / span.max()
        for stored in (found, theirs)
    ]
    assert errors[0] <= 0.5 / 255 + 1e-6 < errors[1]


def test_minilm_on_notes_is_what_sentence_transformers_gives():
    with NOTES.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file) if row["text"].strip()][:6]
    encoder = Encoder("minilm")
    folder = resolve_model(ModelConfig("minilm")).folder
    assert np.abs(encoder.encode(texts) - by_its_authors(folder, texts)).max() <= 1e-5
