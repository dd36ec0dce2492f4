"""Opens the input of a run, with all that is attached to its rows. Imports no torch."""

from __future__ import annotations

from embedkit.config import RunConfig
from embedkit.sources import SpanBook, SpanColumn, Table, TableFacts, open_table


def table_of(config: RunConfig, facts: TableFacts | None = None) -> tuple[Table, SpanBook | None]:
    """Opens the input, with the spans of each row if vectors of spans are asked for; and the file of spans.

    Args:
        config: the user's options.
        facts: of the table, if another process of this run has opened it: no file is searched for, and none is
            looked at before its rows are read.

    Raises:
        InputError: the input or the file of spans cannot be read.
    """
    table = open_table(config.table) if facts is None else Table(facts, config.table, is_known=True)
    book = None if config.units.spans is None else SpanBook(config.units.spans, table)
    if book is not None:
        table.map_rows(book.attach)
    if config.units.spans_column is not None:
        table.map_rows(SpanColumn(table, config.units.spans_column).attach)
    table.reject_nulls(config.groups.by)
    return table, book
