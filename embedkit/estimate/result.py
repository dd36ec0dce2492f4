"""The result of `embedkit plan`, as JSON and as text 80 columns wide; no content of any row is in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from embedkit.estimate.cost import Duration
from embedkit.estimate.counts import InputCounts
from embedkit.percent import percent
from embedkit.tokenizer.vocabulary import VocabularyCoverage

_BAR_WIDTH = 32
#: Keys of the JSON that differ from the names of fields: those of earlier versions.
_KEYS = {"max_length": "fits", "coverage": "spelled", "other_casing": "flipped"}


@dataclass(frozen=True, slots=True)
class Estimate:
    """Counts, sizes and costs of a run, estimated before it starts."""

    model: str  # as the user named it
    max_length: int  # most tokens of a text or window, special tokens included
    n_layers: int
    layers: tuple[int, ...]  # that are used
    on_long: str  # truncate, chunk or error
    lowercase: bool
    precision: str
    format: str
    shard_rows: int  # most rows in a shard
    counts: InputCounts
    coverage: VocabularyCoverage  # of the first texts
    other_casing: VocabularyCoverage | None  # of the same texts; None if the tokenizer cannot be switched
    dims: Mapping[str, int]  # of each variant
    rows: int  # of the output
    bytes: int | None  # of the output's data files; None with `why_no_bytes`
    why_no_bytes: str
    other_bytes: Mapping[str, int]  # in the other formats
    duration: Duration  # of the model's work
    memory: int  # bytes
    notices: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Returns all fields as JSON values; `lengths` as `[tokens, texts]` pairs."""
        fields = {_KEYS.get(name, name): value for name, value in asdict(self).items()}
        counts = fields.pop("counts")
        lengths = [[length, int(texts)] for length, texts in enumerate(counts.pop("lengths")) if texts]
        return {**fields, **counts, "rows": self.rows, "input_rows": self.counts.rows, "lengths": lengths}

    def as_text(self) -> Iterator[str]:
        """Yields the lines of the text."""
        counts = self.counts
        yield f"model      {self.model}"
        layers = f"layers {_short(self.layers)} of {self.n_layers} are used"
        yield f"           {self.max_length:,} tokens at most; {layers}"
        empty = counts.rows - counts.n_faults - counts.texts
        kinds = f"{counts.texts:,} with a text, {empty:,} empty, {counts.n_faults:,} unreadable"
        yield f"rows       {counts.rows:,}: {kinds}"
        for fault in counts.faults:
            where = "" if fault.offset is None else f", byte {fault.offset}"
            yield f"           row {fault.row} of {fault.file}: {fault.code}{where}"
        if counts.texts:
            yield from self._tokens()
            yield from self._vocabulary()
        for name, dims in self.dims.items():
            yield f"vectors    {name or 'embedding'}: {dims:,} x {self.precision}"
        yield from self._costs()

    def _tokens(self) -> Iterator[str]:
        counts, limit = self.counts, self.max_length
        mean, median = counts.n_tokens / counts.texts, counts.quantile(0.5)
        spread = f"{mean:.0f} (mean), {median:,} (median), {counts.quantile(0.99):,} (99 %)"
        yield f"tokens     {counts.n_tokens:,}; a text has {spread},"
        yield f"           {len(counts.lengths) - 1:,} at most; special tokens counted"
        bins = list(counts.histogram(limit))
        most = max(of.texts for of in bins)
        for of in bins:
            mark = "#" * round(_BAR_WIDTH * of.texts / most) or ("." if of.texts else "")
            over = f" over {limit}" if of.is_over else ""
            share = percent(of.texts / counts.texts)
            yield f"{of.low:>9,}-{of.high:<7,} {mark:<{_BAR_WIDTH}} {of.texts:>10,} {share:>7}{over}"
        long = int(counts.lengths[limit + 1 :].sum())
        too_long = f"{long:,} texts ({percent(long / counts.texts)})"
        lost = counts.n_tokens - counts.n_used
        match self.on_long:
            case "chunk":
                yield f"long       {too_long} are read in windows: {counts.windows:,} in all"
            case "error":
                yield f"long       {too_long}: encode stops at the first (--on-long error)"
            case _:
                yield (
                    f"truncated  {counts.truncated:,} texts ({percent(counts.truncated / counts.texts)}), "
                    f"{lost:,} tokens lost ({percent(lost / counts.n_tokens)})"
                )
                if 2 * lost >= counts.n_tokens:
                    yield "           half of the tokens or more: --on-long chunk loses none"
        if counts.reused:
            share = percent(counts.reused / counts.texts)
            yield f"reused     {counts.reused:,} texts ({share}) are in an earlier output: not computed"
        if counts.repeated:
            share = percent(counts.repeated / counts.windows)
            yield f"repeated   {counts.repeated:,} ({share}) equal another of their shard: computed once"

    def _vocabulary(self) -> Iterator[str]:
        counts = self.counts
        if counts.n_unknown is None:
            yield "unknown    none can be: the vocabulary spells every character (bytes)"
        else:
            share = percent(counts.n_unknown / max(1, counts.n_content), 2)
            yield f"unknown    {counts.n_unknown:,} of {counts.n_content:,} tokens ({share})"
        casing = "lowercased" if self.lowercase else "with their capitals"
        yield f"casing     texts are read {casing}; the first {self.coverage.texts:,} of them:"
        yield f"           {'as is':<17}{_coverage(self.coverage)}"
        if self.other_casing is None:
            yield "           other casing: this tokenizer cannot be switched"
        else:
            option = f"--lowercase {'no' if self.lowercase else 'yes'}"
            yield f"           {option:<17}{_coverage(self.other_casing)}"

    def _costs(self) -> Iterator[str]:
        yield f"shards     {self.counts.shards:,} of at most {self.shard_rows:,} rows"
        if self.bytes is None:
            yield f"disk       unknown: {self.why_no_bytes}"
        else:
            others = ", ".join(f"{form} {_size(size)}" for form, size in self.other_bytes.items())
            yield f"disk       about {self.format} {_size(self.bytes)}; {others}"
        duration = self.duration
        if duration.seconds is None:
            yield f"time       unknown: {duration.basis}"
        else:
            only = " in matrix products alone" if duration.products_only else ""
            yield f"time       {_time(duration.seconds)}{only} for {self.counts.computed:,} tokens,"
            yield f"           {duration.basis}"
            if duration.products_only:
                yield "           (a run does more: give --rate TOKENS/S, as encode prints it)"
        yield f"memory     about {_size(self.memory)} on a CPU (libraries, weights, a batch, shards)"


def _coverage(coverage: VocabularyCoverage) -> str:
    unknown = "" if coverage.unknown_share is None else f"{percent(coverage.unknown_share, 2)} unknown, "
    return f"{unknown}{coverage.tokens_per_word:.2f} tokens a word"


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
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
