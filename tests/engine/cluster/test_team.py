"""Tasks are handed out once, one to a worker at a time; a worker opens its work once and gives it up when told to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from gfo.engine.cluster import worker as module
from gfo.engine.cluster.spec import ClusterSpec
from gfo.engine.cluster.team import Died, Team, open_team
from gfo.engine.cluster.worker import Done, Shared, Stopped, do_here, open_here
from gfo.engine.progress import Progress, Silent, no_progress
from gfo.export.errors import InputError, Unreachable

distributed = pytest.importorskip("distributed")


@dataclass
class Squares:
    """Work of squaring numbers, as in `cluster.worker`; it is its own workplace."""

    opened: ClassVar[int] = 0
    now: ClassVar[int] = 0
    most: ClassVar[int] = 0
    lock: ClassVar[Any] = threading.Lock()
    told: str = ""
    packages: Sequence[str] = ()
    facts: str = "first"

    @contextlib.contextmanager
    def open(self, progress: Progress) -> Iterator[Squares]:
        Squares.opened += 1
        progress.say("opened")
        self.progress = progress
        yield self
        Squares.opened -= 1

    def agreed(self, facts: str) -> Squares:
        return Squares(facts)

    def do(self, task: int) -> int:
        for step in (1, -1):
            with self.lock:
                Squares.now += step
                Squares.most = max(Squares.most, Squares.now)
            time.sleep(0.02)
        self.progress.event("block", start=task)
        self.progress.say(f"agreed {self.told}")
        return task**2


class Heard(Silent):
    """What a progress is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.events: list[tuple[str, dict[str, object]]] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def event(self, name: str, **facts: object) -> None:
        self.events.append((name, facts))


@pytest.mark.parametrize("workers", [1, 3])
def test_every_task_is_done_once_and_each_worker_has_one(workers: int) -> None:
    """The workers are threads of this process, so that they are counted; it opens the work once."""
    Squares.most, heard, opened = 0, Heard(), Squares.opened
    how = {"processes": False, "threads_per_worker": 2, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(n_workers=workers, **how) as running, distributed.Client(running) as client:
        client.wait_for_workers(workers)
        team = Team(client, ClusterSpec("tcp://host:1"), Shared(str(workers), Squares()), None, heard)
        assert sorted(team.results(range(10))) == [(n, n**2) for n in range(10)]
        assert str(team) == {1: "1 worker", 3: "3 workers"}[workers]
        assert Squares.opened == opened + 1
        client.run(module.close_here, str(workers))
    assert Squares.opened == opened
    assert Squares.most == 1
    assert heard.said == ["opened", "agreed "]
    assert sorted(int(str(facts["start"])) for _, facts in heard.events) == list(range(10))
    assert all(facts["worker"] for _, facts in heard.events)


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_tasks_are_handed_out_than_there_are_workers(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gfo.engine.cluster.team.do_here", at_work)
    AtWork.most = 0
    how = {"processes": False, "threads_per_worker": 4, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(n_workers=workers, **how) as running, distributed.Client(running) as client:
        client.wait_for_workers(workers)
        team = Team(client, ClusterSpec("tcp://host:1"), Shared("", Squares()), None, no_progress)
        assert sorted(team.results(range(10))) == [(n, n) for n in range(10)]
    assert 1 <= AtWork.most <= workers


class AtWork:
    """How many tasks run at a time, and the most that there were."""

    now = most = 0
    lock = threading.Lock()


def at_work(shared: Shared, task: int) -> Done:
    """Take a moment, in place of `do_here`."""
    for step in (1, -1):
        with AtWork.lock:
            AtWork.now += step
            AtWork.most = max(AtWork.most, AtWork.now)
        time.sleep(0.02)
    return Done(task, "", [])


@dataclass(frozen=True)
class Deadly:
    """Work that a worker does not survive: of task 0."""

    packages: Sequence[str] = ()
    facts: None = None

    @contextlib.contextmanager
    def open(self, progress: Progress) -> Iterator[Deadly]:
        yield self

    def agreed(self, facts: None) -> Deadly:
        return self

    def do(self, task: int) -> int:
        if task == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return task


@pytest.mark.slow
def test_a_task_that_kills_its_workers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are other processes, which import this module by its name."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    work = __import__("test_team").Deadly()
    heard = Heard()
    with open_team(ClusterSpec("local:1"), work, heard) as team:
        assert dict(team.results([0, 1, 2])) == {0: Died(3), 1: 1, 2: 2}
    lost = [facts for name, facts in heard.events if name == "worker lost"]
    assert 1 <= len(lost) <= 3  # those that were seen to be gone before another came
    assert sum(line.endswith("is lost") for line in heard.said) == len(lost)


def test_a_cluster_without_workers_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gfo.engine.cluster.team._ALONE_SECONDS", 0.1)
    monkeypatch.setattr("gfo.engine.cluster.team._LOOK_SECONDS", 0.1)
    with (
        distributed.LocalCluster(n_workers=0, threads_per_worker=1, processes=False, dashboard_address=None) as running,
        distributed.Client(running) as client,
    ):
        team = Team(client, ClusterSpec("tcp://host:1"), Shared("", Squares()), None, no_progress)
        with pytest.raises(Unreachable, match=r"--cluster tcp://host:1: has had no worker for 0\.1 s"):
            list(team.results([1]))


def test_a_worker_with_other_versions_is_named() -> None:
    opened = open_here(Shared("first", Squares()))
    assert set(opened.versions) >= {"gfo", "torch"}
    with pytest.raises(
        InputError, match=f"--cluster: a worker has torch {opened.versions['torch']}, another 1.0; install one"
    ):
        open_here(Shared("second", Squares(), {**opened.versions, "torch": "1.0"}))
    asyncio.run(module.close_here("first"))
    assert not module._places


def test_a_worker_that_is_not_needed_ends_its_task() -> None:
    assert do_here(Shared("ended", Squares()), 3).result == 9
    module._stopped.add("ended")
    with pytest.raises(Stopped):
        do_here(Shared("ended", Squares()), 4)
    asyncio.run(module.close_here("ended"))
    assert not module._places
