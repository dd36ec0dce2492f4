"""Finds models in the hub's cache on this machine, and names the hub. Sends no request."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import urlsplit

from embedkit.models.repository.folder_checks import READ
from embedkit.models.repository.weight_files import WEIGHTS

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,39}")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.spm", "tokenizer_config.json")
#: Files that only a model with a modules.json has.
_RECIPE_FILES = (
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "*_Pooling",
    "*_Dense",
    "*_Normalize",
)
#: Modules that save no files.
_WITHOUT_FILES = re.compile(r"\.(Normalize|Dropout)$")

FilePatterns = Callable[[Iterable[str]], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Files of one commit in the hub's cache.

    Attributes:
        repo: the id that it is cached under.
        commit: 40 hexadecimal digits.
        folder: where the files are.
        missing: what is known to be missing.
        doubt: why more may be missing, as a sentence; None if nothing hints at it.
        listed: whether it is known which files the commit has.
    """

    repo: str
    commit: str
    folder: Path
    missing: tuple[str, ...] = ()
    doubt: str | None = None
    listed: bool = False

    @property
    def whole(self) -> bool:
        """Whether nothing has to be fetched."""
        return not self.missing and self.doubt is None


def is_offline() -> bool:
    """Tell whether the environment forbids the hub (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cache_folder() -> Path:
    """Find the folder of the hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def host() -> str:
    """Name the hub that is asked, such as huggingface.co."""
    from huggingface_hub import constants

    # Without a login that may stand before it.
    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2] or str(constants.ENDPOINT)


def is_commit(revision: str | None) -> bool:
    """Tell whether a revision is a whole commit, which never changes."""
    return _COMMIT.fullmatch(revision or "") is not None


def is_hub_id(name: str) -> bool:
    """Tell whether a name has the form of a hub id, by the hub's rules."""
    parts = name.split("/")
    plain = len(parts) <= 2 and all(re.fullmatch(r"[\w.-]{1,96}", part, re.ASCII) for part in parts)
    return plain and not re.search(r"--|\.\.|(^|/)[.-]|[.-](/|$)|\.git$", name)


def cached_ids() -> list[str]:
    """List the hub ids of all models in the cache, sorted."""
    folders = cache_folder().glob("models--*")
    return sorted(folder.name.removeprefix("models--").replace("--", "/") for folder in folders)


def cached_commits(repos: Iterable[str]) -> list[str]:
    """List the commits in the cache of models with these ids."""
    folders = (repo_folder(repo) / "snapshots" for repo in repos)
    return [commit.name for folder in folders if folder.is_dir() for commit in sorted(folder.iterdir())]


def find_snapshot(repos: Sequence[str], revision: str | None, wanted: FilePatterns) -> Snapshot | None:
    """Find a model in the cache, without the network.

    Args:
        repos: the ids that it may be cached under, the likeliest first.
        revision: branch, tag or commit; None = the default branch.
        wanted: of the names of all files of a commit, the patterns of those that are fetched.

    Returns:
        The first that is whole, else the first that is there in part, else None.
    """
    found = [one for repo in repos if (one := _snapshot(repo, revision, wanted)) is not None]
    return next((one for one in found if one.whole), found[0] if found else None)


def repo_folder(repo: str) -> Path:
    """Returns the folder that the cache has for a hub id, existing or not."""
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def _snapshot(repo: str, revision: str | None, wanted: FilePatterns) -> Snapshot | None:
    commit = _cached_commit(repo, revision)
    if commit is None:
        return None
    folder = repo_folder(repo) / "snapshots" / commit
    if not folder.is_dir():
        return None
    names = _listed(repo, commit)
    if names is None:
        missing, doubt = tuple(_plainly_missing(folder)), None
        if not missing and not (folder / "modules.json").is_file():
            doubt = _doubt(repo, folder, commit)
        return Snapshot(repo, commit, folder, missing, doubt)
    lacking = [name for name in _needed(names, wanted(names), folder) if not (folder / name).is_file()]
    return Snapshot(repo, commit, folder, tuple(lacking), listed=True)


def _cached_commit(repo: str, revision: str | None) -> str | None:
    branch = Path(revision or "main")
    if is_commit(revision):
        return revision
    if branch.is_absolute() or ".." in branch.parts:
        return None
    ref = repo_folder(repo) / "refs" / branch
    if ref.is_file():
        return ref.read_text(encoding="utf-8").strip() or None
    if revision is not None and _SHORT_COMMIT.fullmatch(revision):
        commits = [commit for commit in cached_commits([repo]) if commit.startswith(revision)]
        return commits[0] if len(commits) == 1 else None
    return None


def _listed(repo: str, commit: str) -> list[str] | None:
    """The files of a commit by the listing that the library keeps beside a download; None where there is none."""
    try:
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError
    except ImportError:  # the library keeps no listings before its version 2
        return None
    try:
        tree = get_cached_repo_tree(repo, revision=commit, cache_dir=cache_folder())
    except (CachedRepoTreeNotFoundError, OSError, ValueError):
        return None
    return [file.path for file in tree]


def _needed(names: Sequence[str], patterns: Sequence[str], folder: Path) -> list[str]:
    """Of all files of a commit, those that a run reads: others, a plain `hf download` may have left out."""
    modules = (*_modules_with_settings(folder), "")
    encoder = next((path for path in modules if f"{path}/config.json".lstrip("/") in names), "")
    index = next((name for name in WEIGHTS if f"{encoder}/{name}".lstrip("/") in names), WEIGHTS[0])
    stem, suffix = index.partition(".")[0], index.removesuffix(".index.json").rpartition(".")[2]
    in_use = (index, f"{stem}-*-of-*.{suffix}" if index.endswith(".index.json") else index)
    needed = []
    for name in names:
        place, _, file = name.rpartition("/")
        is_read = any(
            fnmatch(file, pattern) for pattern in (*READ, *in_use, *(("*.py",) if "*.py" in patterns else ()))
        )
        is_wanted = any(fnmatch(name, pattern) for pattern in patterns)
        if is_wanted and place in modules and (is_read or place not in {"", encoder}):
            needed.append(name)
    return needed


def _plainly_missing(folder: Path) -> Iterator[str]:
    """Files that every encoder has and this folder lacks; of one that is no encoder's, nothing is known."""
    if (folder / "modules.json").is_file():
        yield from (
            f"{path}/config.json" for path in _modules_with_settings(folder) if not (folder / path).is_dir()
        )
        if not (folder / "config.json").is_file():
            return
    if not (folder / "config.json").is_file():
        yield "config.json"
    weights = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None and not (folder / "adapter_config.json").is_file():
        yield WEIGHTS[0]
    elif weights is not None and weights.endswith(".index.json"):
        numbered = re.findall(r'"([^"/]+-\d+-of-\d+\.(?:safetensors|bin))"', (folder / weights).read_text("utf-8"))
        yield from sorted(name for name in set(numbered) if not (folder / name).is_file())
    if not any(next(folder.glob(name), None) for name in _TOKENIZER_FILES):
        yield "tokenizer.json"


def _modules_with_settings(folder: Path) -> list[str]:
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        saved = [module for module in modules if not _WITHOUT_FILES.search(str(module.get("type")))]
        named = [str(module.get("path") or "") for module in saved]
    except (OSError, ValueError, AttributeError, TypeError):
        return []
    return [path for path in named if path and ".." not in Path(path).parts]


def _doubt(repo: str, folder: Path, commit: str) -> str | None:
    """Why a folder without modules.json may lack one: other programs fetch the files that they need, no more."""
    # The library leaves an empty file here for each file that it asked for and the hub does not have.
    if (folder.parent.parent / ".no_exist" / commit / "modules.json").is_file():
        return None
    has_parts = any(next(folder.glob(name), None) for name in _RECIPE_FILES)
    if not has_parts and not repo.startswith("sentence-transformers/"):
        return None
    return "modules.json, the recipe of its authors, is not among the cached files"
