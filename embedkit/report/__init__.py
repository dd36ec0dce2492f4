"""`embedkit report`: one HTML page of outputs, comparisons, sweeps and poolers; needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedkit.comparison import ComparisonConfig, compare_outputs
from embedkit.errors import OutputError, UsageError
from embedkit.report.comparisons import comparison_section
from embedkit.report.findings import ReportConfig, read_findings
from embedkit.report.page import outputs_mark, plotly_source, render_page
from embedkit.report.poolers import is_pooler, pooler_section
from embedkit.report.sections import output_section
from embedkit.report.sweeps import is_sweep, read_sweep, sweep_section
from embedkit.storage.disk_errors import as_output_error, as_read_error, check_no_link
from embedkit.storage.filesystem import exists, is_folder, is_same_file, open_file, write_file
from embedkit.storage.protocol import FilePath

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
        ModelError: a pooler's file is damaged.
    """
    read = [*config.paths, *([config.compare] if config.compare else [])]
    mark = outputs_mark([str(path.absolute() if isinstance(path, Path) else path) for path in read])
    _check_page(config.page, config.on_exists, mark)
    with as_read_error(config.page):
        if any(is_same_file(config.page, path) for path in read):
            raise UsageError(
                f"the page would replace {config.page}, which is an input", hint="name another file with -o"
            )
    plotly = plotly_source()
    poolers = [path for path in config.paths if is_pooler(path)]
    sweeps = [path for path in config.paths if path not in poolers and is_sweep(path)]
    outputs = [path for path in config.paths if path not in {*poolers, *sweeps}]
    sections = {
        "outputs": [output_section(read_findings(path, config), at) for at, path in enumerate(outputs, 1)],
        "comparisons": _comparisons(outputs, config),
        "sweeps": [sweep_section(read_sweep(path), at) for at, path in enumerate(sweeps, 1)],
        "poolers": [pooler_section(path, at) for at, path in enumerate(poolers, 1)],
    }
    content = render_page(config.title, sections, plotly=plotly, mark=mark).encode("utf-8", "replace")
    write_file(config.page.absolute().parent, config.page.name, content)
    return len(content)


def _comparisons(outputs: Sequence[FilePath], config: ReportConfig) -> list[dict[str, Any]]:
    if config.compare is None:
        return []
    if len(outputs) != 1:
        raise UsageError(
            f"--compare needs one output to compare with, and there are {len(outputs)}",
            hint="name one output: embedkit report A --compare B",
        )
    comparison = ComparisonConfig(outputs[0], config.compare, sample=max(2, config.sample), seed=config.seed)
    return [comparison_section(compare_outputs(comparison))]


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
