"""What a worker of a cluster does: it opens what its tasks need once, and does one task at a time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch

from ...export.errors import InputError
from ..machine import worker_count
from ..progress import Progress, Silent

_CLOSE_SECONDS = 30


class Workplace(Protocol):
    """What is open in a worker.

    Attributes
    ----------
    packages
        Names of the packages, beside gfo, Dask and PyTorch, that the results depend on.
    facts
        What the first worker tells the driver, and through it the later ones; it is pickled.
    """

    @property
    def packages(self) -> Sequence[str]:
        """See above."""
        ...

    @property
    def facts(self) -> Any:
        """See above."""
        ...

    def do(self, task: Any) -> Any:
        """Do a task of the driver's; a worker that has died over it may have done some of it."""
        ...


class Work(Protocol):
    """What the workers of a cluster share; it is pickled and sent to them."""

    def open(self, progress: Progress) -> AbstractContextManager[Workplace]:
        """Open what its tasks need."""
        ...

    def agreed(self, facts: Any) -> Work:
        """Return the work for later workers, which must agree with the `facts` that the first one has told."""
        ...


@dataclass(frozen=True)
class Shared:
    """What workers are given.

    Attributes
    ----------
    key
        Names this work in a worker, which may have had others.
    versions
        Of the packages that results depend on, as the first worker has them; empty for that one.
    """

    key: str
    work: Work
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """An event in a worker, see `Progress.event`; a line has the name `line`."""

    name: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Opened:
    """What the first worker tells the driver."""

    versions: Mapping[str, str]
    facts: Any
    told: Sequence[Told]


@dataclass(frozen=True)
class Done:
    """What a task returned, which worker did it, and what that worker told meanwhile."""

    result: Any
    worker: str
    told: Sequence[Told]


class Stopped(Exception):
    """The driver has no use for this task any more."""


def must_see(path: Path) -> None:
    """Raise `InputError` unless this worker sees what the first one has made: it would make another."""
    if not path.exists():
        raise InputError(
            f"{path}: not seen by the worker on {socket.gethostname()}, though another has made it; give a folder that "
            "all workers share"
        )


class _Lines(Silent):
    """Progress of a worker: what is told is kept for the driver; where its key is in `_stopped`, the work ends.

    What is finished by then is written, as after Ctrl-C.
    """

    def __init__(self, key: str) -> None:
        self._key, self._told = key, list[Told]()

    def taken(self) -> list[Told]:
        """Return what has been told since the last call."""
        found, self._told = self._told, []
        return found

    def say(self, line: str) -> None:
        self.event("line", text=line)

    def event(self, name: str, **facts: object) -> None:
        self._told.append(Told(name, facts))
        self.advance(0)

    def advance(self, amount: float, note: str = "") -> None:
        if self._key in _stopped:
            raise Stopped


@dataclass(frozen=True)
class _Place:
    """What is open in this worker for a key, and what closes it."""

    workplace: Workplace
    versions: Mapping[str, str]
    lines: _Lines
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
        workplace = stack.enter_context(shared.work.open(lines))
        versions = _versions(("gfo", "distributed", "torch", *workplace.packages))
        if shared.versions and versions != shared.versions:
            name = min(name for name, _ in versions.items() ^ shared.versions.items())
            own, other = (found.get(name, "none") for found in (versions, shared.versions))
            raise InputError(f"--cluster: a worker has {name} {own}, another {other}; install one version")
        _places[shared.key] = _Place(workplace, versions, lines, stack.pop_all())
    return _places[shared.key]


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def open_here(shared: Shared) -> Opened:
    """Open what tasks need in this worker."""
    with _one_at_a_time:
        place = _place(shared)
        return Opened(place.versions, place.workplace.facts, place.lines.taken())


def do_here(shared: Shared, task: Any) -> Done:
    """Do a task in this worker."""
    with _one_at_a_time:
        place = _place(shared)
        result = place.workplace.do(task)
        return Done(result, f"{socket.gethostname()}:{os.getpid()}", place.lines.taken())


async def close_here(key: str) -> None:
    """Close what is open in this worker, if anything is; a task ends at its next step, and is waited for."""
    _stopped.add(key)

    def close() -> None:
        with _one_at_a_time:
            if place := _places.pop(key, None):
                place.stack.close()

    with contextlib.suppress(TimeoutError):  # an engine that is being opened may take minutes
        await asyncio.wait_for(asyncio.to_thread(close), _CLOSE_SECONDS)
