"""Code that a model brings along (`auto_map`): who needs it, whether it may run, and what is said of it.

transformers runs code of a model by three ways: of its configuration, its encoder and its tokenizer. Here they are
read from the JSON files, before anything is run. Imports transformers only where a file names code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from embedkit.errors import ModelError
from embedkit.models.repository.model_folder import ModelFolder

_PARTS = {"AutoConfig": "configuration", "AutoTokenizer": "tokenizer"}
#: Classes that a text's way to its states goes through; others are heads, and readers of pictures and sounds.
_LOADED = ("AutoConfig", "AutoModel", "AutoTokenizer")
_TRUST = "--trust-remote-code runs it; it needs --revision with the 40 hexadecimal digits of a commit"


@dataclass(frozen=True, slots=True)
class RemoteClass:
    """A class of a model's own.

    Attributes:
        part: configuration, encoder or tokenizer.
        named_in: the file that names it.
        auto_class: the class of transformers that it stands in for, such as AutoModel.
        repository: the hub's id, where the code is in another repository; else "".
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
        """As transformers spells it."""
        return f"{self.module}.{self.name}"


def remote_classes(folder: ModelFolder) -> tuple[RemoteClass, ...]:
    """The classes of a model's own that its files name.

    Raises:
        ModelError: an `auto_map` is not one.
    """
    found: list[RemoteClass] = []
    for file in ("config.json", "tokenizer_config.json"):
        settings = folder.config if file == "config.json" else folder.read_json(file)
        named = settings.get("auto_map") if isinstance(settings, Mapping) else None
        if not named:
            continue
        if isinstance(named, list | tuple):  # how tokenizers named their code at first
            named = {"AutoTokenizer": named}
        if not isinstance(named, Mapping):
            raise _malformed(folder, file)
        for auto_class, value in named.items():
            found += _named(folder, file, str(auto_class), value)
    return tuple(found)


def check_remote_code(folder: ModelFolder, *, trust: bool) -> tuple[tuple[RemoteClass, ...], tuple[str, ...]]:
    """Decide on the code that a model brings along; runs none of it.

    Args:
        folder: the model.
        trust: whether the user lets it run.

    Returns:
        The classes that will run, and what the user should know.

    Raises:
        ModelError: the model needs its code and may not run it, or it is not in the model's folder.
    """
    named = remote_classes(folder)
    found = tuple(one for one in named if one.auto_class in _LOADED)
    if not named:
        return (), ()
    if not trust:
        # A head's code is named where nothing else of the model's own is.
        needed = [one for one in found or named if _is_needed(folder, one)]
        if needed:
            raise ModelError(
                f"model '{folder.name}' needs code of its own, which is not run: {', '.join(map(str, needed))}",
                hint=_TRUST,
            )
        shown = ", ".join(str(one) for one in found if one.part != "configuration")
        told = f"code that the model brings along is not run: {shown}; transformers' own of that name is used"
        return (), (told,) if shown else ()
    for one in found:
        _check_place(folder, one)
    return found, (f"code of the model is run: {', '.join(map(str, found))}",) if found else ()


def _named(folder: ModelFolder, file: str, auto_class: str, value: Any) -> Iterator[RemoteClass]:
    """Of a tokenizer's two classes, transformers takes the second where there is one."""
    references = value if isinstance(value, list | tuple) else [value]
    reference = next((one for one in reversed(references) if one is not None), None)
    if reference is None:
        return
    if not isinstance(reference, str):
        raise _malformed(folder, file)
    repository, _, within = reference.rpartition("--")
    module, dot, name = within.partition(".")
    if not (module and dot and name.isidentifier()):
        raise _malformed(folder, file)
    yield RemoteClass(_PARTS.get(auto_class, "encoder"), file, auto_class, repository, module, name)


def _is_needed(folder: ModelFolder, one: RemoteClass) -> bool:
    """Whether nothing of transformers can stand in: it knows no such type of model, or no class of that name."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if one.part == "tokenizer":
        plain = one.name.removesuffix("Fast")
        return not any(hasattr(transformers, name) for name in (plain, f"{plain}Fast"))
    if folder.model_type not in CONFIG_MAPPING_NAMES:
        return True
    # A head or a configuration is of no matter where the encoder is one that transformers has.
    return one.auto_class == "AutoModel" and not hasattr(transformers, one.name)


def _check_place(folder: ModelFolder, one: RemoteClass) -> None:
    if one.repository and one.repository != folder.hub:
        raise ModelError(
            f"{one.named_in} of model '{folder.name}' names code of another repository, {one.repository} "
            f"({one.reference}), which --revision does not fix",
            hint="read that code, copy its .py files into a folder with the model's files, take "
            f"'{one.repository}--' out of auto_map there, and give the folder as --model",
        )
    if not (folder.folder / f"{one.module}.py").is_file():
        raise ModelError(
            f"{one.named_in} of model '{folder.name}' names code that is not there: {one.module}.py",
            hint=f"put {one.module}.py into {folder.folder}, or fetch the model again",
        )


def _malformed(folder: ModelFolder, file: str) -> ModelError:
    return ModelError(
        f"auto_map in {file} of model '{folder.name}' does not name classes as module.Class",
        hint=f"correct auto_map in {file}, or take it out",
    )
