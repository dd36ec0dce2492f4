"""A model's tokenizer and layers as `encode` would use them, without the model: its weights are not read."""

from __future__ import annotations

from embedkit.config import RunConfig
from embedkit.inference.model_spec import find_model
from embedkit.inference.tokenizer_setup import TokenizerSetup, draft
from embedkit.models.repository.config_facts import ConfigFacts, read_config_facts


def setup(config: RunConfig) -> tuple[TokenizerSetup, ConfigFacts]:
    """What the small files of the model settle for a run.

    Raises:
        ModelError: there is no such model, or no tokenizer that can be used.
        UsageError: a layer or a length that it does not have.
    """
    request = find_model(config.model, config.text, config.pooling)
    shape = read_config_facts(request.folder, trust_remote_code=config.model.trust_remote_code)
    settled = draft(
        *(request, config.model, config.text, config.pooling, config.units),
        config=shape.config,
        positions=shape.positions,
        n_layers=shape.n_layers,
    )
    return settled, shape
