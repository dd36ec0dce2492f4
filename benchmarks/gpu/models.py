"""Random models of well-known shapes, in folders as their users have them, with a made-up vocabulary.

They cost what any model of the shape costs. embedkit and sentence-transformers read the same folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.texts import vocabulary

#: By name: what `BertConfig` is told beside its defaults, which are BERT-base.
SHAPES: dict[str, dict[str, int]] = {
    "bert-base": {},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
}
#: For a trial on a CPU.
SMALL: dict[str, dict[str, int]] = {
    "bert-base": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "vocab_size": 3000,
    },
    "minilm": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 3000,
    },
}


def make(shape: dict[str, int], folder: Path, *, seed: int = 0) -> list[str]:
    """Saves a model of this shape, its tokenizer, and the recipe "mean" for sentence-transformers.

    Returns:
        The vocabulary.
    """
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    config = BertConfig(**shape)
    BertModel(config).save_pretrained(folder)
    entries = vocabulary(config.vocab_size)
    tokenizer = BertTokenizer(vocab={entry: number for number, entry in enumerate(entries)})
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    kinds = ("Transformer", "Pooling")
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(zip(kinds, ("", "1_Pooling"), strict=True))
    ]
    _save(folder / "modules.json", modules)
    pooling = {"word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": True}
    _save(folder / "1_Pooling" / "config.json", pooling)
    limits = {"max_seq_length": config.max_position_embeddings, "do_lower_case": False}
    _save(folder / "sentence_bert_config.json", limits)
    return entries


def _save(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
