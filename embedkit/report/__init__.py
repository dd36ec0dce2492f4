"""One HTML page of outputs and sweeps, to look at: `embedkit report`.

Reads files alone: no model is needed, and none is imported.
"""

from __future__ import annotations

from pathlib import Path

from embedkit.errors import OutputError, UsageError
from embedkit.report.markup import element
from embedkit.report.page import outputs_mark, plotly_source, whole_page
from embedkit.report.remarks import find_out
from embedkit.report.report_config import ReportConfig
from embedkit.report.sections import output_section, overview
from embedkit.report.sweeps import is_sweep, read_sweep, sweep_section
from embedkit.storage.disk_errors import as_output_error, as_read_error, check_no_link
from embedkit.storage.filesystem import exists, is_folder, is_same_file, open_file, write_file

__all__ = ["ReportConfig", "write_report"]

#: Bytes of a page in which it says what it is of.
_HEAD = 4096


def write_report(config: ReportConfig) -> int:
    """Write the page, under its name once it is whole.

    Returns:
        Bytes of the page.

    Raises:
        UsageError: an output has no such variant, column or id, or plotly is not installed.
        OutputError: an output is not there, not finished or damaged, or the page cannot be written.
    """
    mark = outputs_mark([str(path.absolute()) for path in config.paths])
    _see_place(config.page, config.on_exists, mark)
    with as_read_error(config.page):
        if any(is_same_file(config.page, path) for path in config.paths):
            raise UsageError(
                f"the page would replace {config.page}, which is read", hint="name another file with -o"
            )
    plotly = plotly_source()
    outputs = [find_out(path, config) for path in config.paths if not is_sweep(path)]
    sweeps = [read_sweep(path) for path in config.paths if is_sweep(path)]
    sections = [output_section(it, number) for number, it in enumerate(outputs, 1)]
    sections += [sweep_section(it, number) for number, it in enumerate(sweeps, 1)]
    names = {f"output-{number}": it.path.name for number, it in enumerate(outputs, 1)}
    names |= {f"sweep-{number}": it.path.name for number, it in enumerate(sweeps, 1)}
    links = [element("a", name, href=f"#{place}") for place, name in names.items()]
    if len(outputs) > 1:
        sections.insert(0, overview(outputs))
    content = whole_page(config.title, sections, links, plotly, mark).encode("utf-8", "replace")
    write_file(config.page.absolute().parent, config.page.name, content)
    return len(content)


def _see_place(page: Path, on_exists: str, mark: str) -> None:
    check_no_link(page)
    with as_read_error(page):
        if not is_folder(page.absolute().parent):
            raise OutputError(f"there is no folder {page.parent}", hint="make it, or choose another with -o")
        if is_folder(page):
            raise OutputError(f"{page} is a folder", hint="name a file with -o")
        is_taken = exists(page)
    if is_taken and on_exists == "error":
        with as_output_error(page), open_file(page) as file:
            is_of_these = mark.encode() in file.read(_HEAD)
        hint = (
            "use --on-exists overwrite, or another name with -o" if is_of_these else "choose another name with -o"
        )
        raise OutputError(f"{page} exists{'' if is_of_these else ', and is no page of these outputs'}", hint=hint)
