"""What sentence-transformers does with a model's tokenizer, where its recipe is followed.

Takes a tokenizer of transformers; imports neither it nor torch.
"""

from __future__ import annotations

from typing import Any

from embedkit.errors import UsageError


def lowercase_first(tokenizer: Any) -> bool:
    """Put `do_lower_case` before all else that the tokenizer does to a text.

    Special tokens that a text spells out keep their letters so, and lowercasing is the Rust library's.

    Returns:
        Whether this tokenizer has a place for it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    from tokenizers import normalizers

    steps = [normalizers.Lowercase()] + ([backend.normalizer] if backend.normalizer is not None else [])
    backend.normalizer = normalizers.Sequence(steps)
    return True


def stated_length(tokenizer: Any, config: Any, shipped: int | None) -> int:
    """Most tokens of a text, by the recipe or else by the tokenizer and the encoder's configuration."""
    if shipped is not None:
        return shipped
    positions = getattr(config, "max_position_embeddings", None)
    stated = int(tokenizer.model_max_length)
    return stated if positions is None or positions <= 0 else min(stated, int(positions))


def prompt_length(tokenizer: Any, prompt: str, max_length: int) -> int:
    """How many tokens of each text are the prompt's, for a pooling that leaves them out.

    Counted as sentence-transformers does: those of the prompt alone, without a special token at its end. Where the
    last word of the prompt and the first of a text make one token, it is counted as if they did not.

    Raises:
        UsageError: the prompt leaves no room for a text.
    """
    if not prompt:
        return 0
    ids = tokenizer(prompt)["input_ids"]
    count = len(ids) - bool(ids and ids[-1] in tokenizer.all_special_ids)
    if len(ids) >= max_length:
        raise UsageError(
            f"the prompt has {len(ids)} tokens, and leaves no room for a text in {max_length}",
            hint="give a shorter --prompt, or a larger --max-length",
        )
    return count
