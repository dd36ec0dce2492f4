"""Tables of the documentation that the code knows; `make docs-tables` writes them into the pages with cog.

Each function returns Markdown for one pair of cog marks. A test fails when a page differs from what its functions
return.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import embedkit
from embedkit import errors
from embedkit.cli import command_tree, environment
from embedkit.config import poolings
from embedkit.models.native.families import FAMILIES
from embedkit.models.repository import aliases as models
from embedkit.models.repository import architectures as types_of_model

ROOT = Path(__file__).resolve().parents[1]
COMMANDS: Mapping[str, Any] = command_tree().commands

EXIT_CODES = {
    errors.EmbedkitError: "a fault in embedkit itself (please report it), or a worker process that died",
    errors.UsageError: "wrong usage: an option, an argument or a configuration file",
    errors.InputError: "bad input: missing, unreadable, or without a column that is needed",
    errors.ModelError: "the model is unavailable, or cannot do what was asked",
    errors.OutputError: "the output cannot be written, or does not match its plan or checksums",
    errors.Stopped: "stopped by a signal; can be resumed",
}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; cells are Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return (
        "\n"
        + "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in lines)
        + "\n"
    )


def code(text: object) -> str:
    """Returns inline code."""
    return f"`{text}`"


def prose(text: str) -> str:
    """Returns a sentence of the code as Markdown on one line, with `<` and `[` escaped outside of inline code."""
    parts = re.split(r"(`[^`]*`)", re.sub(r"\s+", " ", text).strip())
    return "".join(
        part if part.startswith("`") else part.replace("<", "&lt;").replace("[", "\\[") for part in parts
    )


# Command line ------------------------------------------------------------------------------------------


def option_table(parameters: Iterable[Any]) -> str:
    """Returns a table of arguments and options of a command."""

    def names(parameter: Any) -> str:
        is_argument = parameter.param_type_name == "argument"
        spellings = [parameter.metavar] if is_argument else [*parameter.opts, *parameter.secondary_opts]
        return ", ".join(map(code, spellings))

    def default(parameter: Any) -> str:
        if parameter.required:
            return "required"
        return "" if parameter.default is None or parameter.default is False else code(parameter.default)

    return table(("option", "default", "meaning"), ((names(p), default(p), prose(p.help)) for p in parameters))


def commands() -> str:
    """Returns a table of the commands, each with the first sentence of its description."""
    first = {name: re.split(r"(?<=\.)\s", command.help.strip())[0] for name, command in COMMANDS.items()}
    return table(("command", "purpose"), ((f"[`{name}`](#{name})", prose(text)) for name, text in first.items()))


def encode_options() -> str:
    """Returns the options of `encode`: a heading and a table for each section of its `--help`."""
    sections: dict[str, list[Any]] = {}
    for parameter in COMMANDS["encode"].params:
        title = parameter.rich_help_panel or (
            "Progress and configuration" if parameter.param_type_name == "option" else "Input"
        )
        sections.setdefault(title, []).append(parameter)
    return "".join(f"\n### {title}\n" + option_table(parameters) for title, parameters in sections.items())


def command(name: str) -> str:
    """Returns the description of a command, its own options, and the names of those that `encode` has as well."""
    encode = {parameter.name: parameter for parameter in COMMANDS["encode"].params}
    parameters = COMMANDS[name].params
    shared = [p for p in parameters if p.name in encode and encode[p.name].help == p.help]
    own = [p for p in parameters if p not in shared]
    paragraphs = [text for text in COMMANDS[name].help.split("\n\n") if not text.strip().startswith("Example")]
    page = "\n" + "\n\n".join(map(prose, paragraphs)) + "\n" + (option_table(own) if own else "")
    lacking = [code(p.opts[-1]) for p in encode.values() if p.name not in {p.name for p in parameters}]
    options = [code(p.opts[-1]) for p in shared if p.param_type_name == "option"]
    if len(lacking) < len(options):
        return page + f"It also takes the options of `encode`, except {', '.join(lacking)}.\n\n"
    return page + (f"Options as in `encode`: {', '.join(options)}.\n\n" if options else "\n")


def environment_variables() -> str:
    """Returns the environment variables that set defaults, with their options."""
    encode = {parameter.name: parameter for parameter in COMMANDS["encode"].params}
    options = ((environment.variable(name), encode[name]) for name in environment.NAMES)
    rows = ((code(variable), code(one.opts[-1]), prose(one.help)) for variable, one in options)
    return table(("variable", "option", "meaning"), rows)


def exit_codes() -> str:
    """Returns the exit codes, with the exception of each."""
    if set(EXIT_CODES) != {errors.EmbedkitError, *errors.EmbedkitError.__subclasses__()}:
        raise ValueError("EXIT_CODES in docs/tables.py does not have the classes of embedkit.errors")
    rows = [(str(one.exit_code), code(one.__name__), meaning) for one, meaning in EXIT_CODES.items()]
    return table(("code", "exception", "meaning"), [("0", "", "done"), *rows])


def encoder_arguments() -> str:
    """Returns the arguments of `embedkit.Encoder`, with the meanings that its docstring gives."""
    arguments = re.search(r"Args:\n(.*?)\n\n", inspect.getdoc(embedkit.Encoder) or "", re.DOTALL)
    told = dict(re.findall(r"^    (\w+): (.*(?:\n      .*)*)", arguments[1] if arguments else "", re.MULTILINE))
    signature = inspect.signature(embedkit.Encoder).parameters
    rows = ((code(name), code(repr(of.default)), prose(told[name])) for name, of in signature.items())
    return table(("argument", "default", "meaning"), rows)


# Vectors -----------------------------------------------------------------------------------------------


def named(header: Sequence[str], entries: Mapping[str, str]) -> str:
    """Returns a table of names and their meanings."""
    return table(header, ((code(name), prose(meaning)) for name, meaning in entries.items()))


def pooling_names() -> str:
    """Returns the values of `--pool`."""
    return named(("`--pool`", "result, and when to use it"), poolings.WHOLE_NAMES | poolings.POOLING_NAMES)


def layer_aggregations() -> str:
    """Returns the values of `--layer-agg`."""
    return named(("`--layer-agg`", "result for several layers"), poolings.LAYER_AGGREGATIONS)


def pooler_kinds() -> str:
    """Returns the values of `fit --pooler`."""
    return named(("`--pooler`", "result"), poolings.POOLER_KINDS)


def layer_examples(*values: str, n_layers: int) -> str:
    """Returns the layers that some values of `--layers` select in a model of `n_layers` layers."""
    rows = ((code(text), ", ".join(map(str, poolings.resolve_layers(text, n_layers)))) for text in values)
    return table(("`--layers`", f"in a model of {n_layers} layers"), rows)


# Models ------------------------------------------------------------------------------------------------


def aliases() -> str:
    """Returns the models that have a short name, with other spellings of it."""

    def spellings(alias: models.Alias) -> str:
        return ", ".join(map(code, (alias.name, *(name for name in alias.also if "/" not in name))))

    rows = ((spellings(a), code(a.hub), a.casing, prose(a.about)) for a in models.all_aliases().values())
    return table(("alias", "hub id", "casing", "model"), rows)


def architectures() -> str:
    """Returns the types of model, by how they are batched and how their layers are read."""

    def way(of: types_of_model.Architecture) -> tuple[str, str]:
        return of.batches, "collected" if of.layers is None else "hooked"

    names: dict[tuple[str, str], list[str]] = {}
    for name, of in sorted(types_of_model.ARCHITECTURES.items()):
        if all(refusal.when for refusal in of.refusals):
            names.setdefault(way(of), []).append(code(name))
    fastest_first = sorted(
        names, key=lambda key: (("packed", "padded", "equal").index(key[0]), key[1] == "collected")
    )
    other = (*way(types_of_model.UNPROVEN), "any other type, if the check at load finds its vectors right")
    return table(
        ("batches", "layers", "model types"), [*((*key, ", ".join(names[key])) for key in fastest_first), other]
    )


def native_architectures() -> str:
    """Returns the types of model that embedkit computes itself."""
    return table(("model types",), [(", ".join(map(code, sorted(FAMILIES))),)])


def refused_architectures() -> str:
    """Returns the types of model that are refused, with the reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, of in types_of_model.ARCHITECTURES.items():
        for refusal in of.refusals:
            reasons.setdefault(("some of " if refusal.when else "", refusal.reason), []).append(code(name))
    return table(("refused", "reason"), ((some + ", ".join(n), prose(why)) for (some, why), n in reasons.items()))


# Development -------------------------------------------------------------------------------------------


def packages() -> str:
    """Returns what is directly in the package, with the first sentence of each docstring."""
    rows = []
    for path in sorted((ROOT / "embedkit").iterdir()):
        file = path / "__init__.py" if path.is_dir() else path
        if file.suffix == ".py" and file.is_file():
            docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            rows.append((code(path.name + "/" * path.is_dir()), prose(docstring.split("\n\n")[0])))
    return table(("in `embedkit/`", "contents"), rows)


def make_targets() -> str:
    """Returns the described targets of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z0-9-]+):.*?## (.*)$", makefile, re.MULTILINE)
    return table(("target", "purpose"), ((code(f"make {name}"), prose(text)) for name, text in targets))


def job_costs() -> str:
    """Returns the measured cost of each stage, and the times of whole jobs that follow from it."""
    sys.path.insert(0, str(ROOT))
    page: Callable[[], str] = import_module("benchmarks.scale").page
    return f"\n{page()}\n"


def compared_poolers() -> str:
    """Returns the newest measured comparison of poolers."""
    sys.path.insert(0, str(ROOT))
    page: Callable[[], str] = import_module("benchmarks.compared_poolers").page
    return f"\n{page()}\n"


def compared_poolings() -> str:
    """Returns the newest measured comparison of poolings."""
    sys.path.insert(0, str(ROOT))
    page: Callable[[], str] = import_module("benchmarks.compared_poolers").page_of_poolings
    return f"\n{page()}\n"
