"""One step of training: occlude, forward, loss, gradient, step, project."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ...export.classifier import FrozenClassifier
from ...export.occluded import OccludedClassifier
from ..devices import checked_impl
from .batches import Batch
from .config import TrainConfig
from .optimizers import OPTIMIZERS
from .optimizers.base import Ball

# fp16 gradients of a deep network underflow; the step divides by the gradient's size, so any factor may stand here.
_LOSS_SCALE = {"fp32": 1.0, "bf16": 1.0, "fp16": 1024.0}


class Descent:
    """The method's step for the classes in work; it holds their `occluders`, float32 [G, S, S, 3], and the optimizer.

    `stopped`, int64 [G], is the epoch after which an occluder was left as it is, 0 for none; `failed` is how many of
    the last steps in a row were not finite.

    Source: Wu et al., CVPR 2020, supplementary S1.
    """

    def __init__(self, network: OccludedClassifier, config: TrainConfig, occluders: Tensor) -> None:
        ball = Ball(float(config.epsilon), cast("Any", config.norm))
        self.occluders = occluders
        self._network = network
        self._objective = config.make_objective()
        self._weight = config.preserve.weight if config.preserve else 0.0
        self._optimizer = OPTIMIZERS[config.optimizer](occluders, ball, config.momentum, network.impl)
        self.stopped = torch.zeros(len(occluders), dtype=torch.int64, device=occluders.device)
        self.failed = 0
        self._stops = config.target_accuracy is not None
        self._pass_size = config.pictures_in_a_pass(occluders.device.type)

    def __call__(self, batch: Batch, size: float, count: int) -> int | None:
        """Take step number `count` ≥ 1, of `size` pixel units; return how many of the own pictures were wrong.

        None, and nothing is changed, where logits or gradients are not finite.
        """
        gradient = torch.zeros_like(self.occluders)
        finite, wrong = torch.ones_like(self.stopped[0], dtype=torch.bool), torch.zeros_like(self.stopped[0])
        for part in batch.parts(self._pass_size):
            logits, of_part = self._gradient(part, batch)
            gradient += of_part
            finite &= logits.isfinite().all()
            wrong += (logits[: len(part.labels)].argmax(dim=1) != part.labels).sum()
        # The sign of NaN is 0: unnoticed, an occluder would stand still for ever and its NaN logits count as fooled.
        if not bool(finite & gradient.isfinite().all()):
            self.failed += 1
            return None
        self.failed = 0 if len(batch.labels) else self.failed  # steps with preserved pictures alone do not redeem it
        still = self.occluders[self.stopped > 0]
        self._optimizer.step(self.occluders, gradient, size, count)  # step and project
        self.occluders[self.stopped > 0] = still  # otherwise the momentum of earlier steps would carry them on
        return int(wrong)

    def _gradient(self, part: Batch, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits of a part of a batch, and what it adds to the gradient of the batch's loss."""
        network, occluders = self._network, self.occluders.detach().requires_grad_(True)
        pictures = torch.arange(len(part.images), device=part.images.device)
        logits = network(part.images, pictures, part.occluder_index, occluders)  # occlude and forward
        loss = self._loss(logits, part, batch) * _LOSS_SCALE[network.precision]
        with network.naming_failure(occluders.device):
            (gradient,) = torch.autograd.grad(loss, occluders)
        return logits.detach(), gradient

    def _loss(self, logits: Tensor, part: Batch, batch: Batch) -> Tensor:
        """Return a part's share of the sum over own pictures, and of the mean over preserved ones as if as many."""
        own = len(part.labels)
        losses: list[Tensor] = []
        if own:
            losses.append(self._objective.loss(logits[:own], part.labels, impl=self._network.impl).sum())
        if part.clean is not None and batch.clean is not None:
            weight = self._weight * (len(batch.labels) or len(batch.clean)) / len(batch.clean)
            losses.append(weight * self._objective.preserving_loss(logits[own:], part.clean).sum())
        return torch.stack(losses).sum()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint holds."""
        stopped = {"stopped": self.stopped} if self._stops else {}
        return {"occluders": self.occluders, **stopped, **self._optimizer.state_dict()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Continue from a checkpoint's tensors."""
        self.occluders.copy_(tensors["occluders"])
        if self._stops:
            self.stopped.copy_(tensors["stopped"])
        self._optimizer.load_state_dict(tensors)


def training_step(
    classifier: FrozenClassifier, config: TrainConfig, device: torch.device, groups: int
) -> Callable[[Batch], int | None]:
    """Return the first step of `train` for `groups` occluders of zeros, for timing: each call takes it again.

    `config.precision` must be resolved. The batch is expected on the device.
    """
    kernels, _ = checked_impl(config.impl, device)
    network = OccludedClassifier(classifier, config.precision, impl=kernels).settled(device, gradient=True)
    size = classifier.preprocessing.input_size
    step = Descent(network, config, torch.zeros(groups, size, size, 3, device=device))
    return lambda batch: step(batch, config.step_size(0.0), 1)
