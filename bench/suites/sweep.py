"""Experiments from one file, repeated and compared at equal strength: `gfo-bench sweep`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...export.errors import InputError
from .base import DATA, MEASUREMENT, Measured, Suite
from .options import names

if TYPE_CHECKING:
    from ...engine.evaluation.results import Ratio
    from ..sweep import SweepRow

_FILE_WIDTH = 160


@dataclass(frozen=True, kw_only=True)
class SweepSuite(Suite["SweepRow"]):
    """Train and evaluate the experiments of a file; the same command resumes. A table, then one line of JSON."""

    file: Annotated[
        Path | None, typer.Option(help="The sweep, TOML; docs/sweeps has some.", rich_help_panel=MEASUREMENT)
    ] = None
    out: Annotated[
        Path, typer.Option(help="Folder for banks and RUNs, MODEL/EXPERIMENT/SEED/…", rich_help_panel=MEASUREMENT)
    ] = Path("runs/sweep")
    experiments: Annotated[
        str | None,
        typer.Option(
            help="Some of its experiments, separated by commas; all if not given. The first is the baseline.",
            rich_help_panel=MEASUREMENT,
        ),
    ] = None
    models: Annotated[
        str | None,
        typer.Option(help="Some of its networks, separated by commas; all if not given.", rich_help_panel=MEASUREMENT),
    ] = None
    data: Annotated[Path, typer.Option(help="What {data} in the file stands for.", rich_help_panel=DATA)] = Path()

    def measure(self) -> Measured[SweepRow]:
        """Run the experiments."""
        from ..sweep import Runner, read_sweep

        if self.file is None:
            raise InputError("--file: name a sweep's file, as docs/sweeps/digits.toml")
        sweep = read_sweep(self.file, str(self.data))
        experiments = _chosen("--experiments", self.experiments, list(sweep.experiments))
        models = _chosen("--models", self.models, list(sweep.models))
        return Measured(list(Runner(sweep, self.out).run(models, experiments)))

    def show(self, measured: Measured[SweepRow], environment: Mapping[str, Any]) -> None:
        """Print a line for each bank and evaluation."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        from ...engine.names import terminal_cell
        from ...engine.terminal import console, print_table

        table = Table(
            title="unmatched/clean at equal matched/clean; in brackets the 95% interval over classes",
            caption="unseen: on classes of which training preserved no picture. − first: the paired difference to the "
            "first experiment, empty without equal pictures. A dash: the mark is not reached. The interval of a mean "
            "leaves out how seeds scatter.",
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.caption_justify = "left"
        columns = ("matched/clean", "unmatched/clean", "at 0.4", "at 0.3", "at 0.2", "unseen at 0.3", "unseen at 0.2")
        columns += ("− first at 0.4", "− first at 0.3")
        for name in ("model", "experiment", "pictures", "seed"):
            table.add_column(name, overflow="fold")
        for name in columns:
            table.add_column(name, justify="right", overflow="fold")
        for row in measured.rows:
            frontier, unseen, difference = row.frontier, row.frontier_unseen, row.difference
            cells = (row.matched, row.unmatched, frontier["0.4"], frontier["0.3"], frontier["0.2"])
            shown = list(map(_cell, (*cells, unseen["0.3"], unseen["0.2"])))
            shown += [_cell(difference[mark], "+.3f") if difference else "" for mark in ("0.4", "0.3")]
            who = map(terminal_cell, (row.model, row.experiment, row.evaluation))
            table.add_row(*who, "mean" if row.seed is None else str(row.seed), *shown)
        print_table(console(width=_FILE_WIDTH), table)

    def exit_code(self, rows: Sequence[SweepRow]) -> int:
        """See `Suite.exit_code`."""
        return 0


def _chosen(option: str, given: str | None, every: list[str]) -> list[str]:
    return every if given is None else names(option, given, every)


def _cell(ratio: Ratio | None, form: str = ".3f") -> str:
    if ratio is None:
        return "–"
    low, high = ratio.ci95_classes or (None, None)
    return f"{ratio.value:{form}}" if low is None else f"{ratio.value:{form}}\n[{low:.2f}, {high:.2f}]"
