"""A marker is in every text: after every kind of run, good or bad, it is nowhere but in the input.

Searched are stdout, stderr, log records, warnings, the temporary folder, the caches, the working folder, and the
output, in which JSON Lines hide nothing. Texts are kept only where `--keep` names them.
"""

from __future__ import annotations

import errno
import faulthandler
import json
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.torture.calls import watched
from benchmarks.torture.kills import ended, forked, loaded_once
from embedkit.cli import main
from embedkit.engines import in_process, shard_loop
from embedkit.study import train_pooler
from tests.conftest import Ran
from tests.engines.test_faults import failing
from tests.sources.bad_input import CASES, MARK, Case

Cli = Callable[..., Ran]
#: Reading these is tried elsewhere; computing their texts of 128 KiB and more would take too long here.
LONG = {"20 MB field", "LF and CRLF in quotes at every offset around a block boundary"}
ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be")
#: What stands in the cells of other columns of `labelled_table`.
ID, LABEL, GROUP, RARE = "idxyzzy", "labelxyzzy", "groupxyzzy", "rarexyzzy"


@pytest.fixture(scope="module")
def loaded() -> Callable[..., Any]:
    return loaded_once(in_process.build)


class Places:
    """All that a run may leave something in, apart from its input."""

    def __init__(self, root: Path, log: Path) -> None:
        self.root = root
        self.log = log
        self.table = root.parent / "input"
        self.table.mkdir()

    def hits(self, ran: Ran, word: str = MARK) -> list[str]:
        """Returns where the marker, or another word, is."""
        needles = [word.encode(encoding) for encoding in ENCODINGS]
        said = {"stdout": ran.out.encode(), "stderr": ran.err.encode(), "log": self.log.read_bytes()}
        files = {str(path): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
        named = {f"name of {path}": str(path.relative_to(self.root)).encode() for path in self.root.rglob("*")}
        found = {**said, **files, **named}
        return [place for place, content in found.items() if any(needle in content for needle in needles)]


@pytest.fixture
def places(loaded: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    root, log = tmp_path / "places", tmp_path / "log"
    for name in ("tmp", "hf", "cache", "here"):
        (root / name).mkdir(parents=True)
    for variable, name in (("TMPDIR", "tmp"), ("HF_HOME", "hf"), ("XDG_CACHE_HOME", "cache"), ("HOME", "cache")):
        monkeypatch.setenv(variable, str(root / name))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(in_process, "build", loaded)
    monkeypatch.chdir(root / "here")
    handler = logging.FileHandler(log)
    logging.getLogger().addHandler(handler)
    monkeypatch.setattr(logging.getLogger(), "level", logging.DEBUG)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        yield Places(root, log)
        logging.captureWarnings(capture=False)
    logging.getLogger().removeHandler(handler)
    handler.close()


@pytest.fixture
def notes_table(places: Places) -> Path:
    """Returns a good table of three shards' texts."""
    path = places.table / "t.csv"
    path.write_text("id,text\n" + "".join(f"{row},{MARK} was seen at {row}\n" for row in range(24)))
    return path


def command(places: Places, *options: object) -> list[object]:
    return [places.table, "-o", "out", "--output-format", "jsonl", "-v", "--progress", "json", *options]


def asked(case: Case) -> list[str]:
    quoting = ("--quoting", case.options["quoting"]) if "quoting" in case.options else ()
    return [word for name in case.options.get("text_columns", ()) for word in ("--text-column", name)] + [*quoting]


@pytest.mark.parametrize("name", [name for name in CASES if name not in LONG])
def test_no_listed_table_leaves_its_texts_anywhere(encode: Cli, places: Places, name: str) -> None:
    for number, case in enumerate(CASES[name]):
        for path in places.table.iterdir():
            path.unlink()
        for file, data in case.files.items():
            (places.table / file).write_bytes(data)
        is_faulty = any(text and text.startswith("<") for text in case.texts or ())
        for rule in ("fail", "null", "skip") if is_faulty else ("fail",):
            ran = encode(*command(places, "--on-bad-row", rule, "--on-exists", "overwrite", *asked(case)))
            expected = 3 if case.texts is None or (is_faulty and rule == "fail") else 0
            assert ran.code == expected, (number, ran.err)
            assert places.hits(ran) == [], (number, rule)


def test_the_search_would_find_it(encode: Cli, places: Places, notes_table: Path) -> None:
    ran = encode(*command(places, "--keep", "text"))
    assert ran.code == 0
    assert [Path(hit).name for hit in places.hits(ran)] == ["part-00000.jsonl"]


class PanicException(BaseException):
    """What a panic in Rust is in Python: no Exception, and its message may quote a text."""


@pytest.mark.parametrize("kind", [ValueError, UnicodeEncodeError, MemoryError, PanicException])
@pytest.mark.parametrize("stage", ["tokenize_shard", "finish_shard", "_write"])
def test_an_internal_error_in_any_thread_shows_no_text(
    encode: Cli,
    places: Places,
    notes_table: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[BaseException],
    stage: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        text = f"{MARK} was seen"
        arguments = ("utf-8", text, 0, 1, text) if kind is UnicodeEncodeError else (text,)
        raise kind(*arguments) from LookupError(text)

    monkeypatch.setattr(shard_loop.ShardLoop if stage == "_write" else shard_loop, stage, fail)
    ran = encode(*command(places, "--shard-rows", 8))
    assert ran.code == 1 or (kind is MemoryError and ran.code == 4), ran.err
    assert "error: " in ran.err
    assert places.hits(ran) == []


@pytest.mark.skipif(sys.platform != "linux", reason="tells paths of open files by /proc")
@pytest.mark.parametrize("kind", ["open", "write", "torn", "fsync", "rename", "mkdir", "unlink"])
@pytest.mark.parametrize("output", ["out", "out.jsonl"])
def test_a_disk_error_neither_shows_nor_leaves_a_text(
    encode: Cli, places: Places, notes_table: Path, kind: str, output: str
) -> None:
    for allowed in (0, 1, 3):
        with watched(places.root / "here", failing(kind, errno.EIO, allowed)):
            ran = encode(*command(places, "--shard-rows", 8, "--on-exists", "overwrite", "-o", output))
        assert ran.code in {0, 5}, ran.err
        assert places.hits(ran) == []


def test_an_input_that_changes_or_is_too_long_shows_no_text(
    encode: Cli, places: Places, notes_table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = encode(*command(places, "--on-long", "error", "--max-length", "5"))
    assert (ran.code, places.hits(ran)) == (3, [])
    finish_shard = shard_loop.finish_shard

    def changing(*arguments: Any, **options: Any) -> Any:
        with notes_table.open("a") as file:
            file.write(f'99,"{MARK}')
        return finish_shard(*arguments, **options)

    monkeypatch.setattr(shard_loop, "finish_shard", changing)
    ran = encode(*command(places))
    assert (ran.code, places.hits(ran)) == (3, [])


@pytest.mark.skipif(sys.platform != "linux", reason="core files are Linux's here")
def test_a_crash_leaves_no_core_file_and_no_text_in_the_stack(
    places: Places, notes_table: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    def crash(*_: object, **__: object) -> None:
        print("core", resource.getrlimit(resource.RLIMIT_CORE)[0], file=sys.stderr, flush=True)
        os.abort()

    def crashing() -> int:
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8") for number in (1, 2))  # noqa: PTH123, SIM115
        faulthandler.enable()
        resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
        main()

    monkeypatch.setattr(shard_loop, "finish_shard", crash)
    monkeypatch.setattr(sys, "argv", ["embedkit", "encode", *map(str, command(places, "-m", bert))])
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    assert ended(forked(crashing, tmp_path / "said")) == -signal.SIGABRT
    said = (tmp_path / "said").read_text()
    assert "core 0\n" in said
    assert "Fatal Python error: Aborted" in said
    assert places.hits(Ran(0, said, "")) == []


def test_listed_rejects_hold_only_position_and_reason(encode: Cli, places: Places) -> None:
    (places.table / "t.jsonl").write_text(f'{{"text": "{MARK}"}}\n{{"text": ["{MARK}"]}}\n')
    ran = encode(*command(places, "--on-bad-row", "skip"))
    assert (ran.code, places.hits(ran)) == (0, [])
    (line,) = (places.root / "here" / "out" / "rejects" / "part-00000.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "row": 1,
        "file": str(places.table / "t.jsonl"),
        "offset": len(f'{{"text": "{MARK}"}}\n'),
        "code": "text_not_string",
    }


# Labels, updates, comparisons ----------------------------------------------------------------------------


@pytest.fixture
def labelled_table(places: Places) -> Path:
    """Returns a table of three shards' texts with labels, one of them rare and one missing, of six patients."""
    path = places.table / "labelled.csv"
    rows = [
        f"{ID}{row},{MARK} was seen at {row} by {'a b c' if row % 2 else 'd e'},{LABEL}{row % 2},{GROUP}{row % 6}"
        for row in range(24)
    ]
    rows += [f"{ID}r,{MARK} but once,{RARE},{GROUP}0", f"{ID}m,{MARK} unlabelled,,{GROUP}1"]
    path.write_text("id,text,label,patient\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture
def studied(embedkit_cli: Cli, places: Places, labelled_table: Path, bert: Path) -> Callable[..., Ran]:
    """Runs a command on the labelled table, and checks that no cell is but where the page on privacy says."""

    def ran(command: str, *arguments: object, code: int = 0, **allowed: set[str]) -> Ran:
        table = [labelled_table] if command in {"sweep", "fit", "encode"} else []
        model = ["-m", bert] if table and "--with-head" not in arguments else []
        labels = ["--label", "label", "--group", "patient"] if command in {"sweep", "fit"} else []
        done = embedkit_cli(command, *table, *model, *labels, *arguments)
        assert done.code == code, done.err
        for word, name in ((MARK, "texts"), (ID, "ids"), (LABEL, "labels"), (GROUP, "groups"), (RARE, "rare")):
            hits = {Path(hit).name for hit in places.hits(done, word)}
            assert hits <= allowed.get(name, set()), (command, name)
        return done

    return ran


SWEPT = ("--pool", "mean", "--layers", "-1", "--folds", 3, "--pooler", "pca:2")
OF_CLASSES = {"evaluation.json", "predictions.parquet", "winner.safetensors"}
OF_ROWS = {"predictions.parquet", *(f"part-{shard:05}.{kind}" for shard in range(4) for kind in ("arrow", "npy"))}


def test_a_sweep_and_its_report_hold_names_of_classes_and_no_other_cell(
    studied: Callable[..., Ran], places: Places
) -> None:
    kept = {"labels": OF_CLASSES, "ids": OF_ROWS}
    studied("sweep", "-o", "study", "--exclude-rare", 2, *SWEPT, **kept)
    assert LABEL.encode() in (places.root / "here/study/evaluation.json").read_bytes()
    studied("report", "study", **kept | {"labels": OF_CLASSES | {"study.report.html"}})


def test_fitted_files_and_scores_hold_names_of_classes_and_no_other_cell(studied: Callable[..., Ran]) -> None:
    kept = {"labels": {"head.safetensors"}, "rare": {"head.safetensors"}}
    studied("fit", "--pooler", "attention", "--epochs", 1, "-o", "head.safetensors", **kept)
    kept["labels"] = kept["rare"] = {"head.safetensors", "plan.json", "manifest.json", "part-00000.jsonl"}
    kept["ids"] = {"part-00000.jsonl"}
    scored = ("--pool", "head.safetensors", "--with-head", "--output-format", "jsonl")
    studied("encode", *scored, "-o", "out", **kept)
    studied("encode", "-v", "--progress", "json", *scored, "-o", "out", "--on-exists", "overwrite", **kept)


def test_updates_and_comparisons_show_neither_texts_nor_ids(studied: Callable[..., Ran], bert: Path) -> None:
    kept = {"ids": {"part-00000.jsonl"}}
    form = ("--output-format", "jsonl", "--progress", "json", "-v")
    studied("encode", "-o", "old", "--keep-hashes", "--limit", 20, *form, **kept)
    studied("encode", "-o", "new", "--update", "old", *form, **kept)
    studied("encode", "-o", "max", "--pool", "max", "--limit", 23, *form, **kept)
    studied("diff", "new", "max", code=5, **kept)
    studied("diff", "new", "max", "--json", code=5, **kept)
    pages = {"ids": {"part-00000.jsonl", "new.report.html"}}
    studied("report", "new", "--compare", "max", **pages)
    studied("encode", "-o", "other", "--update", "max", code=5, **pages)


@pytest.mark.parametrize("kind", [ValueError, MemoryError])
@pytest.mark.parametrize("command", ["fit", "sweep"])
def test_an_internal_error_while_something_is_fitted_neither_shows_nor_leaves_a_cell(
    studied: Callable[..., Ran],
    places: Places,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    kind: type[BaseException],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind(f"{MARK} {ID} {LABEL} {GROUP}") from LookupError(MARK)

    monkeypatch.setattr(train_pooler, "fit_pooler", fail)
    output = "study" if command == "sweep" else "head.safetensors"
    options = (*SWEPT[:-2], "--exclude-rare", 2) if command == "sweep" else ()
    studied(
        command, "-o", output, "--pooler", "attention", *options, code=1 if kind is ValueError else 4, ids=OF_ROWS
    )
    assert [path.name for path in (places.root / "here").rglob("*.states")] == []
