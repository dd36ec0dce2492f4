"""A forecast in words, 80 columns wide; no content of any row is in it."""

from __future__ import annotations

from collections.abc import Iterator

from embedkit.estimate.result import Forecast
from embedkit.tokenizer.vocabulary import VocabularyCoverage

_BAR = 32


def lines(it: Forecast) -> Iterator[str]:
    """What a person reads."""
    tally = it.tally
    yield f"model      {it.model}"
    yield f"           {it.fits:,} tokens at most; layers {_short(it.layers)} of {it.n_layers} are used"
    empty = tally.rows - tally.n_faults - tally.texts
    yield f"rows       {tally.rows:,}: {tally.texts:,} with a text, {empty:,} empty, {tally.n_faults:,} unreadable"
    for fault in tally.faults:
        where = "" if fault.offset is None else f", byte {fault.offset}"
        yield f"           row {fault.row} of {fault.file}: {fault.code}{where}"
    if tally.texts:
        yield from _of_tokens(it)
        yield from _of_vocabulary(it)
    for name, dims in it.dims.items():
        yield f"vectors    {name or 'embedding'}: {dims:,} x {it.precision}"
    yield from _of_costs(it)


def _of_tokens(it: Forecast) -> Iterator[str]:
    tally = it.tally
    mean = tally.n_tokens / tally.texts
    yield (
        f"tokens     {tally.n_tokens:,}; a text has {mean:.0f} (mean), {tally.at(0.5):,} (median), "
        f"{tally.at(0.99):,} (99 %),"
    )
    yield f"           {len(tally.lengths) - 1:,} at most; special tokens counted"
    bars = list(tally.bars(it.fits))
    most = max(bar.texts for bar in bars)
    for bar in bars:
        mark = "#" * round(_BAR * bar.texts / most) or ("." if bar.texts else "")
        over = f"  over {it.fits}" if bar.cut else ""
        yield f"{bar.low:>9,}-{bar.high:<7,} {mark:<{_BAR}} {bar.texts:>10,} {bar.texts / tally.texts:6.1%}{over}"
    long = int(tally.lengths[it.fits + 1 :].sum())
    too_long = f"{long:,} texts ({long / tally.texts:.1%})"
    lost = tally.n_tokens - tally.n_used
    match it.on_long:
        case "chunk":
            yield f"long       {too_long} are read in windows: {tally.windows:,} in all"
        case "error":
            yield f"long       {too_long}: encode stops at the first (--on-long error)"
        case _:
            yield (
                f"truncated  {tally.truncated:,} texts ({tally.truncated / tally.texts:.1%}), "
                f"{lost:,} tokens lost ({lost / tally.n_tokens:.1%})"
            )
            if 2 * lost >= tally.n_tokens:
                yield "           half of the tokens or more: --on-long chunk loses none"
    if tally.repeated:
        share = tally.repeated / tally.windows
        yield f"repeated   {tally.repeated:,} ({share:.1%}) are like another of their shard, and computed with it"


def _of_vocabulary(it: Forecast) -> Iterator[str]:
    tally = it.tally
    if tally.n_unknown is None:
        yield "unknown    none can be: the vocabulary spells every character (bytes)"
    else:
        share = tally.n_unknown / max(1, tally.n_content)
        yield f"unknown    {tally.n_unknown:,} of {tally.n_content:,} tokens ({share:.2%})"
    done = "lowercased" if it.lowercase else "with their capitals"
    yield f"casing     texts are read {done}; the first {it.spelled.texts:,} of them:"
    yield f"           {'as is':<17}{_spelling(it.spelled)}"
    if it.other_casing is None:
        yield "           the other way: this tokenizer cannot be switched"
    else:
        other = f"--lowercase {'no' if it.lowercase else 'yes'}"
        yield f"           {other:<17}{_spelling(it.other_casing)}"


def _spelling(spelled: VocabularyCoverage) -> str:
    unknown = "" if spelled.unknown_share is None else f"{spelled.unknown_share:.2%} unknown, "
    return f"{unknown}{spelled.tokens_per_word:.2f} tokens a word"


def _of_costs(it: Forecast) -> Iterator[str]:
    yield f"shards     {it.tally.shards:,} of at most {it.shard_rows:,} rows"
    if it.bytes is None:
        yield f"disk       not told: {it.why_no_bytes}"
    else:
        others = ", ".join(f"{form} {_size(size)}" for form, size in it.other_bytes.items())
        yield f"disk       {it.format} {_size(it.bytes)}; about {others}"
    took = it.duration
    if took.seconds is None:
        yield f"time       not told: {took.basis}"
    else:
        alone = " in matrix products alone" if took.products_only else ""
        yield f"time       {_time(took.seconds)}{alone} for {it.tally.computed:,} tokens,"
        yield f"           {took.basis}"
        if took.products_only:
            yield "           (a run does more: give --rate TOKENS/S, which encode says in the end)"
    yield f"memory     about {_size(it.memory)} on a CPU (libraries, weights, a batch, shards)"


def _short(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers)) if len(layers) < 9 else f"{layers[0]} to {layers[-1]}"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
