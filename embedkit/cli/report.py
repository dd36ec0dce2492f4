"""`embedkit report`: one HTML page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedkit.cli.output_names import check_name, without_suffixes


def report(
    outs: Annotated[
        list[str], typer.Argument(metavar="OUT", help="Folders and files that encode wrote, folders of sweep.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The page; by default NAME.report.html here.")
    ] = None,
    on_exists: Annotated[str, typer.Option(help="error, overwrite.")] = "error",
    variant: Annotated[
        str | None, typer.Option(help="Column of vectors, where there are several; by default the first.")
    ] = None,
    color: Annotated[
        str | None, typer.Option(help="Kept column that colours the map; by default one of few values.")
    ] = None,
    show: Annotated[
        list[str] | None, typer.Option(help="Kept column whose cells are shown; repeatable. Else ids alone are.")
    ] = None,
    neighbours: Annotated[
        list[str] | None, typer.Option(help="Id whose neighbours are listed; repeatable. By default five rows.")
    ] = None,
    sample: Annotated[int, typer.Option(help="Most rows on the map.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Decides which rows these are.")] = 0,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "embedkit report",
) -> None:
    """Write one HTML page of outputs: recipe, receipts, norms, duplicates, map, neighbours. Needs no model.

    The page holds all that it shows, loads nothing and sends nothing.

    Example: embedkit report notes.embeddings --color label
    """
    # numpy and pyarrow are imported here, so that `--help` does not wait for them.
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
