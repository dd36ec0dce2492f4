"""What `-o` may be called: a file of a known kind, or a folder; and what an output is called by default."""

from __future__ import annotations

import os
import re
from pathlib import Path

from embedkit.config import FORMATS, OUTPUT_FORMATS, one_of
from embedkit.errors import UsageError
from embedkit.storage.filesystem import seems_folder
from embedkit.suggest import closest_names

#: A `Path` has one slash of two. Of one letter, it is a drive of Windows.
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
#: Suffixes of tables and of compressed files, in any case: what a name loses that an output is called after.
_TABLES = (*FORMATS[1:], "feather", "npy")
_COMPRESSED = ("gz", "zst", "bz2", "xz")
#: What people write vectors to elsewhere, and the nearest of what embedkit writes.
_NEAREST = {
    **dict.fromkeys(("pq", "parq", "pqt", "orc", "avro", "delta", "iceberg"), "parquet"),
    **dict.fromkeys(("feather", "ipc", "arrows", "lance", "lancedb", "vortex"), "arrow"),
    **dict.fromkeys(("ndjson", "json", "jsonlines", "ldjson"), "jsonl"),
    **dict.fromkeys(("np", "npz", "numpy", "memmap", "mmap", "fvecs", "bvecs", "f32"), "npy"),
}
#: Suffixes that are surely meant to be a file's. Not among them: what folders are called, too (`run.out`),
#: and names made from that of a file of weights.
_OTHER_FILES = frozenset(
    {
        *_NEAREST,
        *_TABLES,
        *_COMPRESSED,
        *("zip", "tar", "tgz", "7z", "lz4", "snappy", "br", "zstd", "bgz"),
        *("pt", "pth", "bin", "ckpt", "onnx", "gguf", "tfrecord", "tfrecords", "pb"),
        *(
            "pkl",
            "pickle",
            "joblib",
            "dill",
            "msgpack",
            "mat",
            "rds",
            "rdata",
            "rda",
            "sav",
            "dta",
            "sas7bdat",
            "por",
        ),
        *("h5", "hdf5", "hdf", "h5ad", "nc", "zarr"),
        *("db", "db3", "sqlite", "sqlite3", "duckdb", "ddb", "lmdb", "mdb", "sql", "rocksdb", "leveldb"),
        *("faiss", "annoy", "hnsw", "usearch", "w2v", "word2vec"),
        *("xls", "xlsx", "xlsm", "ods", "doc", "docx", "pdf", "html", "htm", "xml", "yaml", "yml", "toml", "ini"),
        *("md", "rst", "svm", "libsvm", "arff", "psv", "png", "svg", "py", "ipynb"),
    }
)


def default_output(inputs: list[str]) -> str:
    """Name the folder that vectors go to where the user does not say: the input's name without its suffixes.

    Raises:
        UsageError: the first input has no name: it is stdin, a glob, or the folder that this is.
    """
    name = Path(inputs[0].rstrip("/")).name
    if inputs[0] == "-" or name in {"", ".."} or any(letter in name for letter in "*?["):
        raise UsageError(
            f"there is no name to make the output's from in '{inputs[0]}'",
            hint="say where the vectors go with -o OUT, or -o - for JSON Lines on stdout",
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(
            "the input's name is not UTF-8, so no output can be named after it", hint="name the output with -o"
        ) from None
    return f"{without_suffixes(name)}.embeddings"


def named(output: str) -> str:
    """An output's name, written out where it ends in no name: `.` and `..` are folders that have one.

    Raises:
        UsageError: it is the root of all folders, beside which nothing can be made.
    """
    if Path(output).name not in {"", ".."}:
        return output
    whole = os.path.abspath(output)  # noqa: PTH100 - as typed but for the dots: no link is followed
    if not Path(whole).name:
        raise UsageError(f"-o {output} is the root of all folders", hint="name a file or a folder in it")
    return whole


def without_suffixes(name: str) -> str:
    """A file's name without the suffixes of tables and of compressed files: `2024.01` of `2024.01.csv.gz`."""
    for suffixes in (_COMPRESSED, _TABLES):
        stem, dot, suffix = name.rpartition(".")
        if dot and stem and suffix.lower() in suffixes:
            name = stem
    return name


def output_format(output: str, asked: str | None) -> str:
    """The format that is written, by the name of the output and `--output-format`.

    Raises:
        UsageError: the two contradict each other, or the name is that of a file which embedkit does not write, or
            a URI.
    """
    if asked is not None:
        one_of("--output-format", asked, OUTPUT_FORMATS)
    named = "jsonl" if output == "-" else _suffix(output)
    _refuse_uri(output)
    if is_folder(output):
        return asked or (named if named in OUTPUT_FORMATS else "parquet")
    if Path(output).name.removeprefix(".") in OUTPUT_FORMATS and Path(output).name.startswith("."):
        name = Path(output).name
        raise UsageError(
            f"-o {output}: the file has no name before its suffix",
            hint=f"such as -o {output.removesuffix(name)}vectors{name}; -o {output}/ is a folder of that name",
        )
    if named not in OUTPUT_FORMATS:
        check_name(output, OUTPUT_FORMATS)
        return asked or "parquet"
    if asked is not None and asked != named:
        raise UsageError(
            f"-o {output} is {named}, and --output-format says {asked}", hint="leave out one of the two"
        )
    return named


def check_name(output: str, known: tuple[str, ...], *, or_folder: bool = True) -> None:
    """Refuse a name that is meant to be that of a file of another kind.

    Args:
        output: as typed.
        known: suffixes of the files that are written.
        or_folder: whether a folder may be written as well.

    Raises:
        UsageError: it is one; names what is written.
    """
    _refuse_uri(output)
    suffix = _suffix(output)
    stem = output.removesuffix(suffix)
    if or_folder and is_folder(output):
        return
    if not suffix or suffix in known or not (suffix.lower() in _OTHER_FILES or _is_misspelled(suffix)):
        return
    near = closest_names(suffix, known, synonyms={**_NEAREST, "htm": "html"}, most=1)
    ways = [f"did you mean -o {stem}{near[0]}?"] if near else []
    files = f"files that end in .{', .'.join(known)}" if known else ""
    ways.append(" and ".join(part for part in (files, "folders" if or_folder else "") if part) + " are written")
    if or_folder:
        ways.append(f"-o {output}/ is a folder of that name")
    raise UsageError(
        f"-o {output}: this command writes no .{suffix} files", hint="; ".join(ways).replace("?;", "?")
    )


def is_folder(output: str) -> bool:
    """Whether a name is a folder's whatever its suffix: it ends in a slash, or the folder is there."""
    return output.endswith(("/", os.sep)) or seems_folder(output)


def _refuse_uri(output: str) -> None:
    """Refuse a URI, which would be a folder `s3:` here."""
    scheme = _URI.match(output)
    if scheme is None:
        return
    is_here = scheme[1].lower() == "file"
    raise UsageError(
        f"-o {output}: outputs are written to paths of this machine, and this is a URI",
        hint=f"use -o /{output[scheme.end() :]}"
        if is_here
        else "write to a path here, and copy the output from there",
    )


def _suffix(output: str) -> str:
    return "" if output.endswith(("/", os.sep)) else Path(output).suffix.removeprefix(".")


def _is_misspelled(suffix: str) -> bool:
    return bool(closest_names(suffix, OUTPUT_FORMATS)) and not any(letter.isdigit() for letter in suffix)
