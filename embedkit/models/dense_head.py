"""The modules that a model ships after its pooling, with their weights: Dense, LayerNorm, Normalize.

They map vectors to vectors in float32, and name their weights as sentence-transformers' files do.
Files are safetensors, or pickles of which the tensors alone are read.
"""

from __future__ import annotations

import inspect
import warnings
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from embedkit.errors import ModelError
from embedkit.models.base import LoadedModel
from embedkit.models.device import check_torch_version
from embedkit.models.repository.model_folder import ModelFolder
from embedkit.models.repository.shipped_recipe import ShippedModule, ShippedRecipe
from embedkit.models.repository.weight_files import PLAIN_DTYPES

_OWN_POOLING = "choose the pooling yourself, such as --pool mean"


class Dense(nn.Module):
    """activation(W x + b), plus x or its projection if there is a residual: [N, in] → [N, out]."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, activation: nn.Module, use_residual: bool
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation_function = activation
        self.use_residual = use_residual
        if use_residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """Computes float32 [N, in] → [N, out]."""
        found: Tensor = self.activation_function(self.linear(vectors))
        if not self.use_residual:
            return found
        return found + (self.residual(vectors) if hasattr(self, "residual") else vectors)


class Normalize(nn.Module):
    """Scales each vector to length 1; zero stays zero: [N, D] → [N, D]."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Computes float32 [N, D] → [N, D]."""
        return nn.functional.normalize(vectors, dim=-1)


def load_head(model: ModelFolder, shipped: ShippedRecipe) -> nn.Sequential | None:
    """Loads the modules after the pooling, in float32 and eval mode; None if there are none.

    Raises:
        ModelError: weights are missing, damaged, or of another shape than their config.json says.
    """
    if not shipped.modules:
        return None
    modules = [_with_weights(model, module) for module in shipped.modules]
    return nn.Sequential(*modules).float().eval().requires_grad_(requires_grad=False)


def load_layer_weights(model: ModelFolder, shipped: ShippedRecipe, n_layers: int) -> tuple[float, ...]:
    """Loads the weight of each layer from `layer_start` to the last.

    Raises:
        ModelError: the file does not have one for each of these layers, or has other tensors.
    """
    read = _read(model, shipped.layer_weights_path)
    found = read.get("layer_weights")
    wanted = n_layers + 1 - int(shipped.layer_start or 0)
    if found is None or len(read) > 1 or found.shape != (wanted,):
        raise ModelError(
            f"{shipped.layer_weights_path} of model '{model.name}' is not the weights of its {wanted} layers",
            hint=f"check that it belongs to this model, or {_OWN_POOLING}",
        )
    return tuple(found.float().tolist())


def check_no_final_norm(loaded: LoadedModel, input_ids: list[int]) -> None:
    """Checks that a model whose layers are averaged by weights has no norm after the last one.

    sentence-transformers uses the state before that norm, and embedkit's last layer is the state after it.
    `input_ids` are those of any text.

    Raises:
        ModelError: it has such a norm.
    """
    if loaded.has_final_norm(input_ids):
        raise ModelError(
            "the model's recipe averages its layers before the final norm, which embedkit does not support",
            hint=_OWN_POOLING,
        )


def _with_weights(model: ModelFolder, shipped: ShippedModule) -> nn.Module:
    if shipped.kind == "Normalize":
        return Normalize()
    weights = _read(model, shipped.path)
    # No memory is allocated before the weights are known to have the shapes in config.json.
    with torch.device("meta"):
        if shipped.kind == "LayerNorm":
            norm = nn.LayerNorm(shipped.settings["dimension"])
            module: nn.Module = nn.Sequential(OrderedDict(norm=norm))
        else:
            settings = dict(shipped.settings)
            module = Dense(activation=_activation(model, settings.pop("activation")), **settings)
    try:
        module.load_state_dict(weights, assign=True)
    except RuntimeError:
        raise ModelError(
            f"the weights in {shipped.path} of model '{model.name}' do not fit its config.json",
            hint=f"check that the files are whole, or {_OWN_POOLING}",
        ) from None
    return module


def _activation(model: ModelFolder, name: str) -> nn.Module:
    kind = getattr(nn, name, None)
    if inspect.isclass(kind) and issubclass(kind, nn.Module):
        try:
            made: nn.Module = kind()
        except TypeError:
            pass
        else:
            return made
    raise ModelError(
        f"the recipe of model '{model.name}' has a Dense with the activation '{name}', which is no class of "
        "torch.nn that takes no arguments",
        hint=_OWN_POOLING,
    )


def _read(model: ModelFolder, path: str) -> dict[str, Tensor]:
    file = next(iter(model.module_weights(path)), None)
    if file is None:
        raise ModelError(
            f"model '{model.name}' has no weights in {path}",
            hint=f"put model.safetensors or pytorch_model.bin there, or {_OWN_POOLING}",
        )
    check_torch_version(model, Path(path) / file.name)
    # Imported here: transformers takes seconds to import, and most recipes have no weights of their own.
    from transformers.modeling_utils import load_state_dict

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = load_state_dict(file)
    except Exception as fault:  # noqa: BLE001 - transformers may raise anything; no row is involved yet
        raise ModelError(
            f"{path}/{file.name} of model '{model.name}' cannot be read ({type(fault).__name__})",
            hint=f"download it again, or {_OWN_POOLING}",
        ) from None
    for name, tensor in found.items():
        if str(tensor.dtype).removeprefix("torch.") not in PLAIN_DTYPES:
            raise ModelError(
                f"{name[:120]} in {path}/{file.name} of model '{model.name}' is quantised to {tensor.dtype}",
                hint="use the original model",
            )
    return {name: tensor.to(torch.float32) for name, tensor in found.items()}
