"""Encoding of all models of a sweep: every layer and pooling of each, and what it cost."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.config import RunConfig
from embedkit.config.poolings import parse_poolings
from embedkit.engines.base import Callbacks
from embedkit.engines.run import run
from embedkit.engines.summary import Summary
from embedkit.errors import OutputError, UsageError
from embedkit.inference.model_spec import ModelSpec, find_model
from embedkit.inference.tokenizer_setup import TokenizerSetup, set_up_without_weights
from embedkit.models.repository.architectures import ARCHITECTURES
from embedkit.output.sweep_summary import COSTS
from embedkit.storage.disk_errors import as_read_error
from embedkit.storage.filesystem import exists, read_file, real_path, seems_folder, write_file
from embedkit.study.candidates import Candidate, PooledVectors, all_candidates, baselines
from embedkit.study.encode_states import bad_rows_kept
from embedkit.study.sweep_config import POOLINGS
from embedkit.tokenizer import TextTokenizer, load_tokenizer


@dataclass(frozen=True, slots=True)
class ModelToEncode:
    """A model of a sweep that was found, and not run yet."""

    name: str  # for candidates and folders; of the last parts of its path, as many as tell the models apart
    config: RunConfig  # poolings by name, an output row for each input row
    spec: ModelSpec
    setup: TokenizerSetup
    n_layers: int  # encoder layers


@dataclass(frozen=True, slots=True)
class EncodedModel:
    """A model of a sweep, with its vectors of all rows."""

    name: str
    config: RunConfig
    revision: str | None  # the hub's commit
    fingerprint: str  # of its recipe
    setup: TokenizerSetup
    n_layers: int  # encoder layers
    vectors: PooledVectors
    place: Path  # of the vectors
    seconds_per_1000_rows: float | None  # of encoding all layers at once; None if not measured
    device: str

    @property
    def candidates(self) -> list[Candidate]:
        """Its candidates, without a model's name."""
        found = all_candidates(self.vectors.layers, self.vectors.poolings)
        if self.config.text.chunk_pool == "max":
            # The maximum over windows of a mean of layers is not the mean of the layers' maxima.
            found = [candidate for candidate in found if candidate.layer_agg != "mean"]
        return found

    @property
    def baselines(self) -> list[Candidate]:
        """Its baselines, without a model's name."""
        return baselines(self.vectors.layers, self.vectors.poolings)

    @property
    def options(self) -> dict[str, str]:
        """The options of `embedkit encode` that find it."""
        return {"model": self.config.model.model, **({"revision": self.revision} if self.revision else {})}

    def rows(self, common: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the places of rows of the input, ascending, among those with a vector of this model."""
        return np.asarray((np.cumsum(self.vectors.has_vector) - 1)[common])

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Returns its part of summary.json; `folder` is that of the sweep."""
        return {
            "name": self.name,
            "model": self.config.model.model,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "vectors": self.place.relative_to(folder).as_posix(),
            "layers": list(self.vectors.layers),
            "poolings": list(self.vectors.poolings),
            "hidden_size": self.vectors.hidden_size,
            "without_vector": int((~self.vectors.has_vector).sum()),
            "seconds_per_1000_rows": self.seconds_per_1000_rows,
            "device": self.device,
        }


def find_models(configs: Sequence[RunConfig]) -> list[ModelToEncode]:
    """Finds all models before one of them runs.

    Raises:
        ModelError: one is unavailable.
        UsageError: two are the same.
    """
    specs = [find_model(config) for config in configs]
    roots = [real_path(spec.folder.folder) for spec in specs]
    for place, root in enumerate(roots):
        if root in roots[:place]:
            first = specs[roots.index(root)].folder.name
            raise UsageError(
                f"-m {first} and -m {specs[place].folder.name} are the same model", hint="name each model once"
            )
    names = model_names([config.model.model for config in configs])
    found = []
    for name, config, spec in zip(names, configs, specs, strict=True):
        encoding = _encoding_config(config, spec)
        setup, facts = set_up_without_weights(find_model(encoding, spec.folder))
        found.append(ModelToEncode(name, encoding, spec, setup, facts.n_layers))
    return found


def model_names(typed: Sequence[str]) -> list[str]:
    """Returns the last part of each model's path or id, or as many as tell it from the others, joined by `-`."""
    parts = [_parts(name) for name in typed]
    found = []
    for place, own in enumerate(parts):
        others = [other for number, other in enumerate(parts) if number != place]
        ends = range(1, len(own) + 1)
        n = next((n for n in ends if all(own[-n:] != other[-n:] for other in others)), len(own))
        found.append("-".join(own[-n:]))
    # Parts that hold hyphens may still give equal names, and a path may be the end of another one.
    return [name if name not in found[:place] else f"{name}-{place + 1}" for place, name in enumerate(found)]


def _parts(name: str) -> tuple[str, ...]:
    path = Path(name).expanduser().absolute() if seems_folder(name) else PurePath(name)
    return tuple(part for part in path.parts if part != path.anchor)


def encode_models(
    models: Sequence[ModelToEncode],
    places: Sequence[Path],
    folder: Path,
    callbacks: Callbacks,
    stop: threading.Event,
) -> list[EncodedModel]:
    """Encodes the rows with each model, what is not there yet.

    Args:
        models: in the order in which they run.
        places: folder of the vectors of each.
        folder: of the sweep; keeps what was measured.
        callbacks: receives the progress.
        stop: ends the run between two batches when it is set.

    Raises:
        EmbedkitError: of any kind; committed vectors are kept.
    """
    found = []
    for number, (model, place) in enumerate(zip(models, places, strict=True), 1):
        if len(models) > 1:
            callbacks.notice(f"model {number} of {len(models)}: {model.name}")
        config = replace(model.config, output=replace(model.config.output, output=str(place)))
        spec = model.spec
        summary = run(config, callbacks, stop, find_model(config, spec.folder))
        cost = _measured(folder, place.name, summary)
        with as_read_error(folder):
            vectors = PooledVectors(place)
        found.append(
            EncodedModel(
                model.name,
                config,
                spec.folder.revision,
                summary.fingerprint,
                model.setup,
                model.n_layers,
                vectors,
                place,
                cost.get("seconds_per_1000_rows"),
                cost.get("device", summary.device),
            )
        )
    rows = {len(of.vectors.has_vector) for of in found}
    if len(rows) > 1:
        raise OutputError(
            f"the vectors of the models have {' and '.join(map(str, sorted(rows)))} rows",
            hint="do not change the input while embedkit reads it; start again with --on-exists overwrite",
        )
    return found


def _measured(folder: Path, name: str, summary: Summary) -> Mapping[str, Any]:
    """Returns the cost of encoding by this run; by a former one if this run found nothing to encode."""
    costs: dict[str, Any] = {}
    path = folder / COSTS
    with as_read_error(path):
        if exists(path):
            with suppress(ValueError, TypeError):
                costs = dict(json.loads(read_file(path)))
    if not summary.computed_rows:
        of_former = costs.get(name, {})
        return of_former if of_former.get("fingerprint") == summary.fingerprint else {}
    costs[name] = {
        "fingerprint": summary.fingerprint,
        "rows": summary.computed_rows,
        "seconds_per_1000_rows": round(1000 * summary.encoding_seconds / summary.computed_rows, 6),
        "device": summary.device,
    }
    write_file(folder, COSTS, json.dumps(costs, indent=2).encode() + b"\n")
    return dict(costs[name])


def _encoding_config(config: RunConfig, spec: ModelSpec) -> RunConfig:
    """Returns the encoding of a model: poolings by name, an output row for each input row."""
    pool = config.pooling.pool
    poolings = parse_poolings(pool) if pool != "auto" else _meaningful_poolings(config, spec)
    return replace(
        config,
        pooling=replace(config.pooling, pool=",".join(poolings)),
        output=replace(config.output, on_bad_row=bad_rows_kept(config)),
    )


def _meaningful_poolings(config: RunConfig, spec: ModelSpec) -> tuple[str, ...]:
    raw, _ = load_tokenizer(
        str(spec.folder.folder),
        casing=config.model.lowercase,
        known_casing=None,
        states_casing=True,
        code=spec.own_tokenizer,
        trust_remote_code=spec.folder.runs_code,
    )
    tokenizer = TextTokenizer(raw, max_length=512)
    architecture = ARCHITECTURES.get(spec.folder.model_type)
    causal = architecture is not None and architecture.causal
    # In a causal model the first token sees no other; only in such a model do later tokens see more.
    unsuitable = set() if causal else {"weightedmean"}
    if causal or not (tokenizer.opens_with_cls or tokenizer.closes_with_cls):
        unsuitable.add("cls")
    return tuple(name for name in POOLINGS if name not in unsuitable)
