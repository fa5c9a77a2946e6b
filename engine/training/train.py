"""Training a bank: for each class, the one occluder that wipes its evidence out of every picture of the class.

    minimise over d_c in the ε ball   Σ_pictures loss(network(clamp(x + d_c, 0, 255)), c)

An objective may add a loss on pictures of other classes, whose answers are to stay. A few classes are in work at a time
and share each batch; a pair list assigns each picture its occluder. A finished class is saved at once, the classes in
work after every epoch; the same command resumes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ...export.bank import OccluderBank
from ...export.bank_header import BankHeader
from ...export.classifier import FrozenClassifier, load_classifier
from ...export.errors import InputError
from ...export.models.spec import ModelSpec
from ...export.occluded import OccludedClassifier
from ..data.folders import ClassFolder, beside_the_classes, list_classes, mapped_elsewhere
from ..data.loading import open_source
from ..data.source import PictureSource
from ..data.spec import DataSpec
from ..devices import checked_impl, deterministic, device_name, exact_float32, fitting_memory, resolve_device
from ..doubts import FirstAnswers
from ..machine import keep_freed_memory, measured_precision
from ..progress import Progress, no_progress
from .batches import Batch, Batches, ClassPictures, Fitted, Pool, read_class
from .checkpoint import Checkpoint, EpochState, Splits
from .config import TrainConfig, split_pictures
from .optimizers import OPTIMIZERS
from .optimizers.base import Ball
from .owner import sole_owner
from .preserve import Preserved, choose_preserved, clean_logits, read_pool

_OTHER_OUT = " (and another --out where a training has begun: it is part of how a bank is made)"
# fp16 gradients of a deep network underflow; the step divides by the gradient's size, so any factor may stand here.
_LOSS_SCALE = {"fp32": 1.0, "bf16": 1.0, "fp16": 1024.0}


class Descent:
    """The method's step for the classes in work; it holds their `occluders`, float32 [G, S, S, 3], and the optimizer.

    Source: Wu et al., CVPR 2020, supplementary S1.
    """

    def __init__(self, network: OccludedClassifier, config: TrainConfig, occluders: Tensor) -> None:
        ball = Ball(float(config.epsilon), cast("Any", config.norm))
        self.occluders = occluders
        self._network = network
        self._objective = config.make_objective()
        self._weight = config.preserve.weight if config.preserve else 0.0
        self._optimizer = OPTIMIZERS[config.optimizer](occluders, ball, config.momentum, network.impl)

    def __call__(self, batch: Batch, size: float, count: int) -> int:
        """Take step number `count` ≥ 1, of `size` pixel units; return how many of the own pictures were wrong."""
        network, occluders = self._network, self.occluders.detach().requires_grad_(True)
        pictures = torch.arange(len(batch.images), device=batch.images.device)
        logits = network(batch.images, pictures, batch.occluder_index, occluders)  # occlude and forward
        loss = self._loss(logits, batch) * _LOSS_SCALE[network.precision]
        with network.naming_failure(occluders.device):
            (gradient,) = torch.autograd.grad(loss, occluders)
        # The sign of NaN is 0: unnoticed, an occluder would stand still for ever and its NaN logits count as fooled.
        if not bool(logits.isfinite().all() & gradient.isfinite().all()):
            fix = "check the weights" if network.precision == "fp32" else "use bf16 or fp32"
            raise InputError(f"--precision {network.precision}: logits or gradients are not finite; {fix}")
        self._optimizer.step(self.occluders, gradient, size, count)  # step and project
        return int((logits.detach()[: len(batch.labels)].argmax(dim=1) != batch.labels).sum())

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the sum over own pictures, and the weighted mean over preserved ones as if there were as many."""
        own = len(batch.labels)
        losses: list[Tensor] = []
        if own:
            losses.append(self._objective.loss(logits[:own], batch.labels, impl=self._network.impl).sum())
        if batch.clean is not None:
            kept = self._objective.preserving_loss(logits[own:], batch.clean)
            losses.append(self._weight * (own or len(kept)) * kept.mean())
        return torch.stack(losses).sum()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint holds."""
        return {"occluders": self.occluders, **self._optimizer.state_dict()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Continue from a checkpoint's tensors."""
        self.occluders.copy_(tensors["occluders"])
        self._optimizer.load_state_dict(tensors)


def train(
    model: ModelSpec | FrozenClassifier,
    data: DataSpec,
    out: Path,
    config: TrainConfig,
    progress: Progress = no_progress,
) -> OccluderBank:
    """Train one occluder per class on `data.root/train` and write the bank to `out`.

    Parameters
    ----------
    model
        The network to explain: a specification to load, or a frozen classifier.
    data
        The pictures; `split` is not read, `classes` of None means all. Each class is read once, into memory (uint8).
    out
        The bank's file. If it already holds the result of the same call, it is read and nothing is trained.
    config
        How to train.
    progress
        Where progress is reported.

    Returns
    -------
    OccluderBank
        The bank as saved.

    Raises
    ------
    InputError
        Bad input, or a bank or checkpoint of another configuration at `out`.
    EngineUnavailable
        The device or the loader is not available.
    KeyboardInterrupt
        Finished epochs are kept; the same call resumes.

    Source: Wu et al., CVPR 2020, supplementary S1.
    """
    device = resolve_device(config.device)
    kernels, why = checked_impl(config.impl, device)
    classifier = load_classifier(model) if isinstance(model, ModelSpec) else model
    config.check_epsilon(classifier.preprocessing.input_size)
    objective = config.make_objective()
    data = replace(data, split="train")
    classes = "all" if data.classes is None else data.classes
    folders = list_classes(data, classes, classifier.num_classes, config.seed)
    of_model = (classifier.doubt, classifier.preprocessing.doubt)
    of_data = (beside_the_classes(data), mapped_elsewhere(data, folders, classifier.num_classes))
    for line in filter(None, (*of_model, *of_data)):
        progress.say(line)
    objective.check([f.class_id for f in folders], classifier.num_classes)
    splits = {f.class_id: split_pictures(f.paths, f.class_id, config) for f in folders}
    preserved = None
    if config.preserve:
        outputs, say = classifier.num_classes, progress.say
        preserved = choose_preserved(config.preserve, data, folders, splits, outputs, config.seed, say)
    source = open_source(data, classifier.preprocessing, device)
    header = _header(classifier, config, folders, source, preserved)
    checkpoint = Checkpoint(out, header, splits, data.files, preserved, progress.say)
    finished = checkpoint.finished_bank(config.precision)
    if finished is not None:
        progress.say(f"{out}: already trained with this configuration")
        return finished
    keep_freed_memory()
    place = device_name(device)
    with deterministic(device), fitting_memory(config.batch_size, place, _OTHER_OUT), sole_owner(checkpoint.folder):
        checkpoint.open(config.precision, place, lambda: _choose_precision(classifier, config, device, progress))
        progress.say(f"kernels {kernels}: {why}; loader {source.name}: {source.how}")
        network = OccludedClassifier(classifier, checkpoint.precision, impl=kernels).settled(device, gradient=True)
        if network.islands:
            progress.say(network.islands)
        with exact_float32(checkpoint.precision, device):
            first = FirstAnswers(classifier.num_classes, progress.say)
            run = _Run(classifier, network, config, source, splits, checkpoint, device, first, preserved)
            _train_groups(run, folders, progress)
        return checkpoint.join()


def _header(
    classifier: FrozenClassifier,
    config: TrainConfig,
    folders: Sequence[ClassFolder],
    source: PictureSource,
    preserved: Preserved | None,
) -> BankHeader:
    objective = {**config.header(), "loader": source.name}
    if preserved is not None:
        objective["preserve"] = {**objective["preserve"], "classes": preserved.classes}
    return BankHeader(
        model=classifier.model,
        weights=classifier.weights,
        weights_hash=classifier.weights_hash,
        preprocessing=classifier.preprocessing,
        epsilon=float(config.epsilon),
        norm=config.norm,
        class_ids=tuple(f.class_id for f in folders),
        folders=tuple(f.folder for f in folders),
        objective=objective,
        seed=config.seed,
    )


@dataclass(frozen=True)
class _Run:
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

    def read(self, folder: ClassFolder) -> ClassPictures:
        """Read the pictures to fit of a class, without those that the clean network gets wrong if asked."""
        found = read_class(folder, self.splits[folder.class_id][0], self.source)
        if not self.config.correct_only:
            return found
        right = (
            clean_logits(self.network, found.images, self.device, self.config.batch_size).argmax(1) == folder.class_id
        )
        if not bool(right.any()):
            raise InputError(
                f"--correct-only: the network gets none of the {len(right)} pictures of {folder.folder} right; check "
                "the class map, or leave the class out"
            )
        return replace(found, images=found.images[right])

    def pool(self, folders: Sequence[ClassFolder], say: Callable[[str], None]) -> Pool | None:
        """Read the pictures to preserve, if any."""
        config, own = self.config, [f.class_id for f in folders]
        if self.preserved is None or config.preserve is None:
            return None
        where = (self.network, self.device, config.batch_size, say)
        return read_pool(self.preserved, config.preserve, own, self.classifier.preprocessing, *where)

    def batches(self, together: int, longest: int) -> Batches:
        """Cut an epoch over `longest` pictures of one of `together` occluders in work.

        The same share of a batch and number of steps for every group, so that an occluder depends on its own class
        alone.
        """
        preserve, share = self.config.preserve, self.config.batch_size // together
        kept = preserve.of_batch(share) if preserve else 0
        every = preserve.every if preserve else 0
        own = share if every else share - kept
        rounds = math.ceil(longest / own)
        if every > rounds:
            raise InputError(f"--preserve-every {every}: an epoch has {rounds} steps; give at most {rounds}")
        return Batches(own, rounds, kept, every)


def _train_groups(run: _Run, folders: Sequence[ClassFolder], progress: Progress) -> None:
    """Train the unfinished classes, one group at a time; only that group's pictures are in memory."""
    config, checkpoint = run.config, run.checkpoint
    sizes = [len(fitted) for fitted, _ in run.splits.values()]
    if config.make_objective().shared:
        batches, groups = run.batches(1, sum(sizes)), [folders]
    else:
        together = min(config.classes_together, config.batch_size, len(folders))
        batches = run.batches(together, max(sizes))
        # A group is trained whole: a class left over would see other batches, and round otherwise, on resuming.
        groups = [folders[i : i + together] for i in range(0, len(folders), together)]
    todo = [group for group in groups if not all(checkpoint.has(f.class_id) for f in group)]
    done = len(folders) - sum(len(group) for group in todo)
    if done:
        progress.say(f"resuming: {done} of {len(folders)} classes are done")
    pool = run.pool(folders, progress.say) if todo else None
    with progress.task("training", len(folders) * config.epochs, done=done * config.epochs) as bar:
        for group in todo:
            _train_group(run, [run.read(folder) for folder in group], batches, pool, bar.advance)


def _train_group(
    run: _Run,
    work: Sequence[ClassPictures],
    batches: Batches,
    pool: Pool | None,
    advance: Callable[[float, str], None],
) -> None:
    """Train the occluders of the classes in work, from the last saved epoch."""
    config, checkpoint, ids = run.config, run.checkpoint, [c.folder.class_id for c in work]
    fitted = [Fitted(work)] if config.make_objective().shared else [Fitted([c]) for c in work]
    step = Descent(run.network, config, torch.zeros(len(fitted), *work[0].images.shape[1:], device=run.device))
    saved, first = checkpoint.load_epoch(ids, step.state_dict()), 0
    if saved is not None:
        step.load_state_dict(saved.tensors)
        first = saved.epoch
    advance(first * len(work), "")
    for epoch in range(first, config.epochs):
        fooled = pictures = 0
        for done, batch in enumerate(batches.of(fitted, epoch, config.seed, pool), start=epoch * batches.steps):
            size = config.step_size(done / (batches.steps * config.epochs))
            wrong = step(batch.to(run.device), size, done + 1)
            if done == 0:  # the occluders were zeros
                seen = min(len(batch.labels), sum(len(c.images) for c in work))
                run.first_answers.add(1 - wrong / len(batch.labels), seen)
            fooled += wrong
            pictures += len(batch.labels)
            advance(len(work) / batches.steps, f"fooling rate {fooled / pictures:.2f}")
        if epoch + 1 < config.epochs:
            checkpoint.save_epoch(ids, EpochState({k: v.cpu() for k, v in step.state_dict().items()}, epoch + 1))
    for pictures, occluder in zip(work, step.occluders.cpu().expand(len(work), -1, -1, -1), strict=True):
        checkpoint.save(pictures.folder.class_id, occluder, pictures.unreadable)
    checkpoint.drop_epoch()


def training_step(
    classifier: FrozenClassifier, config: TrainConfig, device: torch.device, groups: int
) -> Callable[[Batch], int]:
    """Return the first step of `train` for `groups` occluders of zeros, for timing: each call takes it again.

    `config.precision` must be resolved. The batch is expected on the device.
    """
    kernels, _ = checked_impl(config.impl, device)
    network = OccludedClassifier(classifier, config.precision, impl=kernels).settled(device, gradient=True)
    size = classifier.preprocessing.input_size
    step = Descent(network, config, torch.zeros(groups, size, size, 3, device=device))
    return lambda batch: step(batch, config.step_size(0.0), 1)


def _choose_precision(
    classifier: FrozenClassifier, config: TrainConfig, device: torch.device, progress: Progress
) -> str:
    """Return the precision asked for; for `auto`, the faster of fp32 and bf16 in a few steps on noise.

    Raises
    ------
    InputError
        The network cannot be trained at that precision on that device.
    """
    if config.precision != "auto":
        OccludedClassifier(classifier, config.precision).settled(device, gradient=True)
        return config.precision
    size = classifier.preprocessing.input_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (config.batch_size, size, size, 3), dtype=torch.uint8, generator=generator)
    index = torch.ones(len(images), dtype=torch.int64)
    batch = Batch(images, index, torch.zeros_like(index)).to(device)

    def timed(precision: str) -> Callable[[], None]:
        @functools.cache  # in the first call, where a network that fails at a precision is noted
        def step() -> Callable[[Batch], int]:
            return training_step(classifier, replace(config, precision=precision), device, 1)

        def run() -> None:
            with exact_float32(precision, device):
                step()(batch)

        return run

    chosen, reason = measured_precision({name: timed(name) for name in ("fp32", "bf16")}, device)
    progress.say(f"precision {chosen}: {reason}")
    return chosen
