"""`embedkit.Encoder` from Python: what it takes for texts and arguments, and who may use it at once."""

from __future__ import annotations

import copy
import enum
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import embedkit
from embedkit.cli import run
from embedkit.config.checks import one_of
from embedkit.errors import EmbedkitError, InputError, ModelError, OutputError, Stopped, UsageError
from embedkit.models.base import NotExactError
from embedkit.models.load_lock import LoadLock
from embedkit.sources.in_memory import texts_of
from tests import tiny_models
from tests.conftest import NOTES

TEXTS = ["chest pain", "", "fever and cough", "pain"]


class Word(str, enum.Enum):  # noqa: UP042 - a StrEnum shows its text
    """A str that shows itself as something else: str(Word.PAIN) is "Word.PAIN"."""

    PAIN = "pain"


class Column:
    """A column as `datasets` hands it out: it has a length and items, and is no Sequence."""

    def __len__(self) -> int:
        return len(TEXTS)

    def __iter__(self) -> Iterator[str]:
        return iter(TEXTS)


class Dataset:
    """A Dataset as torch has it: a length and items, and no way to go through it."""

    def __len__(self) -> int:
        return len(TEXTS)

    def __getitem__(self, place: int) -> str:
        return TEXTS[place]


@pytest.fixture(scope="module")
def encoder(bert, one_thread):
    return embedkit.Encoder(bert, pool="mean")


@pytest.fixture(scope="module")
def modernbert(tmp_path_factory):
    """Returns a model that runs through transformers' code."""
    return tiny_models.make("modernbert", tmp_path_factory.mktemp("models") / "modernbert").folder


@pytest.mark.parametrize(
    "given",
    [
        tuple(TEXTS),
        (text for text in TEXTS),
        dict.fromkeys(TEXTS).keys(),
        dict(enumerate(TEXTS)).values(),
        np.array(TEXTS),
        np.array(TEXTS, object),
        list(np.array(TEXTS)),
        # By position, whatever the labels are: 0 to 3 in another order, texts, each twice.
        pd.Series(TEXTS, index=[2, 0, 3, 1]),
        pd.Series(TEXTS, index=["columns", "b", "a", "a"], dtype="string"),
        pd.Series(TEXTS, dtype="category"),
        pd.Series(TEXTS, dtype=pd.ArrowDtype(pa.string())),
        pd.Series(TEXTS).array,
        pd.Index(TEXTS),
        pl.Series(TEXTS),
        pl.Series(TEXTS, dtype=pl.Categorical),
        pa.array(TEXTS),
        pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
        pa.array(TEXTS).dictionary_encode(),
        list(pa.array(TEXTS, pa.large_string())),
        Column(),
        Dataset(),
    ],
    ids=lambda given: type(given).__name__,
)
def test_texts_come_from_every_kind_of_column_in_their_order(given):
    found = texts_of(given)
    assert found == TEXTS
    assert {type(text) for text in found} == {str}


@pytest.mark.parametrize(
    "given",
    [
        ["a", None, float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT, np.datetime64("NaT"), pa.scalar(None)],
        pd.Series(["a", None, *[np.nan] * 7]),
        pd.Series(["a", *[None] * 8], dtype="string"),
        pd.Series(["a", *[None] * 8], dtype="category"),
        pl.Series(["a", *[None] * 8]),
        pa.array(["a", *[None] * 8]),
        np.ma.array(["a"] * 9, mask=[False, *[True] * 8]),
    ],
    ids=lambda given: type(given).__name__,
)
def test_a_missing_text_is_an_empty_one(given, encoder):
    assert texts_of(given) == ["a", *[None] * 8]
    vectors = encoder.encode(given)
    assert np.isnan(vectors[:, 0]).tolist() == [False, *[True] * 8]
    assert vectors.shape == (9, 32)


@pytest.mark.parametrize("given", [np.array([]), np.array([], int), np.array([np.nan] * 2), [Decimal("NaN")] * 2])
def test_an_array_of_nothing_or_of_nan_alone_is_of_missing_texts_whatever_its_type(given):
    assert texts_of(given) == [None] * len(given)


def test_a_member_of_an_enumeration_is_the_text_it_holds():
    assert texts_of([Word.PAIN]) == ["pain"]


FRAME = {"id": [1, 2], "Note": ["Jane", "Doe"]}


@pytest.mark.parametrize(
    ("given", "sentence", "hint"),
    [
        ("Jane", "one str", "encode([text])"),
        (b"Jane", "one bytes", "encode([text])"),
        (None, "None, not a list", "encode([text])"),
        (7, "an int, not a list", "encode([text])"),
        ({"Jane"}, "no order", "sorted(texts)"),
        ({"p1": "Jane"}, "a dict, not a list", "encode(list(texts.values()))"),
        (pd.Series(["Jane"]).str, "a StringMethods, not a list", "encode([text])"),
        (pd.DataFrame(FRAME), "a table (DataFrame)", 'encode(table["Note"])'),
        (pl.DataFrame(FRAME), "a table (DataFrame)", 'encode(table["Note"])'),
        (pl.LazyFrame(FRAME), "a table (LazyFrame)", 'encode(table["Note"])'),
        (pa.table(FRAME), "a table (Table)", 'encode(table["Note"])'),
        (pa.RecordBatch.from_pydict(FRAME), "a table (RecordBatch)", 'encode(table["Note"])'),
        (FRAME, "a table (dict)", 'encode(table["Note"])'),
        # The first row taken for a header: no name of it is told.
        (pd.DataFrame({"Jane Doe": ["x"]}), "a table (DataFrame)", 'encode(table["COLUMN"])'),
        (np.array([("Jane", 1)], dtype=[("text", "U9"), ("id", "i4")]), "a table (ndarray)", 'table["text"]'),
        (np.array("Jane"), "shape ()", "encode([text])"),
        (np.array([["Jane", "Doe"]]), "shape (1, 2)", "texts[:, 0]"),
        (np.array([1, 2]), "an array of int64", "column of texts"),
        (np.array([b"Jane"]), "an array of |S4", "np.char.decode"),
        (torch.tensor([1]), "texts[0] is an int", "convert it to a str"),
        (["a", 7], "texts[1] is an int", "convert it to a str"),
        (["a", True], "texts[1] is a bool", "convert it to a str"),
        (["a", b"Jane"], "texts[1] is a bytes", 'text.decode("utf-8")'),
        (["a", ["Jane"]], "texts[1] is a list", "joined"),
        ([("Jane", "Doe")], "texts[0] is a tuple", "joined"),
        ([{"text": "Jane"}], "texts[0] is a dict", 'row["text"]'),
        (pd.Series(["a", 1.5], dtype=object), "texts[1] is a float", "convert it to a str"),
        (pl.Series([["Jane"]]), "texts[0] is a list", "joined"),
        (["a", "Jane \ud83d"], "texts[1] has half a character", '"replace"'),
    ],
)
def test_what_holds_no_texts_is_refused_by_place_and_type_and_never_by_content(given, sentence, hint, encoder):
    for encode in (encoder.encode, encoder.encode_variants):
        with pytest.raises(InputError) as caught:
            encode(given)
        assert sentence in caught.value.message
        assert hint in caught.value.hint
        assert "Jane" not in str(caught.value)
        # An error that names no text must not bring one along as its cause either.
        assert caught.value.__context__ is None


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_no_texts_give_arrays_of_the_right_width(bert, pool):
    encoder = embedkit.Encoder(bert, pool=pool, truncate_dim=None if pool == "none" else 7)
    if pool == "none":
        assert encoder.encode_tokens(iter(())) == []
        assert [tokens.shape for tokens in encoder.encode_tokens(pd.Series(["", None]))] == [(0, 32)] * 2
        return
    for given in ([], iter(()), pd.Series([], dtype=object), np.array([], dtype=str)):
        vectors = encoder.encode(given)
        assert (vectors.shape, vectors.dtype) == ((0, 7), np.float32)


@pytest.mark.parametrize(
    ("argument", "spelled"),
    [
        ({"layers": -1}, {"layers": "-1"}),
        ({"layers": np.int64(2)}, {"layers": "2"}),
        ({"layers": [-1, -2]}, {"layers": "-1,-2"}),
        ({"layers": np.array([0, 2])}, {"layers": "0,2"}),
        ({"layers": range(1, 3)}, {"layers": "1,2"}),
        ({"layers": slice(-2, None)}, {"layers": "-2:"}),
        ({"layers": "all"}, {"layers": "0,1,2,3"}),
        ({"pool": ["cls", "mean"]}, {"pool": "cls,mean"}),
        ({"pool": ("max",)}, {"pool": "max"}),
        ({"device": torch.device("cpu")}, {"device": "cpu"}),
        ({"dtype": torch.float32}, {"dtype": "fp32"}),
        ({"dtype": np.float32}, {"dtype": "fp32"}),
        ({"dtype": np.dtype("float32")}, {"dtype": "fp32"}),
        ({"max_length": np.int32(9)}, {"max_length": 9}),
        ({"max_length": "auto"}, {}),
        ({"batch_tokens": "auto"}, {}),
        ({"normalize": np.True_}, {"normalize": True}),
        ({"batch_size": np.int64(3), "batch_tokens": np.uint8(200)}, {}),
    ],
)
def test_arguments_of_python_mean_what_the_option_says(argument, spelled, bert, one_thread):
    given, wanted = (embedkit.Encoder(bert, **{"pool": "mean", **options}) for options in (argument, spelled))
    assert given.fingerprint == wanted.fingerprint
    np.testing.assert_allclose(given.encode(["chest pain"]), wanted.encode(["chest pain"]), atol=1e-6)


def test_dtypes_of_torch_and_numpy_are_those_of_the_option():
    from embedkit.config.arguments import dtype_name

    named = [torch.float32, torch.bfloat16, torch.half, np.float16, np.dtype("int8")]
    assert [dtype_name(dtype) for dtype in named] == ["fp32", "bf16", "fp16", "fp16", "int8"]


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ({"model": torch.nn.Linear(1, 1)}, "a Linear of torch"),
        ({"model": b"minilm"}, "a bytes"),
        ({"layers": True}, "layers cannot be True"),
        ({"layers": 1.0}, "layers cannot be 1.0"),
        ({"layers": [-1, None]}, "layers cannot be None"),
        ({"layers": []}, "names no layer"),
        ({"layers": {-1, -2}}, "no order"),
        ({"layers": slice(0, 3, 2)}, "a step of 2"),
        ({"layers": b"-1"}, "layers cannot be a bytes"),
        ({"prompt": "a\udce9"}, "--prompt is not valid UTF-8"),
        ({"pool": []}, "names no pooling"),
        ({"pool": None}, "pool cannot be None"),
        ({"pool": ["mean", 1]}, "pool cannot be 1"),
        ({"device": 0}, "device cannot be 0"),
        ({"dtype": torch.float64}, "--dtype cannot be 'float64'"),
        ({"dtype": 16}, "dtype cannot be 16"),
        ({"max_length": True}, "max_length cannot be True"),
        ({"max_length": "512"}, "max_length cannot be '512'"),
        ({"max_length": 0}, "--max-length cannot be 0"),
        ({"batch_size": 32.0}, "batch_size cannot be 32.0"),
        ({"batch_tokens": "many"}, "batch_tokens cannot be 'many'"),
        ({"truncate_dim": np.float32(3)}, "truncate_dim cannot be a float32"),
        ({"stride": [1]}, "stride cannot be a list"),
        ({"normalize": "no"}, "normalize cannot be 'no'"),
        ({"offline": None}, "offline cannot be None"),
        ({"exclude_special": 1}, "exclude_special cannot be 1"),
        ({"prompt": 5}, "prompt cannot be 5"),
        ({"revision": 5}, "revision cannot be 5"),
        ({"lowercase": True}, "lowercase cannot be True"),
        ({"layer_agg": None}, "layer_agg cannot be None"),
    ],
)
def test_an_argument_of_another_type_is_a_usage_error_that_names_it(argument, told, bert):
    with pytest.raises(UsageError) as caught:
        embedkit.Encoder(**{"model": bert, **argument})
    assert told in caught.value.message


def test_threads_that_share_an_encoder_get_the_vectors_that_each_gets_alone(modernbert, one_thread):
    encoder = embedkit.Encoder(modernbert, pool="mean")
    lists = [["pain and fever " * (1 + (i * k) % 5) for i in range(9)] for k in (1, 2, 3)]
    expected = [encoder.encode(texts) for texts in lists]
    begin = threading.Barrier(len(lists))

    def work(number: int) -> float:
        begin.wait()
        return max(float(np.abs(encoder.encode(lists[number]) - expected[number]).max()) for _ in range(8))

    with ThreadPoolExecutor(len(lists)) as pool:
        assert max(pool.map(work, range(len(lists)))) < 1e-5


def test_encoders_may_be_made_and_used_in_threads_at_once(bert, modernbert, one_thread):
    folders = [modernbert, bert, modernbert]
    begin = threading.Barrier(len(folders))

    def work(number: int) -> tuple[embedkit.Encoder, np.ndarray]:
        begin.wait()
        encoder = embedkit.Encoder(folders[number], pool="mean")
        return encoder, encoder.encode(TEXTS)

    with ThreadPoolExecutor(len(folders)) as pool:
        for encoder, vectors in pool.map(work, range(len(folders))):
            np.testing.assert_allclose(vectors, encoder.encode(TEXTS), atol=1e-5)


def test_nobody_encodes_while_a_model_is_loaded_in_16_bits():
    turns, told = LoadLock(), []
    inside, leave = threading.Event(), threading.Event()

    def load() -> None:
        with turns.loading(exclusive=True):
            told.append("loading")
            inside.set()
            leave.wait()
            # What a load runs itself does not wait for the load.
            with turns.encoding():
                told.append("loaded")

    def encode() -> None:
        with turns.encoding():
            told.append("encoding")

    threads = [threading.Thread(target=load), threading.Thread(target=encode)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    threads[1].join(0.05)
    assert told == ["loading"]
    leave.set()
    for thread in threads:
        thread.join(5)
    assert told == ["loading", "loaded", "encoding"]
    with turns.loading(exclusive=True), turns.loading(exclusive=False):
        pass


def test_texts_may_come_from_a_generator_that_encodes_itself(encoder):
    def texts() -> Iterator[str]:
        for text in TEXTS:
            encoder.encode([text])
            yield text

    np.testing.assert_array_equal(encoder.encode(texts()), encoder.encode(TEXTS))


def test_an_encoder_goes_on_after_an_error_in_its_turn(encoder, monkeypatch):
    expected = encoder.encode(TEXTS)
    for fault in (KeyboardInterrupt, RuntimeError, MemoryError):
        with monkeypatch.context() as patched:

            def broken(*_: object, raised: type[BaseException] = fault) -> None:
                raise raised

            patched.setattr(encoder._embedder.tokenizer, "tokenize", broken)
            with pytest.raises(fault):
                encoder.encode(TEXTS)
        np.testing.assert_array_equal(encoder.encode(TEXTS), expected)


def of_child(work) -> str:
    """What `work` returns in a fork of this process; a child that hangs is ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            told = str(work())
        except BaseException as fault:  # noqa: BLE001 - whatever it is, the parent is to see it
            told = f"{type(fault).__name__}: {fault}"
        os.write(writing, told.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told_by_child:
        told = told_by_child.read().decode()
    assert os.waitpid(child, 0)[1] == 0
    return told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_cannot_use_the_encoder_of_its_parent_and_the_hint_helps(bert):
    encoder = embedkit.Encoder(bert, pool="mean")
    encoder.encode(TEXTS)
    told = of_child(lambda: encoder.encode(TEXTS))
    assert told.startswith("UsageError: this Encoder was made before this process was forked")
    assert "spawn" in told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_fork_can_make_an_encoder_of_its_own(kind, bert, modernbert):
    folder = {"bert": bert, "modernbert": modernbert}[kind]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    # Products large enough for several threads: these are not in the child.
    parent = embedkit.Encoder(folder, pool="mean")
    texts = ["pain and fever " * 20] * 50
    expected = parent.encode(texts)

    def work() -> tuple[bool, str]:
        own = embedkit.Encoder(folder, pool="mean")
        return bool(np.allclose(own.encode(texts), expected, atol=1e-5)), own.notices[-1]

    told = of_child(work)
    torch.set_num_threads(before)
    assert told.startswith("(True, 'this process is a fork")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_command_in_a_fork_ends_too(bert, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("text\n" + f"{'pain and fever ' * 20}\n" * 50, encoding="utf-8")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    embedkit.Encoder(bert, pool="mean").encode(["pain and fever " * 20] * 50)
    told = of_child(lambda: run(["encode", str(table), "-m", str(bert), "-o", f"{tmp_path}/o.parquet", "-q"]))
    torch.set_num_threads(before)
    assert told == "0"
    assert embedkit.read(tmp_path / "o.parquet").vectors.shape == (50, 32)


def test_commands_in_threads_take_turns(bert, tmp_path, one_thread):
    outputs = [tmp_path / "a.parquet", tmp_path / "b.parquet"]

    def work(output: Path) -> int:
        return run(["encode", str(NOTES), "-m", str(bert), "-o", str(output), "--limit", "9", "-q"])

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, outputs)) == [0, 0]
    one, other = (embedkit.read(output).vectors for output in outputs)
    np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_of_a_process_that_used_cuda_gets_an_error_for_the_gpu(bert, monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_isInBadFork", lambda: True, raising=False)
    told = of_child(lambda: embedkit.Encoder(bert, device="auto"))
    assert told.startswith("UsageError: --device auto: this process is a fork of one that has used CUDA")


def test_an_encoder_is_copied_by_its_arguments(encoder):
    for again in (pickle.loads(pickle.dumps(encoder)), copy.deepcopy(encoder)):  # noqa: S301 - pickled here
        assert again.fingerprint == encoder.fingerprint
        np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    assert len(pickle.dumps(encoder)) < 5_000


def test_a_pickled_encoder_is_refused_where_its_model_is_another(tmp_path):
    folder = tiny_models.make("bert", tmp_path / "bert").folder
    pickled = pickle.dumps(embedkit.Encoder(folder, pool="mean"))
    tiny_models.make("bert", folder, seed=1)
    with pytest.raises(ModelError, match="not the one of the pickled Encoder"):
        pickle.loads(pickled)  # noqa: S301 - pickled here


@pytest.mark.parametrize(
    "kind", [EmbedkitError, UsageError, InputError, ModelError, OutputError, Stopped, NotExactError]
)
def test_an_error_shows_its_hint_and_survives_the_way_out_of_a_process(kind):
    error = kind("the number is wrong", hint="use another")
    assert str(error) == "the number is wrong (hint: use another)"
    odd = kind("no 'a\nb\x1bé'", hint="a\u2028b")
    assert str(odd) == r"no 'a\nb\x1bé' (hint: a\u2028b)"
    assert odd.args == (odd.message,)  # what repr shows has no password either
    assert (error.message, error.hint) == ("the number is wrong", "use another")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - pickled here
        assert type(again) is kind
        assert (str(again), again.message, again.hint, again.exit_code) == (
            *(str(error), error.message, error.hint, kind.exit_code),
        )


def test_an_error_of_a_pool_s_worker_reaches_the_caller():
    with multiprocessing.get_context("spawn").Pool(1) as pool, pytest.raises(UsageError) as caught:
        pool.apply_async(one_of, ("--way", "left", ("right",))).get(30)
    assert str(caught.value) == "--way cannot be 'left' (hint: use one of: right)"
