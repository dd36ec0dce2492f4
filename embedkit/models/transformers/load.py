"""Loads a model by transformers, and finds the fastest exact way to run it.

A checkpoint with a weight or a setting that would be left unused is refused.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from embedkit.config import ModelConfig
from embedkit.errors import ModelError
from embedkit.models.base import LoadedModel
from embedkit.models.device import (
    check_torch_version,
    disable_reduced_precision,
    limit_onednn_cache,
    pick_device,
    pick_dtype,
    tune_malloc,
)
from embedkit.models.repository.architectures import (
    ARCHITECTURES,
    UNPROVEN,
    Architecture,
    max_positions,
    rope_types,
)
from embedkit.models.repository.config_facts import architecture_of
from embedkit.models.repository.config_keys import check_unread, unread_keys
from embedkit.models.repository.model_folder import ModelFolder
from embedkit.models.repository.unused_weights import check_unused, is_added, is_known_head
from embedkit.models.repository.weight_files import PLAIN_DTYPES, stored_tensors
from embedkit.models.selfcheck import SLOWER, matches_reference, states_alone
from embedkit.models.transformers.state_layout import StateLayout, probe_states
from embedkit.models.transformers.transformers_encoder import TransformersEncoder
from embedkit.models.varlen_attention import usable
from embedkit.types import Tokens

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Modules whose code is shared by all models.
_COMMON_CODE = (
    *("builtins", "torch", "huggingface_hub", "typing", "transformers.modeling_", "transformers.configuration_"),
    *("transformers.utils", "transformers.integrations", "transformers.generation", "transformers.heterogeneity"),
)


@dataclass(frozen=True, kw_only=True)
class TransformersModel(LoadedModel):
    """A transformers model on its device.

    Attributes:
        model: the module, in eval mode.
        states: the hidden states that it gives.
        reference: True to run the model's own code unchanged, one text at a time.
    """

    model: Any
    states: StateLayout
    reference: bool = False

    def make_encoder(
        self, layers: tuple[int, ...], probe: Tokens, *, for_pooler: bool
    ) -> tuple[TransformersEncoder, str | None]:
        """Returns the fastest exact encoder; see LoadedModel."""
        self.states.width(layers)  # refuses layers that cannot be pooled, before any is run
        reference = self._encoder(layers, batches="padded", hooked=False)
        if self.reference:
            return reference, None
        own_attention = self.model.config._attn_implementation  # noqa: SLF001 - its only name
        expected = states_alone(reference, probe, self.dtype)
        every = ("packed", "padded", "equal")
        fastest = "equal" if "longrope" in rope_types(self.model.config) else self.architecture.batches
        hooks = (True, False) if self.architecture.layers is not None else (False,)
        # The pooling head reads the first token of each row, and a packed batch is one row.
        kernels = () if for_pooler else usable(self.device, self.model.dtype, _head_dim(self.model.config))
        ways = [
            (kind, hooked, kernel)
            for kind in every[every.index(fastest) :]
            for hooked in hooks
            for kernel in (kernels if kind == "packed" else ("groups",))
        ]
        notice = None
        for batches, hooked, kernel in ways:
            if batches != "packed":
                self.model.set_attn_implementation(own_attention)
            try:
                encoder = self._encoder(layers, batches=batches, hooked=hooked, attention=kernel)
                exact = matches_reference(encoder, expected, probe)
            except (AttributeError, ImportError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
                exact = False
            if exact:
                encoder.drop_unused_layers()
                return encoder, notice
            notice = SLOWER
        raise ModelError(
            "this model gives other vectors in a batch than for a text alone, so embedkit cannot trust it",
            hint="please report the model's config.json",
        )

    @torch.inference_mode()
    def has_final_norm(self, input_ids: Sequence[int]) -> bool:
        """Checks on a text, [T], whether the model changes the states of its last layer."""
        ids = torch.tensor([input_ids], device=self.device)
        output = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        return not torch.equal(output.hidden_states[-1], output.last_hidden_state)

    def _encoder(
        self, layers: tuple[int, ...], *, batches: str, hooked: bool, attention: str = "groups"
    ) -> TransformersEncoder:
        return TransformersEncoder(
            self.model,
            self.architecture,
            layers,
            n_layers=self.n_layers,
            hidden_size=self.states.width(layers),
            batches=batches,
            hooked=hooked,
            attention=attention,
        )


def load_model(folder: ModelFolder, config: ModelConfig, *, reference: bool = False) -> TransformersModel:
    """Loads the encoder of a model's folder onto its device.

    Raises:
        ModelError: transformers does not know it; a weight outside the pooling head is missing, of another shape
            or type, or unused; a setting would be ignored; or a file is damaged.
        UsageError: the device does not exist.
    """
    check_torch_version(folder, Path(folder.weights))
    architecture = architecture_of(folder)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    if architecture is UNPROVEN and folder.config.get("is_encoder_decoder"):
        known = [name for name, entry in ARCHITECTURES.items() if entry.encoder or entry.loader != "AutoModel"]
        raise ModelError(
            f"embedkit does not know which part of a '{folder.model_type}' model is the encoder",
            hint=f"use a model that is an encoder alone, or one of these types: {', '.join(known)}",
        )
    if device.type == "cpu":
        tune_malloc()
        limit_onednn_cache(1)
    disable_reduced_precision(device)
    # Some models download compiled code if the package `kernels` is installed. Read when they are imported.
    os.environ["USE_HUB_KERNELS"] = "NO"
    model, missing = _from_pretrained(folder, architecture, _DTYPES[dtype], trust=config.trust_remote_code)
    lacking = sorted(key for key in missing if not _in_pooler(key))
    if lacking:
        raise ModelError(
            f"the checkpoint of '{folder.name}' lacks {len(lacking)} of the encoder's weights, "
            f"such as {lacking[0]}",
            hint="they would be random numbers; check that the weights belong to config.json",
        )
    _check_weights(folder, model)
    notice = _check_settings(folder, model)
    has_pooler = getattr(model, "pooler", None) is not None and not any(_in_pooler(key) for key in missing)
    if architecture.encoder:
        model = model.get_encoder()
    model.eval().requires_grad_(requires_grad=False)
    _undo_attention_switch(model)
    # Decoders cache keys and values for a next token, which never comes.
    model.config.use_cache = False
    model = model.to(device)
    _check_direction(folder, model)
    states = probe_states(model, folder.name, architecture, dtype)
    return TransformersModel(
        architecture=architecture,
        config=model.config,
        device=device,
        dtype=dtype,
        n_layers=len(states.widths) - 1,
        has_pooler=has_pooler,
        max_positions=max_positions(model.config, architecture),
        notice=notice,
        model=model,
        states=states,
        reference=reference,
    )


def _from_pretrained(
    folder: ModelFolder, architecture: Architecture, dtype: torch.dtype, *, trust: bool
) -> tuple[Any, set[str]]:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    loader = getattr(transformers, architecture.loader)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, info = loader.from_pretrained(
                folder.folder,
                local_files_only=True,
                output_loading_info=True,
                dtype=dtype,
                weights_only=True,
                # So that they are returned, and refused below, instead of reported on stderr.
                ignore_mismatched_sizes=True,
                trust_remote_code=trust,
            )
    except Exception as error:  # noqa: BLE001 - it may raise anything; no row is involved yet
        reason = str(error).strip().split("\n", 1)[0][:200]
        raise ModelError(
            f"model '{folder.name}' ({folder.model_type}) cannot be loaded: {type(error).__name__}: {reason}",
            hint="check that its files are complete and that this version of transformers knows the model type",
        ) from None
    if trust:
        # Otherwise the next folder with the same configuration class would run this one's code.
        loader._model_mapping._extra_content.pop(type(model.config), None)  # noqa: SLF001 - it has no other name
    if info["mismatched_keys"]:
        raise ModelError(
            f"weights of '{folder.name}' have other shapes than config.json says",
            hint="check that the weights belong to config.json",
        )
    return model, set(info["missing_keys"])


def _check_weights(folder: ModelFolder, model: Any) -> None:
    """Checks that every tensor in the model's files is used, apart from heads.

    transformers' report of unexpected tensors lacks those that a class hides, and the second of two for a weight.

    Raises:
        ModelError: a tensor is unused, competes with another, or is not stored as plain numbers.
    """
    stored = stored_tensors(folder.name, folder.weight_files())
    state, prefix = model.state_dict(), str(model.base_model_prefix)
    parts = {name.removeprefix(f"{prefix}.").split(".")[0] for name in state}
    hidden = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]  # noqa: SLF001
    unused: list[str] = []
    taken: dict[str, str] = {}
    for name, (target, converted) in _targets(model, list(stored), state).items():
        if target not in state:
            known = any(pattern.search(name) for pattern in hidden) and not is_added(name)
            if not known and not is_known_head(name, prefix, parts):
                unused.append(name)
            continue
        if state[target].is_floating_point() and stored[name].dtype not in PLAIN_DTYPES:
            raise ModelError(
                f"the weight {name[:120]} of '{folder.name}' is stored as {stored[name].dtype}, not as "
                "plain numbers",
                hint="it is quantised: use the checkpoint that it was made from, or dequantise it",
            )
        if not converted and taken.setdefault(target, name) != name:
            raise ModelError(
                f"the checkpoint of '{folder.name}' has two tensors for one weight: {taken[target][:120]} "
                f"and {name[:120]}",
                hint="save the model again with save_pretrained",
            )
    check_unused(folder.name, unused, n_layers=getattr(model.config, "num_hidden_layers", None))


def _targets(model: Any, names: list[str], state: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    """Maps each tensor of a file to the model's tensor that it becomes, and True if it is only a part of it."""
    changes = get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    prefix = model.base_model_prefix
    found = {}
    # In the order of transformers: some of its renamings depend on earlier ones.
    for name in sorted(names, key=dot_natural_key):
        target, source = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, source = rename_source_key(name, [], [], prefix, state)
        found[name] = (target, source is not None)
    return found


def _check_settings(folder: ModelFolder, model: Any) -> str | None:
    """Compares the keys of config.json with those that the code of the model reads; see `check_unread`."""
    config = model.config
    parts = [part for part in model.modules() if isinstance(part, transformers.PreTrainedModel)]
    kinds = {kind for part in parts for of in (part, part.config) for kind in type(of).__mro__}
    # Shared code contains the keys of all models.
    modules = {kind.__module__ for kind in kinds if not kind.__module__.startswith(_COMMON_CODE)}
    # Code in a model's files may read its configuration in any module.
    own = tuple(f"{name.rpartition('.')[0]}." for name in modules if name.startswith("transformers_modules."))
    modules |= {name for name in sys.modules if name.startswith(own)}
    code = "\n".join(inspect.getsource(sys.modules[name]) for name in sorted(modules))
    declared = {field.name for field in dataclasses.fields(config)} | set(type(config).attribute_map)
    return check_unread(folder.name, folder.model_type, unread_keys(folder.config, config, declared, code))


def _check_direction(folder: ModelFolder, model: Any) -> None:
    """Checks that a model whose config.json sets is_causal to false attends to later tokens.

    Raises:
        ModelError: it does not, because its class ignores this key.
    """
    if folder.config.get("is_causal") is not False:
        return
    texts = torch.tensor([[0, 1, 0], [0, 1, 1]], device=model.device)
    with torch.inference_mode():
        first, second = (model(input_ids=text[None])[0][0, 0] for text in texts)
    if torch.equal(first, second):
        raise ModelError(
            f"config.json of model '{folder.name}' sets is_causal to false, and transformers' "
            f"'{folder.model_type}' attends only to earlier tokens all the same",
            hint="if the model was trained so, remove is_causal from config.json; else it needs the code "
            "that it was trained with",
        )


def _in_pooler(key: str) -> bool:
    return "pooler" in key.split(".")


def _head_dim(config: Any) -> int | None:
    """Returns the width of an attention head; None if unknown, or different in each layer."""
    try:
        names = ("head_dim", "hidden_size", "num_attention_heads")
        stated, width, heads = (getattr(config, name, None) for name in names)
    except RuntimeError:
        return None
    if isinstance(stated, int):
        return stated
    return width // heads if isinstance(width, int) and isinstance(heads, int) else None


def _undo_attention_switch(model: Any) -> None:
    """Makes BigBird use its block attention for long texts, which transformers switches off after a short one."""
    if getattr(model, "attention_type", None) != "block_sparse":
        return
    # The length up to which that code switches to full attention.
    short = (5 + 2 * model.config.num_random_blocks) * model.config.block_size

    def restore(module: Any, _args: object, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] > short:
            module.set_attention_type("block_sparse")

    model.register_forward_pre_hook(restore, with_kwargs=True)
