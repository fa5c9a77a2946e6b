"""An evaluation on the workers of a Dask cluster: the driver hands out blocks, workers evaluate and write them.

Every worker opens a station of its own on its first task, as each `gfo-eval --shard` does, and checks that it sees the
same pictures and runs the same versions. A task is blocks that share a file of the store; a worker has one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from ...export.artefact import Artefact
from ...export.classifier import FrozenClassifier
from ...export.errors import InputError, Unreachable, in_short
from ...export.models.spec import ModelSpec
from ..cluster import open_cluster
from ..machine import worker_count
from ..progress import Progress
from .all_pairs import ToDo, Work, refuse_quarantined, to_do
from .config import run_folders
from .passes import Passes
from .station import Job, Station, open_station
from .store import RunStore
from .summary import Quarantined

_LOOK_SECONDS = 2.0  # after which the driver looks for workers that have joined
_ALONE_SECONDS = 60  # without a worker, after which it ends
_CLOSE_SECONDS = 30

# ---- on a worker


@dataclass(frozen=True)
class Shared:
    """What workers are given.

    Attributes
    ----------
    key
        Names this evaluation in a worker, which may have had others.
    versions, passes
        Of the packages that answers depend on, as the first worker has them, and the passes that it has chosen; empty
        and None for that one.
    """

    key: str
    job: Job
    versions: Mapping[str, str] = field(default_factory=dict)
    passes: Passes | None = None


@dataclass(frozen=True)
class Opened:
    """What the first worker tells: its versions and passes, what it has to say, and see `Station.accuracy`."""

    versions: Mapping[str, str]
    passes: Passes
    said: Sequence[str]
    accuracy: float | None


@dataclass(frozen=True)
class Filled:
    """What a task did: pairs, and reasons of quarantined pictures by path."""

    pairs: int
    quarantined: Mapping[str, str]


@dataclass(frozen=True)
class Died:
    """So many workers have died over a task, which is given up."""

    workers: int


class _Stopped(Exception):
    """The driver has no use for this task any more."""


class _Lines:
    """Progress of a worker: lines are kept, for the driver to say; where its key is in `_stopped`, the work ends.

    What is finished by then is written, as after Ctrl-C.
    """

    def __init__(self, key: str) -> None:
        self.said: list[str] = []
        self._key = key

    def say(self, line: str) -> None:
        self.said.append(line)
        self.advance(0)

    def advance(self, amount: float, note: str = "") -> None:
        if self._key in _stopped:
            raise _Stopped

    @contextlib.contextmanager
    def task(self, title: str, total: float, done: float = 0) -> Iterator[_Lines]:
        yield self


@dataclass(frozen=True)
class _Place:
    """An open station in a worker, and what closes it."""

    station: Station
    opened: Opened
    stack: contextlib.ExitStack


_places: dict[str, _Place] = {}
_stopped: set[str] = set()
_one_at_a_time = threading.Lock()  # a worker that was started with several threads still has one engine


def _place(shared: Shared) -> _Place:
    if shared.key in _places:
        return _places[shared.key]
    torch.set_num_threads(worker_count())  # Dask starts its workers with one
    with contextlib.ExitStack() as stack:
        lines = _Lines(shared.key)
        station = stack.enter_context(open_station(shared.job, lines))
        versions = _versions(("gfo", "distributed", "torch", *station.engine.packages))
        if shared.versions and versions != shared.versions:
            name = min(name for name, _ in versions.items() ^ shared.versions.items())
            own, other = (found.get(name, "none") for found in (versions, shared.versions))
            raise InputError(f"--cluster: a worker has {name} {own}, another {other}; install one version")
        passes = shared.passes or station.passes(len(station.stores[0]))
        opened = Opened(versions, passes, lines.said, station.accuracy)
        _places[shared.key] = _Place(station, opened, stack.pop_all())
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
    """Evaluate blocks in this worker, but for those that a worker has written that died over this task."""
    with _one_at_a_time:
        place = _place(shared)
        left = [replace(one, pending=place.station.not_done(i, one.pending)) for i, one in enumerate(todo)]
        _, pairs = place.station.fill(left, place.opened.passes)
        own = {start for one in todo for start in one.pending}
        found = [entry for store in place.station.stores for entry in store.quarantined(sorted(own))]
        return Filled(pairs, {entry.path: entry.reason for entry in found})


async def close_here(key: str) -> None:
    """Close the station in this worker, if it has one; a task that runs ends at its next pass, and is waited for."""
    _stopped.add(key)

    def close() -> None:
        with _one_at_a_time:
            if place := _places.pop(key, None):
                place.stack.close()

    with contextlib.suppress(TimeoutError):  # an engine that is being opened may take minutes
        await asyncio.wait_for(asyncio.to_thread(close), _CLOSE_SECONDS)


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
        return [to_do(store, store.starts(*(shard or (0, 1))), files) for store in self.stores]

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
            for unit, found in self._results(self._units(todo)):
                if isinstance(found, Died):
                    given_up.append(unit[0].own[0])
                    deaths = found.workers
                    continue
                quarantined |= {path: Quarantined(path, why) for path, why in found.quarantined.items()}
                refuse_quarantined(self.stores[0], quarantined.values(), self._shared.job.config.max_quarantined)
                done += found.pairs
                bar.advance(Work(self.stores, unit).pairs_left, f"{done / (time.perf_counter() - start):.0f} pairs/s")
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

    def _results(self, units: Sequence[list[ToDo]]) -> Iterator[tuple[list[ToDo], Filled | Died]]:
        """Yield units as they are done, with what they did.

        There are as many as workers at a time: one that waits on a worker would be blamed for its death, too.
        """
        import distributed

        left, active = deque(units), dict[Any, list[ToDo]]()
        seen = time.monotonic()  # when there was a worker
        try:
            while left or active:
                with _reached(self._spec):
                    workers = len(self._client.nthreads())
                    seen = time.monotonic() if workers else seen
                    while left and len(active) < workers:  # workers may have joined
                        unit = left.popleft()
                        active[self._client.submit(fill_here, self._shared, unit, pure=False)] = unit
                    if not active:
                        time.sleep(_LOOK_SECONDS)
                    with contextlib.suppress(TimeoutError):
                        distributed.wait(list(active), timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED")
                for future in [future for future in active if future.done()]:
                    yield active.pop(future), _result(future, self._spec)
                if time.monotonic() - seen > _ALONE_SECONDS:
                    raise Unreachable(f"--cluster {self._spec}: has had no worker for {_ALONE_SECONDS} s")
        finally:
            with contextlib.suppress(Exception):
                self._client.cancel(list(active))


@contextlib.contextmanager
def _reached(spec: str) -> Iterator[None]:
    """Turn what Dask raises where its scheduler is lost, or cannot take a task, into `Unreachable`."""
    import distributed

    try:
        yield
    except (OSError, distributed.CancelledError, TimeoutError, RuntimeError) as error:
        raise Unreachable(f"--cluster {spec}: the scheduler is lost ({in_short(error)})") from error


def _result(future: Any, spec: str) -> Any:
    """Return what a task has returned, `Died` where too many workers have died over it; raise what it has raised."""
    from distributed.scheduler import KilledWorker

    with _reached(spec):
        error = future.exception()  # waits; None where it has returned
        if error is None:
            return future.result()
    if isinstance(error, KilledWorker):
        return Died(error.allowed_failures + 1)
    raise error


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
            opened: Opened | Died = _result(client.submit(open_here, shared, pure=False), spec)
            if isinstance(opened, Died):
                raise Unreachable(f"--cluster {spec}: {opened.workers} workers have died over opening the engine")
            for line in opened.said:
                progress.say(line)
            shared = replace(shared, versions=opened.versions, passes=opened.passes)
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
    if isinstance(model, Artefact):
        model = replace(model, folder=model.folder.resolve())
    class_map = data.class_map and data.class_map.resolve()
    bank = job.bank.resolve() if job.bank is not None and job.bank.exists() else job.bank
    data = replace(data, root=data.root.resolve(), class_map=class_map)
    config = replace(job.config, cluster=None)
    return Job(model, bank, data, job.out.resolve(), config)
