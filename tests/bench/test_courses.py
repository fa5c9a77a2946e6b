"""Trainings that pause to be judged: when that is, what the clock sees, and that steps are gfo-train's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gfo.bench.courses import Course, GroupTraining, Judge, Judged, PlainClass, Training, follow
from gfo.bench.measure import Timer
from gfo.bench.plain_loop import PlainTraining
from gfo.engine.data.folders import ClassFolder
from gfo.engine.training.batches import Batches, ClassPictures, Fitted
from gfo.engine.training.config import TrainConfig
from gfo.engine.training.descent import Descent
from gfo.export.classifier import FrozenClassifier
from gfo.export.occluded import OccludedClassifier

CPU = torch.device("cpu")
CONFIG = TrainConfig(epsilon=8, epochs=3, batch_size=8, target_accuracy=0.25, precision="fp32")


def fitted(class_id: int, count: int, index: int = 1) -> Fitted:
    generator = torch.Generator().manual_seed(class_id)
    images = torch.randint(0, 256, (count, 16, 16, 3), dtype=torch.uint8, generator=generator)
    return Fitted([ClassPictures(ClassFolder(str(class_id), class_id, ()), images)], index)


@pytest.fixture(scope="module")
def network(tiny_classifier: FrozenClassifier) -> OccludedClassifier:
    return OccludedClassifier(tiny_classifier)


class Scripted(Training):
    """Steps of 4 pictures that take 1 s; the occluders are the steps so far, and -1 where they have stopped."""

    def __init__(self, steps: int, clock: list[float]) -> None:
        super().__init__(steps)
        self.clock, self.taken, self.stopped = clock, 0, dict[int, int]()

    def _step(self) -> int:
        self.clock[0] += 1
        self.taken += 1
        self.image_steps += 4
        return 4

    def occluder(self, row: int) -> torch.Tensor:
        return torch.tensor(float(self.taken))

    def stop(self, row: int) -> None:
        self.stopped[row] = self.taken


def scripted(steps: int, needed: tuple[int, ...]) -> tuple[Course, Scripted, list[tuple[int, int]]]:
    """Follow a training whose class `row` is at 0.2 after `needed[row]` steps, judged every 10 pictures, for 100 s."""
    clock, judged = [0.0], list[tuple[int, int]]()

    class Judging:
        target = 0.25

        def __call__(self, row: Any, occluder: torch.Tensor) -> float:
            clock[0] += 100
            judged.append((row, int(occluder)))
            return 0.2 if occluder >= needed[row] else 0.9

    training: Any = Scripted(steps, clock)
    classes: Any = [Judged(row, 0.9) for row in range(len(needed))]  # type: ignore[arg-type]
    judge: Any = Judging()
    return follow(training, classes, judge, 10, Timer(lambda: clock[0])), training, judged


def test_a_class_is_there_at_its_first_judgement_and_judging_takes_no_time() -> None:
    course, training, judged = scripted(100, (2, 4))
    assert judged == [(0, 3), (1, 3), (1, 5)]  # after 12 and 20 pictures
    assert training.stopped == {0: 3, 1: 5}
    assert course == Course(5.0, 20, (0.2, 0.2))


def test_a_class_that_does_not_get_there_counts_with_all_its_time() -> None:
    course, training, judged = scripted(7, (2, 50))
    assert judged[-1] == (1, 7)  # at the end, though 28 pictures are no multiple of 10
    assert training.stopped == {0: 3}
    assert course == Course(7.0, 28, (0.2, 0.9))
    assert course + Course(1.0, 2, (0.5,)) == Course(8.0, 30, (0.2, 0.9, 0.5))


def test_steps_are_those_of_training(network: OccludedClassifier) -> None:
    work, batches = [fitted(3, 8), fitted(0, 8, 2)], Batches(share=4, rounds=2)
    training = GroupTraining(network, CONFIG, batches, work, CPU)
    training.advance(10**9)
    assert training.ended
    assert training.image_steps == 3 * 2 * 8
    step = Descent(network, CONFIG, torch.zeros(2, 16, 16, 3))
    every = [batch for epoch in range(3) for batch in batches.of(work, epoch, CONFIG.seed)]
    for done, batch in enumerate(every):
        step(batch, CONFIG.step_size(done / len(every)), done + 1)
    assert torch.equal(torch.stack([training.occluder(row) for row in (0, 1)]), step.occluders)


def test_a_class_that_is_there_takes_no_further_part(network: OccludedClassifier) -> None:
    work = [fitted(3, 8), fitted(0, 8, 2)]
    training = GroupTraining(network, CONFIG, Batches(share=4, rounds=2), work, CPU)
    training.advance(4)
    training.stop(0)
    before, other = training.occluder(0).clone(), training.occluder(1).clone()
    training.advance(4)
    assert training.image_steps == 8 + 4
    assert torch.equal(training.occluder(0), before)
    assert not torch.equal(training.occluder(1), other)


def test_the_plain_loop_takes_each_picture_once_in_a_pass(tiny_classifier: FrozenClassifier) -> None:
    plain, met = PlainTraining(tiny_classifier, CPU, 8, 1), list[torch.Tensor]()
    plain.step = lambda images, labels: met.append(images)
    work = fitted(3, 40)
    training = PlainClass(plain, work, 2, 0)
    training.advance(33)
    assert [len(images) for images in met] == [32, 8]
    training.advance(10**9)
    assert training.ended
    assert training.image_steps == 80
    wanted = work.images.permute(0, 3, 1, 2).flatten(1).sum(dim=1).sort().values
    for images in (torch.cat(met[:2]), torch.cat(met[2:])):
        assert torch.equal(images.flatten(1).sum(dim=1).sort().values, wanted)


def test_judges_count_right_answers(tiny_classifier: FrozenClassifier, network: OccludedClassifier) -> None:
    pictures, judge = fitted(3, 30), Judge(tiny_classifier, CONFIG, CPU)
    occluder = torch.full((16, 16, 3), -200.0)
    index = torch.arange(30)
    for bank, given in ((torch.zeros(1, 16, 16, 3), None), (occluder[None], occluder)):
        right = network(pictures.images, index, torch.ones_like(index), bank).argmax(dim=1) == 3
        assert judge(pictures, given) == right.float().mean().item()
