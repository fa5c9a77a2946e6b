"""Training on the workers of a cluster: the driver hands out groups of classes, workers train and save them.

Every worker loads the network, and writes to the same checkpoint, which the driver owns. An occluder depends on its
group alone, so that the bank is that of one process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ...export.bank import OccluderBank
from ...export.classifier import FrozenClassifier
from ...export.errors import InputError, Unreachable
from ..cluster.spec import ClusterSpec
from ..cluster.team import Died, open_team
from ..cluster.worker import must_see
from ..progress import Progress
from .checkpoint import CONFIG
from .groups import Groups
from .owner import sole_owner
from .train import Job, Plan

_JOIN = -1  # the task that writes the bank, in place of a group's number


class Facts(NamedTuple):
    """What the first worker tells.

    Attributes
    ----------
    place
        The device's name.
    folder
        The checkpoint's.
    every, classes
        Number of classes, and of those of each group that is to be trained, by the group's number; None if the bank
        is there.
    """

    place: str
    folder: Path
    every: int
    classes: dict[int, int] | None


@dataclass(frozen=True)
class TrainingWork:
    """See `cluster.worker.Work`. `place` is the device of the first worker, None for that one."""

    job: Job
    place: str | None = None

    @contextlib.contextmanager
    def open(self, progress: Progress) -> Iterator[_TrainingPlace]:
        """Load the network, and open the checkpoint unless the bank is there."""
        plan = Plan.of(self.job, progress)
        if self.place not in (None, plan.place):
            raise InputError(f"--cluster: a worker trains on {plan.place}, another on {self.place}; use devices alike")
        if plan.finished() is not None:
            yield _TrainingPlace(plan, None)
            return
        if self.place is None:
            plan.checkpoint.folder.mkdir(parents=True, exist_ok=True)
        else:
            must_see(plan.checkpoint.folder / CONFIG)
        yield _TrainingPlace(plan, plan.open())

    def agreed(self, facts: Facts) -> TrainingWork:
        """See `Work.agreed`."""
        return replace(self, place=facts.place)


@dataclass(frozen=True)
class _TrainingPlace:
    """See `cluster.worker.Workplace`. Groups are None where the bank is there."""

    plan: Plan
    groups: Groups | None

    @property
    def packages(self) -> Sequence[str]:
        return ("torchvision", "numpy", "pillow")

    @property
    def facts(self) -> Facts:
        plan, groups = self.plan, self.groups
        classes = None if groups is None else {number: groups.classes(number) for number in groups.to_do()}
        return Facts(plan.place, plan.checkpoint.folder, len(plan.folders), classes)

    def do(self, task: int) -> None:
        """Train a group, or write the bank, unless a worker has done so that died over this task."""
        if task == _JOIN:
            if self.plan.checkpoint.finished_bank(self.plan.config.precision) is None:
                self.plan.checkpoint.join()
        elif self.groups is not None:
            with self.plan.trains(), self.plan.progress.task("training", 0) as bar:
                self.groups.train(task, bar.advance)


def train_on_cluster(job: Job, spec: ClusterSpec, progress: Progress) -> OccluderBank:
    """Do what `train` does, on a cluster.

    Raises
    ------
    InputError
        A network that other processes cannot be given, or a device that differs; see also `train`.
    EngineUnavailable
        See `open_cluster` and `train`.
    Unreachable
        The scheduler does not answer any more, or groups were given up, since workers died over them.
    """
    with open_team(spec, TrainingWork(_for_others(job)), progress) as team:
        facts: Facts = team.facts
        if facts.classes is None:
            return OccluderBank.load(job.out)
        with sole_owner(facts.folder):
            epochs, given_up = job.config.epochs, list[Died]()
            done = facts.every - sum(facts.classes.values())
            with progress.task("training", facts.every * epochs, done * epochs) as bar:
                for number, found in team.results(list(facts.classes)):
                    if isinstance(found, Died):
                        given_up.append(found)
                    else:
                        bar.advance(facts.classes[number] * epochs, str(team))
            if given_up:
                raise Unreachable(
                    f"--cluster {spec}: {given_up[0].workers} workers have died over each of {len(given_up)} groups of "
                    "classes; the others are kept"
                )
            for _, found in team.results([_JOIN]):
                if isinstance(found, Died):
                    raise Unreachable(f"--cluster {spec}: {found.workers} workers have died over writing the bank")
    return OccluderBank.load(job.out)


def _for_others(job: Job) -> Job:
    """Return a job that means the same in other processes and folders."""
    if isinstance(job.model, FrozenClassifier):
        raise InputError("--cluster: needs a model by its name")
    preserve = job.config.preserve
    config = replace(job.config, cluster=None, preserve=preserve and preserve.resolved())
    return Job(job.model.resolved(), job.data.resolved(), job.out.resolve(), config)
