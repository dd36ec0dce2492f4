"""A folder that replaces another one: at every moment the old one is whole, or the new one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from embedkit.errors import OutputError
from embedkit.output.commit import OutputFolder
from embedkit.storage import replace_folder
from embedkit.storage.replace_folder import Replacement


class _KilledError(BaseException):
    """Ends a run at once, as SIGKILL does: nothing catches it."""


def clear(folder: Path) -> None:
    OutputFolder(folder).clear()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Returns an output, and files of the user's own among its files."""
    out = tmp_path / "out"
    for name, content in {
        "plan.json": "old",
        "embeddings/part-00000.npy": "old",
        "rejects/part-00000.jsonl": "old",
        "notes.txt": "mine",
        "embeddings/notes.txt": "mine too",
    }.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(content)
    return out


def made(out: Path) -> Replacement:
    new = Replacement(out, clear)
    new.start()
    (new.next / "embeddings").mkdir()
    (new.next / "plan.json").write_text("new")
    (new.next / "embeddings" / "part-00000.npy").write_text("new")
    return new


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


NEW = {"plan.json": "new", "embeddings/part-00000.npy": "new"}
MINE = {"notes.txt": "mine", "embeddings/notes.txt": "mine too"}


@pytest.mark.parametrize("can_exchange", [True, False])
def test_the_new_folder_takes_the_place_and_files_of_others_move_to_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(replace_folder, "_renameat2", lambda: None)
    place.chmod(0o750)
    assert made(place).finish() == []
    assert contents(place) == {**NEW, **MINE}
    assert place.stat().st_mode & 0o7777 == 0o750
    assert [path.name for path in place.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_killed_at_any_call_the_output_is_the_old_one_or_the_new_one_and_the_next_run_tidies_up(
    place: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(replace_folder, "_renameat2", lambda: None)
    old = contents(place)
    seen = set()
    for allowed in range(100):
        new = made(place)
        left = iter(range(allowed))
        with monkeypatch.context() as patch:
            for name in ("rename", "unlink", "rmdir", "fsync", "open"):
                patch.setattr(os, name, _counted(getattr(os, name), left))
            try:
                new.finish()
                break
            except _KilledError:
                pass
        if can_exchange:  # what a reader finds at any moment
            assert (place / "plan.json").read_text() in {"old", "new"}
        assert Replacement(place, clear).recover() == []
        found = {name: text for name, text in contents(place).items() if not name.startswith(".former")}
        assert found in (old, {**NEW, **MINE})
        seen.add(found["plan.json"])
        if found["plan.json"] == "new":
            assert [path.name for path in place.parent.iterdir()] == ["out"]
            OutputFolder(place).clear()
            for name, content in old.items():
                (place / name).parent.mkdir(exist_ok=True)
                (place / name).write_text(content)
    assert seen == {"old", "new"}
    assert 10 < allowed < 99


def _counted(real: Callable[..., object], left: object) -> Callable[..., object]:
    def call(*arguments: object, **options: object) -> object:
        if next(left, None) is None:  # type: ignore[call-overload]
            raise _KilledError
        return real(*arguments, **options)

    return call


def test_an_old_folder_that_cannot_be_removed_is_reported_and_the_new_output_is_in_its_place(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = made(place)

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    new.clear = refuse
    (notice,) = new.finish()
    assert "out.next" in notice
    assert (place / "plan.json").read_text() == "new"
    assert Replacement(place, clear).recover() == []
    assert contents(place) == {**NEW, **MINE}


def test_a_mount_point_is_refused_before_anything_is_computed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda _: True)
    with pytest.raises(OutputError, match="a mount point"):
        Replacement(place, clear).check_movable()
