"""What handing out tasks costs: `gfo-bench cluster`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from ...engine import terminal
from ...export.errors import InputError
from ..rows import BenchRow, ClusterFacts, Facts
from ..table import print_environment, print_rows
from .base import DATA, Measured, Suite


@dataclass(frozen=True, kw_only=True)
class Cluster(Suite[BenchRow[Facts]]):
    """Hand out tasks that do nothing to the workers of a Dask cluster, as a run does. A table, then one line of JSON.

    The rate is that of the driver and the scheduler; `grown_mb` is by how much their memory grew in the last nine
    tenths.
    """

    facts: ClassVar[Mapping[str, type[Facts]]] = {"cluster-tasks": ClusterFacts}

    cluster: Annotated[str, typer.Option(help="As for gfo-eval.", rich_help_panel=DATA)] = "local:1"
    cluster_config: Annotated[Path | None, typer.Option(help="As for gfo-eval.", rich_help_panel=DATA)] = None
    tasks: Annotated[int, typer.Option(help="Number of tasks.", rich_help_panel=DATA)] = 1000

    def check(self) -> None:
        """See `Suite.check`."""
        from ...engine.cluster.spec import ClusterSpec

        if self.tasks < 1:
            raise InputError(f"--tasks {self.tasks}: must be at least 1")
        ClusterSpec(self.cluster, self.cluster_config)
        super().check()

    def measure(self) -> Measured[BenchRow[Facts]]:
        """Hand out all tasks once."""
        from ...engine.cluster.spec import ClusterSpec
        from ...engine.progress import TerminalProgress
        from ..tasks import task_rows

        return Measured(task_rows(ClusterSpec(self.cluster, self.cluster_config), self.tasks, TerminalProgress()))

    def show(self, measured: Measured[BenchRow[Facts]], environment: Mapping[str, Any]) -> None:
        """Print the machine and the table."""
        shown = terminal.console()
        print_environment(environment, shown)
        print_rows(measured.rows, "Tasks that do nothing", shown)

    def exit_code(self, rows: Sequence[BenchRow[Facts]]) -> int:
        """Return 0: a task that is missing has ended the run."""
        return 0
