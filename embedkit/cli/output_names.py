"""Names of outputs: the default name, the format that a name implies, and names that `-o` rejects."""

from __future__ import annotations

import os
import re
from pathlib import Path

from embedkit.cli.parsing import is_utf8
from embedkit.config import FORMATS, OUTPUT_FORMATS, one_of
from embedkit.config.databases import DATABASE_SUFFIXES, base_name, is_database
from embedkit.errors import UsageError
from embedkit.storage.filesystem import seems_folder
from embedkit.storage.remote_path import RemotePath, is_uri
from embedkit.suggest import closest_names

#: Schemes of the object stores that outputs are written to.
STORES = ("s3", "gs", "az")
#: One slash suffices: `Path` removes the other. A scheme of one letter would be a drive of Windows.
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
#: Suffixes of tables and of compressed files, in any case, that a default output name loses.
_TABLES = (*FORMATS[1:], "feather", "npy", *DATABASE_SUFFIXES)
_COMPRESSED = ("gz", "zst", "bz2", "xz")
#: Suffixes of other formats of vectors and tables, by the closest format that is written here.
_CLOSEST = {
    suffix: written
    for written, suffixes in {
        "parquet": "pq parq pqt orc avro delta iceberg",
        "arrow": "feather ipc arrows lance lancedb vortex",
        "jsonl": "ndjson json jsonlines ldjson",
        "npy": "np npz numpy memmap mmap fvecs bvecs f32",
    }.items()
    for suffix in suffixes.split()
}
#: Suffixes that certainly mean a file. Not included: those that folders have as well (`run.out`), and those of
#: names made from the name of a weights file.
_OTHER_FILES = {
    *(*_CLOSEST, *_TABLES, *_COMPRESSED),
    *("zip", "tar", "tgz", "7z", "lz4", "snappy", "br", "zstd", "bgz"),
    *("pt", "pth", "bin", "ckpt", "onnx", "gguf", "tfrecord", "tfrecords", "pb"),
    *("pkl", "pickle", "joblib", "dill", "msgpack", "mat", "rds", "rdata", "rda", "sav", "dta", "sas7bdat", "por"),
    *("h5", "hdf5", "hdf", "h5ad", "nc", "zarr"),
    *("db", "db3", "sqlite", "sqlite3", "duckdb", "ddb", "lmdb", "mdb", "sql", "rocksdb", "leveldb"),
    *("faiss", "annoy", "hnsw", "usearch", "w2v", "word2vec"),
    *("xls", "xlsx", "xlsm", "ods", "doc", "docx", "pdf", "html", "htm", "xml", "yaml", "yml", "toml", "ini"),
    *("md", "rst", "svm", "libsvm", "arff", "psv", "png", "svg", "py", "ipynb"),
}


def default_output(inputs: list[str]) -> str:
    """Returns the default name of the output folder: the first input's name without its suffixes.

    Raises:
        UsageError: the first input has no usable name: it is stdin, a glob, `.` or `..`.
    """
    name = base_name(inputs[0]) if is_database(inputs[0]) else Path(inputs[0].rstrip("/")).name
    if inputs[0] == "-" or name in {"", ".."} or any(letter in name for letter in "*?["):
        raise UsageError(
            f"cannot derive an output name from '{inputs[0]}'",
            hint="name the output with -o OUT, or use -o - for JSON Lines on stdout",
        )
    if not is_utf8(name):
        message = "cannot derive an output name from the input's name, which is not UTF-8"
        raise UsageError(message, hint="name the output with -o")
    return f"{without_suffixes(name)}.embeddings"


def absolute_name(output: str) -> str:
    """Returns an output's name, as an absolute path if it ends in `.` or `..`, which have no name of their own.

    Raises:
        UsageError: it is the root folder, next to which nothing can be written, or a whole bucket.
    """
    if is_uri(output):
        if not RemotePath(output).key:
            hint = f"name a folder in it: -o {RemotePath(output) / 'vectors'}"
            raise UsageError(f"-o {output} is a whole bucket", hint=hint)
        return output
    if Path(output).name not in {"", ".."}:
        return output
    whole = os.path.abspath(output)  # noqa: PTH100 - as typed but for the dots: no link is followed
    if not Path(whole).name:
        raise UsageError(f"-o {output} is the root folder", hint="name a file or a folder in it")
    return whole


def without_suffixes(name: str) -> str:
    """Removes the suffixes of tables and compressed files: `2024.01.csv.gz` → `2024.01`."""
    for suffixes in (_COMPRESSED, _TABLES):
        stem, dot, suffix = name.rpartition(".")
        if dot and stem and suffix.lower() in suffixes:
            name = stem
    return name


def output_format(output: str, asked: str | None) -> str:
    """Determines the output format from the output's name and `--output-format`.

    Raises:
        UsageError: the two contradict each other, or the name is a URI or that of a file embedkit does not write.
    """
    if asked is not None:
        one_of("--output-format", asked, OUTPUT_FORMATS)
    by_name = "jsonl" if output == "-" else _suffix(output)
    check_no_uri(output, stores=STORES)
    if is_folder(output):
        return asked or (by_name if by_name in OUTPUT_FORMATS else "parquet")
    name = Path(output).name
    if name.startswith(".") and name[1:] in OUTPUT_FORMATS:
        raise UsageError(
            f"-o {output}: the file has no name before its suffix",
            hint=f"use a name such as -o {output.removesuffix(name)}vectors{name}, or -o {output}/ for a folder",
        )
    if by_name not in OUTPUT_FORMATS:
        check_name(output, OUTPUT_FORMATS, stores=STORES)
        return asked or "parquet"
    if asked is not None and asked != by_name:
        raise UsageError(
            f"-o {output} is {by_name}, but --output-format is {asked}", hint="leave out --output-format"
        )
    return by_name


def check_name(
    output: str, known: tuple[str, ...], *, or_folder: bool = True, stores: tuple[str, ...] = ()
) -> None:
    """Rejects a name that is meant for a file of a format that is not written.

    Args:
        output: the name.
        known: suffixes of the files that the command writes.
        or_folder: True if it writes folders as well.
        stores: schemes of the object stores that it writes to.

    Raises:
        UsageError: names what the command writes.
    """
    check_no_uri(output, stores=stores)
    suffix = _suffix(output)
    stem = output.removesuffix(suffix)
    if or_folder and is_folder(output):
        return
    if not suffix or suffix in known or not (suffix.lower() in _OTHER_FILES or _is_misspelled(suffix)):
        return
    near = closest_names(suffix, known, synonyms={**_CLOSEST, "htm": "html"}, most=1)
    hints = [f"did you mean -o {stem}{near[0]}?"] if near else []
    files = f"files that end in .{', .'.join(known)}" if known else ""
    hints.append(f"it writes {' and '.join(part for part in (files, 'folders' * or_folder) if part)}")
    if or_folder:
        hints.append(f"use -o {output}/ for a folder of that name")
    raise UsageError(
        f"-o {output}: this command does not write .{suffix} files", hint="; ".join(hints).replace("?;", "?")
    )


def is_folder(output: str) -> bool:
    """Checks whether a name means a folder whatever its suffix: it ends in a slash, or the folder exists."""
    return output.endswith(("/", os.sep)) or (not is_uri(output) and seems_folder(output))


def check_no_uri(output: str, *, stores: tuple[str, ...] = ()) -> None:
    """Rejects a URI that is not of these object stores; it would otherwise become a folder named `s3:`."""
    scheme = _URI.match(output)
    if scheme is None or (is_uri(output) and scheme[1].lower() in stores):
        return
    places = "local paths"
    if stores:
        places = f"local paths and object stores ({', '.join(f'{store}://' for store in stores)})"
    hint = "write to a local path, then copy the output"
    if scheme[1].lower() == "file":
        hint = f"use -o /{output[scheme.end() :]}"
    elif scheme[1].lower() in stores:
        hint = f"use -o {scheme[1].lower()}://{output[scheme.end() :]}"
    shown = f"{scheme[1]}://{output[scheme.end() :].lstrip('/')}"  # a path has lost one of the slashes
    raise UsageError(f"-o {shown}: this command writes to {places}", hint=hint)


def _suffix(output: str) -> str:
    return "" if output.endswith(("/", os.sep)) else Path(output).suffix.removeprefix(".")


def _is_misspelled(suffix: str) -> bool:
    return bool(closest_names(suffix, OUTPUT_FORMATS)) and not any(letter.isdigit() for letter in suffix)
