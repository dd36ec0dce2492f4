"""No socket is opened unless a model must be fetched, and nothing heavy is imported before it is needed.

An audit hook sees every socket that Python code makes, resolves a name for or connects, whichever library
it is in. It is put into processes of their own, before anything else is imported there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import embedkit
from tests.conftest import NOTES

SITECUSTOMIZE = r"""
import os, socket, sys

def watch(event, arguments):
    if not event.startswith("socket.") or (event == "socket.__new__" and arguments[1] == socket.AF_UNIX):
        return
    with open(os.environ.get("SOCKETS_SEEN", os.devnull), "a") as seen:
        seen.write(event + "\n")
    raise socket.gaierror(socket.EAI_AGAIN, "no network here")

sys.addaudithook(watch)
"""

#: Runs in the order given, in one process: none with --offline before one without.
RUNS = """
import json, os, sys
from embedkit.cli import run
for folder, arguments in json.loads(sys.argv[1]):
    os.environ["SOCKETS_SEEN"] = f"{folder}/sockets"
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY), stream)
    code = run(arguments)
    sys.stdout.flush()
    open(f"{folder}/code", "w").write(str(code))
"""

IMPORTS = """
import json, sys
from embedkit.cli import run
code = run(sys.argv[1:])
heavy = {"torch", "transformers", "tokenizers", "huggingface_hub", "numpy", "pyarrow"}
print(json.dumps([code, sorted(heavy & set(sys.modules))]), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Runs a Python script in a process that records sockets and refuses them; its stderr."""
    root = tmp_path_factory.mktemp("watched")
    (root / "sitecustomize.py").write_text(SITECUSTOMIZE)

    def run(script, *arguments):
        # A hub of its own: nothing is in its cache, whatever this machine has.
        theirs = {
            name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))
        }
        ours = {"PYTHONPATH": f"{root}:{NOTES.parents[2]}", "HF_HOME": str(root), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", script, *(str(argument) for argument in arguments)]
        ran = subprocess.run(command, env={**theirs, **ours}, capture_output=True, text=True, check=True)
        return ran.stderr

    return run


@pytest.fixture(scope="module")
def runs(watched, bert, tmp_path_factory):
    """By name: the folder with what a run made, said, and which sockets it asked for."""
    options = {
        "no network": ("-m", "Bio_ClinicalBERT"),
        "folder": ("-m", str(bert)),
        "minilm": ("--limit", "3"),
        "folder, offline": ("-m", str(bert), "--offline"),
        "minilm, offline": ("--limit", "3", "--offline"),
        "not here, offline": ("-m", "Bio_ClinicalBERT", "--offline"),
    }
    folders = {name: tmp_path_factory.mktemp(name) for name in options}
    arguments = [
        (str(folder), ["encode", str(NOTES), "-q", "-o", str(folder / "vectors"), *options[name]])
        for name, folder in folders.items()
    ]
    watched(RUNS, json.dumps(arguments))
    return folders


def sockets(folder):
    seen = folder / "sockets"
    return seen.read_text().split() if seen.exists() else []


@pytest.mark.parametrize("name", ["folder", "minilm", "folder, offline", "minilm, offline"])
def test_a_local_model_needs_no_socket(runs, name):
    folder = runs[name]
    assert sockets(folder) == []
    assert [(folder / said).read_text() for said in ("code", "out", "err")] == ["0", "", ""]
    shape = (3, 384) if "minilm" in name else (66, 32)
    assert embedkit.read(folder / "vectors").vectors.shape == shape


@pytest.mark.parametrize(
    ("name", "reason"), [("not here, offline", "--offline"), ("no network", "cannot be downloaded")]
)
def test_an_unavailable_model_is_an_error_with_reason_and_hint(runs, name, reason):
    folder = runs[name]
    # That sockets are asked for without --offline shows that the watch sees what a library does.
    assert (sockets(folder) != []) == (name == "no network")
    assert (folder / "code").read_text() == "4"
    error, hint = (folder / "err").read_text().splitlines()
    assert error.startswith("error: model 'Bio_ClinicalBERT' (emilyalsentzer/Bio_ClinicalBERT) ")
    assert reason in error
    assert hint.startswith("hint: ")
    assert "--model" in hint


@pytest.mark.parametrize(
    ("arguments", "code", "allowed"),
    [
        (("--help",), 0, set()),
        (("--version",), 0, set()),
        (("encode", "--help"), 0, set()),
        (("encode", "notes.csv", "--pool", "meen"), 2, set()),
        (("encode", "none.csv"), 3, {"numpy", "pyarrow"}),
        (("inspect", "OUT"), 0, {"numpy", "pyarrow"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_that_needs_no_model_imports_no_torch(watched, encode, tmp_path, arguments, code, allowed):
    if "OUT" in arguments:
        assert encode(NOTES, "-o", tmp_path / "out", "--limit", 3).code == 0
        arguments = ("inspect", tmp_path / "out")
    found, heavy = json.loads(watched(IMPORTS, *arguments).splitlines()[-1])
    assert found == code
    assert set(heavy) <= allowed
