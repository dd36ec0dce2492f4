"""A model's folder: the files that decide its numbers, and what its JSON files hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from embedkit.errors import ModelError
from embedkit.models.repository.aliases import Alias
from embedkit.models.repository.config_keys import check_config
from embedkit.models.repository.folder_checks import (
    ENCODER_MODULES,
    refuse_damaged,
    refuse_kind_of_config,
    refuse_missing_weights,
    refuse_other_kinds,
    small_files,
)
from embedkit.models.repository.weight_files import WEIGHTS, check_no_others, is_inside, weight_files
from embedkit.storage.filesystem import sha256_of_file

#: What a config may name as its attention. transformers fetches other names from the hub, as code to run, and
#: a stand-in for the flash ones where their package is not installed.
_ATTENTION = ("eager", "sdpa", "flex_attention")
_FLASH_ATTENTION = ("flash_attention_2", "flash_attention_3")
#: Files of tokenizers and settings, by how their names end.
_SUFFIXES = frozenset({".txt", ".model", ".spm", ".bpe", ".codes", ".json", ".tiktoken", ".tokenizer", ".vocab"})


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
        return read_json(self.name, self.folder / name)

    def read_recipe(self, name: str) -> dict[str, Any]:
        """The settings in a JSON file of the recipe that it ships; {} where it has no such file."""
        found = read_json(self.name, self.root / name) or {}
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
        return {name: self.hashed.get(name) or sha256_of_file(path) for name, path in names.items()}

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
            named = path.suffix in {*_SUFFIXES, weights_suffix} or path.name.startswith("tokenizer.model.")
            if named and path.is_file():
                yield path


def open_model_folder(
    name: str,
    folder: Path,
    alias: Alias | None,
    revision: str | None,
    hashed: Mapping[str, str] | None = None,
    *,
    repo: str | None = None,
    notice: str | None = None,
) -> ModelFolder:
    """Opens a folder after checking that its files are complete and that nothing in them would be ignored.

    Args:
        name: the model, as the user gave it.
        folder: where its files are.
        alias: its entry in the alias table, if it has one.
        revision: the hub's commit; None for a folder or a package.
        hashed: SHA-256 of files that were already read, by name.
        repo: its id on the hub, if it came from there.
        notice: what the user should know of where it came from.

    Raises:
        ModelError: it is not a model's folder, or embedkit cannot follow all that its files ask for.
    """
    root = folder.resolve()
    refuse_damaged(name, root, [root / "modules.json"] if (root / "modules.json").is_file() else [])
    modules = _modules(name, root)
    # Older versions of sentence-transformers put the encoder into a folder of its own, such as 0_Transformer.
    inside = next((path for kind, path in modules if kind.rsplit(".", 1)[-1] in ENCODER_MODULES), "")
    folder = root / inside
    refuse_other_kinds(name, root, folder, modules)
    refuse_damaged(name, root, small_files(folder))
    config = read_json(name, folder / "config.json")
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
    entries = read_json(name, root / "modules.json") or []
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
    settings = read_json(name, folder / "tokenizer_config.json")
    named = settings.get("fast_tokenizer_files") if isinstance(settings, dict) else None
    outside = [one for one in named or () if not isinstance(one, str) or Path(one).name != one]
    if outside:
        raise ModelError(
            f"tokenizer_config.json of model '{name}' names a file outside of the model's folder: "
            f"'{str(outside[0])[:80]}'",
            hint="do not use this model, or take fast_tokenizer_files out of its tokenizer_config.json",
        )


def read_json(name: str, path: Path) -> Any:
    """Reads a JSON file of the model called `name`; None if there is no such file.

    Raises:
        ModelError: it cannot be read.
    """
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
