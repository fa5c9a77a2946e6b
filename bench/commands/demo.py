"""`gfo-demo`: everything on embedded data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...engine.commands import options

if TYPE_CHECKING:
    from rich.table import Table

    from ..demo.run import DemoResult

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for pictures, banks, RUNs and report.html.")] = Path("runs/demo"),
    seed: options.Seed = 0,
) -> None:
    """Train two small CNNs on digits and their occluders, export them, evaluate all pairs, report; resumes.

    A short benchmark of them comes last.
    """
    from ...engine.progress import TerminalProgress
    from ..demo.run import demo as run_demo
    from ..demo.run import demo_rows
    from ..measure import console as wide_console
    from ..measure import print_rows

    progress = TerminalProgress()
    result = run_demo(out, seed=seed, progress=progress)
    result.files.show()
    console = wide_console()
    for artefact in result.artefacts.values():
        facts = artefact.manifest
        console.print(f"{artefact.path}: {facts.precision}, parity {facts.parity['status']}", soft_wrap=True)
    console.print(summary_table(result))
    print_rows(demo_rows(out, progress=progress), "How fast: median rates of a short run; gfo-bench says more", console)


def summary_table(result: DemoResult) -> Table:
    """Clean, matched and unmatched accuracy on the test split, a row for each network, as in `summary.json`."""
    from rich.table import Table

    table = Table(title="Top-1 on the test split", title_justify="left")
    table.add_column("model")
    for column in ("epsilon", "clean", "matched", "unmatched"):
        table.add_column(column, justify="right")
    for name, summaries in result.summaries.items():
        test = summaries["val"]
        cells = (f"{test[cell]['accuracy']:.4f}" for cell in ("clean", "matched", "unmatched"))
        table.add_row(name, f"{test['epsilon']:g}", *cells)
    return table


def main() -> None:
    """Console script."""
    options.run(app, "gfo-demo")
