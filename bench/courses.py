"""Trainings that pause to be judged: gfo-train's steps on a group of classes, and the plain loop's on one.

Held-out pictures judge, in float32 and by the same code for both. A class reaches the target at the first judgement at
or below it, and takes no further part.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.devices import deterministic, exact_float32
from ..engine.training.answers import accuracy_left
from ..engine.training.batches import Batch, Batches, Fitted
from ..engine.training.config import TrainConfig
from ..engine.training.descent import Descent
from ..export.classifier import FrozenClassifier
from ..export.occluded import OccludedClassifier
from .measure import Timer
from .plain_loop import PlainTraining

_PLAIN_BATCH = 32


@dataclass(frozen=True)
class Judged:
    """The held-out pictures of a class, and the accuracy on them without an occluder."""

    pictures: Fitted
    clean: float


@dataclass(frozen=True)
class Course:
    """How the training of some classes went: what it took, and the accuracy that was left of each at the last."""

    seconds: float
    image_steps: int
    left: tuple[float, ...]

    def __add__(self, other: Course) -> Course:
        """Return both, one after the other."""
        return Course(self.seconds + other.seconds, self.image_steps + other.image_steps, (*self.left, *other.left))


class Judge:
    """Measures what accuracy an occluder leaves, in float32; `target` is what it should leave at most."""

    def __init__(self, classifier: FrozenClassifier, config: TrainConfig, place: torch.device) -> None:
        self.target = config.target_accuracy or 0.0
        self._network = OccludedClassifier(classifier).settled(place)
        self._place, self._pass_size = place, config.pictures_in_a_pass(place.type)

    def __call__(self, pictures: Fitted, occluder: Tensor | None = None) -> float:
        """Return the top-1 accuracy under an occluder, float32 [S, S, 3] on the device, or without one."""
        with exact_float32("fp32", self._place):
            return accuracy_left(self._network, pictures, self._place, self._pass_size, occluder)


# ---- the two ways


class Training(ABC):
    """The training of some classes, which pauses to be judged; `image_steps` counts the pictures of its steps."""

    def __init__(self, steps: int) -> None:
        self.image_steps = 0
        self._ahead, self._met = steps, 0

    @property
    def ended(self) -> bool:
        """Whether there is no step left."""
        return not self._ahead

    def advance(self, every: int) -> None:
        """Train until the number of pictures that each class has met passes a multiple of `every`, or to the end."""
        goal = (self._met // every + 1) * every
        while self._ahead and self._met < goal:
            self._met += self._step()
            self._ahead -= 1

    @abstractmethod
    def _step(self) -> int:
        """Take a step, and return how many pictures each class met in it."""

    @abstractmethod
    def occluder(self, row: int) -> Tensor:
        """Return the occluder of a class, float32 [S, S, 3] on the device."""

    @abstractmethod
    def stop(self, row: int) -> None:
        """Leave a class as it is from now on."""


class GroupTraining(Training):
    """gfo-train's: its steps, with the batches of the classes that are not there yet."""

    def __init__(
        self,
        network: OccludedClassifier,
        config: TrainConfig,
        batches: Batches,
        work: Sequence[Fitted],
        place: torch.device,
    ) -> None:
        self._steps = batches.steps * config.epochs
        super().__init__(self._steps)
        self._network, self._config, self._place, self._share = network, config, place, batches.share
        self._descent = Descent(network, config, torch.zeros(len(work), *work[0].images.shape[1:], device=place))
        self._batches = _endless(batches, work, config.seed)
        self._stopped = self._descent.stopped[:0]  # as pairs name them, from 1 on

    def _step(self) -> int:
        config, precision, done = self._config, self._network.precision, self._steps - self._ahead
        batch = _without(next(self._batches), self._stopped)
        with exact_float32(precision, self._place), deterministic(self._place):
            self._descent(batch, config.step_size(done / self._steps), done + 1)
            if done + 1 == self._steps:
                self._descent.finish()
        self.image_steps += len(batch.images)
        return self._share

    def occluder(self, row: int) -> Tensor:
        """See `Training.occluder`."""
        return self._descent.occluders[row]

    def stop(self, row: int) -> None:
        """See `Training.stop`."""
        self._descent.stopped[row] = 1
        self._stopped = self._descent.stopped.nonzero().squeeze(1) + 1


def _endless(batches: Batches, work: Sequence[Fitted], seed: int) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from batches.of(work, epoch, seed)
        epoch += 1


def _without(batch: Batch, stopped: Tensor) -> Batch:
    """Return the batch without pictures of occluders that have stopped; there are no preserved ones."""
    if not len(stopped):
        return batch
    left = ~torch.isin(batch.occluder_index, stopped)
    return Batch(batch.images[left], batch.occluder_index[left], batch.labels[left])


class PlainClass(Training):
    """The plain loop's, of one class: seeded passes over its pictures, [n, 3, S, S] in memory on the device."""

    def __init__(self, plain: PlainTraining, work: Fitted, epochs: int, seed: int) -> None:
        self._images, self._labels = work.images.permute(0, 3, 1, 2).contiguous(), work.labels
        orders = [work.order(epoch, len(work.images), seed) for epoch in range(epochs)]
        self._places = [part for order in orders for part in order.split(_PLAIN_BATCH)]
        super().__init__(len(self._places))
        self._plain = plain
        plain.restart()

    def _step(self) -> int:
        places = self._places[-self._ahead]
        self._plain.step(self._images[places], self._labels[places])
        self.image_steps += len(places)
        return len(places)

    def occluder(self, row: int) -> Tensor:
        """See `Training.occluder`."""
        return self._plain.occluder.detach().permute(1, 2, 0).contiguous()

    def stop(self, row: int) -> None:
        """Do nothing: it is alone."""


def follow(training: Training, classes: Sequence[Judged], judge: Judge, every: int, clock: Timer) -> Course:
    """Train until all classes, the rows of the training, are there or it has ended; judging takes no time."""
    left, seconds = [one.clean for one in classes], 0.0
    waiting = list(range(len(classes)))
    while waiting and not training.ended:
        start = clock.now()
        training.advance(every)
        seconds += clock.now() - start
        for row in waiting:
            left[row] = judge(classes[row].pictures, training.occluder(row))
            if left[row] <= judge.target:
                training.stop(row)
        waiting = [row for row in waiting if left[row] > judge.target]
    return Course(seconds, training.image_steps, tuple(left))
