"""One pass over a table: every shard read, tokenized, counted, and the first of them weighed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.config import RunConfig
from embedkit.engines.planning import input_facts, layout, output_facts, planned_kept_types
from embedkit.estimate.counts import Tally
from embedkit.estimate.disk_size import Weights
from embedkit.inference.build import ModelFacts
from embedkit.inference.model_spec import ModelSpec
from embedkit.inference.pipeline import ReadShard, TokenizedShard, finish_shard, tokenize_shard
from embedkit.inference.tokenizer_setup import TokenizerSetup, recipe_of
from embedkit.manifest.recipe import fingerprint
from embedkit.manifest.shards import ShardCutter
from embedkit.pooling.classifier_head import Head
from embedkit.pooling.postprocess import Int8Range
from embedkit.sources import Table
from embedkit.tokenizer import TextTokenizer
from embedkit.tokenizer.vocabulary import COVERAGE_TEXTS
from embedkit.types import Fault, RawVectors, Record, Variant

#: Shards that are weighed; later ones count as these do, by the row.
_WEIGHED = 8
_HASH = "0" * 64


@dataclass(frozen=True, slots=True)
class _MadeUp:
    """What `finish_shard` asks of an Embedder, without a model. See Embedder."""

    tokenizer: TextTokenizer
    on_long: str
    level: str
    normalize: bool
    truncate_dim: int | None
    precision: str
    head: Head | None
    int8_ranges: Mapping[str, Int8Range] | None


class InputScan:
    """What was seen of a table.

    Args:
        config: what the user asks for.
        request: the model, found.
        settled: what takes no weights.
        raw_variants: columns of the output before `truncate_dim`.
        table: read once.
    """

    def __init__(
        self,
        config: RunConfig,
        request: ModelSpec,
        settled: TokenizerSetup,
        raw_variants: tuple[Variant, ...],
        table: Table,
    ) -> None:
        self.raw_variants = raw_variants
        self.config = config
        self.settled = settled
        self.table = table
        self.tally = Tally(n_unknown=None if settled.tokenizer.unknown_id is None else 0)
        self.first_texts: list[str] = []
        self.rows = 0
        self.most_bytes = 0
        self.why_no_bytes = "--group-by makes one vector of several rows" if config.groups.by else ""
        kept = request.truncate_dim
        self.variants = tuple(Variant(of.name, min(kept or of.dims, of.dims)) for of in raw_variants)
        ranges = {of.name: Int8Range(_ends(-3, of.dims), _ends(3, of.dims)) for of in self.variants}
        self._made_up = _MadeUp(
            tokenizer=settled.tokenizer,
            on_long="truncate" if config.text.on_long == "error" else config.text.on_long,
            level=config.units.unit,
            normalize=request.normalize,
            truncate_dim=kept,
            precision=config.pooling.precision,
            head=request.head,
            int8_ranges=ranges if config.pooling.precision == "int8" else None,
        )
        self._token_vectors = not request.poolings and not request.unit_poolings
        self._weights = Weights(layout(self._plan(request)), config.output.format, config.output.is_single_file)
        self._weighed = 0

    def read_all(self, cutter: ShardCutter) -> None:
        """Read the table to its end, a shard at a time."""
        for read in _shards(self.table, cutter, self.config):
            self._add(read)

    @property
    def bytes(self) -> int | None:
        """Of the output's files of vectors and facts."""
        return None if self.why_no_bytes else self._weights.of_all(self.rows, self.tally.shards)

    @property
    def other_bytes(self) -> dict[str, int]:
        """Format → about how many bytes all rows would take in it."""
        return {} if self.why_no_bytes else self._weights.of_others(self.rows)

    def _add(self, read: ReadShard) -> None:
        tally, room = self.tally, COVERAGE_TEXTS - len(self.first_texts)
        if room > 0:
            self.first_texts += [of.text for of in read.records if of.text and of.text.strip()][:room]
        shard = tokenize_shard(read, self._made_up)
        texts = shard.texts
        tally.rows += read.stop - read.start
        tally.add_faults(read.faults)
        rows = read.records
        tally.add_faults([Fault(rows[text].row, "", None, code) for text, code in sorted(texts.faults.items())])
        tally.add_texts(texts.n_tokens, texts.n_used)
        tally.add_windows(texts.tokens.lengths, texts.tokens.first_alike())
        tally.n_content += int(texts.n_content.sum())
        if tally.n_unknown is not None and texts.n_unknown is not None:
            tally.n_unknown += int(texts.n_unknown.sum())
        characters = sum(len(of.text or "") for of in read.records)
        self.most_bytes = max(self.most_bytes, characters + 8 * len(texts.tokens.input_ids))
        self._weigh(shard)

    def _weigh(self, shard: TokenizedShard) -> None:
        """Finish a shard as it would be finished, with vectors of noise, and weigh what comes of it."""
        texts = np.flatnonzero(shard.texts.n_chunks) if shard.units is None else shard.units.texts
        if self._weighed >= _WEIGHED:
            without = len(shard.read.records) - len(np.unique(texts))
            self.rows += len(texts) + (0 if self.config.output.format == "npy" else without)
            return
        raw = RawVectors(
            texts,
            {of.name: self._noise(shard, len(texts), of.dims) for of in self.raw_variants},
            frozenset(),
        )
        finished = finish_shard(
            shard,
            raw,
            self._made_up,
            lambda _: None,
            keep=self.config.input.keep,
            on_bad_row=self.config.output.on_bad_row,
            list_nulls=self.config.output.format == "npy",
        )
        rows = int(finished.has_vector.sum()) if self.config.output.format == "npy" else len(finished.ids)
        if not self.why_no_bytes:
            self._weights.add(finished)
        self._weighed += 1
        self.rows += rows

    def _noise(self, shard: TokenizedShard, count: int, dims: int) -> Any:
        generator = np.random.default_rng(shard.read.index)
        if not self._token_vectors:
            return generator.standard_normal((count, dims), np.float32)
        special = shard.texts.tokens.prefix + shard.texts.tokens.suffix
        left_out = special if self.config.pooling.exclude_special else 0
        lengths = shard.texts.tokens.lengths - left_out
        return [generator.standard_normal((length, dims), np.float32) for length in lengths.tolist()]

    def _plan(self, request: ModelSpec) -> dict[str, Any]:
        """The plan of such a run, with hashes of nothing."""
        config = self.config
        recipe = recipe_of(
            request,
            self.settled,
            files=dict.fromkeys(request.folder.sizes(), _HASH),
            dtype="fp32" if config.model.dtype == "auto" else config.model.dtype,
        )
        source: dict[str, str | None] = {"name": None, "hub": None, "revision": None}
        facts = ModelFacts(recipe, fingerprint(recipe), (), "", "lean", self.variants, 0, source)
        plan = {
            "input": input_facts(self.table, None, config.input, whole=False),
            "kept_types": planned_kept_types(
                self.table.kept_types(), config, request.head.columns if request.head else {}
            ),
            **output_facts(facts, config),
        }
        noise = np.random.default_rng(0).standard_normal
        if config.pooling.precision == "int8":
            plan["int8_ranges"] = {
                of.name: {end: noise(of.dims, np.float32).tolist() for end in ("min", "max")}
                for of in self.variants
            }
        return plan


def _shards(table: Table, cutter: ShardCutter, config: RunConfig) -> Iterator[ReadShard]:
    """The table's rows by shards, cut as `encode` cuts them; rows that cannot be read end nothing here."""
    kept_as_null = config.output.on_bad_row == "null"
    start = row = 0
    records: list[Record] = []
    faults: list[Fault] = []
    for row, item in enumerate(table.records()):
        text = item.text if isinstance(item, Record) else None
        if cutter.opens_shard(len(text or "")) and row:
            yield ReadShard(len(cutter.starts) - 2, start, row, records, faults)
            start, records, faults = row, [], []
        if isinstance(item, Record):
            records.append(item)
        else:
            faults.append(item)
            records += [Record(item.row, None, None, (None,) * len(table.columns.keep))] if kept_as_null else []
    if cutter.rows:
        yield ReadShard(len(cutter.starts) - 1, start, cutter.rows, records, faults)


def _ends(value: float, dims: int) -> NDArray[np.float32]:
    return np.full(dims, value, np.float32)
