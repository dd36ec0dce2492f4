"""Name the package that a tokenizer lacks: transformers tells it in a dozen ways, or not at all."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from embedkit.errors import ModelError

_NAMED = (
    r"No module named '?([\w.]+)",
    r"pip install (?:-U |--upgrade )?[`'\"]?([\w\-\[\].]+)",
    r"requires? the (?:\W?)([\w\-]+)(?:\W?) library",
    r"(?:You need to|[Pp]lease) install [`'\"]?([\w\-]+)",
    r"The ([\w\-]+) dictionary is not installed",
    r"packages that were not found in your environment: ([\w\-]+)",
)
#: Modules whose package has another name.
_PACKAGES = {"google": "protobuf", "MeCab": "mecab-python3", "unidic_lite": "unidic-lite"}
#: Modules that read a kind of vocabulary. Where one is missing, transformers takes the file for tiktoken's.
_SENTENCEPIECE = ("sentencepiece", "google.protobuf")
_TIKTOKEN = ("tiktoken.model", ".tiktoken")


def missing_package(fault: BaseException, folder: Path) -> ModelError | None:
    """The error that names the package; None where none is missing.

    Args:
        fault: what transformers raised.
        folder: of the model.
    """
    packages = dict.fromkeys(_of_sentencepiece(folder) or _named(fault, folder))
    if not packages:
        return None
    return ModelError(
        f"the tokenizer in {folder} needs {' and '.join(packages)}, which cannot be imported here",
        hint=f"pip install {' '.join(packages)}",
    )


def _of_sentencepiece(folder: Path) -> list[str]:
    """What is missing to read a vocabulary of sentencepiece; [] where there is none to be read."""
    if (folder / "tokenizer.json").is_file() or not _holds(folder, (".model", ".spm")):
        return []
    return [_package(module) for module in _SENTENCEPIECE if not _is_there(module)]


def _named(fault: BaseException, folder: Path) -> list[str]:
    """The package that the first of the errors names that came one of another."""
    seen: BaseException | None = fault
    while seen is not None:
        if isinstance(seen, ImportError):
            names = [seen.name] if seen.name else [name for of in _NAMED for name in re.findall(of, str(seen))]
            packages = [_package(name) for name in names]
            if packages and (packages[0] != "tiktoken" or _holds(folder, _TIKTOKEN)):
                return packages[:1]
        seen = seen.__cause__ or seen.__context__
    return []


def _holds(folder: Path, endings: tuple[str, ...]) -> bool:
    return any(file.name.endswith(endings) for file in folder.iterdir())


def _package(module: str) -> str:
    top = module.partition(".")[0]
    return _PACKAGES.get(top, top)


def _is_there(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True
