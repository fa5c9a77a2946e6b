"""`gfo-demo`: everything on embedded data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...engine import terminal
from ...engine.commands import options
from ...engine.names import terminal_cell

if TYPE_CHECKING:
    from rich.table import Table

    from ...engine.evaluation.results import Accuracy
    from ..demo.run import DemoResult

app = options.new_app()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for pictures, banks, RUNs and report.html.")] = Path("runs/demo"),
    seed: options.Seed = 0,
) -> None:
    """Train two small CNNs on digits and their occluders, export them, evaluate all pairs, report; resumes.

    Ends with a short benchmark of them.
    """
    from ...engine.progress import TerminalProgress
    from ..demo.run import demo as run_demo
    from ..demo.run import demo_rows
    from ..table import print_rows

    progress = TerminalProgress()
    result = run_demo(out, seed=seed, progress=progress)
    result.files.show()
    console = terminal.console()
    for artefact in result.artefacts.values():
        facts = artefact.manifest
        console.print(
            f"{artefact.path}: {facts.precision}, parity {facts.parity['status']}", soft_wrap=True, markup=False
        )
    terminal.print_table(console, summary_table(result))
    print_rows(
        demo_rows(out, progress=progress), "How fast: median rates of a short run; see gfo-bench for more", console
    )


def summary_table(result: DemoResult) -> Table:
    """Return clean, matched and unmatched accuracy on the test split, a row for each network, as in `summary.json`."""
    from rich.table import Table

    table = Table(title="Top-1 on the test split", title_justify="left")
    table.add_column("model")
    for column in ("epsilon", "clean", "matched", "unmatched"):
        table.add_column(column, justify="right")
    for name, summaries in result.summaries.items():
        test = summaries["val"]
        cells = (_accuracy(cell) for cell in (test.clean, test.matched, test.unmatched))
        table.add_row(terminal_cell(name), f"{test.epsilon:g}", *cells)
    return table


def _accuracy(cell: Accuracy | None) -> str:
    return "–" if cell is None else f"{cell.accuracy:.4f}"


def main() -> None:
    """Run the console script."""
    terminal.run(app, "gfo-demo")
