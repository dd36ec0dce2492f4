"""Code that a model brings along runs only where it is allowed, is used then, and is in the fingerprint."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModel

from embedkit import Encoder
from embedkit.errors import ModelError
from tests import tiny_models

COMMIT = "0" * 40
TRUST = ("--trust-remote-code", "--revision", COMMIT)
TEXTS = ["the patient was seen", "no chest pain"]
TABLE = "id,text,label\n" + "".join(f"{n},{text},{n % 2}\n" for n, text in enumerate(TEXTS * 4))
RAN = "import pathlib\npathlib.Path({ran!r}).touch()\n"
TOKENIZER = """
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast
class Own(PreTrainedTokenizerFast):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("e", "a")])
"""
MODEL = """
from transformers import BertConfig, BertModel
from .part import FACTOR
class OwnConfig(BertConfig):
    model_type = "own_type"
class OwnModel(BertModel):
    config_class = OwnConfig
    def forward(self, *args, **options):
        out = super().forward(*args, **options)
        out.last_hidden_state = out.last_hidden_state * FACTOR
        return out
"""


def edit(path: Path, **settings: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return tiny_models.make("bert", tmp_path_factory.mktemp("saved") / "bert", n_layers=1).folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture
def ran(tmp_path) -> Path:
    """Returns the file that is there as soon as code of the model has run."""
    return tmp_path / "ran"


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    return path


def own_tokenizer(folder: Path, ran: Path, *, file: str = "tokenizer_config.json") -> Path:
    (folder / "tokenization_own.py").write_text(RAN.format(ran=str(ran)) + TOKENIZER)
    if file == "tokenizer_config.json":
        edit(folder / file, tokenizer_class="Own")
    edit(folder / file, auto_map={"AutoTokenizer": ["tokenization_own.Own", None]})
    return folder


def own_model(folder: Path, ran: Path, *, model_type: str = "own_type", factor: int = 2) -> Path:
    (folder / "part.py").write_text(f"FACTOR = {factor}\n")
    (folder / "modeling_own.py").write_text(RAN.format(ran=str(ran)) + MODEL)
    classes = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    edit(folder / "config.json", model_type=model_type, auto_map=classes)
    return folder


OWN = {
    "tokenizer": own_tokenizer,
    "tokenizer in config.json": lambda folder, ran: own_tokenizer(folder, ran, file="config.json"),
    "unknown type": own_model,
    "known type": lambda folder, ran: own_model(folder, ran, model_type="bert"),
}
COMMANDS = {
    "encode": ("encode", "-o", "o.parquet"),
    "plan": ("plan",),
    "sweep": ("sweep", "--label", "label", "-o", "swept"),
    "fit": ("fit", "--pooler", "idf", "-o", "idf.safetensors"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("own", OWN)
def test_a_model_that_needs_code_is_refused_by_name_before_any_of_it_runs(
    own, command, folder, ran, table, embedkit_cli, monkeypatch
):
    monkeypatch.chdir(table.parent)
    OWN[own](folder, ran)
    name, *options = COMMANDS[command]
    # What once was the answer to transformers' question.
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"y\n" * 100)))
    did = embedkit_cli(name, table, "-m", folder, *options)
    assert did.code == 4
    assert "needs its own code" in did.err
    assert ("tokenization_own.Own" if "tokenizer" in own else "modeling_own.OwnModel") in did.err
    assert "--trust-remote-code" in did.err
    assert not ran.exists()


@pytest.mark.parametrize("answer", ["y", "n", ""])
def test_rows_on_stdin_are_rows_and_no_answers(answer, folder, ran, embedkit_cli, monkeypatch):
    own_tokenizer(folder, ran)
    rows = f"{answer or 'x'}\n" * 50
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rows.encode())))
    did = embedkit_cli("encode", "-", "--format", "txt", "-m", folder, "-o", "-", *TRUST)
    assert did.code == 0, did.err
    assert len(did.out.splitlines()) == 50


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_a_tokenizer_of_the_models_own_is_used_where_it_may_run(file, folder, ran):
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    own_tokenizer(folder, ran, file=file)
    encoder = Encoder(str(folder), pool="mean", trust_remote_code=True, revision=COMMIT)
    own = get_class_from_dynamic_module("tokenization_own.Own", str(folder))
    theirs = own.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    for text, vector in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        states = model(**theirs(text, return_tensors="pt")).last_hidden_state[0]
        np.testing.assert_allclose(vector, states.mean(0).detach().numpy(), atol=1e-4)
    assert not np.allclose(encoder.encode(TEXTS), Encoder(str(_plain(folder)), pool="mean").encode(TEXTS))


def _plain(folder: Path) -> Path:
    """Returns the same model without code."""
    copy = shutil.copytree(folder, folder.with_name("plain"))
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((copy / name).read_text())
        settings.pop("auto_map", None)
        (copy / name).write_text(json.dumps(settings | ({} if name == "config.json" else _BERT)))
    return copy


_BERT = {"tokenizer_class": "BertTokenizer"}


@pytest.mark.parametrize("model_type", ["own_type", "bert"])
def test_an_encoder_of_the_models_own_is_used_where_it_may_run(model_type, folder, ran):
    plain = Encoder(str(folder), pool="mean").encode(TEXTS)
    own_model(folder, ran, model_type=model_type)
    own = Encoder(str(folder), pool="mean", trust_remote_code=True, revision=COMMIT)
    np.testing.assert_allclose(own.encode(TEXTS), 2 * plain, atol=1e-4)
    assert any("code in the model's files is run" in notice for notice in own.notices)


def test_a_setting_that_any_file_of_its_code_reads_is_followed_and_others_are_refused(folder, ran):
    own_model(folder, ran, model_type="bert")
    (folder / "deeper.py").write_text("def scale(config): return getattr(config, 'output_scale_factor', 1.0)\n")
    code = (folder / "modeling_own.py").read_text()
    code = code.replace("import FACTOR", "import FACTOR\nfrom .deeper import scale").replace(
        "* FACTOR", "* scale(self.config)"
    )
    (folder / "modeling_own.py").write_text(code)

    def encoded(factor: float):
        edit(folder / "config.json", output_scale_factor=factor)
        return Encoder(str(folder), pool="mean", trust_remote_code=True, revision=COMMIT).encode(TEXTS)

    np.testing.assert_allclose(encoded(3.0), 3 * encoded(1.0), atol=1e-4)
    edit(folder / "config.json", rotary_scale_factor=2.0)
    with pytest.raises(ModelError, match="rotary_scale_factor"):
        encoded(1.0)


@pytest.mark.parametrize("changed", ["modeling_own.py", "part.py", "tokenization_own.py", "deep/er.py"])
def test_every_file_of_code_is_in_the_fingerprint(changed, folder, ran):
    own_tokenizer(own_model(folder, ran), ran)
    (folder / "deep").mkdir()
    (folder / "deep/er.py").touch()

    def encoder() -> Encoder:
        return Encoder(str(folder), pool="mean", trust_remote_code=True, revision=COMMIT)

    before = encoder()
    with (folder / changed).open("a") as file:
        file.write("\nFACTOR = 3\n")
    after = encoder()
    assert before.fingerprint != after.fingerprint
    # Changed code is loaded anew, in the same process too.
    scale = 1.5 if changed in {"modeling_own.py", "part.py"} else 1
    np.testing.assert_allclose(after.encode(TEXTS), scale * before.encode(TEXTS), atol=1e-4)


def test_code_that_may_not_run_is_in_no_fingerprint(folder):
    before = Encoder(str(folder), pool="mean").fingerprint
    (folder / "convert.py").write_text("print()\n")
    assert Encoder(str(folder), pool="mean").fingerprint == before


def test_folders_of_one_name_and_one_configuration_get_each_their_own_code(saved, tmp_path, ran):
    vectors = []
    for factor in (2, 5):
        folder = shutil.copytree(saved, tmp_path / str(factor) / "model")
        own_model(folder, ran)
        (folder / "configuration_own.py").write_text(
            "from transformers import BertConfig\nclass OwnConfig(BertConfig):\n    model_type = 'own_type'\n"
        )
        source = (folder / "modeling_own.py").read_text()
        start, stop = source.index("class OwnConfig"), source.index("class OwnModel")
        source = f"{source[:start]}from .configuration_own import OwnConfig\n{source[stop:]}"
        (folder / "modeling_own.py").write_text(source.replace("from .part import FACTOR", f"FACTOR = {factor}"))
        classes = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
        edit(folder / "config.json", auto_map=classes)
        encoder = Encoder(str(folder), pool="mean", trust_remote_code=True, revision=COMMIT)
        vectors.append(encoder.encode(TEXTS))
    np.testing.assert_allclose(vectors[1], 2.5 * vectors[0], atol=1e-4)


@pytest.mark.parametrize(
    ("auto_map", "told"),
    [
        ({"AutoModel": "other/repo--modeling_own.OwnModel"}, "another repository, other/repo"),
        ({"AutoModel": "gone.OwnModel"}, "does not exist: gone.py"),
        ({"AutoModel": "no_class"}, "does not name classes"),
        ({"AutoModel": 1}, "does not name classes"),
        ("modeling_own.OwnModel", "does not name classes"),
    ],
)
def test_code_that_the_revision_does_not_fix_or_that_is_not_there_is_refused(auto_map, told, folder, ran):
    own_model(folder, ran)
    edit(folder / "config.json", auto_map=auto_map)
    with pytest.raises(ModelError, match=told):
        Encoder(str(folder), trust_remote_code=True, revision=COMMIT)
    assert not ran.exists()


def test_code_for_which_transformers_has_its_own_is_not_run_and_that_is_said(folder):
    plain = Encoder(str(folder), pool="mean").encode(TEXTS)
    edit(folder / "config.json", auto_map={"AutoModel": "modeling_bert.BertModel"})
    encoder = Encoder(str(folder), pool="mean")
    np.testing.assert_allclose(encoder.encode(TEXTS), plain, atol=1e-5)
    assert any("modeling_bert.BertModel" in notice and "not run" in notice for notice in encoder.notices)


def test_no_call_leaves_it_to_transformers_whether_code_runs():
    """Left out, `trust_remote_code` makes transformers ask on stdin."""
    for path in (Path(__file__).parents[3] / "embedkit").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        for call in ("AutoConfig.from_pretrained(", "AutoTokenizer.from_pretrained(", "loader.from_pretrained("):
            _, *rest = source.split(call)
            for arguments in rest:
                said = arguments[: arguments.index(")")]
                assert "trust_remote_code" in said or "**options" in said, f"{path}: {call}{said})"
