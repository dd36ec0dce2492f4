"""One pass over a table: reads, tokenizes and counts every shard as `encode` would cut it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from embedkit.config import RunConfig
from embedkit.engines.planning import planned_kept_types
from embedkit.engines.read_shards import read_shards
from embedkit.engines.reuse import TextReuse
from embedkit.estimate.counts import InputCounts
from embedkit.estimate.disk_size import DiskSize
from embedkit.inference.model_spec import ModelSpec
from embedkit.inference.pipeline import ReadShard, ShardSettings, cut_variants, finish_shard, tokenize_shard
from embedkit.inference.tokenizer_setup import TokenizerSetup, recipe_of
from embedkit.manifest.recipe import canonical_json
from embedkit.manifest.schema import Sharding
from embedkit.manifest.shards import ShardCutter
from embedkit.manifest.versions import vector_versions
from embedkit.output.formats import Layout
from embedkit.sources import Table
from embedkit.tokenizer.vocabulary import COVERAGE_TEXTS
from embedkit.types import Fault, RawVectors, Variant

#: As long as a SHA-256.
_HASH = "0" * 64
#: Characters of the two ends of a dimension's int8 range in the metadata of a file.
_RANGE_CHARACTERS = 42


class InputScan:
    """Counts of a table, and the size of its output.

    Attributes:
        counts: texts, tokens and windows.
        first_texts: those on which casings are compared.
        largest_shard: bytes of the texts and tokens of the largest shard.
        variants: columns of the output; `raw_variants` are those before `truncate_dim`.
        disk: size of the output.
    """

    def __init__(
        self,
        config: RunConfig,
        spec: ModelSpec,
        setup: TokenizerSetup,
        raw_variants: tuple[Variant, ...],
        table: Table,
        reuse: TextReuse | None,
    ) -> None:
        self.counts = InputCounts(n_unknown=None if setup.tokenizer.unknown_id is None else 0)
        self.first_texts: list[str] = []
        self.notices: list[str] = []
        self.largest_shard = 0
        self.variants = cut_variants(raw_variants, spec.truncate_dim)
        self._config = config
        self._table = table
        self._reuse = reuse
        on_long = "truncate" if setup.on_long == "error" else setup.on_long
        self._settings = ShardSettings(tokenizer=setup.tokenizer, on_long=on_long, level=config.units.unit)
        self._token_vectors = not spec.poolings and not spec.unit_poolings
        recipe = recipe_of(
            spec,
            setup,
            files=dict.fromkeys(spec.folder.sizes(), _HASH),
            dtype="fp32" if config.model.dtype == "auto" else config.model.dtype,
        )
        if reuse is not None:
            scores = tuple(spec.head.columns) if spec.head else ()
            self.notices = reuse.check_recipe(recipe, scores, without=("model", "dtype"))
        ranges = sum(of.dims for of in self.variants) if config.pooling.precision == "int8" else 0
        self.disk = DiskSize(
            Layout(
                variants=self.variants,
                precision=config.pooling.precision,
                token_vectors=self._token_vectors,
                kept_types=planned_kept_types(table.facts.kept_types(), config, {}),
                metadata={
                    "embedkit.recipe": canonical_json(recipe),
                    "embedkit.fingerprint": _HASH,
                    "embedkit.input": _HASH,
                    "embedkit.int8_ranges": "0" * (_RANGE_CHARACTERS * ranges),
                    "embedkit.versions": canonical_json(vector_versions()),
                    # Names, sizes and hashes of the files that are read.
                    "embedkit.read": "0" * 600,
                },
            ),
            normalized=spec.normalize,
            scores=spec.head.columns if spec.head else (),
            is_single_file=config.output.is_single_file,
        )

    def read_all(self, cutter: ShardCutter) -> None:
        """Reads the table to its end, in shards as `encode` cuts them; unreadable rows are counted, not raised."""
        sharding = Sharding(cutter.shard_rows, cutter.shard_characters, None, None, None)
        on_bad_row = "null" if self._config.output.on_bad_row == "null" else "skip"
        for read in read_shards(self._table, sharding, on_bad_row):
            self._add(read)

    def _add(self, read: ReadShard) -> None:
        counts, rows = self.counts, read.records
        missing = COVERAGE_TEXTS - len(self.first_texts)
        if missing > 0:
            self.first_texts += [of.text for of in rows if of.text and of.text.strip()][:missing]
        known = None if self._reuse is None else self._reuse.find(rows)
        # Earlier outputs' texts are counted as well.
        shard = replace(tokenize_shard(read, self._settings), known=known)
        texts = shard.texts
        is_computed = np.isin(texts.texts, [] if known is None else known.records, invert=True)
        counts.reused += 0 if known is None else len(known.records)
        counts.rows += read.stop - read.start
        counts.add_faults(read.faults)
        counts.add_faults([Fault(rows[text].row, "", None, code) for text, code in sorted(texts.faults.items())])
        counts.add_texts(texts.n_tokens, texts.n_used)
        counts.add_windows(texts.tokens.lengths, texts.tokens.duplicate_of()[is_computed])
        counts.n_content += int(texts.n_content.sum())
        if counts.n_unknown is not None and texts.n_unknown is not None:
            counts.n_unknown += int(texts.n_unknown.sum())
        characters = sum(len(of.text or "") for of in rows)
        self.largest_shard = max(self.largest_shard, characters + 8 * len(texts.tokens.input_ids))
        of_units = np.flatnonzero(texts.n_chunks) if shard.units is None else shard.units.texts
        finished = finish_shard(
            shard,
            RawVectors(of_units, {}, frozenset()),
            self._settings,
            {},
            keep=self._config.input.keep,
            on_bad_row=self._config.output.on_bad_row,
            list_nulls=False,
            keep_hashes=self._config.keeps_hashes,
        )
        n_vectors = int(finished.has_vector.sum())
        if self._token_vectors:
            special = texts.tokens.prefix + texts.tokens.suffix if self._config.pooling.exclude_special else 0
            n_vectors = int((texts.tokens.lengths - special).sum())
        self.disk.add(finished, n_vectors)
