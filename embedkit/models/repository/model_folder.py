"""A model's folder: the files that affect its numbers, and the content of its JSON files."""

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
    check_complete,
    check_has_weights,
    check_is_text_encoder,
    check_reads_text,
    small_files,
)
from embedkit.models.repository.weight_files import WEIGHTS, check_no_others, is_inside, outside, weight_files
from embedkit.storage.filesystem import sha256_of_file

#: Attention implementations that a config may name. transformers downloads others from the hub as code to run,
#: and a replacement for the flash ones if their package is not installed.
_ATTENTION = ("eager", "sdpa", "flex_attention")
_FLASH_ATTENTION = ("flash_attention_2", "flash_attention_3")
#: Suffixes of files of tokenizers and settings.
_SUFFIXES = frozenset({".txt", ".model", ".spm", ".bpe", ".codes", ".json", ".tiktoken", ".tokenizer", ".vocab"})


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model on this machine.

    Attributes:
        name: as the user gave it.
        folder: its encoder's files.
        alias: its entry in the alias table; None if it has none.
        revision: the hub's commit; None for a folder or a package.
        config: the content of its config.json.
        root: the folder of the recipe that its authors ship: `folder`, or its parent.
        hashed: SHA-256 of files that were already read, by their names relative to `root`.
        repo: its id on the hub; None for a folder or a package.
        notice: a remark for the user on where it came from, or None.
        runs_code: True if Python code in its files affects its numbers.
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
        """Its id on the hub; None for a folder that is not in the alias table."""
        if self.alias is not None:
            return self.alias.hub
        return (self.repo or self.name) if self.revision is not None else None

    @property
    def runs_own_encoder(self) -> bool:
        """True if code in its files computes the states."""
        return self.runs_code and "AutoModel" in (self.config.get("auto_map") or {})

    @property
    def model_type(self) -> str:
        """The architecture's name in transformers."""
        return str(self.config.get("model_type", ""))

    def read_json(self, name: str) -> Any:
        """Reads a JSON file of the encoder; None if there is no such file."""
        return read_json(self.name, self.folder / name)

    def read_recipe(self, name: str) -> dict[str, Any]:
        """Reads a JSON object of the shipped recipe; {} if there is no such file."""
        return read_object(self.name, self.root / name)

    def modules(self) -> tuple[tuple[str, str], ...]:
        """Returns the class and the folder (relative to `root`) of each module of the shipped recipe."""
        return _modules(self.name, self.root)

    def module_weights(self, path: str) -> tuple[Path, ...]:
        """Returns the file with the weights of the module in the folder `path`; () if it has none."""
        files = (self.root / path / name for name in ("model.safetensors", "pytorch_model.bin"))
        return tuple(file for file in files if file.is_file())[:1]

    def prompts(self) -> dict[str, str]:
        """Returns the prompts that it ships, by name."""
        prompts = self.read_recipe("config_sentence_transformers.json").get("prompts") or {}
        if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
            raise ModelError(
                f"the prompts of model '{self.name}' are not texts by name",
                hint="correct its config_sentence_transformers.json, or download the model again",
            )
        return {name: text or "" for name, text in prompts.items()}

    def pickles(self) -> tuple[str, ...]:
        """Lists the files with weights of the encoder and of modules that are pickles."""
        module_files = (file for _, path in self.modules() for file in self.module_weights(path))
        names = [self.weights, *(file.relative_to(self.root).as_posix() for file in module_files)]
        return tuple(dict.fromkeys(name for name in names if "pytorch_model.bin" in name))

    @property
    def weights(self) -> str:
        """Name of the file with the weights, or of the index of its parts."""
        return next(name for name in WEIGHTS if (self.folder / name).is_file())

    def weight_files(self) -> tuple[Path, ...]:
        """Returns the files with the weights: one, or the parts that its index names."""
        return weight_files(self.name, self.folder)

    def sizes(self) -> dict[str, int]:
        """Returns the size in bytes of every file that `hashes` reads."""
        return {name: path.stat().st_size for name, path in self._files()}

    def hashes(self) -> dict[str, str]:
        """Returns the SHA-256 of every file that affects the numbers."""
        return {name: self.hashed.get(name) or sha256_of_file(path) for name, path in self._files()}

    def _files(self) -> list[tuple[str, Path]]:
        return [(path.relative_to(self.root).as_posix(), path) for path in sorted(set(self._walk()))]

    def _walk(self) -> Iterator[Path]:
        if self.runs_code:
            # A module may import others, from subfolders, too.
            yield from (path for path in self.root.rglob("*.py") if path.is_file())
        yield from (path for path in self.root.glob("*.json") if self.root != self.folder)
        for _, module in self.modules():
            if self.root / module != self.folder:
                yield from (self.root / module).glob("*.json")
                yield from self.module_weights(module)
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
    """Opens a folder: checks that its files are complete, and that none of their settings would be ignored.

    Raises:
        ModelError: it is not a model's folder, or has a setting that embedkit cannot follow.
    """
    root = folder.resolve()
    check_complete(name, root, [root / "modules.json"] if (root / "modules.json").is_file() else [])
    modules = _modules(name, root)
    # Older versions of sentence-transformers put the encoder into a subfolder, such as 0_Transformer.
    inside = next((path for kind, path in modules if kind.rsplit(".", 1)[-1] in ENCODER_MODULES), "")
    folder = root / inside
    check_is_text_encoder(name, root, folder, modules)
    check_complete(name, root, small_files(folder))
    config = read_object(name, folder / "config.json")
    check_reads_text(name, config)
    check_has_weights(name, folder)
    used = weight_files(name, folder)
    for place in dict.fromkeys((folder, root)):
        check_no_others(name, place)
    check_config(name, config, weights=[path.name for path in used])
    _check_tokenizer_files(name, read_json(name, folder / "tokenizer_config.json"))
    _check_attention(name, config)
    check_complete(name, root, used)
    return ModelFolder(name, folder, alias, revision, config, root, hashed or {}, repo, notice)


def _modules(name: str, root: Path) -> tuple[tuple[str, str], ...]:
    entries = read_json(name, root / "modules.json") or []
    try:
        modules = tuple((str(entry["type"]), str(entry.get("path") or "").strip("/")) for entry in entries)
    except (AttributeError, KeyError, TypeError):
        raise ModelError(
            f"modules.json of model '{name}' is not a list of modules", hint="correct it, or download it again"
        ) from None
    for _, path in modules:
        if path and not is_inside(path):
            raise outside(name, "modules.json", path)
    return modules


def _check_tokenizer_files(name: str, settings: Any) -> None:
    files = settings.get("fast_tokenizer_files") if isinstance(settings, dict) else None
    for file in files or ():
        if not isinstance(file, str) or Path(file).name != file:
            raise outside(name, "tokenizer_config.json", file)


def read_json(name: str, path: Path) -> Any:
    """Reads a JSON file of the model called `name`; None if there is no such file.

    Raises:
        ModelError: it cannot be read.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problem, hint = f"cannot be read: {error.strerror}", f"check the permissions of {path}"
    except (ValueError, RecursionError):
        check_complete(name, path.parent, [path])
        problem, hint = "is not valid JSON", f"correct {path}, or download it again"
    raise ModelError(f"{path.name} of model '{name}' {problem}", hint=hint)


def read_object(name: str, path: Path) -> dict[str, Any]:
    """Reads a JSON object of the model called `name`; {} if there is no such file."""
    found = read_json(name, path)
    if not isinstance(found, dict | None):
        raise ModelError(
            f"{path.name} of model '{name}' is not a JSON object", hint="correct it, or download the model again"
        )
    return found or {}


def _check_attention(name: str, config: dict[str, Any]) -> None:
    """Refuses attention that transformers would download as a kernel and run, in the config or a part of it."""
    allowed = (*_ATTENTION, *(_FLASH_ATTENTION if find_spec("flash_attn") else ()))
    for key, value in config.items():
        if key.lstrip("_").startswith("attn_implementation"):
            values = value.values() if isinstance(value, dict) else [value]
            unknown = [setting for setting in values if setting not in (None, False, True, *allowed)]
            if unknown:
                raise ModelError(
                    f"config.json of model '{name}' sets {key} to {str(unknown[0])[:80]!r}, which would be "
                    f"downloaded as code or does not exist; allowed are {', '.join(allowed)}",
                    hint=f"remove {key} from config.json, or set it to one of these",
                )
        elif isinstance(value, dict):
            _check_attention(name, value)
