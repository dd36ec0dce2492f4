"""What opening a table finds: its files, its columns, and the types that the files declare."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from embedkit.sources.columns import Column, Columns
from embedkit.sources.kept_types import KeptTypes, declared_type, unified
from embedkit.sources.locate import SourceFile

#: Formats whose files declare the types of their columns.
TYPED = frozenset({"parquet", "arrow", "postgresql", "duckdb"})


@dataclass(frozen=True, slots=True)
class TableFacts:
    """What opening a table has found, so that another process opens it without another look at the files."""

    files: tuple[SourceFile, ...]
    columns: Columns
    declared: tuple[tuple[str, tuple[Column, ...]], ...]  # format and kept columns of each file that has a header

    def kept_types(self) -> dict[str, str]:
        """Returns the declared type of each kept column: `string` for csv and txt, `text` for JSON.

        For streaming tables, which have no scan; a scan finds more exact types.
        """
        typed = all(file.format in TYPED for file in self.files)
        find = declared_type if typed else unified
        return {name: find(names) for name, names in self.declared_types().items()}

    def types_to_find(self) -> KeptTypes:
        """Returns the types of the kept columns before a pass, which adds what their values say."""
        by_value = any(file.format not in TYPED for file in self.files)
        return KeptTypes(self.columns.keep, self.declared_types(TYPED), by_value=by_value)

    def declared_types(self, formats: Collection[str] | None = None) -> dict[str, set[str]]:
        """Returns the types that files of these formats declare for each kept column; None for all formats."""
        types: dict[str, set[str]] = {name: set() for name in self.columns.keep}
        for file_format, columns in self.declared:
            if formats is None or file_format in formats:
                for column in columns:
                    types[column.name].add(column.kept)
        return types
