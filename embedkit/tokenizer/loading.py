"""Loads a model's tokenizer: from tokenizer.json if that is safe, else by transformers."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from embedkit.errors import ModelError
from embedkit.tokenizer.bert_tokenizer import read_bert_tokenizer
from embedkit.tokenizer.built_tokenizer import build_tokenizer
from embedkit.tokenizer.casing import Casing, settle_casing
from embedkit.tokenizer.consistency import compare_with_file, follow_files, stated_settings
from embedkit.tokenizer.saved_tokenizer import read_saved_tokenizer

#: Messages of transformers and its tokenizers that name a missing package.
_MESSAGES = (
    r"No module named '?([\w.]+)",
    r"pip install (?:-U |--upgrade )?[`'\"]?([\w\-\[\].]+)",
    r"requires? the (?:\W?)([\w\-]+)(?:\W?) library",
    r"(?:You need to|[Pp]lease) install [`'\"]?([\w\-]+)",
    r"The ([\w\-]+) dictionary is not installed",
    r"packages that were not found in your environment: ([\w\-]+)",
)
#: Modules whose package has another name.
_PACKAGES = {"google": "protobuf", "MeCab": "mecab-python3", "unidic_lite": "unidic-lite"}
#: Modules that read a sentencepiece vocabulary. Without them, transformers mistakes the file for tiktoken's.
_SENTENCEPIECE = ("sentencepiece", "google.protobuf")
_TIKTOKEN = ("tiktoken.model", ".tiktoken")


class OwnTokenizer(Protocol):
    """A tokenizer class defined by code in the model's files."""

    @property
    def named_in(self) -> str:
        """The JSON file that names it."""

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
    """Loads the tokenizer of a folder, as AutoTokenizer does, and settles its casing.

    For a checkpoint with `vocab.txt` alone, transformers lowercases (its issues 343 and 3823); here the vocabulary
    decides.

    Args:
        folder: the model's.
        casing: `--lowercase`: auto, yes or no.
        known_casing: cased or uncased, from the alias table; None if not listed.
        states_casing: True if a file of the model states the casing.
        code: the tokenizer class in the model's files, if it may run; None for one of transformers.
        trust_remote_code: True if any code in the model's files may run, such as its configuration's.

    Returns:
        The tokenizer; and its casing, with all notices on the tokenizer.

    Raises:
        ModelError: the tokenizer cannot be loaded, or its casing cannot be changed.
    """
    tokenizer, notices = _load(Path(folder), code, trust=trust_remote_code)
    stated = None if code is not None else stated_settings(Path(folder)).get("do_lower_case")
    settled = settle_casing(tokenizer, casing, known_casing, stated, states_casing=states_casing)
    notice = "; ".join(notice for notice in (*notices, settled.notice) if notice)
    return tokenizer, replace(settled, notice=notice or None)


def _load(folder: Path, code: OwnTokenizer | None, *, trust: bool) -> tuple[Any, tuple[str, ...]]:
    if code is None:
        read = read_bert_tokenizer(folder) or read_saved_tokenizer(folder) or build_tokenizer(folder)
        if read is not None:
            return follow_files(read, folder)
    tokenizer, notices = _load_by_transformers(folder, code, trust=trust)
    if code is not None:
        return tokenizer, compare_with_file(tokenizer, folder)
    tokenizer, more = follow_files(tokenizer, folder)
    return tokenizer, (*notices, *more)


def _load_by_transformers(folder: Path, code: OwnTokenizer | None, *, trust: bool) -> tuple[Any, tuple[str, ...]]:
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()

    # Without trust_remote_code, transformers asks on stdin, and takes rows for answers.
    options = {"local_files_only": True, "trust_remote_code": trust}
    try:
        if code is not None and code.named_in == "config.json":
            # transformers 5 looks for it in tokenizer_config.json only.
            from transformers.dynamic_module_utils import get_class_from_dynamic_module

            own = get_class_from_dynamic_module(code.reference, str(folder), local_files_only=True)
            tokenizer = own.from_pretrained(folder, **options)
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # noqa: BLE001 - the library raises anything here, and no row is involved
        missing = _missing_package(error, folder)
        if missing is not None:
            raise missing from None
        tokenizer = None if code is not None else _load_file_alone(folder)
        if tokenizer is not None:
            return tokenizer, (
                "tokenizer.json is used as it was saved: the class declared for it cannot be built from it",
            )
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded ({type(error).__name__})",
            hint="check that tokenizer.json or the vocabulary's file is there and complete",
        ) from None
    files = {*getattr(tokenizer, "vocab_files_names", {}).values(), "tokenizer.json"}
    if code is None and len(files) > 1 and not any((folder / name).is_file() for name in files):
        # transformers invents a vocabulary of five entries in this case, without a warning.
        raise ModelError(
            f"{folder} has no tokenizer: none of {', '.join(sorted(files))}",
            hint="put tokenizer.json, or the files that the model was trained with, into its folder",
        )
    return tokenizer, ()


def _load_file_alone(folder: Path) -> Any | None:
    """Loads tokenizer.json, ignoring the class that is declared for it; None if that fails, too."""
    if not (folder / "tokenizer.json").is_file():
        return None
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # noqa: BLE001 - the library raises anything here; the first error is reported
        return None


def _missing_package(error: BaseException, folder: Path) -> ModelError | None:
    """Returns an error that names the missing package; None if none is missing."""
    packages: list[str] = []
    if not (folder / "tokenizer.json").is_file() and _has_file(folder, (".model", ".spm")):
        packages = [_package(module) for module in _SENTENCEPIECE if not _is_importable(module)]
    packages = packages or _named_package(error, folder)
    if not packages:
        return None
    return ModelError(
        f"the tokenizer in {folder} needs {' and '.join(packages)}, which cannot be imported here",
        hint=f"pip install {' '.join(packages)}",
    )


def _named_package(error: BaseException, folder: Path) -> list[str]:
    """Returns the package named by the first ImportError in a chain of exceptions."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, ImportError):
            found = (name for message in _MESSAGES for name in re.findall(message, str(link)))
            packages = [_package(name) for name in ([link.name] if link.name else found)]
            if packages and (packages[0] != "tiktoken" or _has_file(folder, _TIKTOKEN)):
                return packages[:1]
        link = link.__cause__ or link.__context__
    return []


def _has_file(folder: Path, endings: tuple[str, ...]) -> bool:
    return any(file.name.endswith(endings) for file in folder.iterdir())


def _package(module: str) -> str:
    top = module.partition(".")[0]
    return _PACKAGES.get(top, top)


def _is_importable(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True
