"""What was aimed at on one H200 with BERT-base, beside what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from embedkit.percent import percent

MODEL = "bert-base"


@dataclass(frozen=True)
class Goal:
    """An aim, and what was found; None where it was not measured."""

    what: str
    wanted: float
    found: float | None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.found is None:
            return None
        return self.found < self.wanted if self.at_most else self.found >= self.wanted

    @property
    def verdict(self) -> str:
        if self.found is None:
            return "not measured"
        return "met" if self.met else f"missed by {_short(abs(self.found - self.wanted))}"

    def told(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met, "verdict": self.verdict}


def goals(found: dict[str, Any]) -> list[Goal]:
    """Returns the goals with the saved results; what is missing there was not measured."""
    base: dict[str, Any] = found["models"].get(MODEL, {})
    ours, forward = base.get("end_to_end", {}), base.get("forward", {})
    peers = base.get("sentence_transformers", {})
    exact = base.get("cosine_to_fp32", {})
    same = base.get("same_bytes_twice")
    return [
        Goal("tokens/s from JSON Lines to Parquet", 2.5e6, ours.get("tokens_per_second")),
        Goal("of the limit (largest matmul rate), end to end", 0.65, ours.get("share_of_limit")),
        Goal("of the limit, the forward passes alone", 0.65, forward.get("share_of_limit")),
        Goal("times sentence-transformers, sdpa", 3.0, peers.get("sdpa", {}).get("times")),
        Goal("times sentence-transformers, flash attention", 1.5, peers.get("flash", {}).get("times")),
        Goal("share of the time that the GPU waits", 0.10, ours.get("wait_share"), at_most=True),
        Goal("least cosine to fp32 on the CPU", 0.999, exact.get("least")),
        Goal("the same bytes twice", 1.0, None if same is None else float(same)),
    ]


def table(found: dict[str, Any], aims: Sequence[Goal]) -> str:
    """Returns the results and goals as tables in Markdown."""
    machine = found["machine"]
    lines = [
        f"{machine['device']}, {found['settings']['dtype']}, torch {machine['torch']}, {found['seconds']:.0f} s",
        "",
        "| | tokens/s | of the limit | spread |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, model in found["models"].items():
        rows: list[tuple[str, dict[str, Any]]] = [
            ("JSON Lines to Parquet", model.get("end_to_end", {})),
            ("forward passes", model.get("forward", {})),
            ("matrix products, largest rate", model.get("limit", {})),
        ]
        rows += [
            (f"sentence-transformers, {kind}", of) for kind, of in model.get("sentence_transformers", {}).items()
        ]
        for what, of in rows:
            if of.get("tokens_per_second") is not None:
                share = of.get("share_of_limit")
                seconds = of.get("seconds") or [0]
                lines.append(
                    f"| {name}: {what} | {of['tokens_per_second']:,.0f} | "
                    f"{'' if share is None else percent(share, 0)} | {min(seconds):.2f} to {max(seconds):.2f} s |"
                )
        for way, tokens_per_second in model.get("ways", {}).get("tokens_per_second", {}).items():
            if tokens_per_second:
                lines.append(f"| {name}: forward passes, {way} | {tokens_per_second:,.0f} | | |")
        if "profile" in model:
            told = ", ".join(f"{kind} {percent(share, 0)}" for kind, share in model["profile"]["share"].items())
            lines.append(f"| {name}: time by kernels | | | {told} |")
    if "processes" in found:
        both = found["processes"]
        lines.append(f"| two processes on the device, beside one | {both['times']:.2f} x | | |")
    lines += ["", "| goal (one H200, BERT-base, bf16) | wanted | found | |", "| --- | ---: | ---: | --- |"]
    lines += [
        f"| {goal.what} | {'<' if goal.at_most else '>='} {_short(goal.wanted)} | "
        f"{'' if goal.found is None else _short(goal.found)} | {goal.verdict} |"
        for goal in aims
    ]
    lines += [f"left out: {sentence}" for sentence in found["left_out"]]
    return "\n".join(lines)


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"
