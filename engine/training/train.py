"""Training a bank: for each class, the one occluder that takes its evidence out of every picture of the class.

    minimise over d_c in the ε ball   Σ_pictures max(z_c − max_{j ≠ c} z_j, −κ)   at clamp(x + d_c, 0, 255)

A few classes are in work at a time and share each batch; a pair list says which occluder a picture takes. A finished
class is saved at once as a part beside the output, the classes in work after every epoch; the same command resumes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...export.bank import BankHeader, OccluderBank
from ...export.classifier import PRECISIONS, FrozenClassifier, load_classifier
from ...export.errors import InputError
from ...export.models.spec import ModelSpec
from ...export.occluded import OccludedClassifier
from ...kernels.margin_loss import margin_loss
from ...kernels.occluder_step import adam_step, occluder_step
from ..data.folders import ClassFolder, list_classes
from ..data.loading import open_source
from ..data.source import PictureSource
from ..data.spec import DataSpec
from ..devices import checked_impl, deterministic, device_name, exact_float32, fitting_memory, resolve_device
from ..machine import keep_freed_memory, measured_precision
from ..progress import Progress, no_progress
from .checkpoint import Splits, TrainingParts
from .config import TrainConfig, split_pictures

# fp16 gradients of a deep network underflow; the step divides by the gradient's size, so any factor may stand here.
_LOSS_SCALE = {"fp32": 1.0, "bf16": 1.0, "fp16": 1024.0}
_READ_BLOCK = 256
# What the step keeps beside the occluders, by the names of its arguments.
_OPTIMIZER_STATE = {"momentum": ("momentum",), "adam": ("first", "second")}


@dataclass(frozen=True)
class _ClassInWork:
    """One class's pictures in memory: uint8 [n, S, S, 3]."""

    folder: ClassFolder
    images: Tensor

    def order(self, epoch: int, pictures: int, seed: int) -> Tensor:
        """Which of its pictures an epoch takes, int64 [pictures]: seeded permutations, as many as it needs."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + self.folder.class_id * 1009 + epoch)
        rounds = math.ceil(pictures / len(self.images))
        return torch.cat([torch.randperm(len(self.images), generator=generator) for _ in range(rounds)])[:pictures]


@dataclass(frozen=True)
class _Batches:
    """How epochs are cut up: `share` pictures of each class in a step, `steps` an epoch; small classes start over."""

    share: int
    steps: int

    def of(self, work: Sequence[_ClassInWork], epoch: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Pictures uint8 [P, S, S, 3], occluder_index int64 [P] (1 … G), labels int64 [P], the classes side by side."""
        orders = [c.order(epoch, self.steps * self.share, seed) for c in work]
        occluder_index = torch.arange(1, len(work) + 1).repeat_interleave(self.share)
        labels = torch.tensor([c.folder.class_id for c in work]).repeat_interleave(self.share)
        for start in range(0, self.steps * self.share, self.share):
            places = slice(start, start + self.share)
            chosen = [c.images[order[places]] for c, order in zip(work, orders, strict=True)]
            yield torch.cat(chosen), occluder_index, labels


def train(
    model: ModelSpec | FrozenClassifier,
    data: Path,
    out: Path,
    config: TrainConfig,
    *,
    classes: str | Sequence[str] = "all",
    class_map: Path | None = None,
    precision: str = "auto",
    device: str = "auto",
    loader: str = "auto",
    decoded_cache: bool = False,
    impl: str = "auto",
    progress: Progress = no_progress,
) -> OccluderBank:
    """Train one occluder per class on `data/train/<folder>/*` and write the bank to `out`.

    Parameters
    ----------
    model
        What to train against: a specification that is loaded here, or a frozen classifier.
    classes, class_map
        As `folders.list_classes`.
    precision
        Of the network; the occluders stay float32. `auto` measures which is fastest and says so.
    loader, decoded_cache
        See `pictures.open_source`. Each class is read once, into memory (uint8).
    impl
        Of the fused operations: `auto`, `reference` or `triton`; see `kernels.impl.choose_impl`.
    progress
        Is told what happens; see `progress`.

    Returns
    -------
    OccluderBank
        As saved. If `out` already holds the result of the same call, it is read and nothing is trained.

    Raises
    ------
    InputError
        Bad input, or parts of another configuration beside `out`.
    KeyboardInterrupt
        What is finished stays; the same call resumes.

    Source: Wu et al., CVPR 2020, supplementary S1; Carlini and Wagner 2017 for the margin.
    """
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"--precision {precision}: expected auto or one of {', '.join(PRECISIONS)}")
    torch_device = resolve_device(device)
    kernels, why = checked_impl(impl, torch_device)
    classifier = load_classifier(model) if isinstance(model, ModelSpec) else model
    config.check(classifier.preprocessing.input_size)
    spec = DataSpec(data, "train", class_map=class_map, loader=loader, decoded_cache=decoded_cache)
    folders = list_classes(spec, classes, classifier.num_classes, config.seed)
    splits = {f.class_id: split_pictures(f.paths, f.class_id, config) for f in folders}
    source = open_source(spec, classifier.preprocessing, torch_device)
    header = _header(classifier, config, folders, source)
    parts = TrainingParts(out, header, splits)
    finished = parts.finished_bank(precision)
    if finished is not None:
        progress.say(f"{out}: already trained with this configuration")
        return finished
    keep_freed_memory()
    place = device_name(torch_device)
    with deterministic(torch_device), fitting_memory(config.batch_size, place):
        parts.open(
            precision,
            place,
            lambda: _choose_precision(classifier, precision, torch_device, config, kernels, progress),
        )
        progress.say(f"kernels {kernels}: {why}; loader {source.name}: {source.how}")
        network = OccludedClassifier(classifier, parts.precision, impl=kernels).to(torch_device)
        with exact_float32(parts.precision, torch_device):
            _train_groups(network, folders, splits, source, config, parts, torch_device, progress)
    return parts.join(progress.say)


def _train_groups(
    network: OccludedClassifier,
    folders: Sequence[ClassFolder],
    splits: Splits,
    source: PictureSource,
    config: TrainConfig,
    parts: TrainingParts,
    device: torch.device,
    progress: Progress,
) -> None:
    """Train what is not finished, a group of classes at a time; only their pictures are in memory."""
    together = min(config.classes_together, config.batch_size, len(folders))
    # The same share of a batch and number of steps for every group, so that an occluder depends on its own class alone.
    share = config.batch_size // together
    steps = math.ceil(max(len(fitted) for fitted, _ in splits.values()) / share)
    # A group is trained whole: a class left over would see other batches, and round otherwise, on resuming.
    groups = [folders[i : i + together] for i in range(0, len(folders), together)]
    todo = [group for group in groups if not all(parts.has(f.class_id) for f in group)]
    done = len(folders) - sum(len(group) for group in todo)
    if done:
        progress.say(f"resuming: {done} of {len(folders)} classes are done")
    with progress.task("training", len(folders) * config.epochs, done=done * config.epochs) as bar:
        for group in todo:
            work = [_read_class(f, splits[f.class_id][0], source, parts) for f in group]
            _train_group(network, work, config, _Batches(share, steps), parts, device, bar.advance)


def _header(
    classifier: FrozenClassifier, config: TrainConfig, folders: Sequence[ClassFolder], source: PictureSource
) -> BankHeader:
    objective = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("epsilon", "norm", "seed")}
    return BankHeader(
        model=classifier.model,
        weights=classifier.weights,
        weights_hash=classifier.weights_hash,
        preprocessing=classifier.preprocessing,
        epsilon=float(config.epsilon),
        norm=config.norm,
        class_ids=tuple(f.class_id for f in folders),
        folders=tuple(f.folder for f in folders),
        objective={"loss": "carlini-wagner-margin", **objective, "loader": source.name},
        seed=config.seed,
    )


def _read_class(folder: ClassFolder, paths: Sequence[str], source: PictureSource, parts: TrainingParts) -> _ClassInWork:
    images, quarantined = [], []
    for block in source.blocks(paths, _READ_BLOCK):
        images.append(block.images[block.readable].cpu())
        quarantined += [{"path": paths[block.start + i], "reason": why} for i, why in block.quarantined.items()]
    if sum(len(part) for part in images) == 0:
        raise InputError(
            f"{Path(paths[0]).parent}: none of its {len(paths)} pictures could be read "
            f"({quarantined[0]['reason']}); mend the folder or leave the class out"
        )
    parts.note_quarantined(folder.class_id, quarantined)
    return _ClassInWork(folder, torch.cat(images))


def _train_group(
    network: OccludedClassifier,
    work: Sequence[_ClassInWork],
    config: TrainConfig,
    batches: _Batches,
    parts: TrainingParts,
    device: torch.device,
    advance: Callable[[float, str], None],
) -> None:
    """Train the occluders of the classes in work, from the last saved epoch."""
    ids = [c.folder.class_id for c in work]
    names = ("occluders", *_OPTIMIZER_STATE[config.optimizer])
    saved = parts.load_epoch(ids, names)
    first = 0 if saved is None else saved.epoch
    blank = torch.zeros(len(work), *work[0].images.shape[1:])
    state = {name: blank.to(device, copy=True) if saved is None else saved.tensors[name].to(device) for name in names}
    advance(first * len(work), "")
    for epoch in range(first, config.epochs):
        fooled = pictures = 0
        for i, (images, occluder_index, labels) in enumerate(batches.of(work, epoch, config.seed)):
            gradient, wrong = _gradient(
                network, images.to(device), occluder_index.to(device), labels.to(device), state["occluders"], config
            )
            _update(state, gradient, config, epoch * batches.steps + i, batches.steps, network.impl)
            fooled, pictures = fooled + wrong, pictures + len(labels)
            advance(len(work) / batches.steps, f"fooling rate {fooled / pictures:.2f}")
        if epoch + 1 < config.epochs:
            parts.save_epoch(ids, {name: tensor.cpu() for name, tensor in state.items()}, epoch + 1)
    for class_id, occluder in zip(ids, state["occluders"].cpu(), strict=True):
        parts.save(class_id, occluder)
    parts.drop_epoch()


def _update(
    state: dict[str, Tensor], gradient: Tensor, config: TrainConfig, done: int, steps_an_epoch: int, impl: str
) -> None:
    """One step of the optimizer after `done` others, in place."""
    common: dict[str, Any] = {
        "step": _step_size(config, done / (steps_an_epoch * config.epochs)),
        "epsilon": config.epsilon,
        "norm": config.norm,
        "impl": impl,
    }
    if config.optimizer == "adam":
        adam_step(**state, gradient=gradient, count=done + 1, beta1=config.momentum, **common)
    else:
        occluder_step(**state, gradient=gradient, decay=config.momentum, **common)


def _step_size(config: TrainConfig, done: float) -> float:
    """α in pixel units after the share `done` of all steps: half a cosine from step · ε to 0."""
    return config.step * config.epsilon * 0.5 * (1 + math.cos(math.pi * done))


def _gradient(
    network: OccludedClassifier,
    images: Tensor,
    occluder_index: Tensor,
    labels: Tensor,
    occluders: Tensor,
    config: TrainConfig,
) -> tuple[Tensor, int]:
    """∂ Σ loss / ∂ occluders, float32 [G, S, S, 3], and how many pictures the model now gets wrong."""
    occluders = occluders.detach().requires_grad_(True)
    logits = network(images, torch.arange(len(images), device=images.device), occluder_index, occluders)
    loss = margin_loss(logits, labels, config.kappa, impl=network.impl).sum() * _LOSS_SCALE[network.precision]
    (gradient,) = torch.autograd.grad(loss, occluders)
    # The sign of NaN is 0: unnoticed, an occluder would stand still for ever and its NaN logits count as fooled.
    if not bool(logits.isfinite().all() & gradient.isfinite().all()):
        mend = "check the weights" if network.precision == "fp32" else "use bf16 or fp32"
        raise InputError(f"--precision {network.precision}: logits or gradients are not finite; {mend}")
    return gradient, int((logits.detach().argmax(dim=1) != labels).sum())


def training_step(
    classifier: FrozenClassifier,
    precision: str,
    device: torch.device,
    config: TrainConfig,
    *,
    groups: int,
    impl: str = "auto",
) -> Callable[[Tensor, Tensor, Tensor], None]:
    """One step of `train` on occluders of its own, from zero, for benchmarks: the size is that of the first step.

    It takes pictures uint8 [P, S, S, 3], occluder_index int64 [P] (1 … groups) and labels int64 [P], on the device.
    """
    kernels, _ = checked_impl(impl, device)
    network = OccludedClassifier(classifier, precision, impl=kernels).to(device)
    size = classifier.preprocessing.input_size
    names = ("occluders", *_OPTIMIZER_STATE[config.optimizer])
    state = {name: torch.zeros(groups, size, size, 3, device=device) for name in names}

    def step(images: Tensor, occluder_index: Tensor, labels: Tensor) -> None:
        gradient, _ = _gradient(network, images, occluder_index, labels, state["occluders"], config)
        _update(state, gradient, config, 0, 1, network.impl)

    return step


def _choose_precision(
    classifier: FrozenClassifier,
    precision: str,
    device: torch.device,
    config: TrainConfig,
    impl: str,
    progress: Progress,
) -> str:
    """`auto`: time a few steps on noise at fp32 and bf16 and take the faster."""
    if precision != "auto":
        return precision
    size = classifier.preprocessing.input_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (config.batch_size, size, size, 3), dtype=torch.uint8, generator=generator).to(
        device
    )
    index = torch.ones(len(images), dtype=torch.int64, device=device)
    occluders = torch.zeros(1, size, size, 3, device=device)

    def steps(candidate: str) -> Callable[[], None]:
        network = OccludedClassifier(classifier, candidate, impl=impl).to(device)

        def step() -> None:
            with exact_float32(candidate, device):
                _gradient(network, images, index, torch.zeros_like(index), occluders, config)

        return step

    chosen, reason = measured_precision({name: steps(name) for name in ("fp32", "bf16")}, device)
    progress.say(f"precision {chosen}: {reason}")
    return chosen
