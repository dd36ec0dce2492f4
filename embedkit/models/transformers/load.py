"""A model's folder → a TransformersEncoder that has been checked against transformers' own code.

Finds the device, loads the weights without a word from the library, says what is missing, and settles
by a test on the loaded weights whether the fast ways of running the model are exact for it.
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
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

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
#: Modules whose code is no model's own.
_COMMON_CODE = (
    *("builtins", "torch", "huggingface_hub", "typing", "transformers.modeling_", "transformers.configuration_"),
    *("transformers.utils", "transformers.integrations", "transformers.generation", "transformers.heterogeneity"),
)


@dataclass(frozen=True, kw_only=True)
class TransformersModel(LoadedModel):
    """A transformers model on its device.

    Attributes:
        model: the module, in eval mode.
        states: which hidden states it gives.
        reference: run the model's own code as it is, to be given one text at a time.
    """

    model: Any
    states: StateLayout
    reference: bool = False

    def make_encoder(
        self, layers: tuple[int, ...], probe: Tokens, *, for_pooler: bool
    ) -> tuple[TransformersEncoder, str | None]:
        """Return the fastest exact encoder; see LoadedModel. It has the pooling head only if not packed."""
        self.states.width(layers)  # refuses layers that cannot be pooled, before any of them is run
        reference = self._encoder(layers, batches="padded", tapped=False)
        if self.reference:
            return reference, None
        own_attention = self.model.config._attn_implementation  # noqa: SLF001 - its only name
        expected = states_alone(reference, probe, self.dtype)
        every = ("packed", "padded", "equal")
        fastest = "equal" if "longrope" in rope_types(self.model.config) else self.architecture.batches
        taps = (True, False) if self.architecture.layers is not None else (False,)
        kernels = usable(self.device, self.model.dtype, _head_dim(self.model.config))
        ways = [
            (kind, tap, kernel)
            for kind in every[every.index(fastest) :]
            for tap in taps
            for kernel in (kernels if kind == "packed" else ("groups",))
            # The pooling head reads the first token of each row, and a packed batch is one row.
            if not (kind == "packed" and for_pooler)
        ]
        notice = None
        for batches, tapped, kernel in ways:
            if batches != "packed":
                self.model.set_attn_implementation(own_attention)
            try:
                encoder = self._encoder(layers, batches=batches, tapped=tapped, attention=kernel)
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
        """Check on a text, [T], whether the model returns other states last than its last layer's."""
        ids = torch.tensor([input_ids], device=self.device)
        output = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        return not torch.equal(output.hidden_states[-1], output.last_hidden_state)

    def _encoder(
        self, layers: tuple[int, ...], *, batches: str, tapped: bool, attention: str = "groups"
    ) -> TransformersEncoder:
        return TransformersEncoder(
            self.model,
            self.architecture,
            layers,
            n_layers=self.n_layers,
            hidden_size=self.states.width(layers),
            batches=batches,
            tapped=tapped,
            attention=attention,
        )


def load_model(folder: ModelFolder, config: ModelConfig, *, reference: bool = False) -> TransformersModel:
    """Load the encoder of a model's folder onto its device.

    Args:
        folder: the model.
        config: how it is loaded.
        reference: see TransformersModel.

    Raises:
        ModelError: transformers does not know it, weights outside the pooling head are missing, of another
            shape or kind, or would be left unused, a setting would be left aside, or a file is damaged.
        UsageError: there is no such device.
    """
    check_torch_version(folder, Path(folder.weights))
    architecture = architecture_of(folder)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    if architecture is UNPROVEN and folder.config.get("is_encoder_decoder"):
        raise ModelError(
            f"embedkit does not know which part of a '{folder.model_type}' model encodes",
            hint=f"known ones: {', '.join(_with_decoders())}; or a model that is an encoder alone",
        )
    if device.type == "cpu":
        tune_malloc()
        limit_onednn_cache(1)
    disable_reduced_precision(device)
    # Some models would fetch compiled code as soon as the package `kernels` is there. Read when they are imported.
    os.environ["USE_HUB_KERNELS"] = "NO"
    model, missing = _from_pretrained(folder, architecture, _DTYPES[dtype], trust=config.trust_remote_code)
    lost = sorted(key for key in missing if not _in_pooler(key))
    if lost:
        raise ModelError(
            f"the checkpoint of '{folder.name}' lacks {len(lost)} of the encoder's weights, such as {lost[0]}",
            hint="they would be random numbers; check that the weights belong to config.json",
        )
    _check_weights(folder, model)
    notice = _check_settings(folder, model)
    has_pooler = getattr(model, "pooler", None) is not None and not any(_in_pooler(key) for key in missing)
    if architecture.encoder:
        model = model.get_encoder()
    model.eval().requires_grad_(requires_grad=False)
    _undo_attention_switch(model)
    # Decoders keep what the next token would need, in every layer; there is none.
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
                # Not to load them, but to be told which they are instead of a report on stderr.
                ignore_mismatched_sizes=True,
                trust_remote_code=trust,
            )
    except Exception as fault:  # noqa: BLE001 - anything may come from there; no row is involved yet
        reason = str(fault).strip().split("\n", 1)[0][:200]
        raise ModelError(
            f"model '{folder.name}' ({folder.model_type}) cannot be loaded: {type(fault).__name__}: {reason}",
            hint="check that its files are whole and that this transformers knows the model type",
        ) from None
    if trust:
        # Else the next folder with the same configuration class would get this one's code.
        loader._model_mapping._extra_content.pop(type(model.config), None)  # noqa: SLF001 - it has no other name
    if info["mismatched_keys"]:
        raise ModelError(
            f"weights of '{folder.name}' have other shapes than config.json says",
            hint="check that the weights belong to config.json",
        )
    return model, set(info["missing_keys"])


def _check_weights(folder: ModelFolder, model: Any) -> None:
    """Compare the tensors in the model's files with those that were loaded.

    What transformers reports as unexpected is not enough: its classes leave names out of that, and of two tensors
    for one weight it takes either.

    Raises:
        ModelError: a tensor that is no head was not used, was used in place of another, or is not stored as plain
            numbers.
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
                f"the checkpoint of '{folder.name}' has two weights for one place: {taken[target][:120]} and "
                f"{name[:120]}",
                hint="save the model anew with save_pretrained",
            )
    check_unused(folder.name, unused, n_layers=getattr(model.config, "num_hidden_layers", None))


def _targets(model: Any, names: list[str], state: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    """Which of the model's tensors each tensor of a file becomes, and whether it is a part of it only."""
    changes = get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    prefix = model.base_model_prefix
    found = {}
    # In the order of transformers: some of its renamings depend on what came before.
    for name in sorted(names, key=dot_natural_key):
        target, source = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, source = rename_source_key(name, [], [], prefix, state)
        found[name] = (target, source is not None)
    return found


def _check_settings(folder: ModelFolder, model: Any) -> str | None:
    """Compare the keys of config.json with those that the code of the model reads.

    Returns:
        A sentence that names those that nothing reads; None where there are none.

    Raises:
        ModelError: nothing reads one that may change numbers.
    """
    config = model.config
    parts = [part for part in model.modules() if isinstance(part, transformers.PreTrainedModel)]
    kinds = {kind for part in parts for of in (part, part.config) for kind in type(of).__mro__}
    # Not the libraries' common code: the words there are of all models.
    modules = {kind.__module__ for kind in kinds if not kind.__module__.startswith(_COMMON_CODE)}
    # Code that a model brings along may read its configuration in any of its files.
    packages = tuple(
        {f"{name.rpartition('.')[0]}." for name in modules if name.startswith("transformers_modules.")}
    )
    modules |= {name for name in sys.modules if packages and name.startswith(packages)}
    code = "\n".join(inspect.getsource(sys.modules[name]) for name in sorted(modules))
    declared = {field.name for field in dataclasses.fields(config)} | set(type(config).attribute_map)
    return check_unread(folder.name, folder.model_type, unread_keys(folder.config, config, declared, code))


def _check_direction(folder: ModelFolder, model: Any) -> None:
    """Check that a model whose config.json sets is_causal to false sees what stands after a token.

    Many classes follow it, and some of those that see one side only do not read it.

    Raises:
        ModelError: it does not.
    """
    if folder.config.get("is_causal") is not False:
        return
    texts = torch.tensor([[0, 1, 0], [0, 1, 1]], device=model.device)
    with torch.inference_mode():
        first, second = (model(input_ids=text[None])[0][0, 0] for text in texts)
    if torch.equal(first, second):
        raise ModelError(
            f"config.json of model '{folder.name}' sets is_causal to false, and transformers' "
            f"'{folder.model_type}' sees only what stands before a token all the same",
            hint="if the model was trained so, take is_causal out of config.json; else its numbers need the code "
            "that it was trained with",
        )


def _in_pooler(key: str) -> bool:
    return "pooler" in key.split(".")


def _head_dim(config: Any) -> int | None:
    """Of a model's attention heads; None where its configuration does not tell, or has one for each layer."""
    try:
        stated = getattr(config, "head_dim", None)
        width, heads = (getattr(config, name, None) for name in ("hidden_size", "num_attention_heads"))
    except RuntimeError:
        return None
    if isinstance(stated, int):
        return stated
    return width // heads if isinstance(width, int) and isinstance(heads, int) else None


def _with_decoders() -> list[str]:
    """Types of encoder-decoders of which the encoder is known."""
    return [name for name, known in ARCHITECTURES.items() if known.encoder or known.loader != "AutoModel"]


def _undo_attention_switch(model: Any) -> None:
    """Let BigBird read a long text in blocks although it had a short one before.

    A short text makes transformers' code go over to full attention for good, so that the states of a long one
    depend on what the model saw before it.
    """
    kind = getattr(model, "attention_type", None)
    if kind != "block_sparse":
        return
    # The length up to which the code itself goes over to full attention.
    short = (5 + 2 * model.config.num_random_blocks) * model.config.block_size

    def restore(module: Any, _args: object, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] > short:
            module.set_attention_type(kind)

    model.register_forward_pre_hook(restore, with_kwargs=True)
