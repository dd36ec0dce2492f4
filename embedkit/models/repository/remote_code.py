"""Decides whether Python code in a model's files is needed and may run.

transformers runs such code for the configuration, the encoder and the tokenizer. The names of the classes are read
here from `auto_map` in JSON files, before anything runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from embedkit.errors import ModelError
from embedkit.models.repository.model_folder import ModelFolder

_PARTS = {"AutoConfig": "configuration", "AutoTokenizer": "tokenizer"}
#: Classes that compute the states of a text; others are heads, and readers of images and sound.
_LOADED = ("AutoConfig", "AutoModel", "AutoTokenizer")
_TRUST = "--trust-remote-code runs it; it needs --revision with the 40 hexadecimal digits of a commit"


@dataclass(frozen=True, slots=True)
class RemoteClass:
    """A class defined in a model's files.

    Attributes:
        part: configuration, encoder or tokenizer.
        named_in: the JSON file that names it.
        auto_class: the class of transformers that loads it, such as AutoModel.
        repository: hub id of the repository with the code; "" if it is the model's own.
        module: the Python file, without its suffix.
        name: of the class.
    """

    part: str
    named_in: str
    auto_class: str
    repository: str
    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.part} {self.module}.{self.name} (named in {self.named_in})"

    @property
    def reference(self) -> str:
        """Module and class, as transformers writes them."""
        return f"{self.module}.{self.name}"


def remote_classes(folder: ModelFolder) -> tuple[RemoteClass, ...]:
    """Lists the classes that a model's JSON files name in `auto_map`.

    Raises:
        ModelError: an `auto_map` is malformed.
    """
    found: list[RemoteClass] = []
    for file in ("config.json", "tokenizer_config.json"):
        settings = folder.config if file == "config.json" else folder.read_json(file)
        named = settings.get("auto_map") if isinstance(settings, Mapping) else None
        if isinstance(named, list | tuple):  # the older form, for tokenizers
            named = {"AutoTokenizer": named}
        if not isinstance(named or {}, Mapping):
            raise _malformed(folder, file)
        for auto_class, value in (named or {}).items():
            found += _named(folder, file, str(auto_class), value)
    return tuple(found)


def check_remote_code(folder: ModelFolder, *, trust: bool) -> tuple[tuple[RemoteClass, ...], tuple[str, ...]]:
    """Decides which classes in a model's files will run, if the user trusts them; runs none.

    Returns:
        The classes that will run, and notices for the user.

    Raises:
        ModelError: the model needs its code and it may not run, or the code is not in the model's folder.
    """
    named = remote_classes(folder)
    found = tuple(remote for remote in named if remote.auto_class in _LOADED)
    if not named:
        return (), ()
    if not trust:
        # If only a head's code is named, the head decides.
        needed = [remote for remote in found or named if _is_needed(folder, remote)]
        if needed:
            raise ModelError(
                f"model '{folder.name}' needs its own code, which is not run: {', '.join(map(str, needed))}",
                hint=_TRUST,
            )
        shown = ", ".join(str(remote) for remote in found if remote.part != "configuration")
        notice = f"code in the model's files is not run: {shown}; transformers' class of that name is used"
        return (), (notice,) if shown else ()
    for remote in found:
        _check_location(folder, remote)
    return found, (f"code in the model's files is run: {', '.join(map(str, found))}",) if found else ()


def _named(folder: ModelFolder, file: str, auto_class: str, value: Any) -> Iterator[RemoteClass]:
    """Yields the class in `value`: of a tokenizer's two, the second if there is one, as transformers does."""
    references = value if isinstance(value, list | tuple) else [value]
    reference = next((entry for entry in reversed(references) if entry is not None), None)
    if reference is None:
        return
    if not isinstance(reference, str):
        raise _malformed(folder, file)
    repository, _, within = reference.rpartition("--")
    module, dot, name = within.partition(".")
    if not (module and dot and name.isidentifier()):
        raise _malformed(folder, file)
    yield RemoteClass(_PARTS.get(auto_class, "encoder"), file, auto_class, repository, module, name)


def _is_needed(folder: ModelFolder, remote: RemoteClass) -> bool:
    """Checks whether transformers lacks the model type or a class of that name."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if remote.part == "tokenizer":
        plain = remote.name.removesuffix("Fast")
        return not any(hasattr(transformers, name) for name in (plain, f"{plain}Fast"))
    if folder.model_type not in CONFIG_MAPPING_NAMES:
        return True
    # A head or a configuration does not matter if transformers has the encoder.
    return remote.auto_class == "AutoModel" and not hasattr(transformers, remote.name)


def _check_location(folder: ModelFolder, remote: RemoteClass) -> None:
    if remote.repository and remote.repository != folder.hub:
        raise ModelError(
            f"{remote.named_in} of model '{folder.name}' names code of another repository, {remote.repository} "
            f"({remote.reference}), which --revision does not fix",
            hint="read that code, copy its .py files into a folder with the model's files, take "
            f"'{remote.repository}--' out of auto_map there, and give the folder as --model",
        )
    if not (folder.folder / f"{remote.module}.py").is_file():
        raise ModelError(
            f"{remote.named_in} of model '{folder.name}' names code that does not exist: {remote.module}.py",
            hint=f"put {remote.module}.py into {folder.folder}, or download the model again",
        )


def _malformed(folder: ModelFolder, file: str) -> ModelError:
    return ModelError(
        f"auto_map in {file} of model '{folder.name}' does not name classes as module.Class",
        hint=f"correct auto_map in {file}, or remove it",
    )
