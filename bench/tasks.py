"""What handing out tasks on a cluster costs: tasks that do nothing, timed, and the memory that they leave behind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..engine.cluster.spec import ClusterSpec
from ..engine.cluster.team import open_team
from ..engine.machine import peak_rss_mb
from ..engine.progress import Progress
from .rows import BenchRow, ClusterFacts

_BEGUN = 0.1  # of the tasks: what memory they take grows by afterwards is what they leave behind


@dataclass(frozen=True)
class Nothing:
    """Work that is nothing, and its workplace; see `engine.cluster.worker`."""

    packages: Sequence[str] = ()
    facts: None = None

    @contextlib.contextmanager
    def open(self, progress: Progress) -> Iterator[Nothing]:
        """Open nothing."""
        yield self

    def agreed(self, facts: None) -> Nothing:
        """Return the same."""
        return self

    def do(self, task: int) -> int:
        """Do nothing."""
        return task


def task_rows(spec: ClusterSpec, tasks: int, progress: Progress) -> list[BenchRow[ClusterFacts]]:
    """Time tasks that do nothing, as a run hands them out.

    The memory is that of this process, in which the scheduler of `local:N` runs, too.

    Raises
    ------
    OSError
        A task is missing, or came back twice.
    """
    with open_team(spec, Nothing(), progress) as team, progress.task("tasks", tasks) as bar:
        begun: float | None = None
        started, found = time.perf_counter(), list[int]()
        for task, _ in team.results(range(tasks)):
            found.append(task)
            bar.advance(1)
            if len(found) == max(1, int(_BEGUN * tasks)):
                begun = peak_rss_mb()
        seconds = time.perf_counter() - started
    if sorted(found) != list(range(tasks)):
        raise OSError(f"--cluster {spec}: {tasks} tasks came back {len(found)} times, {len(set(found))} of them")
    peak = peak_rss_mb()
    grown = None if peak is None or begun is None else round(peak - begun, 1)
    return [
        BenchRow(
            stage="cluster-tasks",
            engine="dask",
            unit="tasks/s",
            p50=tasks / seconds,
            sizes=f"{tasks:,} tasks, {spec}",
            peak_rss_mb=peak,
            rounds=1,
            facts=ClusterFacts(grown_mb=grown),
        )
    ]
