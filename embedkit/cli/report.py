"""`embedkit report`: writes an HTML page about outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedkit.cli.options import STORE_OPTION, argument, option, take, takes
from embedkit.cli.output_names import check_name, without_suffixes
from embedkit.output.output_path import output_path


@takes(
    argument("outs", list[str], "OUT", "Folders and files written by encode, sweep or fit, or URIs of the first."),
    option("-o --output FILE", Path, "The page. By default NAME.report.html."),
    option("--on-exists", "error", "If the page exists: error, overwrite."),
    option("--compare B", str, "Output to compare the only other one with, row by row, as `embedkit diff` does."),
    option("--variant COLUMN", str, "Column of vectors to show. By default the first."),
    option("--color COLUMN", str, "Kept column that colours the map. By default one with few values."),
    option("--show COLUMN", list[str], "Kept column to show next to the ids. Repeatable."),
    option(
        "--neighbours ID",
        list[str],
        "Id whose nearest neighbours to list. Repeatable. By default five random rows.",
    ),
    option("--sample N", 20_000, "Maximum rows on the map."),
    option("--seed N", 0, "Random seed of the choice of rows."),
    option("--title", "embedkit report", "Title of the page."),
    STORE_OPTION,
)
def report(*, outs: list[str], output: Path | None, compare: str | None, **options: Any) -> None:
    """Write an HTML page about outputs.

    Shows recipe, receipts, norms, duplicates, a map and nearest neighbours; of a sweep its scores and the winner's
    predictions; of a pooler's file its learned weights and scores. The page is self-contained and makes no network
    requests. Needs no model.

    Example: embedkit report notes.embeddings --color label
    """
    options.pop("store_option")
    # Imports numpy and pyarrow: not before, so that `--help` is fast.
    from embedkit.report import ReportConfig, write_report

    if output is not None:
        check_name(str(output), ("html", "htm"), or_folder=False)
    paths = tuple(map(output_path, outs))
    name = without_suffixes(paths[0].name.removesuffix(".embeddings"))
    page = output or Path(f"{name or 'embedkit'}.report.html")
    other = None if compare is None else output_path(compare)
    size = write_report(take(ReportConfig, options, paths=paths, page=page, compare=other))
    print(f"{page}: {size / 1e6:,.1f} MB; open it in a browser")
