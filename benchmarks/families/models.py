"""Models of the families: the width of a published one, few layers, random weights and a small vocabulary.

Each has a tokenizer of the class that its type has, made of the words of some texts, so that a library loads it as
it would load the real one; and the files that sentence-transformers saves.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.models import describe_pooling

#: Pieces of words in a vocabulary.
PIECES = 3000
#: The sizes of a published model, but for its layers and vocabulary.
FAMILIES: dict[str, dict[str, Any]] = {
    # answerdotai/ModernBERT-base
    "modernbert": {
        "model_type": "modernbert",
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "max_position_embeddings": 8192,
    },
    # nomic-ai/nomic-embed-text-v1.5
    "nomic": {
        "model_type": "nomic_bert",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 4,
        "num_attention_heads": 12,
        "max_position_embeddings": 2048,
    },
    # Qwen/Qwen3-Embedding-0.6B
    "qwen3": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 3,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 8192,
    },
    # google/embeddinggemma-300m
    "gemma3": {
        "model_type": "gemma3_text",
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "use_bidirectional_attention": True,
        "sliding_window": 512,
        "max_position_embeddings": 2048,
    },
    # UFNLP/gatortron-base
    "megatron": {
        "model_type": "megatron-bert",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 3,
        "num_attention_heads": 16,
        "max_position_embeddings": 512,
    },
    # microsoft/deberta-v3-base
    "deberta": {
        "model_type": "deberta-v2",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 4,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "max_relative_positions": -1,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    # google-t5/t5-base
    "t5": {
        "model_type": "t5",
        "d_model": 768,
        "d_kv": 64,
        "d_ff": 3072,
        "num_layers": 4,
        "num_heads": 12,
        "feed_forward_proj": "relu",
    },
    # google/flan-t5-base
    "t5-gated": {
        "model_type": "t5",
        "d_model": 768,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 4,
        "num_heads": 12,
        "feed_forward_proj": "gated-gelu",
    },
    # yikuan8/Clinical-Longformer
    "longformer": {
        "model_type": "longformer",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 4,
        "num_attention_heads": 12,
        "attention_window": 512,
        "max_position_embeddings": 8194,
        "type_vocab_size": 1,
    },
}
_SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def make(name: str, folder: Path, texts: Sequence[str]) -> Path:
    """Makes a family's model, with a vocabulary for these texts; returns its folder."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, logging

    logging.set_verbosity_error()
    sizes = dict(FAMILIES[name])
    kind = sizes.pop("model_type")
    tokenizer = _tokenizer(kind, texts)
    tokenizer.save_pretrained(folder)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos")}
    torch.manual_seed(0)
    loader = AutoModelForTextEncoding if kind == "t5" else AutoModel
    model = loader.from_config(AutoConfig.for_model(kind, **ids, **sizes, vocab_size=len(tokenizer)))
    model.save_pretrained(folder)
    describe_pooling(folder, sizes.get("hidden_size") or sizes["d_model"])
    return folder


def _tokenizer(kind: str, texts: Sequence[str]) -> Any:
    from transformers import DebertaV2Tokenizer, T5Tokenizer

    if kind == "longformer":
        return _byte_pairs(texts)
    if kind == "deberta-v2":
        return DebertaV2Tokenizer(
            vocab=_unigrams(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], texts, ["[MASK]"]), unk_id=3
        )
    if kind == "t5":
        last = [f"<extra_id_{number}>" for number in range(99, -1, -1)]
        return T5Tokenizer(vocab=_unigrams(["<pad>", "</s>", "<unk>"], texts, last))
    return _without_a_class(texts)


def _without_a_class(texts: Sequence[str]) -> Any:
    """Returns a tokenizer.json that libraries take as it was saved."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram(_unigrams(list(_SPECIAL.values()), texts), unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **_SPECIAL)


def _byte_pairs(texts: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import RobertaTokenizer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


def _unigrams(first: Sequence[str], texts: Sequence[str], last: Sequence[str] = ()) -> list[tuple[str, float]]:
    """The commonest words and parts of words with their log odds, special tokens with score 0 around them."""
    words = Counter(f"\u2581{word}" for text in texts for word in text.split())
    parts: Counter[str] = Counter()
    for word, count in words.items():
        for size in range(1, 5):
            for start in range(len(word) - size + 1):
                parts[word[start : start + size]] += count
    letters = [part for part in parts if len(part) == 1]
    common = [word for word, _ in words.most_common(PIECES // 2)]
    counts = {**{word: words[word] for word in common}, **{letter: parts[letter] for letter in letters}}
    for part, count in parts.most_common():
        if len(counts) >= PIECES:
            break
        counts.setdefault(part, count)
    total = sum(counts.values())
    scored = sorted((piece, math.log(count / total)) for piece, count in counts.items())
    return [*((piece, 0.0) for piece in first), *scored, *((piece, 0.0) for piece in last)]
