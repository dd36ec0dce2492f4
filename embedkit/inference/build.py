"""Loads the model that a ModelSpec names, checks it, and builds the embedder.

The command line and the Python class both use this, so that an option means the same in both.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from embedkit.config import BatchConfig
from embedkit.config.poolings import resolve_layers
from embedkit.errors import ModelError, UsageError
from embedkit.inference.model_spec import ModelSpec
from embedkit.inference.tokenizer_setup import recipe_of, set_up_tokenizer
from embedkit.manifest.recipe import as_text, fingerprint, model_name
from embedkit.manifest.schema import ModelSource
from embedkit.manifest.versioned_file import Json
from embedkit.models.load_lock import LOAD_LOCK
from embedkit.models.native.compile_kernels import build_ahead
from embedkit.models.native.config import read_config
from embedkit.models.native.config_reader import NotNativeError
from embedkit.models.native.families import FAMILIES
from embedkit.models.native.weight_memory import prepare_memory
from embedkit.models.repository.model_folder import ModelFolder
from embedkit.models.torch_import import collection_paused, has_gpu_driver
from embedkit.pooling.pooling_spec import PoolingSpec
from embedkit.pooling.select import make_poolers, pool_option

if TYPE_CHECKING:  # torch is imported when the model is loaded, and not before
    from embedkit.inference.embedder import Embedder
    from embedkit.models.base import LayerEncoder, LoadedModel
    from embedkit.tokenizer import TextTokenizer
    from embedkit.types import Variant

#: Default tokens of a batch. On a CPU embedkit's own forward pass takes them in parts that stay in its caches, and
#: 8,192 are enough parts for 16 cores; for a GPU see `tokens_that_fit`.
BATCH_TOKENS = {"cpu": 8192, "mps": 16384}
#: Texts for the check at load, of different lengths, so that a mix-up shows. The long one exceeds the attention
#: window of models with local attention; it is truncated at the model's limit.
_PROBES = ("a cat", "a dog", "the dog did not see it, and we went on", "one two three four five six seven " * 60)
#: Notice for a model in a forked process.
_ONE_THREAD = (
    "this process is a fork of one that has used torch: it computes in one thread; processes started with spawn "
    "compute in all"
)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts about a loaded model, in plain values: it may have been loaded in another process."""

    recipe: Json  # all that decides the numbers
    fingerprint: str  # SHA-256 of the recipe
    notices: tuple[str, ...]  # what the user should know, a sentence each
    device: str
    #: The backend: fused or lean (our own, with compiled kernels or without), or transformers. Their last bits
    #: differ, so a run keeps to one.
    engine: str
    variants: tuple[Variant, ...]  # columns of the output
    max_length: int  # most tokens of a text
    source: ModelSource  # where the files are from, so that they are found again
    batch_tokens: int | None = None  # if chosen by a GPU's memory


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A loaded model and the facts about it."""

    embedder: Embedder
    facts: ModelFacts


def build(spec: ModelSpec, *, reference: bool = False, processes: int = 1) -> ReadyModel:
    """Loads the model and its tokenizer, pooling and transfer.

    Args:
        spec: the model, found.
        reference: compute with transformers' own code, unchanged; for one text at a time.
        processes: number of processes of this run on the device.

    Raises:
        ModelError: it cannot be loaded, or lacks the requested pooling.
        UsageError: it lacks the requested layer, length or dimensions, or this machine the device.
    """
    model, pooling, batch = spec.config.model, spec.config.pooling, spec.config.batch
    fork_notice = _ready_after_fork(model.device)
    folder, shipped = spec.folder, spec.shipped
    with ThreadPoolExecutor(1) as helper:
        hashes = _work_ahead(helper, spec, reference=reference)
        with collection_paused():
            from embedkit.inference.batching import TokenBudget
            from embedkit.inference.embedder import Embedder
            from embedkit.inference.transfer import transfer_for
            from embedkit.models.base import NotExactError
            from embedkit.models.dense_head import check_no_final_norm, load_head, load_layer_weights
            from embedkit.models.select_backend import load_model
            from embedkit.models.selfcheck import SLOWER

        loaded = load_model(folder, model, backend="reference" if reference else "fastest")
        setup = set_up_tokenizer(
            spec, config=loaded.config, positions=loaded.max_positions, n_layers=loaded.n_layers
        )
        tokenizer, layers = setup.tokenizer, setup.layers
        _check_supported(spec, loaded, tokenizer, layers)
        probe = tokenizer.probe(_PROBES)
        if setup.layer_agg == "weighted":
            check_no_final_norm(loaded, probe.input_ids[: probe.lengths[0]].tolist())
        for_pooler = "pooler" in spec.poolings
        try:
            encoder, notice = loaded.make_encoder(layers, probe, for_pooler=for_pooler)
        except NotExactError:
            loaded = load_model(folder, model, backend="transformers")
            encoder, _ = loaded.make_encoder(layers, probe, for_pooler=for_pooler)
            notice = SLOWER
        files = hashes.result()
    for chosen in spec.poolers.values():
        chosen.check_model(
            {"type": folder.model_type, "files": files},
            setup.raw_tokenizer.get_vocab(),
            lowercase=setup.lowercase,
        )
    pooled = PoolingSpec(
        layers,
        setup.layer_agg,
        spec.poolings,
        cls_is_last=tokenizer.closes_with_cls and not shipped,
        variant_suffix=setup.variant_suffix,
        poolers=make_poolers(spec.poolers, encoder.device),
    )
    if shipped is not None:
        head = load_head(folder, shipped)
        pooled = replace(
            pooled,
            layer_weights=load_layer_weights(folder, shipped, loaded.n_layers)
            if setup.layer_agg == "weighted"
            else (),
            skipped=tokenizer.skipped,
            head=head.to(encoder.device) if head else None,
            head_width=shipped.out_features,
        )
        shipped.check_width(pooled.pooled_width(encoder.hidden_size))
    if spec.head is not None and spec.head.weight.shape[1] != (width := pooled.pooled_width(encoder.hidden_size)):
        raise ModelError(
            f"the head takes {spec.head.weight.shape[1]} dimensions, and the vectors of its pooling have {width}",
            hint="the pooler's file is damaged: make it again with `embedkit fit` or `embedkit sweep`",
        )
    returned = 0 if pooled.poolings else sum(variant.dims for variant in pooled.variants(encoder.hidden_size))
    chosen_tokens = _tokens_for(encoder, loaded, tokenizer.max_length, returned, processes, batch)
    embedder = Embedder(
        tokenizer=tokenizer,
        encoder=encoder,
        pooling=pooled,
        exclude_special=pooling.exclude_special,
        normalize=spec.normalize,
        truncate_dim=spec.truncate_dim,
        precision=pooling.precision,
        on_long=setup.on_long,
        budget=TokenBudget(batch.batch_tokens or chosen_tokens or BATCH_TOKENS[encoder.device.type]),
        transfer=transfer_for(encoder.device),
        by_segments=encoder.device.type == "cuda",
        batch_size=batch.batch_size,
        level=spec.config.units.unit,
        chunk_pool=spec.config.text.chunk_pool or "mean",
        unit_poolings=spec.unit_poolings,
        head=spec.head,
    )
    widest = max(variant.dims for variant in embedder.raw_variants)
    if pooling.truncate_dim is not None and pooling.truncate_dim > widest:
        raise UsageError(
            f"--truncate-dim {pooling.truncate_dim} is more than the {widest} dimensions of the vectors",
            hint=f"use at most {widest}, or leave it out",
        )
    recipe = recipe_of(spec, setup, files=files, dtype=loaded.dtype)
    dtypes = (chosen.dtype_notice(loaded.dtype) for chosen in spec.poolers.values())
    notices = (*setup.notices, *dtypes, notice, loaded.notice, _pickle_notice(folder), fork_notice)
    facts = ModelFacts(
        recipe=recipe,
        fingerprint=fingerprint(recipe),
        notices=tuple(sentence for sentence in notices if sentence),
        device=str(encoder.device),
        engine=encoder.backend,
        variants=embedder.variants,
        max_length=tokenizer.max_length,
        source=ModelSource(
            model=model_name(folder.name, folder.root, folder.hub),
            name=as_text(folder.name if folder.hub else str(folder.folder)),
            hub=folder.hub,
            revision=folder.revision,
            pool=pool_option(spec.poolings, spec.poolers) if spec.poolers else None,
        ),
        batch_tokens=chosen_tokens,
    )
    return ReadyModel(embedder, facts)


def _work_ahead(helper: ThreadPoolExecutor, spec: ModelSpec, *, reference: bool) -> Future[dict[str, str]]:
    """Starts what is done while torch is imported, and returns the hashes of the model's files."""
    if spec.folder.model_type in FAMILIES and not reference:
        build_ahead()
        # Later, weights would be packed elsewhere before it is done.
        if "torch" not in sys.modules:
            helper.submit(_prepare_memory, spec)
    # Brings the weights into the page cache, where loading finds them.
    return helper.submit(spec.folder.hashes)


def _prepare_memory(spec: ModelSpec) -> None:
    """Prepares memory for weights if the model will run on the CPU; see weight_memory.py."""
    model = spec.config.model
    dtype = "fp32" if model.dtype == "auto" else model.dtype
    on_cpu = model.device == "cpu" or (model.device == "auto" and not has_gpu_driver())
    if dtype not in {"fp32", "int8"} or not on_cpu:
        return
    # What is wrong is reported when the model is loaded.
    with suppress(NotNativeError, OSError, UsageError):
        config = read_config(spec.folder.config)
        prepare_memory(config, max(resolve_layers(spec.config.pooling.layers, config.n_layers)), dtype)


def _ready_after_fork(device: str) -> str | None:
    """Makes torch work in a fork of a process that has used it.

    The child lacks OpenMP's threads, and its first parallel loop would wait for them forever: it computes in one
    thread. CUDA does not work at all.

    Returns:
        A notice; None if this process is not a fork.

    Raises:
        UsageError: CUDA is requested, and was in use before the fork.
    """
    if not LOAD_LOCK.is_fork:
        return None
    import torch

    if device != "cpu" and getattr(torch._C, "_cuda_isInBadFork", bool)():  # noqa: SLF001 - its only name
        raise UsageError(
            f"--device {device}: this process is a fork of one that has used CUDA, which does not work in forks",
            hint='start it with multiprocessing.get_context("spawn"), or use device="cpu"',
        )
    torch.set_num_threads(1)
    return _ONE_THREAD


def _tokens_for(
    encoder: LayerEncoder, loaded: LoadedModel, longest: int, returned: int, processes: int, batch: BatchConfig
) -> int | None:
    """Returns the tokens of a batch that fit into a GPU's memory; None on other devices or if the user chose.

    Args:
        encoder: the model, on its device.
        loaded: the model as loaded.
        longest: most tokens of a text.
        returned: values per token in the returned vectors; 0 unless token vectors are returned.
        processes: of this run on the device.
        batch: the user's options.
    """
    from embedkit.inference.batching import bytes_per_token, device_memory, tokens_that_fit
    from embedkit.models.repository.config_facts import inner_widths

    if batch.batch_tokens is not None or encoder.device.type != "cuda":
        return None
    hidden_size = encoder.hidden_size
    inner, n_heads = inner_widths(loaded.config, hidden_size)
    # A padded batch may add a bias or a mask to its scores, which are then kept as a whole.
    scores = None if encoder.packed else longest
    size = 4 if loaded.dtype == "fp32" else 2
    needed = bytes_per_token(hidden_size, inner, n_heads, size=size, longest_scores=scores, returned=returned)
    return tokens_that_fit(*device_memory(encoder.device), needed, processes, returned)


def _check_supported(
    spec: ModelSpec, loaded: LoadedModel, tokenizer: TextTokenizer, layers: tuple[int, ...]
) -> None:
    if "pooler" in spec.poolings:
        if not loaded.has_pooler:
            raise ModelError(
                f"--pool pooler: the checkpoint of '{spec.folder.name}' has no weights for a pooling head",
                hint="its numbers would be random; use --pool cls or --pool mean",
            )
        if layers != (loaded.n_layers,):
            raise UsageError(
                "--pool pooler is computed from the last layer only",
                hint="leave --layers out, or leave pooler out of --pool",
            )
    has_cls = tokenizer.opens_with_cls or tokenizer.closes_with_cls
    if "cls" in spec.poolings and not has_cls and spec.shipped is None:
        raise ModelError(
            f"--pool cls: the tokenizer of '{spec.folder.name}' puts no [CLS] or <s> before a text",
            hint="use --pool lasttoken" if loaded.architecture.causal else "use --pool mean",
        )


def _pickle_notice(folder: ModelFolder) -> str | None:
    if not folder.pickles():
        return None
    return (
        f"weights of '{folder.name}' are a pickle ({', '.join(folder.pickles())}): tensors alone are read from "
        "it, no code; a model.safetensors cannot contain code"
    )
