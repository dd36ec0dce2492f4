"""The section of one output: what was found, as tables and figures.

Knows nothing of files. Of a row it tells what it is given: id, and the columns that were asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from embedkit.report.charts import length_bins, lengths_figure, map_figure, norms_figure
from embedkit.report.geometry import THRESHOLDS
from embedkit.report.markup import Markup, chart, element, folded, joined, table
from embedkit.report.remarks import Findings, Told, name_of
from embedkit.types import STATUSES

_BINS = 40
#: Norms that differ by less are one length: what is left is rounding.
_ONE_LENGTH = 1e-3


def output_section(it: Findings, number: int) -> Markup:
    """Everything about one output; `number` makes the names of its figures its own."""
    name = f"output-{number}"
    parts = [
        element("h2", it.path.name, id=name),
        _tiles(it),
        *_recipe(it),
        *_receipts(it, name),
        *_norms(it, name),
        *_duplicates(it),
        *_map(it, name),
        *_neighbours(it),
    ]
    return element("section", joined(parts), aria_labelledby=name)


def overview(all_found: list[Findings]) -> Markup:
    """A line an output."""
    rows = [
        (
            Markup(f'<a href="#output-{number}">{element("span", it.path.name)}</a>'),
            it.totals.rows,
            it.totals.vectors,
            it.variant.dims,
            _percent(it.totals.truncated_share),
            _percent(it.totals.lost_share),
            it.model or "not in this file",
            element("code", it.stored.fingerprint[:12]) if it.stored.fingerprint else "not in this file",
        )
        for number, it in enumerate(all_found, 1)
    ]
    headers = ("output", "rows", "vectors", "dimensions", "truncated", "tokens lost", "model", "recipe")
    return joined([element("h2", "Outputs"), table(headers, rows)])


def _tiles(it: Findings) -> Markup:
    facts = {
        "rows": f"{it.totals.rows:,}",
        "vectors": f"{it.totals.vectors:,}",
        "dimensions": f"{it.variant.dims:,}",
        "rows truncated": _percent(it.totals.truncated_share),
        "tokens lost": _percent(it.totals.lost_share),
        "stored as": f"{it.stored.format}, {it.stored.layout.precision}",
    }
    tiles = [element("div", element("dt", word), element("dd", fact)) for word, fact in facts.items()]
    notes = []
    if len(it.stored.layout.variants) > 1:
        names = ", ".join(variant.name for variant in it.stored.layout.variants)
        notes.append(f"Vectors below: {it.variant.name}, one of {names} (--variant chooses).")
    if it.stored.layout.token_vectors:
        notes.append("This output holds a vector a token. Below, each text is the mean of its tokens' vectors.")
    if it.stored.layout.precision == "binary":
        notes.append("A value is a bit, taken as -1 or 1: cosine is 1 less twice the share of bits that differ.")
    return joined([element("dl", *tiles, class_="tiles"), *(element("p", note, class_="note") for note in notes)])


def _recipe(it: Findings) -> Iterator[Markup]:
    yield element("h3", "Recipe")
    if not it.stored.recipe:
        yield element("p", "This file has no place for a recipe; a folder or a .parquet file carries it.")
        return
    rows: list[tuple[object, object]] = [("fingerprint", element("code", it.stored.fingerprint))]
    rows += [("model", it.model)] if it.model else []
    rows += [(key, value) for key, value in _flat(it.stored.recipe) if key != "version"]
    yield table((), rows)
    files = it.stored.recipe.get("model", {}).get("files", {})
    if files:
        hashes = [(name, element("code", digest)) for name, digest in files.items()]
        yield folded(f"SHA-256 of the model's {len(files)} files", table((), hashes))


def _flat(recipe: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """A line a field, in words; what is inside another field after its name."""
    for key, value in recipe.items():
        name = before + key.replace("_", " ")
        if isinstance(value, Mapping):
            if key != "files":
                yield from _flat(value, f"{name}: ")
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value)) or "none"
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        else:
            yield name, "none" if value in {None, ""} else str(value)


def _receipts(it: Findings, name: str) -> Iterator[Markup]:
    totals, limit = it.totals, it.stored.recipe.get("text", {}).get("max_length")
    yield element("h3", "Receipts")
    known = [word for word in STATUSES if word in totals.statuses]
    words = [*known, *sorted(set(totals.statuses) - set(known))]
    rows = [(word, totals.statuses[word], _percent(totals.statuses[word] / totals.rows)) for word in words]
    yield table(("status", "rows", "share"), rows)
    lost = totals.n_tokens - totals.n_used
    yield element(
        "p",
        f"{totals.n_tokens:,} tokens before any cut, {totals.n_used:,} of them seen by the model: "
        f"{max(0, lost):,} ({_percent(totals.lost_share)}) are in no vector.",
    )
    if not it.survey.lengths:
        return
    bins = length_bins(it.survey.lengths, limit)
    longest = max(it.survey.lengths)
    told = f"Tokens of the texts. The longest has {longest:,}"
    if limit:
        over = sum(rows for tokens, rows in it.survey.lengths.items() if tokens > limit)
        told += f"; the model was given at most {limit:,}, and {over:,} texts have more"
    if it.stored.format == "npy":
        told += ". Rows without a vector are not in .npy files, and not here"
    yield chart(f"{name}-lengths", f"{told}.", lengths_figure(bins, limit))
    cells = [(f"{low:,} or more" if high is None else f"{low:,} to {high:,}", rows) for low, high, rows in bins]
    yield folded("As a table", table(("tokens", "rows"), cells))


def _norms(it: Findings, name: str) -> Iterator[Markup]:
    yield element("h3", "VectorNorms")
    if it.stored.layout.precision == "binary":
        yield element("p", "Vectors of bits all have the same length.")
        return
    if not it.survey.norms.count:
        yield element("p", "There are no vectors.")
        return
    norms = it.survey.norms.norms()
    yield element(
        "p",
        f"Length of the vectors: smallest {norms.minimum:.4g}, median {norms.median:.4g}, "
        f"largest {norms.maximum:.4g}.",
    )
    if norms.maximum - norms.minimum <= _ONE_LENGTH * norms.maximum:
        yield element("p", "They are all of one length, but for rounding, so there is nothing to draw.")
        return
    counts, edges = it.survey.norms.histogram(_BINS)
    yield chart(f"{name}-norms", "Lengths of the vectors of all rows.", norms_figure(counts, edges))
    cells = [
        (f"{low:.4g} to {high:.4g}", rows)
        for low, high, rows in zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
    ]
    yield folded("As a table", table(("length", "vectors"), cells))


def _duplicates(it: Findings) -> Iterator[Markup]:
    repeats, near = it.survey.repeats, it.near
    yield element("h3", "Duplicates")
    about = f"about (one in {repeats.one_in} was looked at) " if repeats.one_in > 1 else ""
    yield element(
        "p",
        f"Equal to the bit, among all rows: {about}{repeats.groups:,} vectors are there more than once, "
        f"in {repeats.rows:,} rows.",
    )
    if repeats.groups:
        groups = [
            (size, _names(it, rows, size)) for rows, size in zip(repeats.largest, repeats.sizes, strict=True)
        ]
        yield table(("rows", "ids"), groups, caption="The largest groups")
    yield element(
        "p",
        f"Nearly equal, among {near.among:,} different vectors"
        f"{' of the sample' if len(it.sample.rows) < it.totals.vectors else ''}:",
    )
    rows = [
        (f"{threshold:g} or more", pairs, vectors)
        for threshold, pairs, vectors in zip(THRESHOLDS, near.pairs, near.rows, strict=True)
    ]
    yield table(("cosine", "pairs", "vectors in them"), rows)
    if near.closest:
        names = [name_of(identity, row) for identity, row in zip(it.sample.ids, it.sample.rows, strict=True)]
        closest = [(f"{cosine:.5f}", names[one], names[other]) for cosine, one, other in near.closest]
        yield folded("The closest pairs", table(("cosine", "id", "id"), closest))


def _names(it: Findings, rows: Sequence[int], size: int) -> str:
    more = f" and {size - len(rows):,} more" if size > len(rows) else ""
    return ", ".join(it.told[row].name for row in rows) + more


def _map(it: Findings, name: str) -> Iterator[Markup]:
    yield element("h3", "Map")
    sample = it.sample
    if len(sample.rows) < 2:
        yield element("p", "A map needs at least two vectors.")
        return
    part = "All" if len(sample.rows) == it.survey.vectors else f"A sample of {len(sample.rows):,} of"
    first, second = it.map.shares
    told = (
        f"{part} {it.survey.vectors:,} vectors along their two directions of largest variance (PCA), which hold "
        f"{_percent(first)} and {_percent(second)} of it"
    )
    told += f"; colour and shape: {it.color}." if it.color else "."
    names = [name_of(identity, row) for identity, row in zip(sample.ids, sample.rows, strict=True)]
    shown = {column: sample.kept[column] for column in it.shown}
    colour = (it.color, sample.kept[it.color]) if it.color else None
    yield element(
        "p",
        "Drag a box to zoom in, double-click to see all again. The mouse tells a point's id. "
        "What lies close together here may lie apart in the other dimensions: the neighbours below are exact.",
        class_="note screen",
    )
    yield element(
        "form",
        element("label", "Find an id ", element("input", type="search", autocomplete="off", spellcheck="false")),
        element("button", "Find", type="submit"),
        element("output", aria_live="polite"),
        class_="find screen",
        data_map=f"{name}-map",
    )
    yield chart(f"{name}-map", told, map_figure(it.map, names, colour, shown), tall=True)


def _neighbours(it: Findings) -> Iterator[Markup]:
    yield element("h3", "Nearest neighbours")
    if not it.queries:
        yield element("p", "There are no vectors.")
        return
    yield element("p", f"By cosine, exact, among all {it.survey.vectors:,} vectors.")
    cards = []
    for row, nearest in zip(it.queries, it.nearest, strict=True):
        own = it.told[row]
        lines = [(f"{cosine:.4f}", it.told[near].name, *_cells(it.told[near])) for cosine, near in nearest]
        told = ", ".join(f"{column}: {cell}" for column, cell in zip(it.columns, _cells(own), strict=True))
        caption = f"{own.name} ({told})" if told else own.name
        cards.append(table(("cosine", "id", *it.columns), lines, caption=caption))
    yield element("div", *cards, class_="cards")


def _cells(told: Told) -> list[str]:
    return ["" if cell is None else str(cell) for cell in told.cells]


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")
