"""Imports that no linter sees: heavy libraries loaded too early, and code that unpickles."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "embedkit"
#: Modules that run before a model is needed, `--help` first.
LIGHT = (
    "embedkit.__main__",
    "embedkit.cli",
    "embedkit.engines.run",
    "embedkit.estimate",
    "embedkit.inference.build",
    "embedkit.inference.encoder",
    "embedkit.inference.pipeline",
    "embedkit.models.repository.shipped_recipe",
    "embedkit.output.inspect",
    "embedkit.output.read",
    "embedkit.report",
    "embedkit.study.run_fit",
    "embedkit.study.run_sweep",
    "embedkit.tokenizer",
    "embedkit.verify.recompute",
)
HEAVY = ("torch", "transformers", "huggingface_hub", "ray", "sklearn", "scipy", "matplotlib", "plotly")
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "copyreg"}
#: Calls that unpickle, or run what they are given, unless told not to.
UNPICKLING = {
    *("torch.load", "torch.save", "torch.jit.load", "torch.package.PackageImporter", "torch.hub.load"),
    *("np.fromfile", "np.memmap", "np.lib.format.read_array", "np.lib.format.write_array", "np.savez"),
    *("pd.read_pickle", "eval", "exec", "compile", "__import__"),
}
#: Reads tensors of a pickled checkpoint, by torch.load(weights_only=True).
READS_CHECKPOINTS = "models/native/checkpoint.py"
#: A run sends the arguments of workers, pickled, to the actors that it started. No file is unpickled.
SENDS_ARGUMENTS = {
    "engines/ray.py": "pickle.dumps",
    "engines/ray_scan.py": "pickle.dumps",
    "engines/ray_actor.py": "pickle.loads",
}


def test_nothing_heavy_is_imported_before_a_model_is_needed():
    script = (
        "import importlib, sys\n"
        f"for name in {LIGHT!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [library for library in {HEAVY!r} if library in sys.modules]\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_encoder_of_texts_in_memory_needs_no_pyarrow():
    script = "import sys, embedkit; embedkit.Encoder; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def called_with(node: ast.Call) -> tuple[str, dict[str | None, str]]:
    return ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


@pytest.mark.parametrize("path", sorted(PACKAGE.iterdir()), ids=lambda path: path.name)
def test_nothing_is_unpickled(path):
    for file in [path, *path.rglob("*.py")]:
        if file.suffix != ".py":
            continue
        where = file.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                may_pickle = where in SENDS_ARGUMENTS and ast.unparse(node) == "import pickle"
                pickles = PICKLES - {"pickle"} if may_pickle else PICKLES
                assert not {module.split(".")[0] for module in modules} & pickles, f"{where}:{node.lineno}"
                # `load` under its own name would hide from the checks below.
                names = {f"{modules[0]}.{alias.name}" for alias in node.names}
                assert not names & {"torch.load", "torch.save", "numpy.load", "numpy.save"}, (
                    f"{where}:{node.lineno}"
                )
            if not isinstance(node, ast.Call):
                continue
            called, given = called_with(node)
            assert not called.startswith("pickle.") or called == SENDS_ARGUMENTS[where], f"{where}:{node.lineno}"
            if not (called == "torch.load" and where == READS_CHECKPOINTS):
                assert called not in UNPICKLING, f"{where}:{node.lineno}"
            if called == "torch.load" or (called.endswith(".from_pretrained") and "transformers/load" in where):
                assert given.get("weights_only") == "True", f"{where}:{node.lineno}: say weights_only=True"
            if called in {"np.load", "np.save", "numpy.load", "numpy.save"}:
                assert given.get("allow_pickle") == "False", f"{where}:{node.lineno}: say allow_pickle=False"
            assert given.get("allow_pickle", "False") == "False", f"{where}:{node.lineno}"
