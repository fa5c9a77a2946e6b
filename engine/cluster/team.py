"""The driver of a cluster: it hands out tasks, and takes what they return."""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ...export.errors import Unreachable, in_short
from ..progress import Progress
from .clusters import counted, open_cluster
from .spec import QUEUES, ClusterSpec
from .worker import Shared, Told, Work, close_here, do_here, open_here

_LOOK_SECONDS = 2.0  # after which the driver looks for workers that have joined or are lost
_ALONE_SECONDS = 60  # without a worker, after which it ends; jobs of a queue are waited for
Task = TypeVar("Task")


@dataclass(frozen=True)
class Died:
    """So many workers have died over a task, which is given up."""

    workers: int


class Team:
    """The workers of a cluster, which share the same work.

    Attributes
    ----------
    facts
        What the first worker has told; see `Workplace.facts`.
    """

    def __init__(self, client: Any, spec: ClusterSpec, shared: Shared, facts: Any, progress: Progress) -> None:
        self.facts = facts
        self._client, self._spec, self._shared, self._progress = client, spec, shared, progress
        self._workers, self._lost, self._looked = frozenset[str](), 0, -math.inf
        self._said = set[str]()

    def __str__(self) -> str:
        """Say how many workers there are, and were."""
        return counted(len(self._workers)) + (f", {self._lost} lost" if self._lost else "")

    def results(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any | Died]]:
        """Yield tasks as they are done, with what they have returned, or `Died` where they are given up.

        There are as many at a time as workers: one that waits on a worker would be blamed for its death, too. What a
        task has raised is raised here.

        Raises
        ------
        Unreachable
            The scheduler does not answer any more, or has had no worker for a minute.
        """
        import distributed

        left, active = deque(tasks), dict[Any, Task]()
        seen = time.monotonic()  # when there was a worker
        try:
            while left or active:
                with _reached(self._spec):
                    seen = time.monotonic() if self._look() else seen
                    while left and len(active) < len(self._workers):  # workers may have joined
                        task = left.popleft()
                        active[self._client.submit(do_here, self._shared, task, pure=False)] = task
                    if not active:
                        time.sleep(_LOOK_SECONDS)
                    with contextlib.suppress(TimeoutError):
                        distributed.wait(list(active), timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED")
                for future in [future for future in active if future.done()]:
                    yield active.pop(future), self._result(future)
                if time.monotonic() - seen > _ALONE_SECONDS and self._spec.kind not in QUEUES:
                    raise Unreachable(f"--cluster {self._spec}: has had no worker for {_ALONE_SECONDS} s")
        finally:
            with contextlib.suppress(Exception):
                self._client.cancel(list(active))

    def _look(self) -> bool:
        """Look now and then for workers that have joined or are lost; return whether there are any."""
        if self._workers and time.monotonic() - self._looked < _LOOK_SECONDS:
            return True
        self._looked = time.monotonic()
        before, self._workers = self._workers, frozenset(self._client.nthreads())
        for worker in sorted(before - self._workers):
            self._lost += 1
            self._progress.say(f"worker {worker} is lost")
            self._progress.event("worker lost", worker=worker, workers=len(self._workers))
        return bool(self._workers)

    def _result(self, future: Any) -> Any:
        found = _result(future, self._spec)
        if isinstance(found, Died):
            return found
        self.repeat(found.told, found.worker)
        return found.result

    def repeat(self, told: Sequence[Told], worker: str) -> None:
        """Say what a worker has told, lines once: others say the same."""
        for one in told:
            if one.name != "line":
                self._progress.event(one.name, **one.facts, worker=worker)
            elif one.facts["text"] not in self._said:
                self._said.add(one.facts["text"])
                self._progress.say(one.facts["text"])


@contextlib.contextmanager
def open_team(spec: ClusterSpec, work: Work, progress: Progress) -> Iterator[Team]:
    """Open a cluster, and the work on one of its workers; others follow with their tasks.

    Raises
    ------
    InputError
        What `open_cluster` and `work.open` raise.
    EngineUnavailable
        The same.
    Unreachable
        Workers die over opening the work.
    """
    shared = Shared(uuid.uuid4().hex, work)
    with open_cluster(spec, progress) as client:
        try:
            opened = _result(client.submit(open_here, shared, pure=False), spec)
            if isinstance(opened, Died):
                raise Unreachable(f"--cluster {spec}: {opened.workers} workers have died over the start")
            shared = replace(shared, versions=opened.versions, work=work.agreed(opened.facts))
            team = Team(client, spec, shared, opened.facts, progress)
            team.repeat(opened.told, "")
            yield team
        finally:
            with contextlib.suppress(Exception):
                client.run(close_here, shared.key)


@contextlib.contextmanager
def _reached(spec: ClusterSpec) -> Iterator[None]:
    """Turn what Dask raises where its scheduler is lost, or cannot take a task, into `Unreachable`."""
    import distributed

    try:
        yield
    except (OSError, distributed.CancelledError, TimeoutError, RuntimeError) as error:
        raise Unreachable(f"--cluster {spec}: the scheduler is lost ({in_short(error)})") from error


def _result(future: Any, spec: ClusterSpec) -> Any | Died:
    """Return what a task has returned, `Died` where too many workers have died over it; raise what it has raised."""
    from distributed.scheduler import KilledWorker

    with _reached(spec):
        error = future.exception()  # waits; None where it has returned
        if error is None:
            return future.result()
    if isinstance(error, KilledWorker):
        return Died(error.allowed_failures + 1)
    raise error
