"""DESIGN.md's rules about who knows whom, held by reading the imports; nothing is imported here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

STAGES = (
    *("sources", "tokenizer", "batching", "models", "pooling", "units", "sinks", "commit", "memory", "transfer"),
    "replacement",
)
#: From the command line down; a unit imports what stands in the lines below its own, never beside or above.
LEVELS = (
    ("cli",),
    ("forecast", "study"),
    ("engines", "encoder", "report", "resampling"),
    ("assembly", "inspection", "results", "verification"),
    ("destination", "drafting", "pipeline"),
    ("embedding", "request"),
    ("flow",),
    STAGES,
    ("config", "plan", "recipe", "whole_files"),
    (
        *("arguments", "arrow_values", "disk", "given_texts", "leftovers", "norms"),
        *("probe", "probe_child", "seal", "turns"),
    ),
    ("streams",),
    ("records", "errors", "device_use", "suggest"),
)
#: What a stage may know beside itself.
COMMON = {
    "arrow_values",
    "errors",
    "streams",
    "records",
    "device_use",
    "suggest",
    "config",
    "disk",
    "leftovers",
    "probe",
    "seal",
    "whole_files",
}
#: Imports that the rules above forbid, and why they are right all the same.
EXCEPTIONS = {
    ("config", "embedkit.pooling.names"): "checks --pool and --layers before a model is found; names, no torch",
}
#: What runs before a model is needed: these must not import torch or transformers, directly or through others.
LIGHT = (
    "embedkit",
    "embedkit.__main__",
    "embedkit.cli",
    "embedkit.config",
    "embedkit.errors",
    "embedkit.records",
    "embedkit.plan",
    "embedkit.recipe",
    "embedkit.commit",
    "embedkit.destination",
    "embedkit.sources",
    "embedkit.sinks",
    "embedkit.encoder",
    "embedkit.results",
    "embedkit.inspection",
    "embedkit.verification",
    "embedkit.resampling",
    "embedkit.report",
    "embedkit.batching",
    "embedkit.assembly",
    "embedkit.drafting",
    "embedkit.forecast",
    "embedkit.pipeline",
    "embedkit.request",
    "embedkit.tokenizer",
    "embedkit.engines.local",
    "embedkit.engines.lanes",
    "embedkit.study.labels",
    "embedkit.study.sweep",
    "embedkit.study.fit",
    "embedkit.study.split",
    "embedkit.pooling.chosen",
    "embedkit.pooling.files",
    "embedkit.pooling.head",
    "embedkit.models.aliases",
    "embedkit.models.architectures",
    "embedkit.models.resolve",
    "embedkit.models.settings",
    "embedkit.models.shipped",
    "embedkit.models.tokenizing",
    "embedkit.pooling.names",
    "embedkit.pooling.widths",
)
HEAVY = {"torch", "transformers", "huggingface_hub", "ray", "sklearn", "scipy", "matplotlib"}
#: Libraries that one place alone may know, and where that is.
#: Libraries that make objects of bytes by running what the bytes say.
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "copyreg"}
#: The one module that reads tensors of a pickle itself, and nothing but tensors.
READS_TENSORS_OF_PICKLES = "embedkit.models.lean.checkpoint"
#: Functions that unpickle, or do unless they are told not to.
UNPICKLING = {
    *("torch.load", "torch.save", "torch.jit.load", "torch.package.PackageImporter", "torch.hub.load"),
    *("np.fromfile", "np.memmap", "np.lib.format.read_array", "np.lib.format.write_array", "np.savez"),
    *("pd.read_pickle", "eval", "exec", "compile", "__import__"),
}
KNOWN_IN = {
    "typer": "embedkit.cli",
    "click": "embedkit.cli",
    "tqdm": "embedkit.cli",
    "ray": "embedkit.engines",
    "plotly": "embedkit.report",
}


@dataclass(frozen=True)
class Module:
    """A module's syntax tree, and what it imports: when it is imported itself, and ever."""

    name: str
    tree: ast.Module
    at_import: frozenset[str]
    ever: frozenset[str]

    @property
    def unit(self) -> str:
        return unit_of(self.name)


def unit_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def imports(node: ast.AST, *, inside: bool) -> Iterator[str]:
    """Modules imported under a node; what only types need is left out, and functions unless `inside`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not inside:
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            # `from package import module` imports both.
            yield child.module
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imports(child, inside=inside)


def parsed(path: Path) -> Module:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    found = [frozenset(imports(tree, inside=inside)) for inside in (False, True)]
    return Module(name, tree, *found)


MODULES = {module.name: module for module in map(parsed, sorted((ROOT / "embedkit").rglob("*.py")))}


def known_here(names: frozenset[str]) -> set[str]:
    """Of imported names, embedkit's modules; a name inside a module has been yielded beside that module."""
    return {name for name in names if name in MODULES}


def level(unit: str) -> int:
    return next(number for number, units in enumerate(LEVELS) if unit in units)


def test_every_module_has_its_place_in_the_levels():
    assert {module.unit for module in MODULES.values()} == {"", "__main__", *sum(LEVELS, ())}


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_a_module_imports_only_what_lies_below_it(module):
    if module.unit in {"", "__main__"}:
        return
    for name in known_here(module.ever):
        unit = unit_of(name)
        if unit not in {"", module.unit} and (module.unit, name) not in EXCEPTIONS:
            # `embedkit.pooling` comes with `embedkit.pooling.names`, and holds nothing of its own.
            if any(allowed.startswith(f"{name}.") for by, allowed in EXCEPTIONS if by == module.unit):
                continue
            assert level(unit) > level(module.unit), f"{module.name} imports {name}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_knows_no_other_stage(stage):
    known = {
        unit_of(name) for module in MODULES.values() if module.unit == stage for name in known_here(module.ever)
    }
    assert known - {"", stage} <= COMMON


@pytest.mark.parametrize("start", LIGHT)
def test_nothing_heavy_is_imported_before_a_model_is_needed(start):
    waiting = [name for name in MODULES if name == start or (start != "embedkit" and name.startswith(f"{start}."))]
    assert waiting
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        direct = MODULES[name].at_import
        heavy = {imported for imported in direct if imported.split(".")[0] in HEAVY}
        assert not heavy, f"{start} reaches {name}, which imports {sorted(heavy)}"
        packages = {name.rpartition(".")[0]} & MODULES.keys()
        waiting += known_here(direct) | packages


@pytest.mark.parametrize("library", KNOWN_IN)
def test_a_library_is_known_in_one_place(library):
    importers = {
        module.name for module in MODULES.values() if any(name.split(".")[0] == library for name in module.ever)
    }
    assert {name for name in importers if not f"{name}.".startswith(f"{KNOWN_IN[library]}.")} == set()


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_a_module_prints_only_in_cli_and_unpickles_nothing(module):
    assert not {name.split(".")[0] for name in module.ever} & PICKLES
    # Under its own name, `load` would hide from what follows.
    assert not module.ever & {"torch.load", "numpy.load", "numpy.save", "torch.save"}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called != "print" or module.unit == "cli", f"line {node.lineno}"
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            reads_tensors = called == "torch.load" and given.get("weights_only") == "True"
            if not (reads_tensors and module.name == READS_TENSORS_OF_PICKLES):
                assert called not in UNPICKLING, f"line {node.lineno}"
            assert given.get("allow_pickle", "False") == "False", f"line {node.lineno}"
            assert given.get("weights_only", "True") == "True", f"line {node.lineno}"
            if called in {"np.load", "np.save", "numpy.load", "numpy.save"}:
                assert "allow_pickle" in given, f"line {node.lineno}: say allow_pickle=False"
            if called.endswith(".from_pretrained") and module.name == "embedkit.models.load":
                assert "weights_only" in given, f"line {node.lineno}: say weights_only=True"
