"""Estimates of a run: the table is read as `encode` reads it, with the tokenizer and without the model's weights.

scan.py       one pass over the table
counts.py     texts, tokens and windows
disk_size.py  bytes of the output
cost.py       time and memory, each with its basis
result.py     all of it, as JSON and as text
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from embedkit.config import RunConfig
from embedkit.engines.open_input import table_of
from embedkit.engines.planning import cut_of
from embedkit.engines.reuse import open_reuse
from embedkit.errors import ModelError
from embedkit.estimate.cost import duration, memory
from embedkit.estimate.result import Estimate
from embedkit.estimate.scan import InputScan
from embedkit.inference.build import BATCH_TOKENS
from embedkit.inference.model_spec import ModelSpec, find_model
from embedkit.inference.tokenizer_setup import TokenizerSetup, set_up_without_weights
from embedkit.models.repository.config_facts import ConfigFacts
from embedkit.pooling.pooling_spec import PoolingSpec
from embedkit.pooling.select import make_poolers
from embedkit.tokenizer.vocabulary import measure_coverage, suggest_other_casing
from embedkit.types import Variant

__all__ = ["Estimate", "estimate"]


def estimate(config: RunConfig, rate: float | None) -> Estimate:
    """Reads the table once and estimates what encoding it takes; `rate` is in tokens a second, if known.

    Raises:
        EmbedkitError: any error that `encode` raises before its model is loaded, except for unreadable rows and
            too long texts, which are counted.
    """
    config = replace(config, input=config.input_of_rows)
    table, _ = table_of(config)
    spec = find_model(config)
    config = replace(config, model=spec.config.model, text=spec.config.text, pooling=spec.config.pooling)
    setup, facts = set_up_without_weights(spec)
    cutter = cut_of(spec, config).cutter()
    scan = InputScan(config, spec, setup, _variants(spec, setup, facts), table, open_reuse(config, None))
    scan.read_all(cutter)
    counts, form = scan.counts, config.output.format
    as_is = measure_coverage(setup.tokenizer, scan.first_texts)
    lowercase = "no" if setup.lowercase else "yes"
    other = better = None
    with suppress(ModelError):
        other_config = replace(spec.config, model=replace(config.model, lowercase=lowercase))
        other_setup, _ = set_up_without_weights(replace(spec, config=other_config))
        other = measure_coverage(other_setup.tokenizer, scan.first_texts)
        better = suggest_other_casing(as_is, other, f"--lowercase {lowercase}")
    why_no_bytes = "--group-by makes one vector of several rows" if config.groups.by else ""
    sizes = {} if why_no_bytes else scan.disk.by_format()
    return Estimate(
        model=spec.folder.name,
        max_length=setup.tokenizer.max_length,
        n_layers=facts.n_layers,
        layers=setup.layers,
        on_long=setup.on_long,
        lowercase=setup.lowercase,
        precision=config.pooling.precision,
        format=form,
        shard_rows=cutter.shard_rows,
        counts=counts,
        coverage=as_is,
        other_casing=other,
        dims={of.name: of.dims for of in scan.variants},
        rows=scan.disk.rows(form),
        bytes=sizes.pop(form, None),
        why_no_bytes=why_no_bytes,
        other_bytes=sizes,
        duration=duration(counts, facts, max(setup.layers), rate, config.model.device),
        memory=memory(
            facts,
            weights=sum(n for name, n in spec.folder.sizes().items() if name.endswith((".safetensors", ".bin"))),
            batch_tokens=config.batch.batch_tokens or BATCH_TOKENS["cpu"],
            shard_rows=min(cutter.shard_rows, counts.rows),
            row_bytes=sum(4 * of.dims for of in scan.variants),
            shard_bytes=scan.largest_shard,
        ),
        notices=tuple(
            sentence for sentence in (*table.take_notes(), *setup.notices, *scan.notices, better) if sentence
        ),
    )


def _variants(spec: ModelSpec, setup: TokenizerSetup, facts: ConfigFacts) -> tuple[Variant, ...]:
    """Returns the columns of the output before `truncate_dim`."""
    pooled = PoolingSpec(
        setup.layers,
        setup.layer_agg,
        spec.poolings,
        head_width=spec.shipped.out_features if spec.shipped else None,
        variant_suffix=setup.variant_suffix,
        poolers=make_poolers(spec.poolers, "cpu"),
    )
    per_unit = max(1, len(spec.unit_poolings))
    return tuple(Variant(of.name, of.dims * per_unit) for of in pooled.variants(facts.hidden_size))
