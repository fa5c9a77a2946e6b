"""Time to a held-out accuracy: training as gfo-train does it, and the plain loop, in turns over groups of classes.

Pictures are in memory before a clock starts, and it stands still while occluders are judged (`courses`). The classes of
a group share batches in gfo-train, so its time is that of its last class; the plain loop takes one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..engine.data.loading import open_source
from ..engine.data.spec import DataSpec
from ..engine.devices import checked_impl, resolve_device
from ..engine.machine import keep_freed_memory
from ..engine.progress import Progress, no_progress
from ..engine.training.batches import Fitted, read_class
from ..engine.training.config import TrainConfig
from ..engine.training.groups import chosen_classes, cut
from ..export.classifier import FrozenClassifier
from ..export.errors import InputError
from ..export.occluded import OccludedClassifier
from .courses import Course, GroupTraining, Judge, Judged, PlainClass, Training, follow
from .measure import ratio_of_totals, timer, with_rates
from .plain_loop import PlainTraining, plain_precisions
from .rows import BenchRow, Facts, ReachFacts

_PLAIN = "plain loop"
_STAGE, _BASELINE = "train-reach", "train-reach-baseline"


@dataclass(frozen=True)
class ReachConfig:
    """What is to be reached, and how.

    Attributes
    ----------
    train
        How gfo-train's side trains. Its `target_accuracy`, `held_out` ≥ 1, `epsilon`, `pictures_per_class` and `seed`
        hold for both.
    judge_every
        Occluders are judged whenever that many more pictures of their class, ≥ 1, have taken part in a step.
    plain_step, plain_epochs
        The plain loop's step > 0 as a share of ε, and the passes ≥ 1 over a class after which it gives up.
    """

    train: TrainConfig
    judge_every: int
    plain_step: float
    plain_epochs: int


class Contest:
    """Both ways over the classes of a data folder, group by group.

    Parameters
    ----------
    precisions
        Of the network in gfo-train's way; the plain loop's is PyTorch's default (`plain_precisions`).

    Raises
    ------
    InputError
        Bad input, or a class of which the network leaves no more than the target without an occluder.
    """

    def __init__(
        self,
        classifier: FrozenClassifier,
        data: DataSpec,
        config: ReachConfig,
        precisions: Sequence[str],
        place: torch.device,
        progress: Progress = no_progress,
    ) -> None:
        self._config, self._place, self._progress = config, place, progress
        train = config.train
        train.check_epsilon(classifier.preprocessing.input_size)
        self._folders, self._splits = chosen_classes(classifier, data, train, progress.say)
        self._together, self._batches = cut(train, self._splits)
        self._source = open_source(data, classifier.preprocessing, place)
        self._judge = Judge(classifier, train, place)
        self._judged = self._held_out()
        kernels, _ = checked_impl(train.impl, place)
        self._networks = {
            name: OccludedClassifier(classifier, name, impl=kernels).settled(place, gradient=True)
            for name in precisions
        }
        for line in filter(None, (network.islands for network in self._networks.values())):
            progress.say(line)
        self._plain = PlainTraining(classifier, place, train.epsilon, config.plain_step * train.epsilon)
        self._clock = timer(place.type)
        self.pictures = 0

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self._folders)

    @property
    def clean(self) -> float:
        """Mean over classes of the held-out accuracy without an occluder."""
        return float(np.mean([one.clean for one in self._judged.values()]))

    def _held_out(self) -> dict[int, Judged]:
        found = {}
        for folder in self._folders:
            pictures = Fitted([read_class(folder, self._splits[folder.class_id][1], self._source)])
            found[folder.class_id] = Judged(pictures, self._judge(pictures))
        target = self._judge.target
        there = [
            f"{f.folder} ({found[f.class_id].clean:g})" for f in self._folders if found[f.class_id].clean <= target
        ]
        if there:
            raise InputError(
                f"--target-accuracy {target:g}: the held-out accuracy without an occluder is no higher for "
                f"{', '.join(there)}; give trained --weights, a lower target, or leave such classes out with --classes"
            )
        return found

    def run(self) -> tuple[dict[str, list[Course]], list[int]]:
        """Return, of each group, the courses at each precision and of the plain loop, and the number of classes."""
        groups = [self._folders[i : i + self._together] for i in range(0, self.classes, self._together)]
        courses: dict[str, list[Course]] = {name: [] for name in (*self._networks, _PLAIN)}
        with self._progress.task("time to accuracy", self.classes * len(courses)) as bar:
            for number, group in enumerate(groups):
                work = [read_class(f, self._splits[f.class_id][0], self._source) for f in group]
                self.pictures += sum(len(one.images) for one in work)
                fitted = [Fitted([one], row, self._place) for row, one in enumerate(work, start=1)]
                if not number:
                    self._warm_up(fitted)
                for name in courses:
                    courses[name].append(self._course(name, fitted))
                    bar.advance(len(group), f"{name}: {courses[name][-1].seconds:.1f} s")
        return courses, [len(group) for group in groups]

    def _warm_up(self, fitted: Sequence[Fitted]) -> None:
        """Take the first step of each way, which may compile or allocate."""
        for name in self._networks:
            self._grouped(name, fitted).advance(1)
        self._alone(fitted[0]).advance(1)

    def _grouped(self, precision: str, fitted: Sequence[Fitted]) -> Training:
        train = replace(self._config.train, precision=precision)
        return GroupTraining(self._networks[precision], train, self._batches, fitted, self._place)

    def _alone(self, one: Fitted) -> Training:
        config = self._config
        return PlainClass(self._plain, one, config.plain_epochs, config.train.seed)

    def _course(self, name: str, fitted: Sequence[Fitted]) -> Course:
        judged = [self._judged[one.class_id] for one in fitted]

        def followed(training: Training, classes: Sequence[Judged]) -> Course:
            return follow(training, classes, self._judge, self._config.judge_every, self._clock)

        if name != _PLAIN:
            return followed(self._grouped(name, fitted), judged)
        each = (followed(self._alone(work), [one]) for work, one in zip(fitted, judged, strict=True))
        return sum(each, Course(0.0, 0, ()))


def reach_rows(
    classifier: FrozenClassifier,
    data: DataSpec,
    config: ReachConfig,
    precisions: Sequence[str],
    progress: Progress = no_progress,
) -> list[BenchRow[Facts]]:
    """Measure the classes a minute that the plain loop brings to the target, and gfo-train at every precision.

    Rates are of groups of classes, the ratio is of the time of all of them.

    Raises
    ------
    InputError
        See `Contest`.
    """
    place = resolve_device(config.train.device)
    keep_freed_memory()  # as gfo-train
    contest = Contest(classifier, data, config, precisions, place, progress)
    courses, sizes = contest.run()
    base: BenchRow[Facts] = BenchRow(
        stage=_STAGE,
        engine="torch",
        model=classifier.model,
        weights=classifier.weights,
        pictures=contest.pictures,
        occluders=contest.classes,
        unit="classes/min",
        device=place.type,
        data=str(data.root),
        facts=Facts(),
    )
    seconds = {name: np.array([one.seconds for one in each]) for name, each in courses.items()}
    rows = []
    for name in (_PLAIN, *precisions):
        plain, whole = name == _PLAIN, sum(courses[name], Course(0.0, 0, ()))
        facts = _facts(whole, config.train.target_accuracy or 0.0, contest.clean)
        stage, precision = (_BASELINE, plain_precisions(place)[0]) if plain else (_STAGE, name)
        row = replace(
            base, stage=stage, precision=precision, facts=facts, reason=_missing(name, facts, contest.classes)
        )
        against = None if plain else ratio_of_totals(seconds[name], _BASELINE, seconds[_PLAIN])
        rows.append(with_rates(row, 60 * np.array(sizes) / seconds[name], against))
    return rows


def _facts(course: Course, target: float, clean: float) -> ReachFacts:
    return ReachFacts(
        target=target,
        reached=sum(left <= target for left in course.left),
        clean_accuracy=clean,
        accuracy=float(np.mean(course.left)),
        image_steps=course.image_steps,
        seconds=course.seconds,
    )


def _missing(name: str, facts: ReachFacts, classes: int) -> str:
    """Return which way the ratio errs where classes are not there."""
    if facts.reached == classes:
        return ""
    way, errs = (name, "low") if name == _PLAIN else (f"{_STAGE} at {name}", "high")
    return (
        f"{way}: {classes - facts.reached} of {classes} classes do not reach {facts.target:g}; they count with all the "
        f"time that they were given, which by itself makes the ratio too {errs}"
    )
