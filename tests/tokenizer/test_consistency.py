"""The tokenizer is the one that the checkpoint's files describe, whatever transformers makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from embedkit import Encoder
from embedkit.errors import ModelError
from embedkit.models.repository.aliases import all_aliases
from embedkit.tokenizer import load_tokenizer
from tests import tiny_models

TEXT = "The patient denies chest pain, 25 mg."
KINDS = (
    "albert",
    "camembert",
    "deberta-v2",
    "gpt2",
    "modernbert",
    "mpnet",
    "roberta",
    "t5",
    "xlm-roberta",
    "xlnet",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns a function from the kind of a model to its folder, which nobody changes."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = tiny_models.make(kind, tmp_path_factory.mktemp("saved") / kind, n_layers=1).folder
        return made[kind]

    return of


@pytest.fixture
def copied(saved, tmp_path):
    """A function from the kind of a model to a folder of one's own, with other settings or another tokenizer."""

    def of(kind: str, change=None, **settings: object) -> Path:
        folder = shutil.copytree(saved(kind), tmp_path / kind)
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        if change is not None:
            backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
            change(backend)
            backend.save(str(folder / "tokenizer.json"))
        return folder

    return of


def loaded(folder: Path):
    tokenizer, casing = load_tokenizer(str(folder), casing="auto", known_casing=None, states_casing=True)
    return tokenizer.backend_tokenizer, casing.notice or ""


def as_saved(folder: Path) -> Tokenizer:
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_padding()
    backend.no_truncation()
    return backend


def ids(backend, texts=(*tiny_models.TEXTS, "İstanbul ǅ ß ﬁ", "a\u00adb", "<s> [CLS] </s>")) -> list[list[int]]:
    return [encoded.ids for encoded in backend.encode_batch(list(texts))]


@pytest.mark.parametrize("kind", ["bert", "distilbert", "electra", *KINDS])
def test_a_tokenizer_that_agrees_with_its_file_is_used_without_a_word(kind, saved):
    backend, notice = loaded(saved(kind))
    assert ids(backend) == ids(as_saved(saved(kind)))
    assert notice == ""


def digits(backend: Tokenizer) -> None:
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)


def lowercase(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])


def replaced(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Sequence([normalizers.Replace("mg", "pain"), backend.normalizer])


def without_end(backend: Tokenizer) -> None:
    start = backend.token_to_id("[CLS]")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", start)]
    )


NOT_BUILT_SO = {
    "digits": ("roberta", digits, {}),
    "lowercase": ("roberta", lowercase, {}),
    "replaced": ("bert", replaced, {}),
    "without an end": ("bert", without_end, {}),
    "WordPiece declared as BPE": (
        "bert",
        None,
        {"tokenizer_class": "RobertaTokenizer", "bos_token": "[CLS]", "eos_token": "[SEP]"},
    ),
    "BPE declared as Unigram": ("roberta", None, {"tokenizer_class": "XLMRobertaTokenizer"}),
}


@pytest.mark.parametrize("case", NOT_BUILT_SO)
def test_tokenizer_json_is_used_where_the_declared_class_builds_another_and_that_is_said(case, copied):
    kind, change, settings = NOT_BUILT_SO[case]
    folder = copied(kind, change, **settings)
    try:
        theirs = AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]
    except TypeError:
        theirs = None
    wanted = as_saved(folder)
    assert theirs != wanted.encode(TEXT).ids  # else this case shows nothing
    backend, notice = loaded(folder)
    assert ids(backend, [TEXT, *tiny_models.TEXTS[:8]]) == ids(wanted, [TEXT, *tiny_models.TEXTS[:8]])
    assert "tokenizer.json is used as it was saved" in notice


def test_that_is_what_the_vectors_are_of(copied):
    folder = copied("roberta", lowercase)
    encoder = Encoder(str(folder), pool="mean")
    np.testing.assert_array_equal(*encoder.encode(["CHEST PAIN", "chest pain"]))
    assert any("tokenizer.json is used" in notice for notice in encoder.notices)


@pytest.mark.parametrize(
    ("settings", "first", "last"),
    [
        ({"add_eos_token": True}, None, "<|endoftext|>"),
        ({"add_bos_token": True}, "<|endoftext|>", None),
        ({"add_bos_token": True, "add_eos_token": True}, "<|endoftext|>", "<|endoftext|>"),
        ({"add_bos_token": False}, None, None),
    ],
)
def test_a_token_around_each_text_that_the_settings_ask_for_is_there(settings, first, last, copied):
    folder = copied("gpt2", **settings)
    plain = as_saved(folder).encode(TEXT).ids
    backend, notice = loaded(folder)
    found = backend.encode(TEXT)
    ends = [[backend.token_to_id(token)] if token else [] for token in (first, last)]
    assert found.ids == [*ends[0], *plain, *ends[1]]
    assert sum(found.special_tokens_mask) == sum(map(len, ends))
    assert [asked for asked in settings if asked in notice] == [asked for asked in settings if settings[asked]]
    # Where each token is from stays known.
    assert found.offsets[len(ends[0])][0] == 0
    assert max(stop for _, stop in found.offsets) == len(TEXT)


def ends_with_eos(backend: Tokenizer) -> None:
    end = backend.token_to_id("<|endoftext|>")
    template = processors.TemplateProcessing(
        single="$A <|endoftext|>", pair="$A $B:1", special_tokens=[("<|endoftext|>", end)]
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(), template])


def starts_with_bos(backend: Tokenizer) -> None:
    start = backend.token_to_id("<|endoftext|>")
    template = processors.TemplateProcessing(
        single="<|endoftext|> $A", pair="$A $B:1", special_tokens=[("<|endoftext|>", start)]
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(), template])


@pytest.mark.parametrize("wanted", [True, False])
def test_llamas_class_goes_by_its_settings_for_the_tokens_around_a_text(wanted, copied):
    folder = copied("gpt2", starts_with_bos, add_bos_token=wanted, tokenizer_class="LlamaTokenizerFast")
    backend, notice = loaded(folder)
    plain = as_saved(folder).encode(TEXT).ids
    assert backend.encode(TEXT).ids == (plain if wanted else plain[1:])
    assert ("is left out" in notice) == (not wanted)


def test_a_class_that_is_code_and_spells_otherwise_than_tokenizer_json_is_told(copied):
    folder = copied("bert", tokenizer_class="ByT5Tokenizer")
    _, casing = load_tokenizer(str(folder), casing="auto", known_casing=None, states_casing=True)
    assert "tokenizer.json is not used: code of the tokenizer's class, ByT5Tokenizer" in (casing.notice or "")


def test_an_end_that_tokenizer_json_puts_there_stays_where_other_settings_are_stated(copied):
    """As in Qwen3-Embedding: add_bos_token is false, and the end comes from the file."""
    folder = copied("gpt2", ends_with_eos, add_bos_token=False, tokenizer_class="Qwen2Tokenizer")
    backend, _ = loaded(folder)
    assert backend.encode(TEXT).ids[-1] == backend.token_to_id("<|endoftext|>")
    assert backend.encode(TEXT).ids == as_saved(folder).encode(TEXT).ids


def test_defaults_of_the_class_that_differ_from_the_file_are_told(copied):
    def cased(backend: Tokenizer) -> None:
        backend.normalizer = normalizers.BertNormalizer(lowercase=False)

    folder = copied("bert", cased)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("do_lower_case", None)
    path.write_text(json.dumps(settings))
    _, notice = loaded(folder)
    assert "casing and accents" in notice


def padded(backend: Tokenizer) -> None:
    backend.enable_padding(length=40)
    backend.enable_truncation(5)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_padding_and_truncation_in_tokenizer_json_change_no_vector_and_no_prompt(kind, saved, copied):
    vectors = []
    for folder in (shutil.copytree(saved(kind), saved(kind).with_name("plain")), copied(kind, padded)):
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling/config.json").write_text(
            json.dumps({"pooling_mode": "mean", "include_prompt": False})
        )
        kinds = ("Transformer", "Pooling")
        modules = [
            {"type": f"sentence_transformers.models.{kind}", "path": path}
            for kind, path in zip(kinds, ("", "1_Pooling"), strict=True)
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        encoder = Encoder(str(folder), prompt="chest pain: ")
        vectors.append(encoder.encode([TEXT, "fever"]))
    np.testing.assert_array_equal(*vectors)


MISSING = {
    "No module named 'rjieba'": "rjieba",
    "You need to install sacremoses to use XLMTokenizer.": "sacremoses",
    "You need to install fugashi to use MecabTokenizer.": "fugashi",
    "The unidic_lite dictionary is not installed.": "unidic-lite",
    "XTokenizer requires the sentencepiece library but it was not found in your environment.": "sentencepiece",
    "packages that were not found in your environment: einops. Run `pip install einops`": "einops",
}


@pytest.mark.parametrize("said", MISSING)
def test_a_package_that_the_tokenizer_lacks_is_named(said, copied, monkeypatch):
    folder = copied("gpt2")

    def fails(*_: object, **__: object) -> None:
        raise ImportError(said)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fails)
    with pytest.raises(ModelError, match=rf"needs {MISSING[said]}\b") as caught:
        loaded(folder)
    assert caught.value.hint == f"pip install {MISSING[said]}"


@pytest.mark.parametrize(
    "missing", [("sentencepiece",), ("google.protobuf",), ("sentencepiece", "google.protobuf")]
)
def test_a_vocabulary_of_sentencepiece_alone_names_what_reads_it(missing, copied, monkeypatch):
    from embedkit.tokenizer import loading as module

    folder = copied("deberta-v2")
    (folder / "tokenizer.json").unlink()
    (folder / "spm.model").write_bytes(b"not read here")
    monkeypatch.setattr(module, "_is_importable", lambda name: name not in missing)
    names = [name.replace("google.", "") for name in missing]
    with pytest.raises(ModelError, match=f"needs {' and '.join(names)}") as caught:
        loaded(folder)
    assert caught.value.hint == f"pip install {' '.join(names)}"


def test_a_damaged_vocabulary_of_sentencepiece_is_not_told_as_a_missing_package(copied, monkeypatch):
    from embedkit.tokenizer import loading as module

    folder = copied("deberta-v2")
    (folder / "tokenizer.json").unlink()
    (folder / "spm.model").write_bytes(b"damaged")
    monkeypatch.setattr(module, "_is_importable", lambda _: True)
    with pytest.raises(ModelError, match="cannot be loaded"):
        loaded(folder)


def test_what_our_own_aliases_need_is_a_dependency():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert any("deberta-v3" in alias.hub for alias in all_aliases().values())
    names = {text.split(">")[0] for text in project["dependencies"]}
    assert {"sentencepiece", "protobuf"} <= names
