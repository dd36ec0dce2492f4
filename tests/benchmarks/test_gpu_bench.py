"""`make bench-gpu`, tried on a CPU with tiny models: its numbers hang together, its texts are as long as told."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from benchmarks.gpu import models, needs, texts
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.goals import Goal
from benchmarks.gpu.kernels import covered, family
from benchmarks.gpu.limit import Shape
from benchmarks.gpu.measuring import Measuring

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Returns the results of a small trial, in a process of its own as a user has it."""
    out = tmp_path_factory.mktemp("bench") / "gpu.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--device",
        "cpu",
        "--small",
        "--rounds",
        "2",
        "-o",
        str(out),
    ]
    # On a CPU, torch's profiler sees this thread's operations alone, and of embedkit's own code nothing: without a
    # compiler there is none.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": str(tmp_path_factory.mktemp("no compiler"))}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    results = json.loads(out.read_text())
    results["table"] = ran.stdout
    return results


def near(number, other):
    return math.isclose(number, other, rel_tol=1e-9)


@pytest.mark.long
def test_rates_are_tokens_per_second_and_shares_are_of_the_limit(found):
    for model in found["models"].values():
        limit = model["limit"]["tokens_per_second"]
        assert near(limit, model["limit"]["largest_flop_per_second"] / model["flop_a_token"])
        assert near(max(model["limit"]["flop_per_second"].values()), model["limit"]["largest_flop_per_second"])
        for part in (model["end_to_end"], model["forward"]):
            assert len(part["seconds"]) == 2
            assert near(part["tokens_per_second"], part["tokens"] / np.median(part["seconds"]))
            assert near(part["share_of_limit"], part["tokens_per_second"] / limit)
        peer = model["sentence_transformers"]["sdpa"]
        assert near(peer["tokens_per_second"], model["forward"]["tokens"] / np.median(peer["seconds"]))
        assert near(peer["times"], model["end_to_end"]["tokens_per_second"] / peer["tokens_per_second"])
        assert str(peer["batch_size"]) == min(peer["searched"], key=peer["searched"].get)
        ours = model["end_to_end"]
        assert ours["rows"] == found["texts"]["rows"]
        assert ours["memory"]["host_gib"] > 0.1
        assert ours["memory"]["device_gib"] == 0  # there is none
        for loaded, encoded in zip(ours["seconds_with_loading"], ours["seconds"], strict=True):
            assert loaded > encoded
        assert math.isclose(sum(model["profile"]["share"].values()), 1)
        assert model["profile"]["share"]["gemm"] > 0.05
        assert 0 < model["profile"]["busy_share"] <= 1


@pytest.mark.long
def test_other_ways_to_run_forward_passes_are_compared_with_the_default(found):
    told = found["models"]["bert-base"]["ways"]
    others = [f"{size} tokens a batch" for size in (1024, 4096) if size != told["batch_tokens"]]
    assert list(told["tokens_per_second"]) == ["usual", *others]
    n_tokens = found["models"]["bert-base"]["forward"]["tokens"]
    for way, of in told["tokens_per_second"].items():
        assert near(of, n_tokens / np.median(told["seconds"][way]))


@pytest.mark.long
def test_vectors_are_compared_with_transformers_and_bytes_with_each_other(found):
    base = found["models"]["bert-base"]
    # fp32 on both sides; texts of other rows are other vectors, so a cosine near 1 says something.
    assert base["cosine_to_fp32"]["least"] > 0.999999
    assert base["cosine_to_fp32"]["median_of_different_rows"] < 0.999
    assert base["cosine_to_fp32"]["rows"] == 24
    assert base["same_bytes_twice"] is True
    assert found["processes"]["same_bytes"] is True
    both = found["processes"]
    assert near(both["times"], both["tokens_per_second_of_two"] / both["tokens_per_second_of_one"])


@pytest.mark.long
def test_the_goals_are_listed_with_the_results(found):
    aims = {goal["what"]: goal for goal in found["goals"]}
    speed = aims["tokens/s from JSON Lines to Parquet"]
    assert speed["found"] == found["models"]["bert-base"]["end_to_end"]["tokens_per_second"]
    assert (speed["met"], aims["the same bytes twice"]["met"]) == (False, True)
    assert f"| {speed['what']} | >= 2,500,000 | {speed['found']:,.0f} | {speed['verdict']} |" in found["table"]
    # There is no GPU to wait, and nothing to pay for flash attention with: these are not measured, and said so.
    assert "flash attention" in " ".join(found["left_out"])
    assert found["machine"]["driver"] is None


def test_missing_packages_are_reported_in_one_line(monkeypatch):
    monkeypatch.setattr(needs, "find_spec", lambda name: None if name in {"torch", "pytest"} else name)
    with pytest.raises(SystemExit, match=r"^error: .* lacks torch, pytest\nhint: .*PYTHON=") as refused:
        needs.refuse_without(("pytest",))
    assert str(refused.value).count("\n") == 1


def test_stand_ins_for_small_dependencies_are_reported(monkeypatch):
    monkeypatch.setattr(needs, "find_spec", lambda name: None if name == "orjson" else name)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert needs.refuse_without().startswith("orjson: not installed")
    # A real one is found before it.
    assert Path(sys.path[-1], "orjson.py").is_file()


@pytest.mark.parametrize(
    ("goal", "verdict"),
    [
        (Goal("", 3.0, 3.5), "met"),
        (Goal("", 3.0, 2.5), "missed by 0.5"),
        (Goal("", 0.1, 0.25, at_most=True), "missed by 0.15"),
        (Goal("", 0.1, 0.05, at_most=True), "met"),
        (Goal("", 3.0, None), "not measured"),
    ],
)
def test_a_goal_shows_by_how_much_it_was_missed(goal, verdict):
    assert goal.verdict == verdict


def test_parts_without_time_are_left_out_and_named():
    clock = Clock(limit=0.0)
    assert not clock.allows(5, "the profile")
    assert clock.rounds({"work": lambda: pytest.fail("begun")}, rounds=5, budget=9, what="rounds") == {"work": []}
    assert clock.left_out == ["the profile: -0 s were left, and it wants about 5", "rounds: rounds 0 to 5 of 5"]


@pytest.mark.parametrize("limit", [0.0, 600.0])
def test_without_time_for_a_round_all_parts_are_left_out_and_named(limit, tmp_path, monkeypatch):
    monkeypatch.setattr(Clock, "rounds", lambda *_, **__: {"end_to_end": [], "forward": []})
    measuring = Measuring("cpu", tmp_path, limit, 5, small=True)
    measuring.all()
    assert measuring.results()["models"] == {}
    assert {goal["verdict"] for goal in measuring.results()["goals"]} == {"not measured"}
    assert measuring.table().count("| not measured |") == len(measuring.results()["goals"])
    assert measuring.right()
    assert ("bert-base, whole" in measuring.table()) == (limit == 0)


def test_rounds_alternate_and_the_first_warms_caches():
    order: list[str] = []
    works = {name: (lambda name=name: order.append(name) or float(len(order))) for name in "ab"}
    assert Clock(limit=60).rounds(works, rounds=2, budget=60, what="") == {"a": [3, 5], "b": [4, 6]}
    assert order == ["a", "b"] * 3


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_cublas", "gemm"),
        ("nvjet_tst_192x192_64x4_1x2_h_bz_coopB_TNT", "gemm"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, cutlass::bfloat16_t>>", "attention"),
        (
            "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16>",
            "elementwise and norms",
        ),
        ("void at::native::vectorized_elementwise_kernel<4, GeluCUDAKernelImpl>", "elementwise and norms"),
        ("Memcpy DtoH (Device -> Pinned)", "copies"),
        ("void at::native::vectorized_gather_kernel<16, long>", "embedding and pooling"),
        ("void something_new<float>", "other"),
    ],
)
def test_a_kernel_belongs_to_a_family(kernel, kind):
    assert family(kernel) == kind


def test_time_in_which_two_kernels_run_counts_once():
    assert covered([(0, 2), (1, 3), (5, 6), (5.2, 5.5)]) == 4  # 0-3 and 5-6


def test_the_operations_of_bert_base_are_those_of_its_shape():
    # 12 layers x 2 x (768 x 2304 + 768 x 768 + 2 x 768 x 3072) = 169.9 million; 12 x 4 x 768 a token seen.
    assert Shape(768, 3072, 12, 12).flop(0) == 169_869_312
    assert Shape(768, 3072, 12, 12).flop(128) - 169_869_312 == 128 * 36_864


def test_texts_have_the_lengths_that_were_drawn_and_words_like_real_ones(tmp_path):
    assert len(set(texts.vocabulary(30_522))) == 30_522
    entries = models.make(models.SMALL["minilm"], tmp_path)
    wanted = texts.lengths(2000)
    made = list(texts.texts(entries, wanted))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    encoded = tokenizer.encode_batch(made)
    assert [len(of.ids) for of in encoded] == wanted.tolist()
    assert len(set(made)) == 2000
    assert all("[UNK]" not in of.tokens for of in encoded)
    # Of the real ones: 4.40 characters and 0.66 words a token, and 93 tokens a text with the one of 19,483.
    assert abs(sum(map(len, made)) / wanted.sum() - 4.40) < 0.2
    assert abs(sum(len(text.split()) for text in made) / wanted.sum() - 0.66) < 0.05
    assert abs(texts.lengths(100_000).mean() - 92.4) < 1
