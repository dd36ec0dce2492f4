"""The models that contenders are compared on, as folders that each of them can load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def minilm(work: Path) -> Path:
    """all-MiniLM-L6-v2, from the installed package: a copy, because contenders write into it."""
    from embedkit.config import ModelConfig
    from embedkit.models.repository.resolve import resolve_model

    folder = work / "minilm"
    shutil.copytree(resolve_model(ModelConfig("minilm")).folder, folder)
    return folder


def bert_base(work: Path) -> Path:
    """BERT-base of random weights with MiniLM's tokenizer: it costs what any BERT-base costs."""
    import torch
    from transformers import BertConfig, BertModel, logging

    logging.set_verbosity_error()
    folder = work / "bert-base"
    torch.manual_seed(0)
    BertModel(BertConfig()).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        source = work / "minilm" / name
        if source.exists():
            shutil.copy(source, folder)
    describe_pooling(folder, 768)
    return folder


def describe_pooling(folder: Path, width: int) -> None:
    """Writes what sentence-transformers saves besides a model: the mean of its states, of up to 256 tokens."""
    kinds = (("Transformer", ""), ("Pooling", "1_Pooling"))
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    limits = {"max_seq_length": 256, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(limits), encoding="utf-8")
