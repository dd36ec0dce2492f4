"""Every kind of model in the table, against plain transformers, one text at a time.

The models are tiny and random; texts are random token ids, up to several windows long, several of one length,
with the pad id among them. A wrong mask, position or window would be off by far more than 1e-3.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from embedkit.batching import make_batches
from embedkit.config import ModelConfig
from embedkit.errors import ModelError
from embedkit.models.architectures import ARCHITECTURES
from embedkit.models.load import load_model, make_encoder
from embedkit.models.resolve import resolve_model
from embedkit.records import Tokens

H = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 99,
}
SHORT = {**H, "max_position_embeddings": 80}
OFFSET = {**H, "max_position_embeddings": 82}
BART = {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 99,
    "max_position_embeddings": 80,
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4, "vocab_size": 99}
GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 99, "n_positions": 80}
LLAMA = {**SHORT, "num_key_value_heads": 2, "pad_token_id": 0}
XLM = {"emb_dim": 32, "n_layers": 3, "n_heads": 4, "n_words": 99, "max_position_embeddings": 80}
DEBERTA = {**SHORT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}

CONFIGS: dict[str, dict[str, Any]] = {
    "albert": {**SHORT, "embedding_size": 16},
    "bart": BART,
    "bert": SHORT,
    "big_bird": {**SHORT, "block_size": 4, "num_random_blocks": 1},
    "bigbird_pegasus": {**BART, "block_size": 4, "num_random_blocks": 1},
    "biogpt": OFFSET,
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 99},
    "camembert": OFFSET,
    "convbert": {**SHORT, "embedding_size": 32, "conv_kernel_size": 3, "head_ratio": 2},
    "data2vec-text": OFFSET,
    "deberta": DEBERTA,
    "deberta-v2": {**DEBERTA, "position_buckets": 8},
    "distilbert": {
        "dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 64,
        "vocab_size": 99,
        "max_position_embeddings": 80,
    },
    "electra": {**SHORT, "embedding_size": 16},
    "ernie": SHORT,
    "esm": {**OFFSET, "pad_token_id": 1, "mask_token_id": 3, "position_embedding_type": "rotary"},
    "falcon": {**H, "alibi": True},
    "flaubert": XLM,
    "fnet": {key: value for key, value in SHORT.items() if key != "num_attention_heads"},
    "gemma": {**LLAMA, "head_dim": 8},
    "gemma2": {**LLAMA, "head_dim": 8, "sliding_window": 8},
    "gemma3_text": {**LLAMA, "head_dim": 8, "sliding_window": 8},
    "gpt2": GPT,
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "vocab_size": 99,
        "max_position_embeddings": 80,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 8,
    },
    "gpt_neox": SHORT,
    "gptj": {**GPT, "rotary_dim": 8},
    "granite": LLAMA,
    "gte": SHORT,
    "ibert": OFFSET,
    "led": {**BART, "max_encoder_position_embeddings": 80, "attention_window": 8},
    "llama": LLAMA,
    "longformer": {**OFFSET, "attention_window": 8},
    "longt5": {**T5, "local_radius": 8},
    "luke": {**OFFSET, "entity_vocab_size": 9, "entity_emb_size": 8},
    "m2m_100": BART,
    "marian": {**BART, "pad_token_id": 0, "decoder_start_token_id": 0},
    "mbart": BART,
    "megatron-bert": SHORT,
    "mistral": {**LLAMA, "sliding_window": 8},
    "mixtral": {**LLAMA, "num_local_experts": 4, "sliding_window": None},
    "mobilebert": {**SHORT, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "modernbert": {
        **SHORT,
        "num_hidden_layers": 4,
        "local_attention": 8,
        "global_attn_every_n_layers": 3,
        "pad_token_id": 0,
        "cls_token_id": 1,
        "sep_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "mpnet": OFFSET,
    "mpt": {"d_model": 32, "n_layers": 3, "n_heads": 4, "vocab_size": 99, "max_seq_len": 80},
    "mt5": T5,
    "nomic_bert": SHORT,
    "olmo": LLAMA,
    "opt": {**H, "ffn_dim": 64, "max_position_embeddings": 80, "word_embed_proj_dim": 32},
    "pegasus": BART,
    "phi": LLAMA,
    "phi3": LLAMA,
    "plbart": BART,
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 8},
    "rembert": {**SHORT, "input_embedding_size": 16},
    "roberta": OFFSET,
    "roberta-prelayernorm": OFFSET,
    "roformer": SHORT,
    "splinter": SHORT,
    "squeezebert": {**SHORT, "embedding_size": 32},
    "switch_transformers": {**T5, "num_experts": 4, "expert_capacity": 64},
    "t5": T5,
    "umt5": T5,
    "xlm": XLM,
    "xlm-roberta": OFFSET,
    "xlm-roberta-xl": OFFSET,
    "xlnet": {"d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 64, "vocab_size": 99},
    "yoso": SHORT,
}
LENGTHS = (1, 3, 9, 9, 9, 17, 40, 66, 66)


def random_tokens(pad_id: int, seed: int) -> Tokens:
    """Texts of random ids; some are the pad's, as a text may spell it."""
    random = np.random.default_rng(seed)
    ids = random.integers(5, 99, sum(LENGTHS)).astype(np.int32)
    ids[30::13] = pad_id
    return Tokens(ids, None, np.array(LENGTHS), 0, 0)


def saved(kind: str, folder: Path) -> Path:
    """A folder with a random model whose every weight matters, as a user's would be."""
    config = transformers.CONFIG_MAPPING[kind](**CONFIGS[kind])
    loader = ARCHITECTURES[kind].loader
    torch.manual_seed(0)
    model = getattr(transformers, loader)(config) if loader != "AutoModel" else None
    model = model or transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            is_norm = weights.dim() == 1 and name.endswith("weight")
            # T5's attention is not scaled down: larger weights would make it a hard maximum.
            spread = (0.2 if "t5" in kind else 0.3) if weights.dim() > 1 else 0.2
            weights.copy_(torch.randn_like(weights) * spread + (1 if is_norm else 0))
    model.save_pretrained(folder)
    return folder


def alone(model: Any, tokens: Tokens) -> list[list[np.ndarray]]:
    """Every hidden state of every text as transformers gives them for it alone: [text][layer] is [T, D]."""
    texts = np.split(tokens.input_ids.astype(np.int64), np.cumsum(tokens.lengths)[:-1])
    states = []
    for text in texts:
        ids = torch.from_numpy(text)[None]
        with torch.no_grad():
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        layers = [state[0].numpy() for state in output.hidden_states]
        states.append([*layers[:-1], output.last_hidden_state[0].numpy()])
    return states


def keep(states: dict[int, np.ndarray], layer: int, state: torch.Tensor) -> None:
    states[layer] = state.numpy().copy()


def test_the_table_has_what_is_tested_here_and_more_than_forty_kinds():
    assert set(CONFIGS) == set(ARCHITECTURES)
    assert len(CONFIGS) >= 40


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_every_state_of_every_text_is_the_same_in_a_batch_as_alone(kind, tmp_path, capfd):
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = resolve_model(ModelConfig(str(saved(kind, tmp_path))))
    loaded = load_model(folder, ModelConfig(str(tmp_path)))
    pad_id = loaded.model.config.pad_token_id or 0
    tokens, probe = random_tokens(pad_id, seed=1), random_tokens(pad_id, seed=2)
    expected = alone(loaded.model, tokens)
    layers = tuple(range(loaded.n_layers + 1))
    encoder, notice = make_encoder(loaded, layers, probe, for_pooler=False)
    # It runs in the way that the table promises, not in one that the check fell back to.
    assert notice is None
    architecture = ARCHITECTURES[kind]
    ran = "packed" if encoder.packed else "equal" if encoder.equal_lengths else "padded"
    assert (ran, encoder._tap is not None) == (architecture.batches, architecture.layers is not None)

    for max_tokens in (1, 60, 100_000):
        seen = 0
        batches = make_batches(
            tokens.lengths,
            max_tokens=max_tokens,
            padded=not encoder.packed,
            equal_lengths=encoder.equal_lengths,
        )
        for batch in batches:
            states: dict[int, np.ndarray] = {}
            encoder.run(tokens, batch, partial(keep, states))
            assert list(states) == list(layers)
            start = 0
            for place, (text, length) in enumerate(zip(batch.texts, batch.lengths, strict=True)):
                for layer, state in states.items():
                    found = state[0, start : start + length] if encoder.packed else state[place, :length]
                    wanted = expected[text][layer]
                    assert found.shape == wanted.shape
                    assert np.abs(found - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max()), (layer, text)
                start += length
                seen += 1
        assert seen == len(LENGTHS)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["pegasus_x", "nllb-moe"])
def test_an_encoder_decoder_that_is_not_known_is_refused_and_the_known_ones_named(kind, tmp_path):
    (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}", "is_encoder_decoder": true}}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    config = ModelConfig(str(tmp_path))
    with pytest.raises(ModelError, match="which part of a") as caught:
        load_model(resolve_model(config), config)
    assert "t5" in caught.value.hint
