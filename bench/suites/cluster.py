"""What handing out tasks costs: `gfo-bench cluster`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ...export.errors import InputError
from ..rows import BenchRow, ClusterFacts, Facts
from .base import DATA, Measured, TableSuite

if TYPE_CHECKING:
    from ...engine.cluster.spec import ClusterSpec


@dataclass(frozen=True, kw_only=True)
class Cluster(TableSuite):
    """Hand out tasks that do nothing to the workers of a Dask cluster, as a run does. A table, then one line of JSON.

    The rate is that of the driver and the scheduler; `grown_mb` is by how much their memory grew in the last nine
    tenths.
    """

    title: ClassVar[str] = "Tasks that do nothing"
    facts: ClassVar[Mapping[str, type[Facts]]] = {"cluster-tasks": ClusterFacts}

    cluster: Annotated[str, typer.Option(help="As for gfo-eval.", rich_help_panel=DATA)] = "local:1"
    cluster_config: Annotated[Path | None, typer.Option(help="As for gfo-eval.", rich_help_panel=DATA)] = None
    tasks: Annotated[int, typer.Option(help="Number of tasks.", rich_help_panel=DATA)] = 1000

    def check(self) -> None:
        """See `Suite.check`."""
        if self.tasks < 1:
            raise InputError(f"--tasks {self.tasks}: must be at least 1")
        self._spec()
        super().check()

    def _spec(self) -> ClusterSpec:
        from ...engine.cluster.spec import ClusterSpec

        return ClusterSpec(self.cluster, self.cluster_config)

    def measure(self) -> Measured[BenchRow[Facts]]:
        """Hand out all tasks once."""
        from ...engine.progress import TerminalProgress
        from ..tasks import task_rows

        return Measured(task_rows(self._spec(), self.tasks, TerminalProgress()))
