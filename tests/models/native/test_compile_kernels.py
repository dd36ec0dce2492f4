"""Kernels are built once, by this user alone, and used only if they give the right numbers."""

from __future__ import annotations

import re
import shutil
import stat
from pathlib import Path

import pytest

from embedkit.models.native import check_kernels
from embedkit.models.native import compile_kernels as built
from embedkit.models.native.kernels import Kernels, load_kernels
from tests.models.native.test_kernels import needs_compiler, needs_tiles


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Compiles in a fifth of the time; the last level counts.
    monkeypatch.setattr(built, "_FLAGS", (*built._FLAGS, "-O0"))
    return tmp_path / "embedkit/cpu-kernels"


def loaded_anew() -> Kernels | None:
    return load_kernels.__wrapped__()


@needs_compiler
def test_a_library_is_built_once_and_only_this_user_can_write_it(empty_cache, monkeypatch):
    assert loaded_anew() is not None
    libraries = list(empty_cache.iterdir())
    assert len(libraries) == 2
    assert not any(stat.S_IMODE(library.stat().st_mode) & 0o022 for library in libraries)
    assert stat.S_IMODE(empty_cache.stat().st_mode) == 0o700
    monkeypatch.setattr(built, "_build", lambda *_: pytest.fail("it was built already"))
    assert loaded_anew() is not None


def test_a_check_that_libraries_have_passed_is_left_out_until_they_or_it_or_the_processor_change(
    empty_cache, tmp_path, monkeypatch
):
    library, other, code = (tmp_path / name for name in ("one.so", "other.so", "check.py"))
    for path in (library, other, code):
        path.write_bytes(path.name.encode())
    results = [False, True, True, True, True, True]

    def left() -> int:
        built.passes(lambda: results.pop(0), str(code), [library, other])
        return len(results)

    assert [left() for _ in range(4)] == [5, 4, 4, 4]
    other.write_bytes(b"rebuilt")
    assert left() == 3
    code.write_bytes(b"stricter")
    assert left() == 2
    monkeypatch.setattr(built, "_answer_about_tiles", lambda: "the tiles are refused")
    assert left() == 1
    (passed,) = {path.parent for path in empty_cache.parent.rglob("*") if path.is_file()}
    assert stat.S_IMODE(passed.stat().st_mode) == 0o700
    passed.chmod(0o777)
    assert left() == 0


@needs_compiler
def test_kernels_are_compared_with_torch_once(empty_cache, monkeypatch):
    assert loaded_anew() is not None
    monkeypatch.setattr(check_kernels, "are_correct", lambda _: pytest.fail("they were compared already"))
    assert loaded_anew() is not None


@needs_compiler
@pytest.mark.parametrize("who", ["library", "folder"])
def test_what_others_can_write_is_not_loaded(who, empty_cache):
    assert loaded_anew() is not None
    library = next(empty_cache.iterdir())
    library.unlink()
    library.write_bytes(b"someone else's code")
    (library if who == "library" else empty_cache).chmod(0o777)
    if who == "folder":
        assert loaded_anew() is None
    else:
        assert loaded_anew() is not None
        assert not stat.S_IMODE(library.stat().st_mode) & 0o022


@needs_compiler
def test_a_corrupt_library_is_rebuilt(empty_cache, tmp_path, monkeypatch):
    assert loaded_anew() is not None
    whole = next(empty_cache.iterdir())
    # Elsewhere: what is loaded already is not looked at again.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    library = tmp_path / "elsewhere/embedkit/cpu-kernels" / whole.name
    library.parent.mkdir(mode=0o700, parents=True)
    library.write_bytes(b"")
    assert loaded_anew() is not None
    assert library.stat().st_size > 0


@needs_compiler
def test_another_processor_or_source_has_a_library_of_its_own(empty_cache, tmp_path, monkeypatch):
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    identity = built._identity(compiler, "kernels.cpp")
    assert identity == built._identity(compiler, "kernels.cpp")
    for name in ("kernels.cpp", "vectors.h"):
        sources = copied_sources(tmp_path / name)
        with (sources / name).open("a") as file:
            file.write("\n")
        monkeypatch.setattr(built, "_FOLDER", sources)
        assert built._identity(compiler, "kernels.cpp") != identity


@needs_compiler
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("x > 127.0f", "x > 0.5f"),
        ("1.1283791065216064f", "1.1293791065216064f"),
        ("steps + 128.5f", "steps + 127.5f"),
        ("bits + 0x7fff", "bits + 0x7f00"),
        ("/ width + norm->eps", "/ width + 2 * norm->eps + 0.01f"),
        ("query + of->reach + 1", "query + of->reach + 2"),
        ("#define PANEL", "this does not compile"),
        pytest.param("load(to + d) * factor", "load(to + d)", marks=needs_tiles),
    ],
)
def test_kernels_that_compute_something_else_are_not_used(right, wrong, empty_cache, tmp_path, monkeypatch):
    sources = copied_sources(tmp_path / "changed")
    (changed,) = (path for path in sources.iterdir() if right in path.read_text())
    changed.write_text(changed.read_text().replace(right, wrong))
    monkeypatch.setattr(built, "_FOLDER", sources)
    assert loaded_anew() is None


def copied_sources(folder: Path) -> Path:
    folder.mkdir()
    names = ["kernels.cpp", "attention.cpp"]
    for name in names:
        shutil.copy(built._FOLDER / name, folder)
        included = re.findall(r'^#include "(.*)"', (folder / name).read_text(), re.MULTILINE)
        names += [header for header in included if header not in names]
    return folder


def test_without_a_compiler_or_a_cache_there_are_none(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert loaded_anew() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert loaded_anew() is None
    assert not Path(tmp_path / "embedkit").exists()
