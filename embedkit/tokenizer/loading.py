"""Loads a model's tokenizer: by its files alone where that is safe, else by transformers, then checks it."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from embedkit.errors import ModelError
from embedkit.tokenizer.bert_tokenizer import read_bert_tokenizer
from embedkit.tokenizer.casing import Casing, settle_casing
from embedkit.tokenizer.consistency import against_code, held_to_files, stated_settings

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


class OwnTokenizer(Protocol):
    """A tokenizer's class that is code of the model's own."""

    @property
    def named_in(self) -> str:
        """The file that names it."""

    @property
    def reference(self) -> str:
        """Its module and class."""


def load_tokenizer(
    folder: str,
    *,
    casing: str,
    known_casing: str | None,
    states_casing: bool,
    code: OwnTokenizer | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Casing]:
    """The tokenizer of a folder, as AutoTokenizer gives it, with its casing settled.

    A checkpoint of `vocab.txt` alone is lowercased by transformers whatever its vocabulary holds
    (transformers issues 343 and 3823); here the vocabulary decides.

    Args:
        folder: of the model.
        casing: `--lowercase`: auto, yes or no.
        known_casing: cased or uncased, from the alias table; None = not known by name.
        states_casing: whether a file of the model states the casing.
        code: the tokenizer's class, where it is one of the model's own and may run; None = one of transformers.
        trust_remote_code: whether code of the model may run at all, such as its configuration's.

    Returns:
        The tokenizer, and its casing with what else the user should know of it.

    Raises:
        ModelError: the tokenizer cannot be loaded, or its casing cannot be changed.
    """
    tokenizer, told = _loaded(Path(folder), code, trust=trust_remote_code)
    stated = None if code is not None else stated_settings(Path(folder)).get("do_lower_case")
    decided = settle_casing(tokenizer, casing, known_casing, stated, states_casing=states_casing)
    notice = "; ".join(sentence for sentence in (*told, decided.notice) if sentence)
    return tokenizer, replace(decided, notice=notice or None)


def _loaded(folder: Path, code: OwnTokenizer | None, *, trust: bool) -> tuple[Any, tuple[str, ...]]:
    """The tokenizer, and what the user should know of how it came to be."""
    plain = None if code is not None else read_bert_tokenizer(folder)
    if plain is not None:
        return plain, ()
    tokenizer, told = _by_transformers(folder, code, trust=trust)
    if code is not None:
        return tokenizer, against_code(tokenizer, folder)
    tokenizer, of_files = held_to_files(tokenizer, folder)
    return tokenizer, (*told, *of_files)


def _of_file_alone(folder: Path) -> Any | None:
    """The tokenizer in tokenizer.json, whatever class is declared for it; None where there is none."""
    if not (folder / "tokenizer.json").is_file():
        return None
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # noqa: BLE001 - the library raises anything here; the first error is told
        return None


def _by_transformers(folder: Path, code: OwnTokenizer | None, *, trust: bool) -> tuple[Any, tuple[str, ...]]:
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()

    # Said in every call: left out, transformers asks on stdin, and takes rows for answers.
    options = {"local_files_only": True, "trust_remote_code": trust}
    try:
        if code is not None and code.named_in == "config.json":
            # transformers 5 reads it in tokenizer_config.json alone.
            from transformers.dynamic_module_utils import get_class_from_dynamic_module

            own = get_class_from_dynamic_module(code.reference, str(folder), local_files_only=True)
            tokenizer = own.from_pretrained(folder, **options)
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except Exception as fault:  # noqa: BLE001 - the library raises anything here, and no row is involved
        missing = _missing_package(fault, folder)
        if missing is not None:
            raise missing from None
        # The declared class may not take the kind of tokenizer that the file holds.
        alone = None if code is not None else _of_file_alone(folder)
        if alone is not None:
            return alone, (
                "tokenizer.json is used as it was saved: the class declared for it cannot be built of it",
            )
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded ({type(fault).__name__})",
            hint="check that tokenizer.json or the vocabulary's file is there and whole",
        ) from None
    files = {*getattr(tokenizer, "vocab_files_names", {}).values(), "tokenizer.json"}
    if code is None and len(files) > 1 and not any((folder / name).is_file() for name in files):
        # transformers makes up a vocabulary of five entries in this case, and says nothing.
        raise ModelError(
            f"{folder} has no tokenizer: none of {', '.join(sorted(files))}",
            hint="put tokenizer.json, or the files that the model was trained with, into its folder",
        )
    return tokenizer, ()


def _missing_package(fault: BaseException, folder: Path) -> ModelError | None:
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
