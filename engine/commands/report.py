"""`gfo-report`: tables, figures and one page from RUNs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import terminal
from . import options

app = options.new_app()


@options.command(app)
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Folders that gfo-eval --out wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html, the figures and tables/.")],
    figure_classes: Annotated[int, typer.Option(min=1, help="Figure S1: classes side by side.")] = 4,
    figure_pictures: Annotated[int, typer.Option(min=1, help="Figure S1: pictures per class.")] = 3,
) -> None:
    """Join RUNs (splits, epsilons, models) into Tables S1 and S2, the all-pairs matrix, Figure S1 and one HTML page."""
    from ..reporting import report as write_report

    write_report(runs, out, figure_classes=figure_classes, figure_pictures=figure_pictures).show()


def main() -> None:
    """Run the console script."""
    terminal.run(app, "gfo-report", resumes=False)
