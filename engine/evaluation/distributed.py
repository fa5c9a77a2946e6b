"""An evaluation on the workers of a Dask cluster: the driver hands out blocks, workers evaluate and write them.

Every worker opens a station of its own on its first task, as each `gfo-eval --shard` does, and checks that it sees the
same pictures and runs the same versions. A task is blocks that share a file of the store; a worker has one at a time.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from ...export.classifier import FrozenClassifier
from ...export.errors import InputError, Unreachable
from ...export.models.spec import ModelSpec
from ..cluster import DEATHS, open_cluster
from ..machine import worker_count
from ..progress import Progress
from .all_pairs import ToDo, refuse_quarantined, to_do
from .config import run_folders
from .passes import Passes
from .station import Job, Station, open_station
from .store import RunStore
from .summary import Quarantined

# ---- on a worker


@dataclass(frozen=True)
class Shared:
    """What workers are given.

    Attributes
    ----------
    key
        Names this evaluation in a worker, which may have had others.
    versions
        Of the packages that answers depend on, as the first worker has them; empty for that one.
    """

    key: str
    job: Job
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Opened:
    """What the first worker tells: its versions, what it has to say, and see `Station.accuracy`."""

    versions: Mapping[str, str]
    said: Sequence[str]
    accuracy: float | None


@dataclass(frozen=True)
class Filled:
    """What a task did: seconds, pairs, and reasons of quarantined pictures by path."""

    seconds: float
    pairs: int
    quarantined: Mapping[str, str]


class _Stopped(Exception):
    """The driver has no use for this task any more."""


class _Lines:
    """Progress of a worker: lines are kept, for the driver to say; the work ends at the next pass once it is `stopped`.

    What is finished by then is written, as after Ctrl-C.
    """

    def __init__(self) -> None:
        self.said: list[str] = []
        self.stopped = False

    def say(self, line: str) -> None:
        self.said.append(line)

    def advance(self, amount: float, note: str = "") -> None:
        if self.stopped:
            raise _Stopped

    @contextlib.contextmanager
    def task(self, title: str, total: float, done: float = 0) -> Iterator[_Lines]:
        yield self


@dataclass(frozen=True)
class _Place:
    """An open station in a worker, its progress, the passes that it takes, and what closes it."""

    station: Station
    lines: _Lines
    passes: Passes
    opened: Opened
    stack: contextlib.ExitStack


_places: dict[str, _Place] = {}
_one_at_a_time = threading.Lock()  # a worker that was started with several threads still has one engine


def _place(shared: Shared) -> _Place:
    if shared.key in _places:
        return _places[shared.key]
    torch.set_num_threads(worker_count())  # Dask starts its workers with one
    with contextlib.ExitStack() as stack:
        lines = _Lines()
        station = stack.enter_context(open_station(shared.job, lines))
        versions = _versions(("gfo", "distributed", "torch", *station.engine.packages))
        if shared.versions and versions != shared.versions:
            (name, own), *_ = versions.items() ^ shared.versions.items()
            other = shared.versions.get(name, "none")
            raise InputError(f"--cluster: a worker has {name} {versions.get(name, own)}, another {other}; install one")
        passes = station.passes(len(station.stores[0]))
        opened = Opened(versions, lines.said, station.accuracy)
        _places[shared.key] = _Place(station, lines, passes, opened, stack.pop_all())
    return _places[shared.key]


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def open_here(shared: Shared) -> Opened:
    """Open a station in this worker, which creates the stores."""
    with _one_at_a_time:
        return _place(shared).opened


def fill_here(shared: Shared, todo: Sequence[ToDo]) -> Filled:
    """Evaluate blocks in this worker."""
    with _one_at_a_time:
        place = _place(shared)
        seconds, pairs = place.station.fill(todo, place.passes)
        own = {start for one in todo for start in one.pending}
        found = [entry for store in place.station.stores for entry in store.quarantined(sorted(own))]
        return Filled(seconds, pairs, {entry.path: entry.reason for entry in found})


def close_here(key: str) -> None:
    """Close the station in this worker, if it has one; a task that runs ends soon."""
    if place := _places.get(key):
        place.lines.stopped = True
    with _one_at_a_time:
        if place := _places.pop(key, None):
            place.stack.close()


# ---- in the driver


class Remote:
    """What evaluates blocks of a run on a cluster: `Station`, elsewhere."""

    def __init__(self, client: Any, spec: str, shared: Shared, opened: Opened, progress: Progress) -> None:
        job = shared.job
        self.places: Sequence[Path] = list(run_folders(job.out, job.config.strengths).values())
        self.stores: Sequence[RunStore] = [RunStore.open(place, writable=True) for place in self.places]
        self.accuracy = opened.accuracy
        self._client, self._spec, self._shared, self._progress = client, spec, shared, progress

    def to_do(self, shard: tuple[int, int] | None = None) -> list[ToDo]:
        """See `Station.to_do`."""
        files = replace(self._shared.job.data).files  # of a copy: open files cannot be given to others
        return [to_do(store, shard, files) for store in self.stores]

    def fill(self, todo: Sequence[ToDo]) -> tuple[float, int]:
        """See `Station.fill`; seconds are those of this process.

        Raises
        ------
        Unreachable
            The scheduler does not answer any more, or blocks were given up, since workers died over them.
        """
        units, given_up = self._units(todo), list[int]()
        rows = len(self.stores[0].occluders) - 1
        pairs = sum(self._count(unit, rows) for unit in units)
        every = self.stores[0].count(todo[0].own) * (1 + rows * len(self.stores))
        quarantined: dict[str, Quarantined] = {}
        start, done = time.perf_counter(), 0
        with self._progress.task("all pairs", every, every - pairs) as bar:
            for unit, found in self._results(units):
                if found is None:
                    given_up += [min(one.pending) for one in unit if one.pending][:1]
                    continue
                quarantined |= {path: Quarantined(path, why) for path, why in found.quarantined.items()}
                refuse_quarantined(self.stores[0], quarantined.values(), self._shared.job.config.max_quarantined)
                done += found.pairs
                bar.advance(self._count(unit, rows), f"{done / (time.perf_counter() - start):.0f} pairs/s")
        if given_up:
            first = self.stores[0].paths[given_up[0]]
            raise Unreachable(
                f"--cluster {self._spec}: {DEATHS} workers have died over each of {len(given_up)} parts of the run, "
                f"the first begins with {first}"
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

    def _count(self, unit: Sequence[ToDo], rows: int) -> int:
        """Return the pairs of a unit: a picture is clean once, whatever the number of stores."""
        store = self.stores[0]
        return store.count(unit[0].own) + sum(rows * store.count(one.pending) for one in unit)

    def _results(self, units: Sequence[list[ToDo]]) -> Iterator[tuple[list[ToDo], Filled | None]]:
        """Yield units as they are done, None for what they did where too many workers died over one.

        Each worker has one unit: another one that waits there would be blamed for its death, too.
        """
        import distributed
        from distributed.scheduler import KilledWorker

        left, active = iter(units), dict[Any, list[ToDo]]()
        finished = distributed.as_completed(with_results=False)
        try:
            self._hand_out(left, active, finished)
            while active:
                future = next(finished)
                unit = active.pop(future)
                if future.status == "finished":
                    yield unit, future.result()
                elif future.status != "error":
                    raise self._lost()
                elif isinstance(error := future.exception(), KilledWorker):
                    yield unit, None
                else:
                    raise error
                self._hand_out(left, active, finished)
        except (OSError, distributed.CancelledError, TimeoutError) as error:
            raise self._lost() from error
        finally:
            with contextlib.suppress(Exception):
                self._client.cancel(list(active))

    def _hand_out(self, left: Iterator[list[ToDo]], active: dict[Any, list[ToDo]], finished: Any) -> None:
        """Give each worker that has none a unit; workers may have joined."""
        for _ in range(max(1, len(self._client.nthreads())) - len(active)):
            unit = next(left, None)
            if unit is None:
                return
            future = self._client.submit(fill_here, self._shared, unit, pure=False)
            active[future] = unit
            finished.add(future)

    def _lost(self) -> Unreachable:
        return Unreachable(f"--cluster {self._spec}: the scheduler does not answer any more")


@contextlib.contextmanager
def open_remote(job: Job, progress: Progress) -> Iterator[Remote]:
    """Open a cluster and a station on one of its workers, which creates the stores; others follow with their tasks.

    Raises
    ------
    InputError
        A model that other processes cannot be given, or stores that are not seen here; see also `open_station`.
    EngineUnavailable
        See `open_cluster` and `open_station`.
    """
    spec = job.config.cluster or ""
    shared = Shared(uuid.uuid4().hex, _for_others(job))
    with open_cluster(spec, progress) as client:
        try:
            opened: Opened = client.submit(open_here, shared, pure=False).result()
            for line in opened.said:
                progress.say(line)
            shared = replace(shared, versions=opened.versions)
            yield Remote(client, spec, shared, opened, progress)
        finally:
            with contextlib.suppress(Exception):
                client.run(close_here, shared.key)


def _for_others(job: Job) -> Job:
    """Return a job that means the same in other processes and folders."""
    if isinstance(job.model, FrozenClassifier) or not (job.bank is None or isinstance(job.bank, Path)):
        raise InputError("--cluster: needs a model by its name, and a bank in a file")
    model, data = job.model, job.data
    if isinstance(model, ModelSpec) and Path(model.weights).is_file():
        model = replace(model, weights=str(Path(model.weights).resolve()))
    class_map = data.class_map and data.class_map.resolve()
    bank = job.bank.resolve() if job.bank is not None and job.bank.exists() else job.bank
    data = replace(data, root=data.root.resolve(), class_map=class_map)
    config = replace(job.config, cluster=None)
    return Job(model, bank, data, job.out.resolve(), config)
