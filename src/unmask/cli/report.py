"""unmask report: tables and figures of studies, from their records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from unmask.config import require
from unmask.evaluation.results import Results, read_records
from unmask.report.page import write_page
from unmask.report.study import CURVES, SUMMARY, caution, found_in, verdicts, write_report


@dataclass(frozen=True)
class ReportOptions:
    """Options of `unmask report`."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of studies, or folders of such folders."""
    measure: str | None = None
    """Compare by this number of the evaluations. None: solved, nats_per_token or loss, the first that is there."""
    rises: tyro.conf.FlagCreatePairsOff[bool] = False
    """More is better of a --measure that the library does not know; else less is."""
    title: str = ""
    """Of page and figure. Empty: the study's name."""


def report(words: list[str]) -> None:
    """Show what studies found and write it down: unmask report DIR ... [--measure NAME]."""
    options = tyro.cli(ReportOptions, prog="unmask report", args=words, description=report.__doc__)
    require(len(options.folders) > 0, "report needs folders of studies: unmask report DIR ...")
    for folder in found_in(options.folders):
        show(folder, options.measure, options.title, options.rises)


def show(folder: Path, measure: str | None = None, title: str = "", rises: bool = False) -> None:
    """Print the verdicts and tables of a study's folder; write its report.html, summary.md and curves.png."""
    console = Console()
    compared, chosen_by = read_records(folder, "compare"), read_records(folder, "screen")
    results = Results.of(compared or chosen_by, measure, rises)
    screened = Results.of(chosen_by, measure, rises) if compared and chosen_by else None
    grids = write_report(results, folder, screened, title)
    console.print(*(grid.rich() for grid in grids))
    for line in verdicts(results):
        console.print(line, highlight=False)
    console.print(caution(results), highlight=False, style="dim")
    page = write_page(results, folder, screened, title)
    print(f"Written: {folder / SUMMARY}, {folder / CURVES}")
    print(f"Report: {page}")
