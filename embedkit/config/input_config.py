"""Options of the input."""

from __future__ import annotations

from dataclasses import dataclass, field

from embedkit.config.checks import at_least, one_of
from embedkit.config.databases import is_database, is_postgres, no_query, one_select, place_of, split_url
from embedkit.config.remote_inputs import split_secret
from embedkit.errors import UsageError, without_passwords

FORMATS = ("auto", "csv", "tsv", "jsonl", "ndjson", "parquet", "arrow", "txt")

QUOTINGS = ("auto", "double", "none")
#: Names of a delimiter that is hard to type.
_DELIMITERS = {"tab": "\t", "\\t": "\t"}


@dataclass(frozen=True, slots=True)
class InputConfig:
    """The rows that are read, and their columns."""

    #: Files, globs, folders, or - for stdin, as typed, but URIs without secrets; with `sql` a file, or a URL of
    #: PostgreSQL without password.
    inputs: tuple[str, ...]
    format: str = "auto"  # one of FORMATS; auto goes by the file's name
    text_columns: tuple[str, ...] = ()  # (): `text`, else the first of the usual names
    template: str | None = None  # such as "{title}. {body}"; None: the text columns joined by a newline
    id_column: str | None = None  # None: `id` if it exists, else the row number
    keep: tuple[str, ...] = ()  # columns that are copied to the output
    limit: int | None = None  # most rows to read
    delimiter: str | None = None  # of csv and tsv; may be the word `tab`; None: a comma and a tab
    #: Of csv and tsv. double: cells are quoted, and a quote in such a cell is doubled; none: quotes are
    #: letters; auto: as double, but a row whose quotes are more likely letters is a fault.
    quoting: str = "auto"
    max_expansion: int = 1000  # largest ratio of a file's decompressed size to its size
    max_decompressed_gb: int = 1000  # of 10^9 bytes
    sql: str | None = None  # the query whose rows are the table; the input is a database
    secrets: str = field(default="", repr=False)  # parameters of the database's URL: see `split_url`
    uri_secrets: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # see `split_secret`

    @property
    def shown_inputs(self) -> tuple[str, ...]:
        """The inputs as messages show them: of a PostgreSQL URL host and database, of others no password."""
        return tuple(place_of(name) if is_postgres(name) else without_passwords(name) for name in self.inputs)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(dict.fromkeys(self.keep)))  # without duplicates
        one_of("--format", self.format, FORMATS)
        one_of("--quoting", self.quoting, QUOTINGS)
        if self.delimiter is not None:
            object.__setattr__(self, "delimiter", _DELIMITERS.get(self.delimiter, self.delimiter))
            if len(self.delimiter) != 1 or self.delimiter in '"\r\n\0':
                raise UsageError(
                    f"--delimiter cannot be {self.delimiter!a}",
                    hint="give one character that is neither a quote nor a line end, such as ';'; or say tab",
                )
            if self.format not in {"auto", "csv", "tsv"}:
                raise UsageError(
                    f"--delimiter is for csv and tsv, and --format is {self.format}",
                    hint="leave out one of the two",
                )
        self._check_database()
        names = [split_secret(name) for name in self.inputs]
        object.__setattr__(self, "inputs", tuple(shown for shown, _ in names))
        secrets = dict([*self.uri_secrets, *(secret for _, secret in names if secret is not None)])
        for shown, secret in filter(None, (secret for _, secret in names)):
            if secrets[shown] != secret:
                raise UsageError(
                    f"two addresses that start with {shown} differ in what follows ? or in their passwords",
                    hint="copy the files here first, or read them by two runs",
                )
        object.__setattr__(self, "uri_secrets", tuple(secrets.items()))
        at_least("--limit", self.limit, 0)
        at_least("--max-expansion", self.max_expansion, 1)
        at_least("--max-decompressed-gb", self.max_decompressed_gb, 1)

    def _check_database(self) -> None:
        """Takes the password out of the inputs, and checks that a query and a database come together."""
        databases = [name for name in self.inputs if is_database(name)]
        if self.sql is None:
            if databases:
                raise no_query(split_url(databases[0])[0])
            return
        if len(self.inputs) != 1 or "-" in self.inputs:
            raise UsageError(
                "--sql reads one database",
                hint="name one database file or URL; test rows are marked by --split-column",
            )
        object.__setattr__(self, "sql", one_select(self.sql))
        for option, value in (("--format", self.format != "auto"), ("--delimiter", self.delimiter is not None)):
            if value:
                raise UsageError(f"{option} is for files of rows, not for a query", hint="leave it out")
        if databases:
            name, secrets = split_url(databases[0])
            object.__setattr__(self, "inputs", (name,))
            object.__setattr__(self, "secrets", secrets or self.secrets)
