"""The order of the measurements, what each may take, and what is kept of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import models, peers, texts
from benchmarks.gpu.clock import Clock, Timed, middle, rate
from benchmarks.gpu.device import machine
from benchmarks.gpu.goals import MODEL, goals, table
from benchmarks.gpu.kernels import by_family
from benchmarks.gpu.limit import Limit, Shape
from benchmarks.gpu.ours import Forward, Ours, cosines, first_texts, host_gib, plainly
from benchmarks.gpu.ways import ways

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Measuring:
    """All measurements on one device.

    Args:
        device: such as cuda:0.
        work: a folder for models, texts and outputs.
        limit: seconds that all may take.
        rounds: of what is compared.
        small: tiny models and few texts.
    """

    def __init__(self, device: str, work: Path, limit: float, rounds: int, *, small: bool) -> None:
        self.device, self.work, self.rounds, self.small = device, work, rounds, small
        self.clock = Clock(limit)
        self.found: dict[str, Any] = {
            "machine": machine(device),
            "settings": {"device": device, "dtype": None},
            "texts": {},
            "models": {},
        }
        # As many tokens as keep an H200 busy for some seconds at the goal's rate; fewer for the forward passes and
        # the peers, which read nothing and write nothing.
        self.rows = 160 if small else 131_072
        self.some = 80 if small else 32_768
        self.checked = 24 if small else 256
        self.batch_sizes = (8, 32) if small else (64, 128, 256, 512, 1024)

    def note(self, sentence: str | None) -> None:
        if sentence:
            self.clock.left_out.append(sentence)

    def all(self) -> None:
        """Measures as much as there is time for, what matters most first."""
        shapes = models.SMALL if self.small else models.SHAPES
        path = self.work / "texts.jsonl"
        ours: dict[str, Ours] = {}
        for name, shape in shapes.items():
            entries = models.make(shape, self.work / name)
            if not path.exists():
                lengths = texts.lengths(self.rows)
                texts.write(path, entries, lengths)
                self.found["texts"] = {"rows": self.rows, "tokens_a_text": float(lengths.mean())}
            ours[name] = Ours(self.work / name, path, self.device, self.work / f"{name}-out")
            ours[name].work.mkdir()
        self._model(MODEL, ours[MODEL], shapes[MODEL], budget=150)
        self._check(MODEL, ours[MODEL])
        self._profile(MODEL, ours[MODEL])
        self._processes(ours[MODEL])
        for name in shapes.keys() - {MODEL}:
            self._model(name, ours[name], shapes[name], budget=80)
            self._profile(name, ours[name])
        self._ways(MODEL, ours[MODEL])

    # One model ---------------------------------------------------------------------------------------

    def _model(self, name: str, ours: Ours, shape: dict[str, int], budget: float) -> None:
        if not self.clock.allows(budget / 2, f"{name}, whole"):
            return
        forward = ours.load()
        some = first_texts(ours.texts, self.some)
        lengths = forward.take(some).astype(np.float64)
        n_tokens = int(lengths.sum())
        # Tokens that a token sees, on average.
        seen = float((lengths**2).sum() / n_tokens)
        dtype = forward.model.facts.recipe["dtype"]
        budget_tokens = forward.model.embedder.budget.tokens
        self.found["settings"] = {"device": self.device, "dtype": dtype, "batch_tokens": budget_tokens}
        of_shape = Shape.of(_config(shape))
        limit = Limit(of_shape, min(budget_tokens, n_tokens), round(seen), _DTYPES[dtype], self.device)
        found: dict[str, Any] = {"flop_a_token": of_shape.flop(seen), "engine": forward.model.facts.engine}
        works: dict[str, Timed] = {"end_to_end": ours.timed_encode, "forward": forward.timed, "limit": limit.timed}
        theirs = self._peers(name, ours, _DTYPES[dtype], some, found)
        works |= {kind: (lambda peer=peer: peer.timed(some)) for kind, peer in theirs.items()}
        times = self.clock.rounds(works, rounds=self.rounds, budget=budget, what=f"{name}, in turn")
        # A model that no round was whole for is left out whole.
        if all(times.values()):
            self.found["models"][name] = found
            self._keep(found, ours, forward, limit, times, n_tokens)

    def _peers(
        self, name: str, ours: Ours, dtype: torch.dtype, some: list[str], found: dict[str, Any]
    ) -> dict[str, peers.SentenceTransformers]:
        missing = peers.why_not()
        if missing:
            self.note(f"{name}, sentence-transformers: {missing}")
            return {}
        ways = {"sdpa": "sdpa", "flash": peers.flash()}
        theirs: dict[str, peers.SentenceTransformers] = {}
        found["sentence_transformers"] = {}
        for kind, attention in ways.items():
            if attention is None:
                self.note(f"{name}, sentence-transformers with flash attention: flash-attn is not installed")
                continue
            if not self.clock.allows(2 if self.small else 40, f"{name}, sentence-transformers {kind}"):
                continue
            try:
                theirs[kind] = peers.SentenceTransformers(ours.folder, self.device, dtype, attention)
                # A quarter of the texts tells which batch size is best.
                searched = theirs[kind].search(some[: len(some) // 4], self.batch_sizes)
            except Exception as fault:  # noqa: BLE001 - theirs, and no reason to lose what is ours
                self.note(f"{name}, sentence-transformers {kind}: {type(fault).__name__}")
                theirs.pop(kind, None)
                continue
            found["sentence_transformers"][kind] = {
                "attention": attention,
                "batch_size": theirs[kind].batch_size,
                "searched": {str(size): seconds for size, seconds in searched.items()},
            }
        return theirs

    def _keep(
        self,
        found: dict[str, Any],
        ours: Ours,
        forward: Forward,
        limit: Limit,
        times: dict[str, list[float]],
        n_tokens: int,
    ) -> None:
        """Rates and shares from the seconds of the rounds."""
        # The first round was for caches.
        reached = {name: middle(rates[1:]) for name, rates in limit.rates.items()}
        best = max((of for of in reached.values() if of is not None), default=None)
        most = None if best is None else best / found["flop_a_token"]
        # The first encoding warmed up.
        counted = ours.summaries[1:]
        whole = counted[-1]
        end_to_end = rate(whole.computed_tokens, times["end_to_end"])
        alone = rate(n_tokens, times["forward"])
        found["limit"] = {
            "tokens_per_second": most,
            "largest_flop_per_second": best,
            "flop_per_second": reached,
            "tokens_per_second_of_the_products": rate(limit.tokens, times["limit"]),
            "seconds": times["limit"],
        }
        found["forward"] = {
            "tokens": n_tokens,
            "tokens_per_second": alone,
            "share_of_limit": _ratio(alone, most),
            "share_of_products": _ratio(alone, found["limit"]["tokens_per_second_of_the_products"]),
            "seconds": times["forward"],
        }
        found["end_to_end"] = {
            "rows": whole.computed_rows,
            "tokens": whole.computed_tokens,
            "tokens_per_second": end_to_end,
            "share_of_limit": _ratio(end_to_end, most),
            "share_of_forward": _ratio(end_to_end, alone),
            # Of the device's events: between the end of a batch and the beginning of the next.
            "wait_share": middle([of.device_waiting for of in counted if of.device_waiting is not None]),
            "seconds": times["end_to_end"],
            "seconds_with_loading": [summary.seconds for summary in counted],
            "memory": {"host_gib": host_gib(), "device_gib": ours.peak_bytes / 2**30},
        }
        for kind, of in found.get("sentence_transformers", {}).items():
            of["seconds"] = times[kind]
            of["tokens_per_second"] = rate(n_tokens, times[kind])
            of["times"] = _ratio(end_to_end, of["tokens_per_second"])
            of["share_of_limit"] = _ratio(of["tokens_per_second"], most)
        found["same_bytes_twice"] = ours.same_bytes("out-0", "out-1")

    # Once ---------------------------------------------------------------------------------------------

    def _check(self, name: str, ours: Ours) -> None:
        """Measures the cosines of the first rows to plain transformers in fp32 on the CPU."""
        if name not in self.found["models"] or not self.clock.allows(
            2 if self.small else 30, f"{name}, cosine to fp32"
        ):
            return
        until = time.monotonic() + 40
        expected = plainly(ours.folder, first_texts(ours.texts, self.checked), until)
        self.found["models"][name]["cosine_to_fp32"] = cosines(ours.vectors("out-0", len(expected)), expected)

    def _profile(self, name: str, ours: Ours) -> None:
        if name not in self.found["models"] or not self.clock.allows(2 if self.small else 25, f"{name}, profile"):
            return
        told = by_family(lambda begin: ours.encode("profiled", limit=self.some, at_start=begin), self.device)
        self.found["models"][name]["profile"] = told

    def _processes(self, ours: Ours) -> None:
        """Times two processes on the device beside one; each pays for its own start, so there is one round."""
        if not self.found["models"] or not self.clock.allows(
            8 if self.small else 60, "two processes on the device"
        ):
            return
        alone = ours.encode("alone")
        both = ours.encode("both", workers=2)
        rates = [summary.computed_tokens / summary.encoding_seconds for summary in (both, alone)]
        self.found["processes"] = {
            "tokens_per_second_of_two": rates[0],
            "tokens_per_second_of_one": rates[1],
            "times": rates[0] / rates[1],
            "same_bytes": ours.same_bytes("alone", "both"),
        }

    def _ways(self, name: str, ours: Ours) -> None:
        if name not in self.found["models"] or not self.clock.allows(
            3 if self.small else 45, f"{name}, other ways"
        ):
            return
        sizes = (1024, 4096) if self.small else (16_384, 32_768, 65_536, 131_072, 262_144)
        some = first_texts(ours.texts, self.some)
        self.found["models"][name]["ways"] = ways(ours.load(), some, sizes, self.clock, budget=30)

    # What is kept -------------------------------------------------------------------------------------

    def results(self) -> dict[str, Any]:
        aims = [goal.told() for goal in goals(self.found)]
        return {**self.found, "goals": aims, "left_out": self.clock.left_out, "seconds": self.clock.passed}

    def table(self) -> str:
        return table(self.results(), goals(self.found))

    def right(self) -> bool:
        """Checks that the vectors are those of the model, and the bytes always the same."""
        base = self.found["models"].get(MODEL, {})
        return (
            base.get("cosine_to_fp32", {}).get("least", 1.0) >= 0.999
            and base.get("same_bytes_twice", True)
            and self.found.get("processes", {}).get("same_bytes", True)
        )


def _config(shape: dict[str, int]) -> dict[str, Any]:
    from transformers import BertConfig

    return dict(BertConfig(**shape).to_dict())


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None
