"""The user's options as frozen dataclasses: one for each subject, together a `RunConfig`.

Values are checked when they are created; nothing here opens a file or imports a model.
"""

from embedkit.config.checks import MOST_SEED, at_least, one_of, value_hint
from embedkit.config.engine_config import ENGINES, EngineConfig, parse_workers
from embedkit.config.input_config import FORMATS, InputConfig
from embedkit.config.label_config import TASKS, LabelConfig
from embedkit.config.model_config import DTYPES, BatchConfig, ModelConfig
from embedkit.config.output_config import OUTPUT_FORMATS, OutputConfig, ShareConfig
from embedkit.config.reuse_config import ReuseConfig
from embedkit.config.run_config import RunConfig, VectorConfig
from embedkit.config.vector_config import PRECISIONS, GroupConfig, PoolingConfig, TextConfig, UnitConfig

__all__ = [
    "DTYPES",
    "ENGINES",
    "FORMATS",
    "MOST_SEED",
    "OUTPUT_FORMATS",
    "PRECISIONS",
    "TASKS",
    "BatchConfig",
    "EngineConfig",
    "GroupConfig",
    "InputConfig",
    "LabelConfig",
    "ModelConfig",
    "OutputConfig",
    "PoolingConfig",
    "ReuseConfig",
    "RunConfig",
    "ShareConfig",
    "TextConfig",
    "UnitConfig",
    "VectorConfig",
    "at_least",
    "one_of",
    "parse_workers",
    "value_hint",
]
