"""Texts → token ids, with a receipt for each text.

Settles the casing and the length limit of a model, and cuts long texts, or reads them in windows, so that the
special tokens stay. Knows nothing of batches or tensors.
"""

from embedkit.tokenizer.casing import Casing
from embedkit.tokenizer.lengths import refuse_long, usable_length
from embedkit.tokenizer.loading import load_tokenizer
from embedkit.tokenizer.text_tokenizer import TextTokenizer
from embedkit.tokenizer.vocabulary import check_vocabulary, unknown_characters_notice

__all__ = [
    "Casing",
    "TextTokenizer",
    "check_vocabulary",
    "load_tokenizer",
    "refuse_long",
    "unknown_characters_notice",
    "usable_length",
]
