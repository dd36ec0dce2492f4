"""Finds models in the hub's cache on this machine. Sends no request."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from embedkit.models.repository.folder_checks import SMALL_FILES
from embedkit.models.repository.weight_files import WEIGHTS
from embedkit.storage.hub import cache_folder

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

#: From the names of all files of a commit, the patterns of those to download.
FilePatterns = Callable[[Iterable[str]], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Files of one commit in the hub's cache.

    Attributes:
        repo: the id that it is cached under.
        missing: names of files known to be missing.
        doubt: the reason why more may be missing, as a sentence; None if there is none.
    """

    repo: str
    commit: str
    folder: Path
    missing: tuple[str, ...] = ()
    doubt: str | None = None

    @property
    def complete(self) -> bool:
        """True if nothing has to be downloaded."""
        return not self.missing and self.doubt is None


def is_commit(revision: str | None) -> bool:
    """Checks whether a revision is a full commit hash, which never changes its meaning."""
    return _COMMIT.fullmatch(revision or "") is not None


def is_hub_id(name: str) -> bool:
    """Checks whether a name has the form of a hub id, by the hub's rules."""
    parts = name.split("/")
    valid = len(parts) <= 2 and all(re.fullmatch(r"[\w.-]{1,96}", part, re.ASCII) for part in parts)
    return valid and not re.search(r"--|\.\.|(^|/)[.-]|[.-](/|$)|\.git$", name)


def cached_ids() -> list[str]:
    """Lists the hub ids of all models in the cache, sorted."""
    folders = cache_folder().glob("models--*")
    return sorted(folder.name.removeprefix("models--").replace("--", "/") for folder in folders)


def cached_commits(repos: Iterable[str]) -> list[str]:
    """Lists the cached commits of models with these ids."""
    folders = (repo_folder(repo) / "snapshots" for repo in repos)
    return [commit.name for folder in folders if folder.is_dir() for commit in sorted(folder.iterdir())]


def repo_folder(repo: str) -> Path:
    """Returns the folder that the cache uses for a hub id, existing or not."""
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def find_snapshot(repos: Sequence[str], revision: str | None, wanted: FilePatterns) -> Snapshot | None:
    """Finds the first complete snapshot of a model in the cache, else the first incomplete one, else None."""
    found = [snapshot for repo in repos if (snapshot := _snapshot(repo, revision, wanted)) is not None]
    return next((snapshot for snapshot in found if snapshot.complete), found[0] if found else None)


def _snapshot(repo: str, revision: str | None, wanted: FilePatterns) -> Snapshot | None:
    commit = _cached_commit(repo, revision)
    if commit is None:
        return None
    folder = repo_folder(repo) / "snapshots" / commit
    if not folder.is_dir():
        return None
    names = _listed_files(repo, commit)
    if names is not None:
        needed = _needed(names, wanted(names), folder)
        return Snapshot(repo, commit, folder, tuple(name for name in needed if not (folder / name).is_file()))
    missing = tuple(_certainly_missing(folder))
    return Snapshot(repo, commit, folder, missing, None if missing else _doubt(repo, folder))


def _cached_commit(repo: str, revision: str | None) -> str | None:
    if is_commit(revision):
        return revision
    branch = Path(revision or "main")
    if branch.is_absolute() or ".." in branch.parts:
        return None
    ref = repo_folder(repo) / "refs" / branch
    if ref.is_file():
        return ref.read_text(encoding="utf-8").strip() or None
    if revision is not None and _SHORT_COMMIT.fullmatch(revision):
        commits = [commit for commit in cached_commits([repo]) if commit.startswith(revision)]
        return commits[0] if len(commits) == 1 else None
    return None


def _listed_files(repo: str, commit: str) -> list[str] | None:
    """Lists a commit's files by the listing that huggingface_hub saves with a download; None without one."""
    try:
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError
    except ImportError:  # before version 2
        return None
    try:
        tree = get_cached_repo_tree(repo, revision=commit, cache_dir=cache_folder())
    except (CachedRepoTreeNotFoundError, OSError, ValueError):
        return None
    return [file.path for file in tree]


def _needed(names: Sequence[str], patterns: Sequence[str], folder: Path) -> list[str]:
    """Selects the files that a run reads: an earlier `hf download` may have skipped others on purpose."""
    modules = (*_modules_with_settings(folder), "")
    encoder = next((path for path in modules if f"{path}/config.json".lstrip("/") in names), "")
    index = next((name for name in WEIGHTS if f"{encoder}/{name}".lstrip("/") in names), WEIGHTS[0])
    stem, suffix = index.partition(".")[0], index.removesuffix(".index.json").rpartition(".")[2]
    weights = (index, f"{stem}-*-of-*.{suffix}") if index.endswith(".index.json") else (index,)
    read = (*SMALL_FILES, *weights, *(("*.py",) if "*.py" in patterns else ()))
    needed = []
    for name in names:
        folder_name, _, file = name.rpartition("/")
        is_read = any(fnmatch(file, pattern) for pattern in read)
        is_wanted = any(fnmatch(name, pattern) for pattern in patterns)
        if is_wanted and folder_name in modules and (is_read or folder_name not in {"", encoder}):
            needed.append(name)
    return needed


def _certainly_missing(folder: Path) -> Iterator[str]:
    """Names files that every encoder has and this folder lacks; none if the folder may not be an encoder's."""
    if (folder / "modules.json").is_file():
        paths = _modules_with_settings(folder)
        yield from (f"{path}/config.json" for path in paths if not (folder / path).is_dir())
        if not (folder / "config.json").is_file():
            return
    if not (folder / "config.json").is_file():
        yield "config.json"
    weights = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None and not (folder / "adapter_config.json").is_file():
        yield WEIGHTS[0]
    elif weights is not None and weights.endswith(".index.json"):
        parts = re.findall(r'"([^"/]+-\d+-of-\d+\.(?:safetensors|bin))"', (folder / weights).read_text("utf-8"))
        yield from sorted(name for name in set(parts) if not (folder / name).is_file())
    if not any(next(folder.glob(name), None) for name in _TOKENIZER_FILES):
        yield "tokenizer.json"


def _modules_with_settings(folder: Path) -> list[str]:
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        saved = [module for module in modules if not _WITHOUT_FILES.search(str(module.get("type")))]
        paths = [str(module.get("path") or "") for module in saved]
    except (OSError, ValueError, AttributeError, TypeError):
        return []
    return [path for path in paths if path and ".." not in Path(path).parts]


def _doubt(repo: str, folder: Path) -> str | None:
    """Returns the reason why modules.json may be missing: other programs download only what they read."""
    # huggingface_hub leaves an empty file here for each file that it asked for and the hub does not have.
    absent = folder.parent.parent / ".no_exist" / folder.name / "modules.json"
    has_parts = any(next(folder.glob(name), None) for name in _RECIPE_FILES)
    expected = has_parts or repo.startswith("sentence-transformers/")
    if not expected or absent.is_file() or (folder / "modules.json").is_file():
        return None
    return "modules.json, the recipe of its authors, is not among the cached files"
