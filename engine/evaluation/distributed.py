"""An evaluation on the workers of a cluster: the driver hands out blocks, workers evaluate and write them.

Every worker opens a station of its own on its first task, as each `gfo-eval --shard` does, and checks that it sees the
same pictures. A task is blocks that share a file of the store.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from ...export.artefact import Artefact
from ...export.classifier import FrozenClassifier
from ...export.errors import InputError, Unreachable
from ...export.models.spec import ModelSpec
from ..cluster.spec import ClusterSpec
from ..cluster.team import Died, Team, open_team
from ..cluster.worker import must_see
from ..progress import Progress
from .config import run_folders
from .passes import Passes
from .station import Job, Station, open_station
from .store import RunStore
from .summary import STORE, Quarantined
from .todo import ToDo, Work, refuse_quarantined, to_do


class Facts(NamedTuple):
    """What the first worker tells: the passes that it has chosen, and see `Station.accuracy`."""

    passes: Passes
    accuracy: float | None


@dataclass(frozen=True)
class Filled:
    """What a task did: pairs, and reasons of quarantined pictures by path."""

    pairs: int
    quarantined: Mapping[str, str]


@dataclass(frozen=True)
class EvaluationWork:
    """See `cluster.worker.Work`. Passes are those of the first worker, None for that one."""

    job: Job
    passes: Passes | None = None

    @contextlib.contextmanager
    def open(self, progress: Progress) -> Iterator[_StationPlace]:
        """Open a station; that of the first worker creates the stores, which others must see."""
        if self.passes is not None:
            for place in run_folders(self.job.out, self.job.config.strengths).values():
                must_see(place / STORE)
        with open_station(self.job, progress) as station:
            yield _StationPlace(station, self.passes or station.passes(len(station.stores[0])))

    def agreed(self, facts: Facts) -> EvaluationWork:
        """See `Work.agreed`."""
        return replace(self, passes=facts.passes)


@dataclass(frozen=True)
class _StationPlace:
    """See `cluster.worker.Workplace`."""

    station: Station
    passes: Passes

    @property
    def packages(self) -> Sequence[str]:
        return self.station.engine.packages

    @property
    def facts(self) -> Facts:
        return Facts(self.passes, self.station.accuracy)

    def do(self, task: Sequence[ToDo]) -> Filled:
        """Evaluate blocks of each store, but for those that a worker has written that died over this task."""
        station = self.station
        left = [replace(one, pending=station.not_done(i, one.pending)) for i, one in enumerate(task)]
        _, pairs = station.fill(left, self.passes)
        own = {start for one in task for start in one.pending}
        found = [entry for store in station.stores for entry in store.quarantined(sorted(own))]
        return Filled(pairs, {entry.path: entry.reason for entry in found})


class Remote:
    """What evaluates blocks of a run on a cluster: `Station`, elsewhere."""

    def __init__(self, team: Team, job: Job, spec: ClusterSpec, progress: Progress) -> None:
        self.places: Sequence[Path] = list(run_folders(job.out, job.config.strengths).values())
        self.stores: Sequence[RunStore] = [RunStore.open(place, writable=True) for place in self.places]
        self.accuracy: float | None = team.facts.accuracy
        self._team, self._job, self._spec, self._progress = team, job, spec, progress

    def to_do(self, shard: tuple[int, int] = (0, 1)) -> list[ToDo]:
        """See `Station.to_do`."""
        files = replace(self._job.data).files  # of a copy: open files cannot be given to others
        return [to_do(store, store.starts(*shard), files) for store in self.stores]

    def fill(self, todo: Sequence[ToDo]) -> tuple[float, int]:
        """See `Station.fill`; seconds are those of this process.

        Raises
        ------
        Unreachable
            The scheduler does not answer any more, or blocks were given up, since workers died over them.
        """
        work, given_up, deaths = Work(self.stores, todo), list[int](), 0
        quarantined = work.set_aside()
        start, done = time.perf_counter(), 0
        with self._progress.task("all pairs", work.pairs, work.pairs - work.pairs_left) as bar:
            for unit, found in self._team.results(self._units(todo)):
                if isinstance(found, Died):
                    given_up.append(unit[0].own[0])
                    deaths = found.workers
                    continue
                quarantined |= {path: Quarantined(path, why) for path, why in found.quarantined.items()}
                refuse_quarantined(self.stores[0], quarantined.values(), self._job.config.max_quarantined)
                done += found.pairs
                rate = f"{done / (time.perf_counter() - start):.0f} pairs/s, {self._team}"
                bar.advance(Work(self.stores, unit).pairs_left, rate)
        if given_up:
            first = self.stores[0].paths[given_up[0]]
            raise Unreachable(
                f"--cluster {self._spec}: {deaths} workers have died over each of {len(given_up)} files of the run, "
                f"the first from {first} on"
            )
        return time.perf_counter() - start, done

    def _units(self, todo: Sequence[ToDo]) -> list[list[ToDo]]:
        """Return what is to be done in each task: the blocks of a file of the store."""
        pending = [set(one.pending) for one in todo]
        starts, shard = sorted(set[int]().union(*pending)), self.stores[0].shard
        units: list[list[ToDo]] = []
        for _, group in groupby(starts, key=lambda start: start // shard):
            own = list(group)
            units.append([ToDo(own, [start for start in own if start in lacking]) for lacking in pending])
        return units


@contextlib.contextmanager
def open_remote(job: Job, spec: ClusterSpec, progress: Progress) -> Iterator[Remote]:
    """Open a cluster and a station on one of its workers, which creates the stores; others follow with their tasks.

    Raises
    ------
    InputError
        A model that other processes cannot be given, or stores that are not seen here; see also `open_station`.
    EngineUnavailable
        See `open_cluster` and `open_station`.
    """
    job = _for_others(job)
    with open_team(spec, EvaluationWork(job), progress) as team:
        yield Remote(team, job, spec, progress)


def _for_others(job: Job) -> Job:
    """Return a job that means the same in other processes and folders."""
    if isinstance(job.model, FrozenClassifier) or not (job.bank is None or isinstance(job.bank, Path)):
        raise InputError("--cluster: needs a model by its name, and a bank in a file")
    model, data = job.model, job.data
    if isinstance(model, ModelSpec):
        model = model.resolved()
    if isinstance(model, Artefact):
        model = replace(model, folder=model.folder.resolve())
    bank = job.bank.resolve() if job.bank is not None and job.bank.exists() else job.bank
    return Job(model, bank, data.resolved(), job.out.resolve(), replace(job.config, cluster=None))
