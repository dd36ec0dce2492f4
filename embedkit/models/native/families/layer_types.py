"""Reads which layers attend to their whole text and which to a window."""

from collections.abc import Sequence

from embedkit.models.native.config_reader import ConfigReader, NotNativeError

GLOBAL, LOCAL = "full_attention", "sliding_attention"


def layer_types(reader: ConfigReader, default: Sequence[str]) -> Sequence[str]:
    """Returns the type of each layer: as config.json says, else `default`."""
    types = reader.get("layer_types")
    if types is None:
        return default
    if not isinstance(types, list) or len(types) != len(default) or not set(types) <= {GLOBAL, LOCAL}:
        raise NotNativeError("its layers are of types that embedkit does not know")
    return types
