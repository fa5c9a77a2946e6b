"""Training a bank: for each class, the one occluder that wipes its evidence out of every picture of the class.

    minimise over d_c in the ε ball   Σ_pictures loss(network(clamp(x + d_c, 0, 255)), c)

An objective may add a loss on pictures of other classes, whose answers are to stay. A few classes are in work at a time
and share each batch; a pair list assigns each picture its occluder. A finished class is saved at once, the classes in
work after every epoch; the same command resumes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...export.bank import OccluderBank
from ...export.bank_header import BankHeader
from ...export.classifier import FrozenClassifier, load_classifier
from ...export.models.spec import ModelSpec
from ...export.occluded import OccludedClassifier
from ..data.folders import ClassFolder
from ..data.loading import open_source
from ..data.source import PictureSource
from ..data.spec import DataSpec
from ..devices import checked_impl, deterministic, device_name, exact_float32, fitting_memory, resolve_device
from ..doubts import FirstAnswers
from ..machine import keep_freed_memory, measured_precision
from ..progress import Progress, no_progress
from .batches import Batch
from .checkpoint import Checkpoint, Splits
from .config import TrainConfig
from .descent import Descent, first_descent
from .groups import Groups, Run, chosen_classes, cut, train_groups
from .owner import sole_owner
from .preserve import Preserved, choose_preserved


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
        The pictures; `split` is not read, `classes` of None means all. Each class is read once, into memory (uint8),
        and from there copied to the device.
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
    job = Job(model, data, out, config)
    if config.cluster is not None:
        from .distributed import train_on_cluster

        return train_on_cluster(job, config.cluster, progress)
    plan = Plan.of(job, progress)
    finished = plan.finished()
    if finished is not None:
        return finished
    with sole_owner(plan.checkpoint.folder):
        groups = plan.open()
        with plan.trains():
            train_groups(groups, config.epochs, progress)
        return plan.checkpoint.join()


@dataclass(frozen=True)
class Job:
    """What is trained; see `train`."""

    model: ModelSpec | FrozenClassifier
    data: DataSpec
    out: Path
    config: TrainConfig


@dataclass(frozen=True)
class Plan:
    """A training that has not begun: its classes, pictures and checkpoint are chosen.

    Attributes
    ----------
    place
        The device's name.
    """

    config: TrainConfig
    classifier: FrozenClassifier
    device: torch.device
    kernels: tuple[str, str]
    folders: Sequence[ClassFolder]
    splits: Splits
    preserved: Preserved | None
    source: PictureSource
    checkpoint: Checkpoint
    progress: Progress

    @classmethod
    def of(cls, job: Job, progress: Progress) -> Plan:
        """Load the network, choose the pictures and check the options; errors are those of `train`."""
        config, say = job.config, progress.say
        device = resolve_device(config.device)
        kernels = checked_impl(config.impl, device)
        classifier = load_classifier(job.model) if isinstance(job.model, ModelSpec) else job.model
        config.check_epsilon(classifier.preprocessing.input_size)
        objective, outputs = config.make_objective(), classifier.num_classes
        data = replace(job.data, split="train")
        folders, splits = chosen_classes(classifier, data, config, say)
        objective.check([f.class_id for f in folders], outputs)
        cut(config, splits)
        preserved = None
        if config.preserve:
            preserved = choose_preserved(config.preserve, data, folders, splits, outputs, config.seed, say)
        source = open_source(data, classifier.preprocessing, device)
        header = _header(classifier, config, folders, source, preserved)
        checkpoint = Checkpoint(job.out, header, splits, data.files, preserved, say)
        return cls(config, classifier, device, kernels, folders, splits, preserved, source, checkpoint, progress)

    @property
    def place(self) -> str:
        """See above."""
        return device_name(self.device)

    def finished(self) -> OccluderBank | None:
        """Return the bank if it is there, and say so."""
        bank = self.checkpoint.finished_bank(self.config.precision)
        if bank is not None:
            self.progress.say(f"{self.checkpoint.out}: already trained with this configuration")
        return bank

    @contextlib.contextmanager
    def trains(self) -> Iterator[None]:
        """Make the device compute as training needs it, for a `with` block."""
        with self._fits(), exact_float32(self.checkpoint.precision, self.device):
            yield

    @contextlib.contextmanager
    def _fits(self) -> Iterator[None]:
        size = self.config.pictures_in_a_pass(self.device.type)
        with deterministic(self.device), fitting_memory(size, self.place, "--pass-size"):
            yield

    def open(self) -> Groups:
        """Open the checkpoint, whose folder exists, and the network; the precision may be measured first."""
        config, say = self.config, self.progress.say
        keep_freed_memory()
        with self._fits():
            choose = functools.partial(_choose_precision, self.classifier, config, self.device, self.progress)
            self.checkpoint.open(config.precision, self.place, choose)
            kernels, why = self.kernels
            say(f"kernels {kernels}: {why}; loader {self.source.name}: {self.source.how}")
            network = OccludedClassifier(self.classifier, self.checkpoint.precision, impl=kernels)
            network = network.settled(self.device, gradient=True)
        if network.islands:
            say(network.islands)
        first = FirstAnswers(self.classifier.num_classes, say)
        given = (self.source, self.splits, self.checkpoint, self.device, first, self.preserved, say)
        return Groups(Run(self.classifier, network, config, *given), self.folders)


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
    size, outputs = classifier.preprocessing.input_size, classifier.num_classes
    batch = Batch.of_noise(config.batch_size, size, 1, outputs).to(device)

    def timed(precision: str) -> Callable[[], None]:
        @functools.cache  # in the first call, where a network that fails at a precision is noted
        def step() -> Descent:
            return first_descent(classifier, replace(config, precision=precision), device, 1)

        def run() -> None:
            with exact_float32(precision, device):
                descent = step()
                descent(batch, config.step_size(0.0), 1)
                descent.finish()  # raises where three are not finite

        return run

    chosen, reason = measured_precision({name: timed(name) for name in ("fp32", "bf16")}, device)
    progress.say(f"precision {chosen}: {reason}")
    return chosen
