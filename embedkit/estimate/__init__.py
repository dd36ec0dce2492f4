"""What a run would come to: the table read as `encode` reads it, with the tokenizer and no weights.

tally.py    texts and tokens, counted
weigh.py    bytes of the output: shards written to nowhere, with made-up vectors
cost.py     time and memory, and what they rest on
passing.py  one pass over the table
spelling.py the vocabulary and the casing, on the first texts
result.py   all of it
lines.py    in words
"""

from __future__ import annotations

from dataclasses import replace

from embedkit.config import ModelConfig, RunConfig
from embedkit.engines.planning import cutter_of, table_of
from embedkit.estimate.casing_advice import other_casing
from embedkit.estimate.cost import duration, memory
from embedkit.estimate.format import lines
from embedkit.estimate.result import Forecast
from embedkit.estimate.scan import InputScan
from embedkit.inference.build import BATCH_TOKENS
from embedkit.inference.model_spec import ModelSpec, find_model
from embedkit.inference.tokenizer_setup import TokenizerSetup, set_up_without_weights
from embedkit.models.repository.config_facts import ConfigFacts
from embedkit.pooling.widths import variants
from embedkit.tokenizer.vocabulary import measure_coverage, suggest_other_casing
from embedkit.types import Variant

__all__ = ["Forecast", "forecast", "lines"]


def forecast(config: RunConfig, rate: float | None) -> Forecast:
    """Read the table once, and say what encoding it comes to.

    Args:
        config: what the user asks for.
        rate: tokens a second that the model does, if the user knows.

    Raises:
        EmbedkitError: of any kind that `encode` would raise before its model is loaded, but for rows that cannot
            be read and texts that are too long: these are counted.
    """
    config = replace(config, input=config.input_of_rows)
    table, _ = table_of(config)
    request = find_model(config)
    config = replace(config, pooling=request.config.pooling)
    settled, shape = set_up_without_weights(request)

    def setup(model: ModelConfig) -> TokenizerSetup:
        return set_up_without_weights(replace(request, config=replace(request.config, model=model)))[0]

    cutter = cutter_of(request, config)
    passing = InputScan(config, request, settled, _variants(request, settled, shape), table)
    passing.read_all(cutter)
    tally, first = passing.tally, passing.first_texts
    as_is = measure_coverage(settled.tokenizer, first)
    other = other_casing(setup, config.model, first, lowercase=settled.lowercase)
    option = f"--lowercase {'no' if settled.lowercase else 'yes'}"
    better = None if other is None else suggest_other_casing(as_is, other, option)
    files = request.folder.sizes()
    row_bytes = sum(4 * of.dims for of in passing.variants)
    return Forecast(
        model=request.folder.name,
        fits=settled.tokenizer.max_length,
        n_layers=shape.n_layers,
        layers=settled.layers,
        on_long=config.text.on_long,
        lowercase=settled.lowercase,
        precision=config.pooling.precision,
        format=config.output.format,
        shard_rows=cutter.shard_rows,
        tally=tally,
        spelled=as_is,
        other_casing=other,
        dims={of.name: of.dims for of in passing.variants},
        rows=passing.rows,
        bytes=passing.bytes,
        why_no_bytes=passing.why_no_bytes,
        other_bytes=passing.other_bytes,
        duration=duration(tally, shape, max(settled.layers), rate, config.model.device),
        memory=memory(
            shape,
            weights=sum(size for name, size in files.items() if name.endswith((".safetensors", ".bin"))),
            batch_tokens=config.batch.batch_tokens or BATCH_TOKENS["cpu"],
            shard_rows=min(cutter.shard_rows, tally.rows),
            row_bytes=row_bytes,
            shard_bytes=passing.most_bytes,
        ),
        notices=tuple(sentence for sentence in (*table.take_notes(), *settled.notices, better) if sentence),
    )


def _variants(request: ModelSpec, settled: TokenizerSetup, shape: ConfigFacts) -> tuple[Variant, ...]:
    """Columns of the output before `truncate_dim`."""
    found = variants(
        *(settled.layers, settled.layer_agg, request.poolings),
        {name: chosen.pooler("cpu") for name, chosen in request.poolers.items()},
        shape.hidden_size,
        variant_suffix=settled.variant_suffix,
        head_width=request.shipped.out_features if request.shipped else None,
    )
    of_unit = max(1, len(request.unit_poolings))
    return tuple(Variant(of.name, of.dims * of_unit) for of in found)
