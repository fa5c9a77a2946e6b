"""The report of some RUNs (splits, epsilons, models): Tables S1 and S2, figures and one self-contained page.

Source: Wu et al., CVPR 2020, supplementary material, Tables S1 and S2 and Figure S1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...export.errors import InputError
from .runs import read_run

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = ["ReportFiles", "read_run", "report"]

_FILE_WIDTH = 140


@dataclass(frozen=True)
class ReportFiles:
    """Files that `report` wrote, and the same tables ready to print."""

    page: Path
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]
    notes: tuple[str, ...]
    """What a reader must know beside the tables, and what is left out and why; a sentence each."""
    printable: tuple[RichTable, ...]

    def show(self) -> None:
        """Print the tables, the notes and the paths of the files."""
        from ..names import visible
        from ..terminal import console, print_table

        shown = console(width=_FILE_WIDTH)
        for table in self.printable:
            print_table(shown, table)
            shown.print()
        for line in (
            *self.notes,
            f"tables: {self.tables[0].parent}",
            f"figures: {len(self.figures)}",
            f"page: {self.page}",
        ):
            shown.print(visible(line), markup=False, highlight=False, soft_wrap=True)


def report(
    runs: Sequence[Path | str], out: Path | str, *, figure_classes: int = 4, figure_pictures: int = 3
) -> ReportFiles:
    """Write the tables, the figures and `report.html` of some RUNs.

    Parameters
    ----------
    runs
        RUN folders of `gfo-eval`, at least one, in any order. A train and a val RUN of one bank share a row.
    out
        Folder for `report.html`, `*.png` and `tables/`; made if missing.
    figure_classes, figure_pictures
        Figure S1: classes side by side and pictures per class, at least 1 each.

    Returns
    -------
    ReportFiles
        Paths, notes, and the tables for the terminal.

    Raises
    ------
    InputError
        A RUN is missing, unreadable or unfinished, two RUNs fill one cell, or a number is below 1.
    OSError
        `out` cannot be written.
    """
    if not runs or min(figure_classes, figure_pictures) < 1:
        raise InputError(
            f"report: expected at least 1 RUN, class and picture, got {len(runs)} RUNs, {figure_classes} classes, "
            f"{figure_pictures} pictures; give more"
        )
    from . import figures, page, rows, tables

    out = Path(out)
    joined = rows.join([read_run(Path(run)) for run in runs])
    built = tables.build(joined)
    written = tables.write(built, out / "tables")
    drawn, more = figures.draw(joined, out, classes=figure_classes, pictures=figure_pictures)
    notes = (*page.notes(joined), *more)
    html = page.write(out / "report.html", joined, built, drawn, notes)
    printable = tuple(table.rich() for table in built)
    return ReportFiles(html, written, tuple(figure.path for figure in drawn), notes, printable)
