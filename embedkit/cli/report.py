"""`embedkit report`: writes an HTML page about outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedkit.cli.output_names import check_name, without_suffixes


def report(
    outs: Annotated[
        list[str], typer.Argument(metavar="OUT", help="Folders and files written by encode or sweep.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The page. By default NAME.report.html.")
    ] = None,
    on_exists: Annotated[str, typer.Option(help="If the page exists: error, overwrite.")] = "error",
    variant: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of vectors to show. By default the first.")
    ] = None,
    color: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Kept column that colours the map. By default one with few values."),
    ] = None,
    show: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Kept column to show next to the ids. Repeatable.")
    ] = None,
    neighbours: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID", help="Id whose nearest neighbours to list. Repeatable. By default five random rows."
        ),
    ] = None,
    sample: Annotated[int, typer.Option(metavar="N", help="Maximum rows on the map.")] = 20_000,
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed of the choice of rows.")] = 0,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "embedkit report",
) -> None:
    """Write an HTML page about outputs.

    Shows recipe, receipts, norms, duplicates, a map and nearest neighbours. The page is self-contained and makes
    no network requests. Needs no model.

    Example: embedkit report notes.embeddings --color label
    """
    # Imports numpy and pyarrow: not before, so that `--help` is fast.
    from embedkit.report import ReportConfig, write_report

    if output is not None:
        check_name(str(output), ("html", "htm"), or_folder=False)
    name = without_suffixes(Path(outs[0]).name.removesuffix(".embeddings"))
    page = output or Path(f"{name or 'embedkit'}.report.html")
    config = ReportConfig(
        paths=tuple(map(Path, outs)),
        page=page,
        on_exists=on_exists,
        variant=variant,
        color=color,
        show=tuple(show or ()),
        neighbours=tuple(neighbours or ()),
        sample=sample,
        seed=seed,
        title=title,
    )
    size = write_report(config)
    print(f"{page}: {size / 1e6:,.1f} MB; open it in a browser")
