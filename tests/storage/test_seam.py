"""Files of the user are opened, listed, checked and removed through `embedkit.storage` alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import embedkit

PACKAGE = Path(embedkit.__file__).parent

#: Modules, or packages, that may use the operating system's files directly.
EXCEPTIONS = {
    "storage": "the seam itself",
    "models": "folders of models, which transformers reads from the local disk, and the cache of compiled kernels",
    "tokenizer": "folders of models",
    "inference/tokenizer_setup.py": "folders of models",
    "cli/doctor.py": "devices and programs of this machine",
    "cli/printing.py": "the null device in place of a closed stream",
    "report/page.py": "files of embedkit itself, by importlib.resources",
    "engines/node.py": "folders of models",
    "engines/ray_cluster.py": "the private folder of a Ray that is started for one run",
    "sources/columnar.py": "memory maps of files that the seam has opened",
}

_PATH_METHODS = frozenset(
    {
        *(
            "exists",
            "glob",
            "is_dir",
            "is_file",
            "is_symlink",
            "iterdir",
            "lstat",
            "mkdir",
            "read_bytes",
            "readlink",
        ),
        *("read_text", "rename", "resolve", "rglob", "rmdir", "samefile", "stat", "symlink_to", "hardlink_to"),
        *("touch", "unlink", "walk", "write_bytes", "write_text"),
    }
)
_OS_FUNCTIONS = frozenset(
    {
        *(
            "access",
            "chmod",
            "fsync",
            "link",
            "listdir",
            "lstat",
            "makedirs",
            "mkdir",
            "open",
            "readlink",
            "remove",
        ),
        *("removedirs", "rename", "replace", "rmdir", "scandir", "stat", "symlink", "truncate", "unlink", "utime"),
        *("walk", "path.exists", "path.getmtime", "path.getsize", "path.isdir", "path.isfile", "path.islink"),
        *("path.ismount", "path.lexists", "path.realpath", "path.samefile"),
    }
)
_MODULES = ("shutil.", "tempfile.", "glob.glob", "glob.iglob", "io.open")
#: Functions of pyarrow and numpy that open a path.
_MAPS = frozenset({"pa.OSFile", "pa.memory_map", "np.memmap", "np.fromfile", "pq.ParquetDataset"})
#: Those that take a path or an open file: only the latter, by one of these names, is through the seam.
_READERS = frozenset(
    {
        *("np.load", "np.save", "pq.ParquetFile", "pq.ParquetWriter", "pq.read_metadata", "pq.read_schema"),
        *("pq.read_table", "pq.write_table", "pa.ipc.new_file", "pa.ipc.open_file", "pa.ipc.open_stream"),
    }
)
_OPEN_FILES = ("file", "mapped", "source", "io.BytesIO()", "opener.mapped(")


def direct_uses(source: str) -> Iterator[tuple[int, str]]:
    """Yields the line and the call of each use of a file that does not go through the seam."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        mode = node.args[0] if node.args else None
        opens = method == "open" and isinstance(mode, ast.Constant) and isinstance(mode.value, str)
        replaces = method == "replace" and len(node.args) == 1 and not node.keywords
        given = ast.unparse(node.args[1 if name == "pq.write_table" else 0]) if node.args else ""
        reads = name in _MAPS or (name in _READERS and not given.startswith(_OPEN_FILES))
        if (
            name == "open"
            or (name.startswith("os.") and name.removeprefix("os.") in _OS_FUNCTIONS)
            or name.startswith(_MODULES)
            or (method in _PATH_METHODS and not name.startswith("os."))
            or opens
            or replaces
            or reads
        ):
            yield node.lineno, name


def test_files_are_used_through_the_seam_alone() -> None:
    found = [
        f"embedkit/{name}:{line}: {call}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in [path.relative_to(PACKAGE).as_posix()]
        if name not in EXCEPTIONS and name.partition("/")[0] not in EXCEPTIONS
        for line, call in direct_uses(path.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", sorted(EXCEPTIONS))
def test_every_exception_is_still_needed(name: str) -> None:
    files = [PACKAGE / name] if name.endswith(".py") else (PACKAGE / name).rglob("*.py")
    assert any(True for path in files for _ in direct_uses(path.read_text()))


@pytest.mark.parametrize(
    ("source", "is_direct"),
    [
        ("open(name)", True),
        ("path.open('rb')", True),
        ("(folder / 'a').unlink(missing_ok=True)", True),
        ("os.path.isdir(name)", True),
        ("shutil.rmtree(folder)", True),
        ("temporary.replace(final)", True),
        ("destination.open()", False),
        ("open_file(path)", False),
        ("text.replace('a', 'b')", False),
        ("replace(record, spans=())", False),
        ("os.path.join(folder, name)", False),
        ("pq.read_schema(path)", True),
        ("pq.ParquetFile(folder / name, page_checksum_verification=True)", True),
        ("pq.write_table(table, path)", True),
        ("np.load(path, mmap_mode='r')", True),
        ("pa.memory_map(str(path))", True),
        ("pq.read_schema(file)", False),
        ("pa.ipc.open_file(opener.mapped(path))", False),
    ],
)
def test_the_search_finds_uses_of_files_and_nothing_else(source: str, is_direct: bool) -> None:
    assert bool(list(direct_uses(source))) is is_direct
