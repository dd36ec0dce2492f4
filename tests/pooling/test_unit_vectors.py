"""Windows, words, tokens and spans against plain transformers: each window goes through the model alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from transformers import AutoModel, AutoTokenizer

from embedkit import Encoder
from embedkit.inference.batching import make_batches
from embedkit.inference.embedder import embed
from tests import tiny_models
from tests.oracle import pool

#: Packed with token types, after the pad id, sentencepiece; padded; bytes without special tokens; [CLS] last.
KINDS = ("bert", "roberta", "xlm-roberta", "deberta-v2", "gpt2", "xlnet")
LIMIT = 24
TEXTS = [
    tiny_models.CORPUS[0],
    "pain",
    "  Cafe\u0301 İzmir\t患者は胸痛 😷👍🏽\r\n na\u00efve 38,4 °C  " * 3,
    " ".join(tiny_models.CORPUS[2:5]),
    "pain",
    "",
    tiny_models.CORPUS[0],
]
PROMPT = "clinical note: "
#: Of most tests, so that they share what transformers computes. Odd, so that a token may be in the middle of two
#: windows' overlap.
STRIDE = 5


@dataclass(frozen=True)
class Window:
    """One window as the model sees it alone: content tokens [start, stop), after `opens` others."""

    start: int
    stop: int
    opens: int
    layers: list[np.ndarray]

    def states(self, layers: tuple[int, ...]) -> np.ndarray:
        return np.concatenate([self.layers[layer] for layer in layers], axis=1)


@dataclass(frozen=True)
class Read:
    """A text as it is read: ids and characters [start, end) of its own tokens, and its windows."""

    ids: list[int]
    where: list[tuple[int, int]]
    windows: list[Window]
    total: int

    def state(self, token: int, layers: tuple[int, ...]) -> np.ndarray:
        """Of a token, from the window in which its nearer end is farthest; the text's own ends are far away."""
        best, most = None, -1.0
        for window in self.windows:
            if window.start <= token < window.stop:
                left = float("inf") if window.start == 0 else token - window.start
                right = float("inf") if window.stop == len(self.ids) else window.stop - 1 - token
                if min(left, right) > most:
                    best, most = window, min(left, right)
        assert best is not None
        return best.states(layers)[best.opens + token - best.start]

    def inside(self, start: int, stop: int, layers: tuple[int, ...]) -> np.ndarray:
        """States of the tokens that share a character with [start, stop)."""
        numbers = [n for n, (a, b) in enumerate(self.where) if set(range(a, b)) & set(range(start, stop))]
        return np.array([self.state(number, layers) for number in numbers])


class InProcessEngine:
    """A model of transformers that is given a window at a time."""

    def __init__(self, folder: Path) -> None:
        transformers.logging.set_verbosity_error()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def read(self, text: str, *, stride: int | None, prompt: str = "", lower: bool = False) -> Read:
        seen = prompt + text
        encoded = self.tokenizer(
            seen.lower() if lower else seen, return_offsets_mapping=True, return_special_tokens_mask=True
        )
        ids, special, where = (encoded[k] for k in ("input_ids", "special_tokens_mask", "offset_mapping"))
        types = encoded.get("token_type_ids")
        content = [place for place, mark in enumerate(special) if not mark]
        after = len(ids) - content[-1] - 1
        opens = next(place for place in content if where[place][1] > len(prompt))
        own = range(opens, len(ids) - after)
        room = LIMIT - opens - after
        bounds = [(0, len(own))]
        if len(ids) > LIMIT and stride is not None:
            bounds = [(0, room)]
            while bounds[-1][1] < len(own):
                start = bounds[-1][1] - stride
                bounds.append((start, min(start + room, len(own))))
        elif len(ids) > LIMIT:
            bounds = [(0, room)]
        windows = []
        for start, stop in bounds:
            places = [*range(opens), *own[start:stop], *range(len(ids) - after, len(ids))]
            inputs = {"input_ids": torch.tensor([[ids[place] for place in places]])}
            if types is not None:
                inputs["token_type_ids"] = torch.tensor([[types[place] for place in places]])
            output = self.model(**inputs, output_hidden_states=True)
            layers = [states[0].double().numpy() for states in output.hidden_states]
            layers[-1] = output.last_hidden_state[0].double().numpy()
            windows.append(Window(start, stop, opens, layers))
        trimmed = [
            self._trimmed(text, max(0, where[place][0] - len(prompt)), where[place][1] - len(prompt))
            for place in own
        ]
        read = bounds[-1][1]
        return Read([ids[place] for place in own][:read], trimmed[:read], windows, len(ids))

    @staticmethod
    def _trimmed(text: str, start: int, stop: int) -> tuple[int, int]:
        if not text[start:stop].strip():
            return start, stop
        while text[start].isspace():
            start += 1
        while text[stop - 1].isspace():
            stop -= 1
        return start, stop


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    root = tmp_path_factory.mktemp("models")

    def made(kind: str) -> Path:
        return root / kind if (root / kind).exists() else tiny_models.make(kind, root / kind).folder

    yield made
    alone.cache_clear()
    read_alone.cache_clear()


@cache
def alone(folder: Path) -> InProcessEngine:
    return InProcessEngine(folder)


@cache
def read_alone(folder: Path, text: str, stride: int | None, prompt: str) -> Read:
    return alone(folder).read(text, stride=stride, prompt=prompt)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * max(1.0, float(np.abs(expected).max()))


def table_of(path: Path, texts: list[str] = TEXTS, **columns: list[object]) -> Path:
    rows = [{"id": f"t{n}", "text": text, **{k: v[n] for k, v in columns.items()}} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def rows_of(embedkit_cli, tmp_path):
    """Returns the rows of `embedkit encode TABLE OPTIONS...` as dictionaries."""

    def rows(*arguments: object) -> list[dict[str, object]]:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}.parquet"
        ran = embedkit_cli("encode", *arguments, "--max-length", LIMIT, "-o", out)
        assert ran.code == 0, ran.err
        return pq.read_table(out).to_pylist()

    return rows


def columns(row: dict[str, object], *names: str) -> tuple[object, ...]:
    return tuple(row[name] for name in names)


@pytest.mark.parametrize(
    ("kind", "stride", "prompt"),
    [
        *((kind, stride, prompt) for kind in KINDS for stride, prompt in ((0, ""), (STRIDE, PROMPT))),
        *(("bert", stride, prompt) for stride, prompt in ((STRIDE, ""), (0, PROMPT))),
    ],
)
def test_each_window_has_the_vector_of_the_window_alone(models, rows_of, tmp_path, kind, stride, prompt):
    folder = models(kind)
    pools = ("max", "mean", "lasttoken") if kind == "gpt2" else ("cls", "mean", "max")
    found = rows_of(
        *(table_of(tmp_path / "t.jsonl"), "-m", folder, "--level", "chunk", "--on-long", "chunk"),
        *("--stride", stride, "--prompt", prompt, "--pool", ",".join(pools), "--layers", "-1,1"),
    )
    expected = []
    for number, text in enumerate(TEXTS):
        if not text:
            expected.append((f"t{number}", None, None, None, 0, 0, 0, "empty", None))
            continue
        read = read_alone(folder, text, stride, prompt)
        n = len(read.windows)
        for chunk, window in enumerate(read.windows):
            own = read.where[window.start : window.stop]
            vector = np.concatenate(
                [
                    pool("lasttoken" if (kind, name) == ("xlnet", "cls") else name, window.layers[layer])
                    for name in pools
                    for layer in (-1, 1)
                ]
            )
            status = "chunked" if n > 1 else "ok"
            ends = min(a for a, _ in own), max(b for _, b in own)
            expected.append((f"t{number}", chunk, *ends, read.total, read.total, n, status, vector))
    names = ("id", "chunk", "start", "end", "n_tokens", "n_used", "n_chunks", "status")
    assert [columns(row, *names) for row in found] == [facts[:-1] for facts in expected]
    vectors = [row["embedding"] for row in found]
    assert [vector is None for vector in vectors] == [facts[-1] is None for facts in expected]
    got = np.array([vector for vector in vectors if vector is not None])
    assert_close(got, np.array([facts[-1] for facts in expected if facts[-1] is not None]))


@pytest.mark.parametrize(
    ("kind", "how", "agg"),
    [
        *((kind, "mean", "concat") for kind in ("bert", "deberta-v2", "gpt2", "xlnet")),
        *(("bert", how, "concat") for how in ("max", "first")),
        *(("bert", "mean", agg) for agg in ("separate", "mean")),
        *(("gpt2", "max", "separate"), ("xlnet", "first", "mean")),
    ],
)
def test_a_long_text_is_its_windows_combined_and_one_that_fits_is_as_without(models, kind, how, agg):
    folder = models(kind)
    pools = ("mean", "max", "lasttoken") if kind == "gpt2" else ("cls", "mean", "max", "lasttoken")
    options = {"max_length": LIMIT, "pool": ",".join(pools), "layers": "-1,1", "layer_agg": agg}
    encoder = Encoder(folder, on_long="chunk", stride=STRIDE, chunk_pool=how, **options)
    found = encoder.encode_variants(TEXTS)
    plain = Encoder(folder, **options).encode_variants(TEXTS)
    layers = {"": (-1, 1)} if agg != "separate" else dict(zip(found, [(-1,), (1,)], strict=True))
    for name, of_variant in layers.items():
        for number, text in enumerate(TEXTS):
            if not text:
                assert np.isnan(found[name][number]).all()
                continue
            read = read_alone(folder, text, STRIDE, "")
            if read.total <= LIMIT:
                assert found[name][number].tobytes() == plain[name][number].tobytes()
            vectors, weights, seen = [], [], 0
            for window in read.windows:
                each = [window.layers[layer] for layer in of_variant]
                each = [sum(each) / len(each)] if agg == "mean" else each
                names = ["lasttoken" if (kind, pooling) == ("xlnet", "cls") else pooling for pooling in pools]
                vectors.append(np.concatenate([pool(pooling, states) for pooling in names for states in each]))
                weights.append(window.stop - max(seen, window.start))
                seen = window.stop
            expected = {
                "mean": sum(w * v for w, v in zip(weights, vectors, strict=True)) / sum(weights),
                "max": np.max(vectors, axis=0),
                "first": vectors[0],
            }[how]
            assert_close(found[name][number], expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_tokens_have_the_ids_the_characters_and_the_states_of_transformers(
    models, rows_of, tmp_path, kind, prompt
):
    folder = models(kind)
    # Special tokens are no units, with or without --exclude-special.
    found = rows_of(
        *(table_of(tmp_path / "t.jsonl"), "-m", folder, "--level", "token", "--on-long", "chunk"),
        *("--stride", STRIDE, "--prompt", prompt, "--layers", "-1,1", "--exclude-special"),
    )
    expected = []
    for number, text in enumerate(TEXTS):
        read = read_alone(folder, text, STRIDE, prompt) if text else None
        for token, (token_id, where) in enumerate(zip(read.ids, read.where, strict=True) if read else ()):
            expected.append((f"t{number}", token, token_id, *where, read.state(token, (-1, 1))))
    names = ("id", "token", "token_id", "start", "end")
    units = [row for row in found if row["embedding"] is not None]
    assert [row["status"] for row in found if row["embedding"] is None] == ["empty"]
    assert [columns(row, *names) for row in units] == [facts[:-1] for facts in expected]
    assert_close(np.array([row["embedding"] for row in units]), np.array([facts[-1] for facts in expected]))


@pytest.mark.parametrize(
    ("kind", "how", "on_long"),
    [
        *((kind, "mean", "chunk") for kind in KINDS),
        *((kind, "first", "truncate") for kind in ("bert", "roberta", "xlnet")),
        *((kind, how, "chunk") for kind in ("bert", "gpt2") for how in ("max", "last")),
    ],
)
def test_words_are_their_tokens_pooled(models, rows_of, tmp_path, kind, how, on_long):
    folder = models(kind)
    stride = STRIDE if on_long == "chunk" else None
    found = rows_of(
        *(table_of(tmp_path / "t.jsonl"), "-m", folder, "--level", "word", "--on-long", on_long),
        *(() if stride is None else ("--stride", stride)),
        *("--subtoken-pooling", how, "--layers", "-1,1", "--layer-agg", "mean"),
    )
    by_text: dict[str, list[dict[str, object]]] = {}
    for row in found:
        by_text.setdefault(row["id"], []).append(row)
    for number, text in enumerate(TEXTS):
        rows = by_text[f"t{number}"]
        if not text:
            assert columns(rows[0], "word", "embedding", "status") == (None, None, "empty")
            continue
        read = read_alone(folder, text, stride, "")
        covered: set[int] = set()
        for row in rows:
            start, end = row["start"], row["end"]
            assert text[start:end] == text[start:end].strip() != ""
            states = (read.inside(start, end, (-1,)) + read.inside(start, end, (1,))) / 2
            assert_close(
                np.array(row["embedding"]), pool({"first": "cls", "last": "lasttoken"}.get(how, how), states)
            )
            covered |= set(range(start, end))
        with_tokens = {place for a, b in read.where for place in range(a, b) if not text[place].isspace()}
        assert with_tokens <= covered
        numbers = [row["word"] for row in rows]
        assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "deberta-v2"])
def test_spans_are_the_tokens_that_overlap_them_pooled(models, rows_of, tmp_path, kind):
    folder = models(kind)
    random = np.random.default_rng(0)
    spans = [
        sorted((int(a), int(min(len(text), a + n))) for a, n in random.integers(1, 30, (5, 2)) if a < len(text))
        + ([(len(text) - 5, len(text))] if len(text) > 60 else [])  # after the cut
        for text in TEXTS
    ]
    cells = [[[a, b, f"label {a}"] for a, b in of_text] for of_text in spans]
    pools = ("mean", "max", "min", "mean_sqrt_len", "lasttoken")
    for on_long, stride in (("truncate", None), ("chunk", 4)):
        found = rows_of(
            *(
                table_of(tmp_path / "t.jsonl", ents=cells),
                "-m",
                folder,
                "--spans-column",
                "ents",
                "--layers",
                "1,-1",
            ),
            *("--on-long", on_long, *(() if stride is None else ("--stride", stride)), "--pool", ",".join(pools)),
        )
        rows = iter(found)
        for number, (text, of_text) in enumerate(zip(TEXTS, spans, strict=True)):
            if not of_text:
                row = next(rows)
                assert columns(row, "id", "span", "embedding") == (f"t{number}", None, None)
                assert row["status"] == ("no_unit" if text else "empty")
                continue
            read = read_alone(folder, text, stride, "")
            for place, (start, end) in enumerate(of_text):
                row = next(rows)
                facts = (f"t{number}", place, start, end, f"label {start}")
                assert columns(row, "id", "span", "start", "end", "label") == facts
                states = read.inside(start, end, (1, -1))
                if not len(states):
                    assert (row["status"], row["embedding"], row["n_chunks"]) == ("outside", None, 0)
                    continue
                assert row["status"] == (
                    "ok" if read.total <= LIMIT else "chunked" if on_long == "chunk" else "truncated"
                )
                assert_close(np.array(row["embedding"]), np.concatenate([pool(name, states) for name in pools]))
        assert next(rows, None) is None
        assert on_long == "chunk" or any(row["status"] == "outside" for row in found)


@pytest.mark.parametrize("kind", ["gpt2", "xlm-roberta"])
def test_characters_are_those_of_the_text_where_it_is_lowercased_first(models, rows_of, tmp_path, kind):
    # Lowercased, İ is two characters: all following characters are one further on for the tokenizer.
    text = "İİ PAIN in İzmir\r\n\tSOB"
    found = rows_of(
        *(table_of(tmp_path / "t.jsonl", [text]), "-m", models(kind), "--level", "word", "--lowercase", "yes"),
    )
    assert [text[row["start"] : row["end"]] for row in found] == ["İİ", "PAIN", "in", "İzmir", "SOB"]
    lowered = alone(models(kind)).read(text.lower(), stride=None)
    shift = {"İİ": 0, "PAIN": 2, "in": 2, "İzmir": 2, "SOB": 3}
    for row in found:
        word = text[row["start"] : row["end"]]
        start = row["start"] + shift[word]
        states = lowered.inside(start, start + len(word.lower()), (-1,))
        assert_close(np.array(row["embedding"]), pool("mean", states))


def test_a_model_is_tried_on_the_first_windows_of_texts(models):
    texts = ["pain", " ".join(tiny_models.CORPUS)]
    windows, cut = (
        Encoder(models("bert"), max_length=LIMIT, on_long=on_long)._embedder.tokenizer.probe(texts)
        for on_long in ("chunk", "truncate")
    )
    assert windows.lengths.tolist() == cut.lengths.tolist() == [3, LIMIT]
    assert windows.input_ids.tolist() == cut.input_ids.tolist()
    assert windows.token_type_ids.shape == windows.input_ids.shape


def test_a_text_of_30_000_tokens_is_read_in_batches_of_the_budget(models, one_thread):
    folder = models("bert")
    random = np.random.default_rng(1)
    words = " ".join(tiny_models.CORPUS).split()
    text = " ".join(random.choice(words, 20_000))
    encoder = Encoder(folder, on_long="chunk", stride=16, batch_tokens=1024, pool="cls", chunk_pool="mean")
    tokenized = encoder._embedder.tokenizer.tokenize([text, text])
    assert tokenized.n_tokens[0] == tokenized.n_used[0] > 30_000
    assert tokenized.added.sum() == 2 * (tokenized.n_tokens[0] - 2)
    lengths = tokenized.tokens.lengths
    assert lengths.max() == 64
    assert max(batch.tokens for batch in make_batches(lengths, max_tokens=1024, padded=False)) <= 1024
    reported: list[tuple[int, int]] = []
    raw = embed(tokenized, encoder._embedder, lambda texts, tokens, _: reported.append((texts, tokens)))
    # The copy is computed once, and each text is reported once.
    assert sum(tokens for _, tokens in reported) == lengths.sum() // 2
    assert max(tokens for _, tokens in reported) <= 1024
    assert sum(texts for texts, _ in reported) == 2
    assert raw.vectors[""][0].tobytes() == raw.vectors[""][1].tobytes()
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids, added = tokenized.tokens.input_ids, tokenized.added[: len(lengths) // 2]
    opens = np.cumsum(lengths) - lengths
    total = np.zeros(32)
    with torch.no_grad():
        for start, length, weight in zip(opens.tolist(), lengths.tolist(), added.tolist(), strict=False):
            window = torch.tensor(ids[start : start + length][None].astype(np.int64))
            total += weight * model(input_ids=window).last_hidden_state[0, 0].double().numpy()
    assert_close(raw.vectors[""][0], total / added.sum())
