"""Turns texts into token ids, with counts for each text.

Settles a model's casing and length limit, and truncates long texts or splits them into windows, each with the
special tokens.
"""

from embedkit.tokenizer.casing import Casing
from embedkit.tokenizer.lengths import check_length, usable_length
from embedkit.tokenizer.loading import load_tokenizer
from embedkit.tokenizer.text_tokenizer import TextTokenizer
from embedkit.tokenizer.vocabulary import check_vocabulary, unknown_characters_notice

__all__ = [
    "Casing",
    "TextTokenizer",
    "check_length",
    "check_vocabulary",
    "load_tokenizer",
    "unknown_characters_notice",
    "usable_length",
]
