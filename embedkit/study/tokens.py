"""A model's tokenizer as `encode` would use it, without the model: its weights are not read."""

from __future__ import annotations

from dataclasses import dataclass

from embedkit.config import ModelConfig, TextConfig
from embedkit.drafting import states_casing
from embedkit.errors import ModelError
from embedkit.request import Request
from embedkit.tokenizer import TextTokenizer, load_tokenizer, usable_length


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The entries of a tokenizer.

    Attributes:
        size: one more than the largest id.
        sha256: of entries, ids and casing.
    """

    size: int
    sha256: str


def load_text_tokenizer(
    request: Request, model: ModelConfig, text: TextConfig
) -> tuple[TextTokenizer, Vocabulary]:
    """The tokenizer of a model, with casing, prompt and length limit as under a named pooling.

    Raises:
        ModelError: it cannot be loaded.
        UsageError: a length that the model does not have.
    """
    from transformers import AutoConfig

    from embedkit.models.architectures import ARCHITECTURES, UNPROVEN, max_positions
    from embedkit.pooling.idf import vocabulary_hash

    folder = request.folder
    raw, casing = load_tokenizer(
        str(folder.folder),
        casing=model.lowercase,
        known_casing=folder.alias.stated_casing if folder.alias else None,
        states_casing=states_casing(folder),
    )
    try:
        config = AutoConfig.from_pretrained(
            folder.folder, local_files_only=True, trust_remote_code=model.trust_remote_code
        )
    except Exception as fault:  # noqa: BLE001 - the library raises anything here, and no row is involved
        raise ModelError(
            f"config.json of '{folder.name}' cannot be used ({type(fault).__name__})",
            hint="check that transformers knows this model",
        ) from None
    tokenizer = TextTokenizer(
        raw,
        max_length=usable_length(
            text.max_length,
            positions=max_positions(config, ARCHITECTURES.get(folder.model_type, UNPROVEN)),
            stated=raw.model_max_length,
        ),
        prompt=request.prompt,
        lowercase_first=casing.by_us,
        overlap=(text.stride or 0) if text.on_long == "chunk" else None,
    )
    entries = raw.get_vocab()
    lowercase = casing.lowercase or casing.by_us
    return tokenizer, Vocabulary(max(entries.values()) + 1, vocabulary_hash(entries, lowercase=lowercase))
