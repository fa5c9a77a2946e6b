"""Training a bank: for each class, the one occluder that wipes its evidence out of every picture of the class.

    minimise over d_c in the ε ball   Σ_pictures loss(network(clamp(x + d_c, 0, 255)), c)

An objective may add a loss on pictures of other classes, whose answers are to stay. A few classes are in work at a time
and share each batch; a pair list assigns each picture its occluder. A finished class is saved at once, the classes in
work after every epoch; the same command resumes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...export.bank import OccluderBank
from ...export.bank_header import BankHeader
from ...export.classifier import FrozenClassifier, load_classifier
from ...export.errors import InputError
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
from .checkpoint import Checkpoint
from .config import TrainConfig
from .descent import Descent, first_descent
from .groups import Run, chosen_classes, cut, train_groups
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
    device = resolve_device(config.device)
    kernels, why = checked_impl(config.impl, device)
    classifier = load_classifier(model) if isinstance(model, ModelSpec) else model
    config.check_epsilon(classifier.preprocessing.input_size)
    objective = config.make_objective()
    data = replace(data, split="train")
    folders, splits = chosen_classes(classifier, data, config, progress.say)
    objective.check([f.class_id for f in folders], classifier.num_classes)
    cut(config, splits)
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
    fitting = fitting_memory(config.pictures_in_a_pass(device.type), place, "--pass-size")
    with deterministic(device), fitting, sole_owner(checkpoint.folder):
        checkpoint.open(config.precision, place, lambda: _choose_precision(classifier, config, device, progress))
        progress.say(f"kernels {kernels}: {why}; loader {source.name}: {source.how}")
        network = OccludedClassifier(classifier, checkpoint.precision, impl=kernels).settled(device, gradient=True)
        if network.islands:
            progress.say(network.islands)
        with exact_float32(checkpoint.precision, device):
            first = FirstAnswers(classifier.num_classes, progress.say)
            run = Run(classifier, network, config, source, splits, checkpoint, device, first, preserved, progress.say)
            try:
                train_groups(run, folders, progress)
            except InputError:
                checkpoint.drop_unused()
                raise
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
