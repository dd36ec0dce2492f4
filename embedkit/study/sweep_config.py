"""Options of `embedkit sweep`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedkit.config import LabelConfig, RunConfig, at_least, one_of, value_hint
from embedkit.config.poolings import POOLING_NAMES, parse_poolings
from embedkit.errors import UsageError
from embedkit.study.metrics import METRICS
from embedkit.study.pooler_candidates import check_poolers
from embedkit.study.probe import PROBES

#: Poolings that can be compared at every layer.
POOLINGS = tuple(name for name in POOLING_NAMES if name != "pooler")


@dataclass(frozen=True, slots=True)
class SweepConfig:
    """The configuration of one `embedkit sweep`."""

    runs: tuple[RunConfig, ...]  # one a model, alike in all else; their layers and poolings are compared
    folder: Path  # for the results and the vectors
    labels: LabelConfig
    metric: str | None = None  # the deciding metric; None takes the task's first
    probe: str = "ridge"  # one of PROBES
    folds: int = 5
    poolers: tuple[str, ...] = ()  # kinds of `embedkit fit`, and poolers of packages

    @property
    def run(self) -> RunConfig:
        """The first model's run: input, texts and output are those of all."""
        return self.runs[0]

    def __post_init__(self) -> None:
        one_of("--probe", self.probe, PROBES)
        known = [name for task, names in METRICS.items() if self.labels.task in {"auto", task} for name in names]
        if self.metric is not None:
            one_of("--metric", self.metric, tuple(known))
        at_least("--folds", self.folds, 3)
        if "-" in self.run.input.inputs:
            raise UsageError(
                "a sweep reads its input twice, and stdin can be read only once",
                hint="save it to a file first, and name the file",
            )
        for name in parse_poolings(self.run.pooling.pool):
            if name not in {*POOLINGS, "auto"}:
                raise UsageError(
                    f"a sweep cannot compare '{name}'",
                    hint=value_hint("--pool", name, POOLINGS, f"use any of: {', '.join(POOLINGS)}"),
                )
        check_poolers(self.poolers)
        if self.poolers and self.run.text.on_long == "chunk":
            raise UsageError(
                "--on-long chunk makes several windows of a text, and a pooler is fitted to the states of one",
                hint="use --on-long truncate, or leave out --pooler",
            )
        models = [run.model.model for run in self.runs]
        for name in models:
            if models.count(name) > 1:
                raise UsageError(f"-m names '{name}' twice", hint="name each model once")
        if len(models) > 1 and self.run.model.revision is not None:
            raise UsageError(
                f"--revision is of one model, and -m names {len(models)}",
                hint="leave it out, or give folders of the revisions with -m",
            )
