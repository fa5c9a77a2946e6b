"""Training the classes of a bank, a few at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from ...export.classifier import FrozenClassifier
from ...export.errors import InputError
from ...export.occluded import OccludedClassifier
from ..data.folders import ClassFolder, beside_the_classes, list_classes, mapped_elsewhere
from ..data.source import PictureSource
from ..data.spec import DataSpec
from ..doubts import FirstAnswers
from ..progress import Progress
from .answers import logits_of
from .batches import Batch, Batches, ClassPictures, Fitted, Pool, read_class
from .checkpoint import Checkpoint, EpochState, Splits
from .config import TrainConfig, split_pictures
from .descent import Descent, Taken, described_as_not_finite, not_finite
from .memory import Need, gradient_bytes
from .preserve import Preserved, read_pool
from .target import Judge


@dataclass(frozen=True)
class Run:
    """What every group of classes is trained with."""

    classifier: FrozenClassifier
    network: OccludedClassifier
    config: TrainConfig
    source: PictureSource
    splits: Splits
    checkpoint: Checkpoint
    device: torch.device
    first_answers: FirstAnswers
    preserved: Preserved | None
    say: Callable[[str], None]

    @property
    def pass_size(self) -> int:
        """Maximum number of pictures in a pass."""
        return self.config.pictures_in_a_pass(self.device.type)

    def read(self, folder: ClassFolder) -> ClassPictures:
        """Read the pictures to fit of a class, without those that the clean network gets wrong if asked."""
        found = read_class(folder, self.splits[folder.class_id][0], self.source)
        if not self.config.correct_only:
            return found
        clean = logits_of(self.network, found.images, self.device, self.pass_size)
        right = clean.argmax(dim=1) == folder.class_id
        if not bool(right.any()):
            raise InputError(
                f"--correct-only: the network gets none of the {len(right)} pictures of {folder.folder} right; check "
                "the class map, or leave the class out"
            )
        return replace(found, images=found.images[right])

    def judge(self, work: Sequence[ClassPictures], fitted: Sequence[Fitted]) -> Judge | None:
        """Return what measures the classes in work against the target accuracy, if there is one."""
        target = self.config.target_accuracy
        if target is None:
            return None
        if self.config.held_out:
            held_out = [read_class(c.folder, self.splits[c.folder.class_id][1], self.source) for c in work]
            fitted = self.occluders_of(held_out)
        return Judge(self.network, fitted, target, self.device, self.pass_size)

    def occluders_of(self, work: Sequence[ClassPictures]) -> list[Fitted]:
        """Return the pictures of each occluder in work: of one class, or of all where they share it."""
        if self.config.make_objective().shared:
            return [Fitted(work, device=self.device)]
        return [Fitted([pictures], index, self.device) for index, pictures in enumerate(work, start=1)]

    def need(self, groups: Sequence[Sequence[ClassFolder]]) -> Need:
        """Return what training these groups, one at a time, takes of memory."""
        size = self.classifier.preprocessing.input_size
        judged = self.config.target_accuracy is not None  # on the held-out pictures
        counts = {class_id: len(fit) + judged * len(held_out) for class_id, (fit, held_out) in self.splits.items()}
        preserved = len(self.preserved.paths) if self.preserved else 0
        # Preserved pictures are read first: by class, then as one tensor, of which some are kept.
        placed = preserved + max(sum(counts[f.class_id] for f in group) for group in groups)
        each, picture = gradient_bytes(self.network, size, self.device), 3 * size**2
        return Need(each, self.pass_size, max(3 * preserved, placed) * picture, placed * picture)

    def pool(self, folders: Sequence[ClassFolder]) -> Pool | None:
        """Read the pictures to preserve, if any."""
        config, own = self.config, [f.class_id for f in folders]
        if self.preserved is None or config.preserve is None:
            return None
        where = (self.network, self.device, self.pass_size, self.say)
        return read_pool(self.preserved, config.preserve, own, self.classifier.preprocessing, *where)


def chosen_classes(
    classifier: FrozenClassifier, data: DataSpec, config: TrainConfig, say: Callable[[str], None]
) -> tuple[list[ClassFolder], Splits]:
    """Return the classes to train and their split pictures, by class id; `say` takes what is doubtful about them.

    Raises
    ------
    InputError
        Bad data, or a class with too few pictures.
    """
    outputs = classifier.num_classes
    folders = list_classes(data, "all" if data.classes is None else data.classes, outputs, config.seed)
    of_model = (classifier.doubt, classifier.preprocessing.doubt)
    for line in filter(None, (*of_model, beside_the_classes(data), mapped_elsewhere(data, folders, outputs))):
        say(line)
    return folders, {f.class_id: split_pictures(f.paths, f.class_id, config) for f in folders}


def cut(config: TrainConfig, splits: Splits) -> tuple[int, Batches]:
    """Return how many classes are in work at a time, and the cut of an epoch.

    The same share of a batch and number of steps for every group of classes, so that an occluder depends on its own
    class alone.

    Raises
    ------
    InputError
        There is no room for preserved pictures.
    """
    sizes = [len(fitted) for fitted, _ in splits.values()]
    shared = config.make_objective().shared
    occluders = 1 if shared else min(config.classes_together, config.batch_size, len(sizes))
    preserve, share = config.preserve, config.batch_size // occluders
    kept = preserve.of_batch(share) if preserve else 0
    every = preserve.every if preserve else 0
    own = share if every else share - kept
    rounds = math.ceil((sum(sizes) if shared else max(sizes)) / own)
    if every > rounds:
        raise InputError(f"--preserve-every {every}: an epoch has {rounds} steps; give at most {rounds}")
    return len(sizes) if shared else occluders, Batches(own, rounds, kept, every, config.augment)


class Groups:
    """The classes of a bank, a group at a time; only that group's pictures are in memory.

    A group is trained whole: a class left over would see other batches, and round otherwise, on resuming.
    """

    def __init__(self, run: Run, folders: Sequence[ClassFolder]) -> None:
        self._run, self._folders = run, folders
        together, self._batches = cut(run.config, run.splits)
        self._groups = [folders[i : i + together] for i in range(0, len(folders), together)]

    @cached_property
    def _pool(self) -> Pool | None:
        return self._run.pool(self._folders)

    def to_do(self) -> list[int]:
        """Return the numbers of the groups that are not done; say what is, and what the others take."""
        todo = [number for number in range(len(self._groups)) if not self._done(number)]
        done = len(self._folders) - sum(map(self.classes, todo))
        if done:
            self._run.say(f"resuming: {done} of {len(self._folders)} classes are done")
        if todo:
            self._run.say(self._run.need([self._groups[number] for number in todo]).described(self._run.device))
        return todo

    @property
    def every(self) -> int:
        """How many classes the bank has."""
        return len(self._folders)

    def classes(self, number: int) -> int:
        """Return how many classes a group has."""
        return len(self._groups[number])

    def _done(self, number: int) -> bool:
        return all(self._run.checkpoint.has(folder.class_id) for folder in self._groups[number])

    def train(self, number: int, advance: Callable[[float, str], None]) -> None:
        """Train a group from its last saved epoch, unless it is done; `advance` takes epochs of a class, and a note."""
        run = self._run
        if self._done(number):
            return
        try:
            _train_group(run, [run.read(folder) for folder in self._groups[number]], self._batches, self._pool, advance)
        except InputError:
            run.checkpoint.drop_unused()
            raise


def train_groups(groups: Groups, epochs: int, progress: Progress) -> None:
    """Train the groups that are not done, one after the other, each for so many epochs."""
    todo = groups.to_do()
    done = groups.every - sum(map(groups.classes, todo))
    with progress.task("training", groups.every * epochs, done * epochs) as bar:
        for number in todo:
            groups.train(number, bar.advance)


def _train_group(
    run: Run,
    work: Sequence[ClassPictures],
    batches: Batches,
    pool: Pool | None,
    advance: Callable[[float, str], None],
) -> None:
    """Train the occluders of the classes in work, from the last saved epoch."""
    config, checkpoint, ids = run.config, run.checkpoint, [c.folder.class_id for c in work]
    fitted = run.occluders_of(work)
    judge = run.judge(work, fitted)
    step = Descent(run.network, config, torch.zeros(len(fitted), *work[0].images.shape[1:], device=run.device))
    saved, first = checkpoint.load_epoch(ids, step.state_dict()), 0
    if saved is not None:
        step.load_state_dict(saved.tensors)
        first = saved.epoch
    advance(first * len(work), "")
    for epoch in range(first, config.epochs):
        active = [f for f, stopped in zip(fitted, step.stopped.tolist(), strict=True) if not stopped]
        if not active:
            advance((config.epochs - epoch) * len(work), "target reached")
            break
        pace = _Pace(
            epoch,
            batches.steps,
            sum(len(c.images) for c in work),
            lambda note: advance(len(work) / batches.steps, note),
        )
        _epoch(run, step, batches.of(active, epoch, config.seed, pool), pace)
        if judge is not None:
            judge.stop(step, epoch + 1)
        if epoch + 1 < config.epochs:
            checkpoint.save_epoch(ids, EpochState({k: v.cpu() for k, v in step.state_dict().items()}, epoch + 1))
    _save(run, work, step, judge)
    checkpoint.drop_epoch(ids)


@dataclass(frozen=True)
class _Pace:
    """Where an epoch of `steps` steps over `pictures` own pictures stands, and what takes a note after each step."""

    epoch: int
    steps: int
    pictures: int
    advance: Callable[[str], None]


def _epoch(run: Run, step: Descent, batches: Iterator[Batch], pace: _Pace) -> None:
    """Take the steps of an epoch.

    A step that is not finite is skipped, and said; some in a row, or all of an epoch, end the training.
    """
    config = run.config
    fooled = pictures = 0
    for taken in _steps(config, step, batches, pace):
        if taken.wrong is None:
            run.say(f"{described_as_not_finite(run.network.precision)}; step {taken.count} is skipped")
            pace.advance("")
            continue
        if taken.count == 1:  # the occluders were zeros
            run.first_answers.add(1 - taken.wrong / taken.own, min(taken.own, pace.pictures))
        fooled += taken.wrong
        pictures += taken.own
        pace.advance(f"fooling rate {fooled / pictures:.2f}" if pictures else "")
    if not pictures:
        raise not_finite(run.network.precision)


def _steps(config: TrainConfig, step: Descent, batches: Iterator[Batch], pace: _Pace) -> Iterator[Taken]:
    for done, batch in enumerate(batches, start=pace.epoch * pace.steps):
        yield from step(batch, config.step_size(done / (pace.steps * config.epochs)), done + 1)
    yield from step.finish()


def _save(run: Run, work: Sequence[ClassPictures], step: Descent, judge: Judge | None) -> None:
    """Save the occluders of the classes in work, as weak as their target allows."""
    epochs = [stopped or run.config.epochs for stopped in step.stopped.tolist()]
    reached = [judge.weakest(row, step.occluders[row], n) if judge else None for row, n in enumerate(epochs)]
    weakened = [o * r.strength if r else o for o, r in zip(step.occluders.cpu(), reached, strict=True)]
    for place, pictures in enumerate(work):
        row = min(place, len(weakened) - 1)  # 0 where all share one
        run.checkpoint.save(pictures.folder.class_id, weakened[row], pictures.unreadable, reached[row])
