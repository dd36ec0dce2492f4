"""Finds the files of an input, chooses the columns, and checks that each file has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO

from embedkit.config import InputConfig
from embedkit.errors import InputError, UsageError
from embedkit.sources.columns import (
    DELIMITED,
    USUAL_TEXT,
    Column,
    Columns,
    check_columns,
    column_notices,
    requested_columns,
    resolve_columns,
)
from embedkit.sources.databases import database_file
from embedkit.sources.headers import shown
from embedkit.sources.kept_types import common_type, fit_together
from embedkit.sources.locate import STDIN, SourceFile, locate
from embedkit.sources.opening import opened_stdin
from embedkit.sources.query import with_id
from embedkit.sources.readers import as_input_error, reader_of, reading
from embedkit.sources.table import Table
from embedkit.sources.table_facts import TYPED, TableFacts
from embedkit.storage.fsspec_filesystem import keep_secrets
from embedkit.storage.standard_streams import rows_in

_VISIBLE = (
    "a password in a URL is visible to other users of this machine while the command runs; PGPASSWORD and"
    " ~/.pgpass are not"
)


def open_table(config: InputConfig, *, stdin: BinaryIO | None = None, has_texts: bool = True) -> Table:
    """Finds the files, chooses the columns, and checks that each file has them.

    Args:
        config: of the input.
        stdin: read if the input is `-`; by default that of the process.
        has_texts: False if the files have only ids and kept columns.

    Raises:
        InputError: a file or a column is missing, or a file is not of its format.
        UsageError: the template is malformed, `-` is not the only input.
    """
    notes: list[str] = []
    keep_secrets(config.uri_secrets)
    requested = requested_columns(config)
    files: tuple[SourceFile, ...]
    reader = None
    if STDIN in config.inputs:
        if len(config.inputs) > 1:
            raise UsageError("stdin (-) cannot be read together with files", hint="give either - or files")
        file, stream = opened_stdin(stdin or rows_in(), config)
        with as_input_error(STDIN):
            reader = reader_of(file, stream, requested.named, config)
            files, headers = (file,), iter([reader.columns])
    else:
        files = (database_file(config),) if config.sql is not None else locate(config.inputs, config.format, notes)
        if config.delimiter and not any(file.format in DELIMITED for file in files):
            raise UsageError("--delimiter is for csv and tsv, and no input is one", hint="leave it out")
        headers = _headers(files, requested, config)
    columns = None if has_texts else requested
    declared: list[tuple[str, tuple[Column, ...]]] = []
    typed: dict[str, Column] = {}
    for file, present in zip(files, headers, strict=True):
        if present is None:
            continue
        if columns is None:
            columns = _chosen(requested, present, file, config, notes)
        check_columns(columns, present, file=file.shown, file_format=file.format, typed=requested.named)
        if file.format in TYPED:
            _check_drift(columns, present, typed, file=file.shown)
        declared.append((file.format, tuple(column for column in present if column.name in columns.keep)))
    if columns is None:  # there are no rows
        columns = replace(requested, text=requested.text or USUAL_TEXT[:1])
    return Table(TableFacts(files, columns, tuple(declared)), config, reader, notes)


def _chosen(
    requested: Columns, present: tuple[Column, ...], file: SourceFile, config: InputConfig, notes: list[str]
) -> Columns:
    """Chooses the columns by those of the first file, and adds notices to `notes`."""
    columns = resolve_columns(requested, present, file=file.shown, file_format=file.format)
    if config.sql is not None:
        columns = with_id(columns, present, file.shown)
        if config.secrets:
            notes.append(_VISIBLE)
    notes += column_notices(requested, columns, present, file_format=file.format)
    return columns


def _headers(
    files: Sequence[SourceFile], columns: Columns, config: InputConfig
) -> Iterator[tuple[Column, ...] | None]:
    for file in files:
        with reading(file, columns.named, config) as reader:
            header = reader.columns
        yield header


def _check_drift(columns: Columns, present: Sequence[Column], typed: dict[str, Column], *, file: str) -> None:
    """Checks a file's types against those of earlier files, in `typed`; nulls fit any type."""
    for column in present:
        if column.name not in columns.named or column.kind == "null":
            continue
        before = typed.setdefault(column.name, column)
        if column.name in columns.keep:
            fits = fit_together(before.kept, column.kept)
            typed[column.name] = replace(column, kept=common_type(before.kept, column.kept) or column.kept)
        else:
            fits = before.kind == column.kind
        if not fits:
            earlier = "of other fields" if before.type == column.type else before.type
            raise InputError(
                f"{file}: column {shown(column.name)} is {column.type}, and {earlier} in an earlier file",
                hint="cast it to one type in all files",
            )
