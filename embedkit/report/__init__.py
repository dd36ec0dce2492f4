"""`embedkit report`: one HTML page of outputs and sweeps; needs no model."""

from __future__ import annotations

from pathlib import Path

from embedkit.errors import OutputError, UsageError
from embedkit.report.findings import ReportConfig, read_findings
from embedkit.report.page import outputs_mark, plotly_source, render_page
from embedkit.report.sections import output_section
from embedkit.report.sweeps import is_sweep, read_sweep, sweep_section
from embedkit.storage.disk_errors import as_output_error, as_read_error, check_no_link
from embedkit.storage.filesystem import exists, is_folder, is_same_file, open_file, write_file

__all__ = ["ReportConfig", "write_report"]

#: Bytes at the start of a page that contain its mark.
_HEAD = 4096


def write_report(config: ReportConfig) -> int:
    """Writes the page atomically.

    Returns:
        Bytes of the page.

    Raises:
        UsageError: an output has no such variant, column or id, or plotly is not installed.
        OutputError: an output is missing, unfinished or damaged, or the page cannot be written.
    """
    mark = outputs_mark([str(path.absolute()) for path in config.paths])
    _check_page(config.page, config.on_exists, mark)
    with as_read_error(config.page):
        if any(is_same_file(config.page, path) for path in config.paths):
            raise UsageError(
                f"the page would replace {config.page}, which is an input", hint="name another file with -o"
            )
    plotly = plotly_source()
    findings = [read_findings(path, config) for path in config.paths if not is_sweep(path)]
    sweeps = [read_sweep(path) for path in config.paths if is_sweep(path)]
    content = render_page(
        config.title,
        [output_section(one, number) for number, one in enumerate(findings, 1)],
        [sweep_section(one, number) for number, one in enumerate(sweeps, 1)],
        plotly=plotly,
        mark=mark,
    ).encode("utf-8", "replace")
    write_file(config.page.absolute().parent, config.page.name, content)
    return len(content)


def _check_page(page: Path, on_exists: str, mark: str) -> None:
    check_no_link(page)
    with as_read_error(page):
        if not is_folder(page.absolute().parent):
            raise OutputError(f"there is no folder {page.parent}", hint="create it, or choose another with -o")
        if is_folder(page):
            raise OutputError(f"{page} is a folder", hint="name a file with -o")
        is_taken = exists(page)
    if is_taken and on_exists == "error":
        with as_output_error(page), open_file(page) as file:
            is_same = mark.encode() in file.read(_HEAD)
        hint = "use --on-exists overwrite, or another name with -o" if is_same else "choose another name with -o"
        raise OutputError(f"{page} exists{'' if is_same else ', and is not a page of these outputs'}", hint=hint)
