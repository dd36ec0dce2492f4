"""Finds the files that a model's weights are read from, and lists their tensors. Reads headers only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from embedkit.errors import ModelError

#: Names to look for, in this order; an index names the files that the weights are spread over.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
#: Types of plain weights; any other type is the storage of a quantisation.
PLAIN_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"})
#: Files that would change the weights: a pattern of their names, what is wrong, and what to do about it.
_REFUSED = (
    (
        r"adapter_config\.json|adapter_model\.(safetensors|bin)",
        "model '{model}' has an adapter in its folder ({file}), which embedkit does not apply",
        "merge it (PeftModel.from_pretrained(base, FOLDER).merge_and_unload().save_pretrained(NEW)), or remove it",
    ),
    (
        # Parts that torch saved on several machines; transformers prefers them to all other weights.
        r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors",
        "model '{model}' has a distributed checkpoint in its folder ({file})",
        "save the model again with save_pretrained, or remove these files",
    ),
    (
        r"quantize_config\.json|quant_config\.json",
        "the weights of model '{model}' are quantised, according to {file}; embedkit reads plain weights only",
        "use the checkpoint that it was made from; if the weights are plain, remove that file",
    ),
)


class StoredTensor(NamedTuple):
    """A tensor's file, and its type there: F16 (safetensors) or float16 (torch); "" for another object."""

    file: str
    dtype: str


def is_inside(name: str) -> bool:
    """Checks that a relative file name does not leave its folder, on any system."""
    windows = PureWindowsPath(name)
    return bool(name) and not (
        PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts
    )


def outside(model: str, file: str, name: object) -> ModelError:
    """Returns the error for a JSON file of a model that names a file outside of the model's folder."""
    return ModelError(
        f"{file} of model '{model}' names a file outside of the model's folder: '{str(name)[:80]}'",
        hint=f"do not use this model, or correct {file}",
    )


def weight_files(model: str, folder: Path) -> tuple[Path, ...]:
    """Lists the files with the weights of the encoder in `folder`: one, or those that its index names.

    Raises:
        ModelError: there are none, or an index names a file that is missing or outside the folder.
    """
    name = next(name for name in WEIGHTS if (folder / name).is_file())
    if not name.endswith(".index.json"):
        return (folder / name,)
    try:
        parts = sorted(set(json.loads((folder / name).read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        parts = []
    if not parts or not all(isinstance(part, str) for part in parts):
        raise ModelError(
            f"{name} of model '{model}' does not say which file each weight is in (weight_map)",
            hint="download it again",
        )
    for part in parts:
        if not is_inside(part):
            raise outside(model, name, part)
        if part.endswith(".safetensors") != name.startswith("model.safetensors"):
            raise ModelError(
                f"{name} of model '{model}' names '{part}', which is another kind of file",
                hint="save the model again with save_pretrained",
            )
    missing = [part for part in parts if not (folder / part).is_file()]
    if missing:
        raise ModelError(
            f"the weights of model '{model}' are in {len(parts)} files, by its {name}, and {len(missing)} of "
            f"these are missing, the first is {missing[0]}",
            hint=f"put the missing files into {folder}, or download the model again",
        )
    return tuple(folder / part for part in parts)


def check_no_others(model: str, folder: Path) -> None:
    """Checks that no other file in the folder would change the weights.

    Raises:
        ModelError: there is an adapter, a distributed checkpoint, or a file of a quantisation.
    """
    files = sorted(path.name for path in folder.iterdir())
    for pattern, message, way_out in _REFUSED:
        found = next((file for file in files if re.fullmatch(pattern, file)), None)
        if found is not None:
            raise ModelError(message.format(model=model, file=found), hint=way_out)


def stored_tensors(model: str, files: tuple[Path, ...]) -> dict[str, StoredTensor]:
    """Lists the tensors in a model's weight files, by name.

    Raises:
        ModelError: two files have a tensor of the same name, or a file cannot be read.
    """
    found: dict[str, StoredTensor] = {}
    for file in files:
        try:
            dtypes = _safetensors_dtypes(file) if file.suffix == ".safetensors" else _pickle_dtypes(file)
        except Exception as error:  # noqa: BLE001 - damaged files raise anything
            raise ModelError(
                f"{file.name} of model '{model}' cannot be read ({type(error).__name__})", hint="download it again"
            ) from None
        for name, dtype in dtypes.items():
            if name in found:
                raise ModelError(
                    f"model '{model}' has the weight {name[:120]} twice, in {found[name].file} and {file.name}",
                    hint="save the model again with save_pretrained",
                )
            found[name] = StoredTensor(file.name, dtype)
    return found


def _safetensors_dtypes(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    opened: Any
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 - no dict


def _pickle_dtypes(file: Path) -> dict[str, str]:
    """Loads no code: `weights_only` is safe in the versions of torch that `check_torch_version` lets pass."""
    import torch
    from transformers.modeling_utils import load_state_dict

    found: Mapping[str, Any] = load_state_dict(file, map_location="meta", weights_only=True)
    return {
        str(name): str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else ""
        for name, value in found.items()
    }
